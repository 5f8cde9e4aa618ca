"""Recovery without training: statistics of channels as in the original, zero biases, new values."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from host.compress.recipe import Recover
from host.compress.recover import Lesson, RecoverError, recover, with_values
from host.model import Model, Tensors, to_bytes
from host.passes.normalise import normalise
from host.reference import Reference
from tests.graphs import conv_net, model_of, photos

STEP = Recover(method="batch-norm")


@pytest.fixture
def original() -> Model:
    return normalise(model_of(conv_net()))


def initializer(model: Model, name: str) -> np.ndarray:
    constant = model.ir.graph.initializers[name].const_value
    assert constant is not None
    return constant.numpy()


def moments(model: Model, tensor: str, samples: Sequence[Tensors]) -> tuple[np.ndarray, np.ndarray]:
    given = {value.name for value in model.ir.graph.outputs}
    reference = Reference(model, extra_outputs=() if tensor in given else (tensor,))
    values = np.concatenate([answer[tensor] for answer in reference.run_all(samples)]).astype(np.float64)
    axes = (0, *range(2, values.ndim))
    return values.mean(axes), values.std(axes)


def error(model: Model, original: Model, samples: Sequence[Tensors]) -> float:
    found = np.concatenate([answer["y"] for answer in Reference(model).run_all(samples)])
    wanted = np.concatenate([answer["y"] for answer in Reference(original).run_all(samples)])
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


def damaged(model: Model, *names: str, factor: float = 0.5) -> Model:
    rng = np.random.default_rng(7)
    return with_values(
        model,
        {
            name: (initializer(model, name) * (factor + 0.2 * rng.random(initializer(model, name).shape))).astype(
                np.float32
            )
            for name in names
        },
    )


def test_each_layer_gets_the_moments_of_the_original(original: Model) -> None:
    samples = photos(32)
    student = damaged(original, "w1", "b1", "w2", "w3")
    found = recover(student, original, STEP, samples)
    for tensor in ("c1", "c2", "y"):
        for have, want in zip(moments(found, tensor, samples), moments(original, tensor, samples), strict=True):
            assert np.allclose(have, want, rtol=2e-3, atol=2e-3)


def test_answers_to_new_inputs_come_closer(original: Model) -> None:
    student = damaged(original, "w1", "b1", "w2", "w3")
    found = recover(student, original, STEP, photos(32))
    other = photos(16, seed=8)
    assert error(found, original, other) < 0.5 * error(student, original, other)


def test_the_graph_stays(original: Model) -> None:
    found = recover(damaged(original, "w1"), original, STEP, photos(8))
    assert [node.name for node in found.ir.graph] == [node.name for node in original.ir.graph]
    assert list(found.ir.graph.initializers) == list(original.ir.graph.initializers)


def test_the_same_inputs_give_the_same_bytes(original: Model) -> None:
    one, two = (recover(damaged(original, "w1"), original, STEP, photos(8)) for _ in range(2))
    assert to_bytes(one.ir) == to_bytes(two.ir)


def test_what_is_right_already_stays_right(original: Model) -> None:
    samples = photos(16)
    assert error(recover(original, original, STEP, samples), original, samples) < 1e-10


def test_a_dead_channel_is_not_blown_up(original: Model) -> None:
    weight = initializer(original, "w1").copy()
    weight[3] *= 1e-9
    student = with_values(original, {"w1": weight})
    found = recover(student, original, STEP, photos(16))
    assert float(np.abs(initializer(found, "w1")[3]).max()) < 1e-6


def test_kept_channels_are_compared_with_their_originals(original: Model) -> None:
    keep = [0, 2, 3, 7]
    proto = conv_net()
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    cut = {
        "w1": arrays["w1"][keep] * 0.5,
        "b1": arrays["b1"][keep],
        "w2": arrays["w2"][np.ix_(keep, keep)],
        "b2": arrays["b2"][keep],
        "w3": arrays["w3"][:, keep],
    }
    for tensor in proto.graph.initializer:
        if tensor.name in cut:
            tensor.CopyFrom(numpy_helper.from_array(cut[tensor.name], tensor.name))
    student, samples = normalise(model_of(proto)), photos(32)
    lesson = Lesson(channels={"conv1": keep, "conv2": keep})
    found = recover(student, original, STEP, samples, lesson=lesson)
    for have, want in zip(moments(found, "c1", samples), moments(original, "c1", samples), strict=True):
        assert np.allclose(have, want[keep], rtol=2e-3, atol=2e-3)
    # Without the map only the last layer has the channels of the original.
    blind = recover(student, original, STEP, samples)
    assert np.array_equal(initializer(blind, "w1"), initializer(student, "w1"))
    assert not np.array_equal(initializer(blind, "w3"), initializer(student, "w3"))


def norm_net(*, transposed: bool = False, groups: int = 2) -> Model:
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((4, 2, 3, 3) if transposed else (4, 4 // groups, 3, 3)),
        "b": rng.standard_normal(2 * groups if transposed else 4),
        "s": np.ones(4),
        "t": np.zeros(4),
        "m": rng.standard_normal(4),
        "v": np.ones(4) * 3,
    }
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("BatchNormalization", ["r", "s", "t", "m", "v"], ["n"], "norm"),
        helper.make_node("ConvTranspose" if transposed else "Conv", ["n", "w", "b"], ["y"], "conv", group=groups),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 6, 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    return normalise(model_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_batch_norm_gets_the_statistics_of_what_it_sees(transposed: bool) -> None:
    original = norm_net(transposed=transposed)
    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal((1, 4, 6, 6)).astype(np.float32)} for _ in range(16)]
    true_mean, true_deviation = moments(original, "r", samples)
    original = with_values(
        original, {"m": true_mean.astype(np.float32), "v": np.square(true_deviation).astype(np.float32)}
    )
    student = with_values(original, {"m": np.zeros(4, np.float32), "v": np.full(4, 9, np.float32)})
    found = recover(student, original, STEP, samples)
    assert np.allclose(initializer(found, "m"), true_mean, rtol=1e-4)
    assert np.allclose(initializer(found, "v"), np.square(true_deviation), rtol=1e-4)
    assert error(found, original, samples) < 1e-8


@pytest.mark.parametrize("transposed", [False, True])
def test_the_rows_of_a_grouped_layer_are_scaled(transposed: bool) -> None:
    original = norm_net(transposed=transposed)
    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal((1, 4, 6, 6)).astype(np.float32)} for _ in range(16)]
    original = with_values(
        original,
        {
            "m": moments(original, "r", samples)[0].astype(np.float32),
            "v": np.square(moments(original, "r", samples)[1]).astype(np.float32),
        },
    )
    factor = np.array([0.5, 0.8, 1.5, 2.0], np.float32)
    weight, bias = initializer(original, "w"), initializer(original, "b")
    rows = factor.reshape(2, 1, 2, 1, 1) if transposed else factor.reshape(4, 1, 1, 1)
    scaled = weight.reshape(2, 2, 2, 3, 3) * rows if transposed else weight * rows
    student = with_values(original, {"w": scaled.reshape(weight.shape).astype(np.float32), "b": bias + 1})
    found = recover(student, original, STEP, samples)
    assert np.allclose(initializer(found, "w"), weight, rtol=1e-3, atol=1e-3)
    assert np.allclose(initializer(found, "b"), bias, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("trans_b", [0, 1])
def test_a_gemm_with_a_share_of_its_bias(trans_b: int) -> None:
    shape = "3, 4" if trans_b else "4, 3"
    text = (
        f"net (float[1, 4] x) => (float[1, 3] y) <float[{shape}] w = {{1, 2, 3, 4, -1, 2, 5, 7, 1, 2, 0, 3}}, "
        f"float[3] b = {{1, 2, 3}}> {{ y = Gemm<alpha = 0.5, beta = 2.0, transB = {trans_b}>(x, w, b) }}"
    )
    original = normalise(model_of(text))
    student = with_values(original, {"w": initializer(original, "w") * np.float32(0.5), "b": np.zeros(3, np.float32)})
    samples = [{"x": np.random.default_rng(i).standard_normal((1, 4)).astype(np.float32)} for i in range(32)]
    found = recover(student, original, STEP, samples)
    assert np.allclose(initializer(found, "w"), initializer(original, "w"), rtol=1e-3)
    assert np.allclose(initializer(found, "b"), initializer(original, "b"), rtol=1e-2, atol=1e-2)


def test_recovery_needs_samples(original: Model) -> None:
    with pytest.raises(RecoverError, match="recover by batch-norm needs inputs"):
        recover(original, original, STEP, [])


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"nothing": np.zeros(1, np.float32)}, "has no initializer 'nothing'"),
        ({"b1": np.zeros(3, np.float32)}, r"initializer 'b1' is FLOAT\[8\], the new value FLOAT\[3\]"),
        ({"b1": np.zeros(8)}, r"initializer 'b1' is FLOAT\[8\], the new value DOUBLE\[8\]"),
    ],
)
def test_values_of_another_model_are_refused(original: Model, values: dict[str, np.ndarray], fault: str) -> None:
    with pytest.raises(RecoverError, match=fault):
        with_values(original, values)


def test_recovery_without_training_imports_no_torch() -> None:
    code = "import sys, host.compress.recover, host.compress.recalibrate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_training_says_how_to_get_it() -> None:
    code = (
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "from host.compress.recover import RecoverError\n"
        "try:\n    import host.compress.torch.train\nexcept RecoverError as error:\n    print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "training and pruning of modules need torch: pip install 'shardwire[torch]'"
