"""Half precision as storage."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from host.compress.quantize import quantize
from host.compress.recipe import Quantize
from host.errors import QuantizeError
from host.model import Model, to_bytes, weight_bytes
from host.observe import observe
from host.partition.layers import find_layers
from host.passes.fuse import fuse
from host.passes.normalise import normalise
from host.reference import Mode, Reference
from tests.fidelity import fidelity
from tests.graphs import model_of
from tests.wide_graphs import graph_of, pictures, weights, wide_net

HALF = Quantize(mode="float16")


def dtypes(model: Model) -> dict[str, str]:
    return {name: v.dtype.name for name, v in model.ir.graph.initializers.items() if v.dtype is not None}


def test_large_weights_are_stored_in_half_the_bytes() -> None:
    model = wide_net(decades=1)
    result = quantize(model, HALF, ()).model
    found = dtypes(result)
    assert {name for name, dtype in found.items() if dtype == "FLOAT16"} == {"w1_half", "w2_half", "w3_half", "w4_half"}
    assert weight_bytes(result.ir) < 0.55 * weight_bytes(model.ir)


@pytest.mark.parametrize("mode", ["exact", "default"])
def test_answers_stay_close(mode: Mode) -> None:
    model = wide_net(decades=1)
    found = fidelity(model, quantize(model, HALF, ()).model, pictures(4), mode=mode)
    assert found.max_relative_error < 5e-3


def test_what_half_precision_cannot_hold_stays() -> None:
    rng = np.random.default_rng(0)
    large = weights(rng, 32, 32)
    large[3, 3] = 1e5
    nodes = [helper.make_node("MatMul", ["x", "large"], ["h"], "a"), helper.make_node("MatMul", ["h", "w"], ["y"], "b")]
    model = graph_of(nodes, {"large": large, "w": weights(rng, 32, 32)}, shape=[1, 32])
    assert dtypes(quantize(model, HALF, ()).model) == {"large": "FLOAT", "w_half": "FLOAT16"}


def test_one_weight_for_two_readers_is_stored_once() -> None:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "a"), helper.make_node("MatMul", ["h", "w"], ["y"], "b")]
    model = graph_of(nodes, {"w": weights(rng, 32, 32)}, shape=[1, 32])
    result = quantize(model, HALF, ()).model
    assert [node.op_type for node in result.ir.graph] == ["Cast", "MatMul", "MatMul"]


def test_fusing_keeps_the_weights_small() -> None:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "v"], ["h"], "a"), helper.make_node("MatMul", ["h", "w"], ["y"], "b")]
    model = graph_of(nodes, {"v": weights(rng, 128, 256), "w": weights(rng, 256, 128)}, shape=[1, 128])
    samples = [{"x": rng.standard_normal((1, 128)).astype(np.float32)}]
    fused, _ = fuse(quantize(model, HALF, ()).model, samples)
    assert weight_bytes(fused.ir) < 0.55 * weight_bytes(model.ir)


def test_a_cut_takes_each_cast_along_with_its_reader() -> None:
    model = quantize(wide_net(decades=1), HALF, ()).model
    layers = find_layers(model, observe(model, pictures(1)))
    assert sorted(layers.constant_nodes) == ["w1", "w2", "w3", "w4"]
    assert all(len(cut) == 1 for cut in layers.cuts)


def test_a_weight_that_the_body_of_an_if_reads_works() -> None:
    values = ", ".join(str(i % 7) for i in range(300))
    model = normalise(
        model_of(
            "main (float[1,300] x, bool c) => (float[1,300] y) {\n"
            f"w = Constant <value = float[1,300] {{{values}}}> ()\n"
            "y = If (c) <then_branch = a () => (float[1,300] t) { t = Add (x, w) },"
            " else_branch = b () => (float[1,300] e) { e = Sub (x, w) }> }"
        )
    )
    samples = [{"x": np.ones((1, 300), np.float32), "c": np.array(flag)} for flag in (True, False)]
    result = quantize(model, HALF, ()).model
    assert Reference(result).run_all(samples)
    assert fidelity(model, result, samples).max_relative_error == 0


def test_the_same_bytes_each_time_and_the_model_is_not_changed() -> None:
    model = wide_net()
    before = to_bytes(model.ir)
    assert to_bytes(quantize(model, HALF, ()).model.ir) == to_bytes(quantize(model, HALF, pictures(1)).model.ir)
    assert to_bytes(model.ir) == before


def test_a_model_without_large_weights_is_refused() -> None:
    model = normalise(model_of("main (float[1,3] x) => (float[1,3] y) { y = Sin (x) }"))
    with pytest.raises(QuantizeError, match="has no operator that float16 can hold"):
        quantize(model, HALF, ())
