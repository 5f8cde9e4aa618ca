"""Histograms compare a tensor of the original with the real values of what it became."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from host.compress.quantize import quantize
from host.compress.recipe import Quantize
from host.compress.report.histogram import dequantized, histograms, zero_weights
from host.errors import QuantizeError
from host.model import Model
from host.passes.fuse import fuse
from host.passes.normalise import normalise
from host.reference import Reference
from tests.graphs import conv_net, model_of, photos


@pytest.fixture(scope="module")
def original() -> Model:
    return normalise(model_of(conv_net()))


@pytest.fixture(scope="module")
def int8(original: Model) -> Model:
    return quantize(original, Quantize(), photos(4)).model


def _constant(model: Model, name: str) -> np.ndarray:
    tensor = model.ir.graph.initializers[name].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy())


def test_weights_come_first_and_in_graph_order(original: Model, int8: Model) -> None:
    found = histograms(original, int8, photos(2))
    assert [each.tensor for each in found if each.kind == "weight"] == ["w1", "w2", "w3"]
    kinds = [each.kind for each in found]
    assert kinds == sorted(kinds, reverse=True)


def test_every_value_is_counted_on_both_sides(original: Model, int8: Model) -> None:
    for each in histograms(original, int8, photos(3), bins=16):
        assert len(each.before) == len(each.after) == 16
        assert sum(each.before) == sum(each.after)
        assert each.low < each.high


def test_activations_are_those_with_a_name_in_both(original: Model, int8: Model) -> None:
    found = histograms(original, int8, photos(3))
    names = [each.tensor for each in found if each.kind == "activation"]
    assert names[0] == "x"
    assert {"r1", "c2", "a", "p", "f", "y"} <= set(names)
    pixels = next(each for each in found if each.tensor == "x")
    assert sum(pixels.before) == 3 * 3 * 8 * 8


def test_the_real_values_of_a_quantized_weight_are_those_that_the_runtime_computes(int8: Model) -> None:
    runtime = Reference(int8, extra_outputs=["w1_DequantizeLinear_Output", "w3_DequantizeLinear_Output"])
    values = runtime.run(photos(1)[0])
    for name in ("w1", "w3"):
        np.testing.assert_array_equal(dequantized(int8, name), values[f"{name}_DequantizeLinear_Output"])


def test_a_fused_model_keeps_the_same_real_weights(original: Model, int8: Model) -> None:
    fused, _ = fuse(int8, photos(2))
    for name in ("w1", "w2", "w3"):
        np.testing.assert_array_equal(dequantized(fused, name), dequantized(int8, name))
    assert any(each.kind == "weight" for each in histograms(original, fused, photos(1)))


def test_an_unquantized_weight_is_itself(original: Model) -> None:
    np.testing.assert_array_equal(dequantized(original, "w1"), _constant(original, "w1"))


def test_a_weight_that_the_model_lacks_is_none(original: Model) -> None:
    assert dequantized(original, "nowhere") is None


def test_the_real_values_of_4_bit_blocks_are_those_that_the_runtime_computes() -> None:
    rows, columns, block = 6, 40, 16
    rng = np.random.default_rng(0)
    blocks = -(-columns // block)
    packed = rng.integers(0, 256, (rows, blocks, block // 2), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.1, rows * blocks).astype(np.float32)
    zeros = rng.integers(0, 256, rows * ((blocks + 1) // 2), dtype=np.uint8)
    for inputs in (["x", "w_Q4", "w_scales"], ["x", "w_Q4", "w_scales", "w_zero_points"]):
        node = helper.make_node(
            "MatMulNBits", inputs, ["y"], "m", domain="com.microsoft", N=rows, K=columns, bits=4, block_size=block
        )
        constants = [
            numpy_helper.from_array(array, name)
            for name, array in (("w_Q4", packed), ("w_scales", scales), ("w_zero_points", zeros))
            if name in inputs
        ]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [node],
            "g",
            [value("x", onnx.TensorProto.FLOAT, [columns, columns])],
            [value("y", onnx.TensorProto.FLOAT, [columns, rows])],
            constants,
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        model = model_of(helper.make_model(graph, opset_imports=opsets, ir_version=9))
        answer = Reference(model).run({"x": np.eye(columns, dtype=np.float32)})["y"]
        found = dequantized(model, "w")
        assert found is not None
        assert found.shape == (rows, columns)
        np.testing.assert_allclose(found.T, answer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("plan", "furthest"),
    [
        (Quantize(mode="int4", block_size=16), 0.2),
        (Quantize(mode="int4", block_size=16, wider=("lookup", "product")), 0.02),
        (Quantize(mode="float16"), 1e-3),
        (Quantize(mode="int8-dynamic"), 0.05),
    ],
    ids=["int4", "int4-wider", "float16", "int8-dynamic"],
)
def test_every_way_to_store_weights_has_real_values(plan: Quantize, furthest: float) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "table": rng.standard_normal((20, 40)).astype(np.float32),
        "w": rng.standard_normal((40, 24)).astype(np.float32),
    }
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"], "lookup"),
            helper.make_node("MatMul", ["rows", "w"], ["y"], "product"),
        ],
        "g",
        [value("ids", onnx.TensorProto.INT64, [3])],
        [value("y", onnx.TensorProto.FLOAT, [3, 24])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = normalise(model_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)))
    samples = [{"ids": np.asarray([0, 3, 19])}]
    after = quantize(model, plan, samples).model
    for name, before in constants.items():
        found = dequantized(after, name)
        assert found is not None, name
        assert np.abs((found if found.shape == before.shape else found.T) - before).max() < furthest
    found_names = [each.tensor for each in histograms(model, after, samples)]
    assert found_names[:2] == ["table", "w"]
    assert found_names[-1] == "y"


def test_the_largest_weights_are_taken(original: Model, int8: Model) -> None:
    found = histograms(original, int8, (), limit=1)
    assert [each.tensor for each in found] == ["w2"]


def test_few_activations_are_spread_over_the_graph(original: Model, int8: Model) -> None:
    found = histograms(original, int8, photos(1), limit=3)
    names = [each.tensor for each in found if each.kind == "activation"]
    assert len(names) == 3
    assert names[0] == "x"
    assert names[-1] == "y"


def test_a_constant_tensor_has_edges_that_are_apart() -> None:
    text = "net (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1.0, 1.0, 1.0, 1.0}> { y = MatMul(x, w) }"
    model = normalise(model_of(text))
    still = {"x": np.zeros((1, 2), np.float32)}
    for each in histograms(model, model, [still], bins=4):
        assert each.low < each.high
        assert sum(each.before) == (4 if each.kind == "weight" else 2)


def test_zeros_are_counted_by_real_value() -> None:
    text = "net (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1.0, 0.0, 0.0, 2.0}> { y = MatMul(x, w) }"
    assert zero_weights(normalise(model_of(text))) == (2, 4)


def test_zeros_of_a_quantized_model_are_counted_too(int8: Model) -> None:
    zeros, total = zero_weights(int8)
    assert total == 8 * 27 + 8 * 72 + 4 * 8
    assert 0 < zeros < total


def test_twice_the_same(original: Model, int8: Model) -> None:
    assert histograms(original, int8, photos(2)) == histograms(original, int8, photos(2))


@pytest.mark.parametrize(("bins", "limit"), [(0, 1), (1, 0)])
def test_no_bins_or_no_tensors_are_refused(original: Model, bins: int, limit: int) -> None:
    with pytest.raises(QuantizeError, match="at least one bin"):
        histograms(original, original, photos(1), bins=bins, limit=limit)
