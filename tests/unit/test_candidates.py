"""What a search may try for a model, and in which order."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edge.formats.profile import load_profile
from host.compress.recipe import PruneChannels, Recover
from host.compress.search.candidates import families, weight_shares
from host.model import Model
from host.passes.normalise import normalise
from tests.graphs import conv_net, model_of


def matrix_net() -> Model:
    """Two products with 64 x 64 weights: ``[1, 64]`` to ``[1, 64]``."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal((64, 64)).astype(np.float32), name) for name in "ab"]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["t"], "first"),
        helper.make_node("Relu", ["t"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "b"], ["y"], "second"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", onnx.TensorProto.FLOAT, [1, 64])],
        [value("y", onnx.TensorProto.FLOAT, [1, 64])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return normalise(model_of(proto))


def convolutional() -> Model:
    return normalise(model_of(conv_net()))


def test_convolutions_try_int8_first_then_fewer_channels() -> None:
    names = [family.name for family in families(convolutional(), load_profile("rpi4"))]
    assert names == [
        "int8",
        "50%-of-channels-less",
        "37.5%-of-channels-less",
        "25%-of-channels-less",
        "12.5%-of-channels-less",
        "float16",
        "none",
    ]


def test_matrices_try_int4_first() -> None:
    names = [family.name for family in families(matrix_net(), load_profile("rpi4"))]
    assert names == ["int4", "int8-dynamic", "float16", "none"]


def test_the_objective_decides_the_order() -> None:
    found = families(matrix_net(), load_profile("rpi4"), objective="latency")
    assert [family.name for family in found] == ["int8-dynamic", "int4", "float16", "none"]


@pytest.mark.parametrize(("profile", "variant"), [("rpi4", "u8s8-reduce-range"), ("rpi5", "u8s8")])
def test_the_processor_decides_the_variant(profile: str, variant: str) -> None:
    rungs = families(convolutional(), load_profile(profile))[0].rungs
    assert {recipe.quantize.variant for recipe in rungs.values()} == {variant}


def test_int8_is_tried_in_several_ways() -> None:
    rungs = families(convolutional(), load_profile("rpi4"))[0].rungs
    assert list(rungs)[:2] == ["int8", "int8-equalized"]
    assert len({str(recipe) for recipe in rungs.values()}) == len(rungs)


def test_pruned_models_are_recovered_as_asked() -> None:
    way = Recover(method="distill", epochs=2)
    pruned = [
        family
        for family in families(convolutional(), load_profile("rpi4"), ratios=(0.5,), recover=(way,))
        if family.prunes
    ]
    assert [family.rungs[family.name].prune for family in pruned] == [(PruneChannels(ratio=0.5),)]
    assert pruned[0].rungs[pruned[0].name].recover == (way,)


def test_no_ratio_is_no_pruning() -> None:
    assert not [f for f in families(convolutional(), load_profile("rpi4"), ratios=()) if f.prunes]


def test_weights_count_by_who_reads_them() -> None:
    shares = weight_shares(convolutional())
    assert shares.filters == pytest.approx(1 - shares.matrices)
    assert weight_shares(matrix_net()).matrices == 1
