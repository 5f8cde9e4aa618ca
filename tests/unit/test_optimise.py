"""What the passes make of small graphs, before quantization and after."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from onnx import helper, numpy_helper

from host.model import Model, node_count, to_bytes, weight_bytes
from host.passes.fuse import fuse
from host.passes.normalise import normalise
from host.passes.optimise import PASSES, NamedPass, optimize
from host.passes.transaction import PassOutcome
from host.reference import Reference
from tests.graphs import conv_net, model_of, parsed, photos

X = {"x": np.array([[1.0, -2.0, 3.0]], np.float32)}
HUGE = """
main (float[1,3] x) => (float[1,3] y) {
    dims = Constant <value_ints = [4096, 1024]> ()
    zeros = ConstantOfShape (dims)
    sum = ReduceSum <keepdims = 0> (zeros)
    y = Add (x, sum)
}
"""


def operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.ir.graph)


def reasons(outcomes: tuple[PassOutcome, ...]) -> dict[str, str]:
    return {outcome.name: outcome.reason for outcome in outcomes if not outcome.kept}


def test_shape_arithmetic_is_folded() -> None:
    model = normalise(
        model_of(
            """
            main (float[1,3] x) => (float[3,1] y) {
                s = Shape (x)
                i = Constant <value_ints = [1, 0]> ()
                r = Gather (s, i)
                y = Reshape (x, r)
            }
            """
        )
    )
    result, _ = optimize(model, [X])
    assert operators(result) == {"Reshape": 1}
    assert np.array_equal(Reference(result).run(X)["y"], X["x"].T)


def test_batch_norm_goes_into_the_convolution() -> None:
    proto = conv_net()
    rng = np.random.default_rng(3)
    for name in ("scale", "shift", "mean", "variance"):
        proto.graph.initializer.append(numpy_helper.from_array(rng.uniform(0.5, 2, 8).astype(np.float32), name))
    node = helper.make_node("BatchNormalization", ["c1", "scale", "shift", "mean", "variance"], ["n1"], "bn")
    proto.graph.node[1].input[0] = "n1"
    proto.graph.node.insert(1, node)
    model = normalise(model_of(proto))
    result, _ = optimize(model, photos(2))
    assert "BatchNormalization" not in operators(result)
    assert weight_bytes(result.ir) < weight_bytes(model.ir)


def test_equal_constants_and_equal_subexpressions_are_shared() -> None:
    proto = parsed("main (float[1,3] x) => (float[1,3] y) { a = Mul (x, p)\n b = Mul (x, q)\n y = Sub (a, b) }")
    for name in ("p", "q"):
        proto.graph.initializer.append(numpy_helper.from_array(np.array([2, 3, 4], np.float32), name))
    result, _ = optimize(normalise(model_of(proto)), [X])
    assert operators(result) == {"Mul": 1, "Sub": 1}
    assert len(result.ir.graph.initializers) == 1


def test_a_pass_that_breaks_the_model_is_tried_once_and_the_others_still_work() -> None:
    def negate(graph: object) -> object:
        next(iter(graph.graph)).op_type = "Abs"  # type: ignore[attr-defined]
        return graph

    model = normalise(
        model_of("main (float[1,3] x) => (float[1,3] y) { t = Identity (x)\n u = Neg (t)\n y = Neg (u) }")
    )
    steps = (NamedPass(name="breaks", apply=negate), *PASSES)  # type: ignore[arg-type]
    result, outcomes = optimize(model, [X], passes=steps)
    assert reasons(outcomes)["breaks"].startswith("output 'y' has relative error")
    assert [outcome.name for outcome in outcomes].count("breaks") == 1
    assert operators(result) == {"Neg": 2}


def test_a_large_constant_is_not_folded_before_quantization() -> None:
    result, _ = optimize(normalise(model_of(HUGE)), [X])
    assert weight_bytes(result.ir) < 64 * 1024


def test_fusing_again_without_folding_when_folding_blows_the_weights_up() -> None:
    model = normalise(
        model_of(
            """
            main (float[1,4096] x) => (float[1,1024] y) {
                dims = Constant <value_ints = [4096, 1024]> ()
                weights = ConstantOfShape (dims)
                half = Constant <value_float = 0.5> ()
                t = MatMul (x, weights)
                y = Mul (t, half)
            }
            """
        )
    )
    result, outcomes = fuse(model, [{"x": np.ones((1, 4096), np.float32)}])
    assert reasons(outcomes) == {"onnxruntime-extended": "grows the weights from 20 to 16777216 bytes"}
    assert [outcome.name for outcome in outcomes if outcome.kept] == ["onnxruntime-extended-without-folding"]
    assert operators(result) == {"ConstantOfShape": 1, "FusedMatMul": 1}


def test_fusion_makes_fewer_nodes_and_leaves_no_constant_inside() -> None:
    model = normalise(model_of(conv_net()))
    result, outcomes = fuse(model, photos(2))
    assert outcomes[0].kept
    assert node_count(result.ir) < node_count(model.ir)
    assert operators(result)["FusedConv"] > 0
    assert "Relu" not in operators(result)
    assert "Constant" not in operators(result)


@pytest.mark.parametrize("step", [optimize, fuse])
def test_the_figures_of_a_pass_are_those_before_the_next(step: object) -> None:
    outcomes: tuple[PassOutcome, ...]
    _, outcomes = step(normalise(model_of(conv_net())), photos(2), measured=True)  # type: ignore[operator]
    for one, following in pairwise(outcomes):
        assert one.after == following.before
    for outcome in outcomes:
        assert outcome.before is not None
        assert outcome.after is not None
        assert (outcome.before.nodes, outcome.after.nodes) == (outcome.nodes_before, outcome.nodes_after)
        assert outcome.before.latency_seconds is not None
        assert outcome.kept or outcome.before == outcome.after


@pytest.mark.parametrize("step", [optimize, fuse])
def test_the_model_that_came_in_stays_as_it_was(step: object) -> None:
    model = normalise(model_of(conv_net()))
    before = to_bytes(model.ir)
    step(model, photos(2))  # type: ignore[operator]
    assert to_bytes(model.ir) == before


def test_the_same_model_gives_the_same_bytes() -> None:
    def once() -> bytes:
        optimised, _ = optimize(normalise(model_of(conv_net())), photos(2))
        return to_bytes(fuse(optimised, photos(2))[0].ir)

    assert once() == once()
