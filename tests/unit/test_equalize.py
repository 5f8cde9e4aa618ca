"""Cross-layer equalization keeps the function and balances the channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from host.compress.quantize import quantize
from host.compress.quantize.equalize import equalize
from host.compress.recipe import Quantize
from host.model import Model, to_bytes
from host.reference import Reference
from tests.fidelity import fidelity
from tests.graphs import conv_net, model_of
from tests.wide_graphs import agreement, graph_of, pictures, weights, wide_net

WIDE = np.logspace(-1, 1, 8).astype(np.float32)


def conv(name: str, source: str, weight: str, *bias: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight, *bias], [name], f"{name}_node", **attributes)


def chain(
    *between: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None, second: tuple[int, ...] = (4, 8, 3, 3)
) -> Model:
    """A Conv with wide channels, operators from ``a`` to ``b``, and another Conv."""
    rng = np.random.default_rng(0)
    own = {
        "w1": weights(rng, 8, 3, 3, 3) * WIDE.reshape(-1, 1, 1, 1),
        "b1": WIDE,
        "w2": weights(rng, *second),
    }
    groups = 8 // second[1]
    nodes = [conv("a", "x", "w1", "b1"), *between, conv("y", "b", "w2", pads=[1, 1, 1, 1], group=groups)]
    return graph_of(nodes, own | (constants or {}), shape=[1, 3, 12, 12])


def unary(kind: str, *more: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, ["a", *more], ["b"], "between", **attributes)


def weight(model: Model, name: str) -> np.ndarray:
    value = model.ir.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


def spread(array: np.ndarray) -> float:
    """Ratio of the largest to the smallest range of the output channels."""
    largest = np.abs(array).reshape(array.shape[0], -1).max(axis=1)
    return float(largest.max() / largest.min())


HOMOGENEOUS = {
    "Relu": (unary("Relu"), {}),
    "LeakyRelu": (unary("LeakyRelu", alpha=0.1), {}),
    "PRelu": (unary("PRelu", "slope"), {"slope": np.linspace(0, 1, 8, dtype=np.float32).reshape(8, 1, 1)}),
    "Identity": (unary("Identity"), {}),
    "MaxPool": (unary("MaxPool", kernel_shape=[2, 2], strides=[2, 2]), {}),
    "AveragePool": (unary("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1), {}),
    "GlobalAveragePool": (unary("GlobalAveragePool"), {}),
    "GlobalMaxPool": (unary("GlobalMaxPool"), {}),
    "ReduceMean": (unary("ReduceMean", "axes"), {"axes": np.array([2, 3])}),
    "Pad": (unary("Pad", "pads"), {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "Clip": (unary("Clip", "low"), {"low": np.array(0, np.float32)}),
    "Mul by one number": (unary("Mul", "factor"), {"factor": np.array(-0.5, np.float32)}),
}


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_channels_are_balanced_over(name: str) -> None:
    between, constants = HOMOGENEOUS[name]
    model = chain(between, constants=constants)
    balanced = equalize(model)
    assert fidelity(model, balanced, pictures(4)).max_relative_error < 1e-5
    assert spread(weight(balanced, "w1")) < 0.6 * spread(weight(model, "w1"))


INHOMOGENEOUS = {
    "Clip to six": (unary("Clip", "low", "high"), {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}),
    "Sigmoid": (unary("Sigmoid"), {}),
    "Clip above one": (unary("Clip", "low"), {"low": np.array(1, np.float32)}),
    "Pad with ones": (
        unary("Pad", "pads", "one"),
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "one": np.array(1, np.float32)},
    ),
    "Add of an image": (unary("Add", "image"), {"image": np.ones((1, 8, 10, 10), np.float32)}),
    "Mul along the width": (unary("Mul", "row"), {"row": np.ones(10, np.float32)}),
}


@pytest.mark.parametrize("name", INHOMOGENEOUS)
def test_nothing_moves_over(name: str) -> None:
    between, constants = INHOMOGENEOUS[name]
    model = chain(between, constants=constants)
    assert to_bytes(equalize(model).ir) == to_bytes(model.ir)


def test_a_product_by_channel_behind_the_activation_is_balanced() -> None:
    factors = np.array([1, -20, 0.1, 3, 1, 7, 0.02, 1], np.float32).reshape(1, 8, 1, 1)
    nodes = [
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Mul", ["factors", "r"], ["m"], "mul"),
        helper.make_node("Add", ["m", "offsets"], ["b"], "add"),
    ]
    constants = {"factors": factors, "offsets": (factors * 0.3).reshape(8, 1, 1)}
    model = chain(*nodes, constants=constants)
    balanced = equalize(model)
    assert fidelity(model, balanced, pictures(4)).max_relative_error < 1e-5
    assert spread(weight(balanced, "factors").reshape(8, 1)) < 0.1 * spread(factors.reshape(8, 1))


def test_a_depthwise_convolution_hands_scales_on() -> None:
    model = chain(unary("Relu"), second=(8, 1, 3, 3))
    balanced = equalize(model)
    assert fidelity(model, balanced, pictures(4)).max_relative_error < 1e-5
    assert spread(weight(balanced, "w1")) < spread(weight(model, "w1"))


def test_a_grouped_and_a_transposed_convolution_are_balanced() -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w1": weights(rng, 8, 3, 3, 3) * WIDE.reshape(-1, 1, 1, 1),
        "w2": weights(rng, 6, 4, 3, 3),
        "w3": weights(rng, 6, 2, 3, 3),
        "b3": np.ones(4, np.float32),
        "w4": weights(rng, 2, 4, 1, 1),
    }
    nodes = [
        conv("c1", "x", "w1"),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        conv("c2", "r1", "w2", group=2),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("ConvTranspose", ["r2", "w3", "b3"], ["c3"], "up", group=2, strides=[2, 2]),
        helper.make_node("Relu", ["c3"], ["r3"], "relu3"),
        conv("y", "r3", "w4"),
    ]
    model = graph_of(nodes, constants, shape=[1, 3, 12, 12])
    balanced = equalize(model)
    assert fidelity(model, balanced, pictures(4)).max_relative_error < 1e-5
    for name in ("w1", "w2", "w3", "w4"):
        assert not np.array_equal(weight(balanced, name), weight(model, name))


@pytest.mark.parametrize(
    ("kind", "target"), [("Flatten", None), ("Reshape", [0, -1]), ("Reshape", [1, -1]), ("Reshape", [-1, 200])]
)
@pytest.mark.parametrize("transposed", [0, 1])
def test_flattening_before_a_gemm_repeats_the_scale(kind: str, target: list[int] | None, transposed: int) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w1": weights(rng, 8, 3, 3, 3) * WIDE.reshape(-1, 1, 1, 1),
        "w2": weights(rng, 5, 200) if transposed else weights(rng, 200, 5),
        "target": np.array(target or [0]),
    }
    nodes = [
        conv("c", "x", "w1"),
        helper.make_node("MaxPool", ["c"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node(kind, ["p"] if target is None else ["p", "target"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w2"], ["y"], "gemm", transB=transposed),
    ]
    model = graph_of(nodes, constants, shape=[1, 3, 12, 12])
    balanced = equalize(model)
    assert fidelity(model, balanced, pictures(4)).max_relative_error < 1e-5
    assert spread(weight(balanced, "w1")) < 0.6 * spread(weight(model, "w1"))


def test_weights_that_two_layers_share_stay() -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w": weights(rng, 3, 3, 3, 3),
        "b": np.array([1, 10, 100], np.float32),
        "last": weights(rng, 2, 3, 1, 1),
    }
    nodes = [
        conv("c1", "x", "w", "b"),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        conv("c2", "r1", "w", "b"),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        conv("y", "r2", "last"),
    ]
    model = graph_of(nodes, constants, shape=[1, 3, 12, 12])
    assert to_bytes(equalize(model).ir) == to_bytes(model.ir)


def test_a_bias_that_two_layers_share_is_copied() -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w1": weights(rng, 8, 3, 3, 3) * WIDE.reshape(-1, 1, 1, 1),
        "w2": weights(rng, 8, 8, 3, 3),
        "b": np.ones(8, np.float32),
        "w3": weights(rng, 2, 8, 1, 1),
    }
    nodes = [
        conv("c1", "x", "w1", "b"),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        conv("c2", "r1", "w2", "b"),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        conv("y", "r2", "w3"),
    ]
    model = graph_of(nodes, constants, shape=[1, 3, 12, 12])
    balanced = equalize(model)
    assert fidelity(model, balanced, pictures(4)).max_relative_error < 1e-5
    assert spread(weight(balanced, "w1")) < spread(weight(model, "w1"))


def test_a_tensor_that_something_else_reads_too_stays() -> None:
    model = model_of(conv_net())
    assert np.array_equal(weight(equalize(model), "w1"), weight(model, "w1"))


def test_a_tensor_that_is_an_output_stays() -> None:
    rng = np.random.default_rng(0)
    nodes = [conv("c1", "x", "w1"), helper.make_node("Relu", ["c1"], ["r"], "relu"), conv("y", "r", "w2")]
    constants = {"w1": weights(rng, 8, 3, 3, 3) * WIDE.reshape(-1, 1, 1, 1), "w2": weights(rng, 2, 8, 1, 1)}
    model = graph_of(nodes, constants, shape=[1, 3, 12, 12], outputs=["y", "c1"])
    assert to_bytes(equalize(model).ir) == to_bytes(model.ir)


def test_dead_channels_stay_dead() -> None:
    dead = chain(unary("Relu"))
    first = weight(dead, "w1").copy()
    first[3] = 0
    model = chain(unary("Relu"), constants={"w1": first, "b1": np.zeros(8, np.float32)})
    balanced = equalize(model)
    assert not weight(balanced, "w1")[3].any()
    assert fidelity(model, balanced, pictures(4)).max_relative_error < 1e-5


def test_the_result_is_the_same_each_time_and_the_model_is_not_changed() -> None:
    model = wide_net()
    before = to_bytes(model.ir)
    assert to_bytes(equalize(model).ir) == to_bytes(equalize(model).ir)
    assert to_bytes(model.ir) == before


@pytest.mark.parametrize("depthwise", [False, True])
def test_wide_batch_normalizations_behind_activations_keep_their_function(depthwise: bool) -> None:
    model = wide_net(depthwise=depthwise)
    balanced = equalize(model)
    assert fidelity(model, balanced, pictures(8)).max_relative_error < 1e-5
    sample = pictures(1)[0]
    for tensor in ("r1", "n1"):
        widths = [
            np.ptp(Reference(m, extra_outputs=[tensor]).run(sample)[tensor], axis=(0, 2, 3)) for m in (model, balanced)
        ]
        assert widths[1].max() / widths[1].min() < 0.2 * widths[0].max() / widths[0].min()


@pytest.mark.parametrize("depthwise", [False, True])
def test_what_plain_int8_ruins_is_rescued(depthwise: bool) -> None:
    model, samples, unseen = wide_net(depthwise=depthwise), pictures(48, seed=3), pictures(100, seed=7)
    plain = quantize(model, Quantize(), samples).model
    rescued = quantize(model, Quantize(equalize=True, correct_bias=True), samples).model
    assert agreement(model, plain, unseen) < 0.75
    assert agreement(model, rescued, unseen) > 0.92
    assert fidelity(model, rescued, unseen).cosine > 0.99


def test_a_model_without_pairs_comes_back_itself() -> None:
    model = model_of("main (float[1,3] x) => (float[1,3] y) { y = Sin (x) }")
    assert equalize(model) is model
