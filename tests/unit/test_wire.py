"""Half precision on the wire."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from host.compress.quantize import quantize
from host.compress.quantize.liveness import stretches
from host.compress.quantize.wire import half_wire
from host.compress.recipe import Quantize
from host.errors import QuantizeError
from host.model import Model, Tensors, to_bytes
from host.observe import observe
from host.partition.layers import find_layers
from host.passes.fuse import fuse
from host.passes.normalise import normalise
from host.reference import Mode, Reference
from tests.fidelity import fidelity
from tests.graphs import conv_net, model_of, photos
from tests.wide_graphs import graph_of, pictures, weights, wide_net

PICTURES = pictures(4)


def casts(model: Model) -> int:
    return sum(node.op_type == "Cast" for node in model.ir.graph)


def rounded(model: Model) -> set[str]:
    """Names of the tensors that are cast to float16."""
    return {
        str(node.inputs[0].name)
        for node in model.ir.graph
        if node.op_type == "Cast" and node.attributes["to"].value == 10 and node.inputs[0] is not None
    }


def in_pieces(model: Model, sample: Tensors) -> dict[str, np.ndarray]:
    """Run a model cut behind each Cast to float16, and then the rest."""
    halves = [str(n.name) for n in model.ir.graph if n.op_type == "Cast" and n.attributes["to"].value == 10]
    last = [str(node.name) for node in model.ir.graph][-1]
    tensors = dict(sample)
    for part in stretches(model, [*halves, last]):
        tensors.update(part.loaded(tensors).run({name: tensors[name] for name in part.reads}, part.writes))
        tensors = {name: array for name, array in tensors.items() if name in part.keeps}
    return tensors


def test_a_cut_between_the_casts_moves_half_the_bytes() -> None:
    model = wide_net(decades=1)
    result = half_wire(model, PICTURES)
    before, after = (find_layers(m, observe(m, PICTURES[:1])) for m in (model, result))
    assert len(after.cuts) == len(before.cuts) + casts(result)
    seen = observe(result, PICTURES[:1])
    halves = [cut for cut in after.cuts if len(cut) == 1 and seen[cut[0]].dtype == "float16"]
    assert len(halves) == casts(result) // 2 == 7


@pytest.mark.parametrize("mode", ["exact", "default"])
def test_answers_stay_close(mode: Mode) -> None:
    model = wide_net(decades=1)
    found = fidelity(model, half_wire(model, PICTURES), PICTURES, mode=mode)
    assert 0 < found.max_relative_error < 1e-2


def test_pieces_answer_the_same_bits_as_the_whole() -> None:
    result = half_wire(wide_net(decades=1), PICTURES)
    for sample in PICTURES:
        assert np.array_equal(in_pieces(result, sample)["y"], Reference(result).run(sample)["y"])


def test_onnxruntime_keeps_the_rounding_when_it_optimises() -> None:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Neg", ["x"], ["a"], "first"), helper.make_node("Neg", ["a"], ["y"], "last")]
    model = graph_of(nodes, {"unused": weights(rng, 1, 1)}, shape=[1, 400])
    sample = {"x": rng.standard_normal((1, 400)).astype(np.float32)}
    result = half_wire(model, [sample])
    want = sample["x"].astype(np.float16).astype(np.float32)
    assert casts(result) == 2
    for mode in ("exact", "default"):
        assert np.array_equal(Reference(result, mode=mode).run(sample)["y"], want)


def test_several_tensors_alive_at_once_are_not_rounded() -> None:
    model = normalise(model_of(conv_net(side=16)))
    result = half_wire(model, photos(2, side=16))
    # The output of the second convolution is alive beside the skip.
    assert {"c1", "r1", "a"} <= rounded(result)
    assert "c2" not in rounded(result)


def test_a_skip_reads_the_rounded_tensor_too() -> None:
    samples = photos(2, side=16)
    result = half_wire(normalise(model_of(conv_net(side=16))), samples)
    add = next(node for node in result.ir.graph if node.name == "add")
    assert {str(value.name) for value in add.inputs if value is not None} == {"c2", "r1_rounded"}
    assert np.array_equal(in_pieces(result, samples[0])["y"], Reference(result).run(samples[0])["y"])


def test_a_tensor_next_to_a_smaller_one_stays() -> None:
    result = half_wire(wide_net(decades=1), PICTURES)
    # The third convolution has fewer places than the normalization that it reads.
    assert rounded(result) == {"c1", "r1", "n1", "c2", "r2", "c3", "r3"}


def test_small_tensors_and_large_values_stay() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Mul", ["x", "much"], ["a"], "grow"),
        helper.make_node("Mul", ["a", "little"], ["b"], "shrink"),
        helper.make_node("ReduceSum", ["b"], ["c"], "sum", keepdims=1),
        helper.make_node("Sin", ["c"], ["y"], "end"),
    ]
    constants = {"much": np.array(1e6, np.float32), "little": np.array(1e-6, np.float32)}
    model = graph_of(nodes, constants, shape=[1, 400])
    result = half_wire(model, [{"x": rng.standard_normal((1, 400)).astype(np.float32)}])
    assert rounded(result) == {"b"}


def test_a_quantized_and_fused_model_stays_cut_in_bytes() -> None:
    model = wide_net(decades=1)
    fused, _ = fuse(quantize(model, Quantize(equalize=True), PICTURES).model, PICTURES)
    result = half_wire(fused, PICTURES)
    assert fidelity(fused, result, PICTURES).worst_cosine > 0.999


def test_a_model_without_such_a_tensor_comes_back_itself() -> None:
    model = normalise(model_of("main (float[1,3] x) => (float[1,3] y) { t = Sin (x)\n y = Cos (t) }"))
    assert half_wire(model, [{"x": np.ones((1, 3), np.float32)}]) is model


def test_the_same_bytes_each_time_and_the_model_is_not_changed() -> None:
    model = wide_net()
    before = to_bytes(model.ir)
    assert to_bytes(half_wire(model, PICTURES).ir) == to_bytes(half_wire(model, PICTURES).ir)
    assert to_bytes(model.ir) == before


def test_without_inputs_it_says_what_to_pass() -> None:
    with pytest.raises(QuantizeError, match="rounding for the wire needs inputs: pass --inputs"):
        half_wire(wide_net(), ())
