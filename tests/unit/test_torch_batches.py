"""Several samples at once through a rendered model, also where its graph is fixed to one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from host.compare import compare
from host.compress.torch.graph import OnnxModule
from host.model import Model
from host.passes.normalise import normalise
from host.reference import Reference
from tests.graphs import model_of


def small(inputs: str, nodes: str) -> Model:
    return normalise(model_of(f"net ({inputs}) => (float y) {{ {nodes} }}"))


def sample_of(model: Model, *, seed: int) -> dict[str, np.ndarray]:
    shape = model.ir.graph.inputs[0].shape
    assert shape is not None
    return {"x": 2 * np.random.default_rng(seed).standard_normal(shape.numpy()).astype(np.float32)}


FIXED = (
    # (nodes for x [1, 2, 4, 4], how several samples run)
    ("a = GlobalAveragePool(x) y = Flatten(a)", "joined"),
    ("s = Constant<value = int64[2] {1, 32}>() y = Reshape(x, s)", "joined"),
    ("s = Constant<value = int64[2] {1, -1}>() y = Reshape(x, s)", "joined"),
    ("s = Constant<value = int64[1] {-1}>() y = Reshape(x, s)", "joined"),
    ("s = Constant<value = int64[3] {2, 4, 4}>() y = Reshape(x, s)", "joined"),
    ("a = Constant<value = int64[1] {0}>() b = Squeeze(x, a) c = MaxPool<kernel_shape=[2]>(b) y = Relu(c)", "mapped"),
    ("a = ReduceMean(x) y = Sub(x, a)", "mapped"),
    (
        "s = Constant<value = int64[4] {1, 2, 1, 4}>() z = ConstantOfShape(s) y = Concat<axis = 2>(z, x)",
        "mapped",
    ),
)


@pytest.mark.parametrize(("nodes", "way"), FIXED)
def test_several_samples_at_once_answer_like_each_alone(nodes: str, way: str) -> None:
    model = small("float[1,2,4,4] x", nodes)
    samples = [sample_of(model, seed=seed) for seed in range(5)]
    module = OnnxModule(model, samples[0])
    assert module.way == way
    with torch.no_grad():
        found = module.batch({"x": torch.from_numpy(np.stack([sample["x"] for sample in samples]))})
    reference = Reference(model)
    for index, sample in enumerate(samples):
        assert compare({"y": found["y"][index].numpy()}, reference.run(sample), tolerance=1e-5) is None


def test_a_graph_that_looks_at_its_values_runs_one_sample_after_another() -> None:
    model = small(
        "float[1,4] x",
        "a = Constant<value = int64 {0}>() one = Constant<value = int64 {1}>() five = Constant<value = int64 {5}>() "
        "m = ArgMax<axis = 1, keepdims = 0>(x) k = Squeeze(m) z = Sub(five, five) q = Mul(k, z) n = Add(q, five) "
        "r = Range(a, n, one) f = Cast<to = 1>(r) y = ReduceSum(f)",
    )
    samples = [sample_of(model, seed=seed) for seed in range(3)]
    module = OnnxModule(model, samples[0])
    assert module.way == "looped"
    found = module.batch({"x": torch.from_numpy(np.stack([sample["x"] for sample in samples]))})
    assert found["y"].ravel().tolist() == [10.0, 10.0, 10.0]


def test_gradients_of_mapped_samples_are_those_of_each_alone() -> None:
    model = small("float[1,2,4,4] x, float[3,2,3,3] w", "c = Conv(x, w) a = ReduceMean(c) y = Sub(c, a)")
    # The weight is an input there; here it is a constant.
    graph = model.ir.graph
    weight = graph.inputs.pop(1)
    weight.const_value = ir.tensor(np.random.default_rng(0).standard_normal((3, 2, 3, 3)).astype(np.float32), name="w")
    graph.register_initializer(weight)
    samples = torch.randn(4, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    module = OnnxModule(model, {"x": samples[0].numpy()})
    assert module.way == "mapped"
    torch.autograd.backward(module.batch({"x": samples})["y"].square().sum())
    together = module.weights["w"].grad
    module.zero_grad()
    for sample in samples:
        torch.autograd.backward(module({"x": sample})["y"].square().sum())
    assert together is not None
    assert torch.allclose(together, module.weights["w"].grad, rtol=1e-4)  # type: ignore[arg-type]  # backward has set it
