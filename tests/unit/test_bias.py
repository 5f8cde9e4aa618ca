"""Bias correction brings the mean of every channel back."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from host.compress.quantize import quantize
from host.compress.quantize.bias import correct_biases, with_biases, with_values
from host.compress.recipe import Quantize
from host.errors import RecipeError
from host.ingest import ingest
from host.model import Model, to_bytes
from host.passes.normalise import normalise
from host.passes.optimise import optimize
from host.reference import Reference
from tests.fidelity import fidelity
from tests.graphs import conv_net, model_of, photos
from tests.wide_graphs import graph_of, pictures, weights, wide_net

SAMPLES = photos(16)


def uneven_net() -> Model:
    """A net whose weights all round the same way, so that means shift much."""
    proto = conv_net()
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim == 4:
            # A large weight in each channel sets the scale; the others lie just above a half step.
            step = 1.0 / 64
            small = np.full(array.shape, 0.6 * step, np.float32)
            small.reshape(array.shape[0], -1)[:, 0] = 1.0
            tensor.CopyFrom(numpy_helper.from_array(small, tensor.name))
    return normalise(model_of(proto))


def mean_shift(reference: Model, candidate: Model, node: str, samples: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Largest difference of the channel means of what a node computes."""
    means = []
    for model in (reference, candidate):
        output = next(str(n.outputs[0].name) for n in model.ir.graph if n.name == node)
        given = [value.name for value in model.ir.graph.outputs]
        runner = Reference(model, extra_outputs=[] if output in given else [output])
        values = np.concatenate([runner.run(sample)[output] for sample in samples])
        means.append(values.mean(axis=tuple(a for a in range(values.ndim) if a != 1)))
    shift: np.ndarray = np.abs(means[0] - means[1])
    return shift


def biases_of(model: Model) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for node in model.ir.graph:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.inputs) > 2 and node.inputs[2] is not None:
            tensor = node.inputs[2].const_value
            if tensor is not None:
                found[str(node.name)] = tensor.numpy()
    return found


@pytest.mark.parametrize("node", ["conv2", "gemm"])
def test_means_come_back(node: str) -> None:
    model = uneven_net()
    plain = quantize(model, Quantize(), SAMPLES).model
    corrected = quantize(model, Quantize(correct_bias=True), SAMPLES).model
    before, after = mean_shift(model, plain, node, SAMPLES), mean_shift(model, corrected, node, SAMPLES)
    assert after.max() < 0.25 * before.max()


def test_answers_on_other_inputs_are_closer() -> None:
    model, unseen = uneven_net(), photos(16, seed=9)
    plain = quantize(model, Quantize(), SAMPLES).model
    corrected = quantize(model, Quantize(correct_bias=True), SAMPLES).model
    losses = [fidelity(model, candidate, unseen).max_relative_error for candidate in (plain, corrected)]
    assert losses[1] < losses[0]


def test_a_channel_that_is_dead_behind_its_activation_is_left_alone() -> None:
    proto = conv_net()
    bias = next(t for t in proto.graph.initializer if t.name == "b1")
    values = numpy_helper.to_array(bias).copy()
    values[2] = -1000.0
    bias.CopyFrom(numpy_helper.from_array(values, "b1"))
    model = normalise(model_of(proto))
    found = quantize(model, Quantize(correct_bias=True), SAMPLES).biases
    assert found["b1"][2] == -1000.0
    assert not np.array_equal(found["b1"], values)


def test_no_bias_moves_further_than_its_channel_varies() -> None:
    model = wide_net(decades=3)
    samples = pictures(16)
    base = with_biases(model)
    result = quantize(model, Quantize(correct_bias=True), samples)
    old = biases_of(base)["conv2"]
    values = np.concatenate([Reference(model, extra_outputs=["c2"]).run(sample)["c2"] for sample in samples])
    moved = np.abs(result.biases["b2"] - old)
    assert (moved <= values.std(axis=(0, 2, 3)) * 1.001 + 1e-6).all()


def test_every_layer_gets_a_bias_of_its_own() -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w1": weights(rng, 3, 3, 3, 3),
        "b": np.ones(3, np.float32),
        "up": weights(rng, 3, 2, 2, 2),
        "w4": weights(rng, 6, 6),
        "scalar": np.array(2.0, np.float32),
        "row": np.ones((1, 6), np.float32),
        "matrix": np.ones((4, 6), np.float32),
        "four": np.array([4, 6]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b"], ["c1"], "c1"),
        helper.make_node("Conv", ["c1", "w1", "b"], ["c2"], "c2"),
        helper.make_node("Conv", ["c2", "w1"], ["c3"], "c3", strides=[4, 4]),
        helper.make_node("ConvTranspose", ["c3", "up"], ["t"], "t", strides=[2, 2]),
        helper.make_node("Resize", ["t", "", "", "sizes"], ["z"], "z"),
        helper.make_node("Reshape", ["z", "four"], ["f"], "f"),
        helper.make_node("Gemm", ["f", "w4", "scalar"], ["g1"], "g1"),
        helper.make_node("Gemm", ["g1", "w4", "row"], ["g2"], "g2", beta=0.5),
        helper.make_node("Gemm", ["g2", "w4", "matrix"], ["y"], "g3"),
    ]
    constants["sizes"] = np.array([1, 2, 3, 4])
    model = graph_of(nodes, constants, shape=[1, 3, 12, 12])
    base = with_biases(model)
    assert fidelity(model, base, pictures(2)).max_relative_error < 1e-6
    shapes = {name: array.shape for name, array in biases_of(base).items()}
    assert shapes == {"c1": (3,), "c2": (3,), "c3": (3,), "t": (2,), "g1": (6,), "g2": (6,), "g3": (4, 6)}
    names = [str(node.inputs[2].name) for node in base.ir.graph if node.name in shapes and node.inputs[2] is not None]
    assert len(set(names)) == len(names)
    corrected = quantize(model, Quantize(correct_bias=True), pictures(8))
    assert "matrix" not in corrected.biases
    assert fidelity(model, corrected.model, pictures(4, seed=5)).worst_cosine > 0.98


def test_a_second_run_of_the_structural_step_changes_nothing() -> None:
    base = with_biases(wide_net())
    assert to_bytes(with_biases(base).ir) == to_bytes(base.ir)


def test_a_layer_in_a_branch_and_one_dimension_is_corrected() -> None:
    rng = np.random.default_rng(0)
    constants = {"w1": weights(rng, 4, 3, 3), "w2": weights(rng, 4, 4, 3), "w3": weights(rng, 4, 4, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "c1"),
        helper.make_node("Relu", ["c1"], ["r"], "r"),
        helper.make_node("Conv", ["r", "w2"], ["c2"], "c2", pads=[1, 1]),
        helper.make_node("Conv", ["r", "w3"], ["c3"], "c3", pads=[1, 1]),
        helper.make_node("Add", ["c2", "c3"], ["s"], "s"),
        helper.make_node("Add", ["s", "r"], ["y"], "y"),
    ]
    model = graph_of(nodes, constants, shape=[1, 3, 20])
    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal((1, 3, 20)).astype(np.float32)} for _ in range(16)]
    result = quantize(model, Quantize(correct_bias=True), samples)
    assert set(result.biases) == {"c1_bias", "c2_bias", "c3_bias"}
    assert mean_shift(model, result.model, "c3", samples).max() < 1e-2


def test_a_body_of_an_if_is_left_alone() -> None:
    model = normalise(
        model_of(
            "main (float[1,4] x, bool c) => (float[1,2] y) {\n"
            "w = Constant <value = float[4,4] {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,0.3}> ()\n"
            "g = Gemm (x, w)\n"
            "h = If (c) <then_branch = a () => (float[1,4] t) { t = Relu (g) },"
            " else_branch = b () => (float[1,4] e) { e = Neg (g) }>\n"
            "v = Constant <value = float[4,2] {1,0.2, 0,1, 0.7,0, 0.1,0.3}> ()\n"
            "y = Gemm (h, v) }"
        )
    )
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((1, 4)).astype(np.float32), "c": np.array(bool(i % 2))} for i in range(16)]
    result = quantize(model, Quantize(correct_bias=True), samples)
    assert len(result.biases) == 2
    assert fidelity(model, result.model, samples).worst_cosine > 0.98


def test_correcting_is_deterministic() -> None:
    base = with_biases(wide_net())
    pairs = quantize(base, Quantize(), pictures(8)).model
    first, second = correct_biases(base, pairs, pictures(8)), correct_biases(base, pairs, pictures(8))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_value_of_another_shape_is_named() -> None:
    model = normalise(model_of(conv_net()))
    with pytest.raises(RecipeError, match=r"no constant 'b1' of float32\[3\]"):
        with_values(model, {"b1": np.zeros(3, np.float32)})


@pytest.mark.parametrize("shape", [(), (1,), (1, 6), (4, 1), (4, 6)])
def test_any_addend_of_a_gemm_is_quantized_or_left(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    constants = {"w": weights(rng, 6, 6), "c": np.ones(shape, np.float32), "v": weights(rng, 6, 6)}
    nodes = [helper.make_node("Gemm", ["x", "w", "c"], ["h"], "g"), helper.make_node("Gemm", ["h", "v"], ["y"], "g2")]
    model = graph_of(nodes, constants, shape=[4, 6])
    samples = [{"x": rng.standard_normal((4, 6)).astype(np.float32)}]
    assert fidelity(model, quantize(model, Quantize(), samples).model, samples).cosine > 0.99


def test_layers_that_read_a_sequence_are_left() -> None:
    rng = np.random.default_rng(0)
    constants = {"w1": weights(rng, 3, 3, 3, 3), "w2": weights(rng, 4, 3, 3, 3), "at": np.array(0)}
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["s"], "split", axis=0),
        helper.make_node("SequenceLength", ["s"], ["n"], "length"),
        helper.make_node("Cast", ["n"], ["f"], "cast", to=1),
        helper.make_node("Mul", ["x", "f"], ["scaled"], "scale"),
        helper.make_node("Conv", ["scaled", "w1"], ["c1"], "c1", pads=[1, 1, 1, 1]),
        helper.make_node("SequenceAt", ["s", "at"], ["first"], "first"),
        helper.make_node("Add", ["c1", "first"], ["sum"], "sum"),
        helper.make_node("Conv", ["sum", "w2"], ["y"], "c2"),
    ]
    model = graph_of(nodes, constants, shape=[1, 3, 12, 12])
    result = quantize(model, Quantize(correct_bias=True), pictures(8))
    assert set(result.biases) == {"c1_bias"}
    assert fidelity(model, result.model, pictures(8)).cosine > 0.98


def test_layers_that_stay_in_fp32_take_out_what_came_before() -> None:
    model = uneven_net()
    found = [
        mean_shift(model, quantize(model, Quantize(correct_bias=c, exclude=("gemm",)), SAMPLES).model, "gemm", SAMPLES)
        for c in (False, True)
    ]
    assert found[1].max() < 0.25 * found[0].max()


@pytest.mark.slow
def test_the_default_model_keeps_its_answers() -> None:
    ingested = ingest("")
    model, _ = optimize(normalise(ingested.model), ingested.samples)
    result = quantize(model, Quantize(correct_bias=True), ingested.samples)
    found = fidelity(model, result.model, ingested.holdout)
    assert found.cosine > 0.99
    assert found.top1_agreement is not None
    assert found.top1_agreement >= 0.965


def test_a_correction_that_answers_worse_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = wide_net(), pictures(16)

    def harmful(base: Model, *_: object) -> dict[str, np.ndarray]:
        return {name: array + 100 for name, array in correct_biases(base, plain.model, samples).items()}

    plain = quantize(model, Quantize(), samples)
    monkeypatch.setattr("host.compress.quantize.static.correct_biases", harmful)
    found = quantize(model, Quantize(correct_bias=True), samples)
    assert not found.plan.correct_bias
    assert not found.biases
    assert to_bytes(found.model.ir) == to_bytes(plain.model.ir)
    assert to_bytes(quantize(model, found.plan, ()).model.ir) == to_bytes(found.model.ir)
