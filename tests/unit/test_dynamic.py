"""Dynamic int8: MatMul and Gemm only."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from host.compress.quantize import quantize
from host.compress.recipe import Quantize, Variant
from host.errors import QuantizeError, RecipeError
from host.model import Model, to_bytes
from host.passes.fuse import fuse
from host.passes.normalise import normalise
from host.reference import Mode, Reference
from tests.fidelity import fidelity
from tests.graphs import conv_net, model_of
from tests.wide_graphs import graph_of, weights

DYNAMIC = Quantize(mode="int8-dynamic")


def products() -> Model:
    """Two MatMuls that read one tensor, a product of two tensors, and Gemms in several ways."""
    rng = np.random.default_rng(0)
    constants = {
        "wq": weights(rng, 32, 32),
        "wk": weights(rng, 32, 32),
        "rows": np.array([3, 32]),
        "w1": weights(rng, 48, 32),
        "b1": rng.standard_normal(48).astype(np.float32),
        "w2": weights(rng, 48, 16),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"], "query"),
        helper.make_node("MatMul", ["x", "wk"], ["k"], "key"),
        helper.make_node("Transpose", ["k"], ["kt"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"], "scores"),
        helper.make_node("MatMul", ["s", "q"], ["m"], "mixed"),
        helper.make_node("Reshape", ["m", "rows"], ["f"], "rows"),
        helper.make_node("Gemm", ["f", "w1", "b1"], ["g"], "first", transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Gemm", ["g", "w2"], ["y"], "second"),
    ]
    return graph_of(nodes, constants, shape=[1, 3, 32])


def rows(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, 32)).astype(np.float32)} for _ in range(count)]


def operators(model: Model) -> list[str]:
    return [node.op_type for node in model.ir.graph]


@pytest.mark.parametrize("variant", ["u8s8-reduce-range", "u8s8", "s8s8", "u8u8"])
@pytest.mark.parametrize("mode", ["exact", "default"])
def test_answers_stay_close(variant: Variant, mode: Mode) -> None:
    model = products()
    result = quantize(model, Quantize(mode="int8-dynamic", variant=variant), ()).model
    assert fidelity(model, result, rows(8), mode=mode).worst_cosine > 0.99


def test_only_products_by_constants_change_and_readers_share_one_quantization() -> None:
    found = operators(quantize(products(), DYNAMIC, ()).model)
    assert found.count("MatMulInteger") == 4
    assert found.count("DynamicQuantizeLinear") == 3
    assert found.count("MatMul") == 2
    assert "Gemm" not in found


def test_weights_take_a_quarter_of_their_bytes() -> None:
    model = products()
    result = quantize(model, DYNAMIC, ()).model
    assert len(to_bytes(result.ir)) < 0.6 * len(to_bytes(model.ir))


def test_it_can_be_fused() -> None:
    model = products()
    result = quantize(model, DYNAMIC, ()).model
    fused, _ = fuse(result, rows(2))
    assert fidelity(model, fused, rows(8), mode="default").worst_cosine > 0.99


def test_weights_of_a_reduced_range_fit_seven_bits() -> None:
    result = quantize(products(), DYNAMIC, ()).model
    arrays = [v.const_value.numpy() for v in result.ir.graph.initializers.values() if v.const_value is not None]
    assert max(int(np.abs(array).max()) for array in arrays if array.dtype == np.int8) == 63


def test_excluded_nodes_stay() -> None:
    found = operators(quantize(products(), Quantize(mode="int8-dynamic", exclude=("first", "key")), ()).model)
    assert found.count("MatMulInteger") == 2
    assert "Gemm" in found


def test_an_excluded_node_that_is_not_there_is_named() -> None:
    with pytest.raises(RecipeError, match="the model has no node 'nobody'"):
        quantize(products(), Quantize(mode="int8-dynamic", exclude=("nobody",)), ())


def test_one_matrix_for_two_products_is_stored_once() -> None:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "a"), helper.make_node("MatMul", ["h", "w"], ["y"], "b")]
    model = graph_of(nodes, {"w": weights(rng, 32, 32)}, shape=[1, 3, 32])
    result = quantize(model, DYNAMIC, ()).model
    assert sum(v.dtype is not None and v.dtype.name == "INT8" for v in result.ir.graph.initializers.values()) == 2
    assert fidelity(model, result, rows(4)).worst_cosine > 0.99


def test_an_addend_that_is_no_constant_is_added() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"], "flat"),
        helper.make_node("Sin", ["f"], ["c"], "sin"),
        helper.make_node("Gemm", ["f", "w", "c"], ["y"], "gemm"),
    ]
    model = graph_of(nodes, {"w": weights(rng, 96, 96)}, shape=[1, 3, 32])
    assert fidelity(model, quantize(model, DYNAMIC, ()).model, rows(4)).worst_cosine > 0.99


def test_a_column_of_zeros_stays_zero() -> None:
    rng = np.random.default_rng(0)
    matrix = weights(rng, 32, 8)
    matrix[:, 3] = 0
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], "a")], {"w": matrix}, shape=[1, 3, 32])
    answer = Reference(quantize(model, DYNAMIC, ()).model).run(rows(1)[0])["y"]
    assert not answer[..., 3].any()


def test_an_old_opset_is_converted() -> None:
    rng = np.random.default_rng(0)
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "a")], {"w": weights(rng, 32, 8)}, shape=[1, 3, 32], opset=9
    )
    result = quantize(model, DYNAMIC, rows(1)).model
    assert result.ir.opset_imports[""] == 11
    assert fidelity(model, result, rows(4)).worst_cosine > 0.99


def test_the_same_bytes_each_time_and_the_model_is_not_changed() -> None:
    model = products()
    before = to_bytes(model.ir)
    assert to_bytes(quantize(model, DYNAMIC, ()).model.ir) == to_bytes(quantize(model, DYNAMIC, rows(2)).model.ir)
    assert to_bytes(model.ir) == before


def test_convolutions_stay_in_fp32() -> None:
    model = normalise(model_of(conv_net()))
    found = operators(quantize(model, DYNAMIC, ()).model)
    assert found.count("Conv") == 2
    assert found.count("MatMulInteger") == 1


def test_a_model_without_products_is_refused() -> None:
    model = normalise(model_of("main (float[1,3] x) => (float[1,3] y) { y = Sin (x) }"))
    with pytest.raises(QuantizeError, match="has no operator that int8-dynamic can hold"):
        quantize(model, DYNAMIC, ())
