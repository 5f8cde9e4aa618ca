"""Graphs whose channels have very different ranges, as a batch normalization behind an activation leaves them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from host.model import Model
from host.passes.normalise import normalise
from host.reference import Reference
from tests.graphs import model_of

CHANNELS = 16


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    *,
    shape: Sequence[int],
    outputs: Sequence[str] = ("y",),
    opset: int = 18,
) -> Model:
    """A normalised model with the input ``x`` of a shape; outputs are fp32."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return normalise(model_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)))


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal weights, scaled by the number of inputs."""
    fan_in = int(np.prod(shape[1:])) or 1
    drawn: np.ndarray = (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
    return drawn


@functools.cache
def wide_net(*, seed: int = 0, decades: float = 2.0, depthwise: bool = False) -> Model:
    """Conv, Relu, BatchNormalization twice, then Conv, Relu, pool and Gemm: ``[1, 3, 12, 12]`` to ``[1, 10]``.

    The batch normalizations scale their channels over ``decades`` powers of ten, and the weights behind them scale
    back, so that every channel matters as much as any other and one range for all of them is a bad one.
    """
    rng = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []
    x, inputs = "x", 3
    wide = np.ones(3)
    for index in (1, 2):
        groups = inputs if depthwise and index == 2 else 1
        before = rng.permutation(np.logspace(-decades / 2, decades / 2, CHANNELS))
        weight = weights(rng, CHANNELS, inputs // groups, 3, 3)
        entering = wide.reshape(-1, 1, 1, 1) if groups > 1 else wide.reshape(1, -1, 1, 1)
        constants[f"w{index}"] = (weight / entering * before.reshape(-1, 1, 1, 1)).astype(np.float32)
        constants[f"b{index}"] = (rng.standard_normal(CHANNELS) * 0.1 * before).astype(np.float32)
        wide = rng.permutation(np.logspace(-decades / 2, decades / 2, CHANNELS))
        constants |= {
            f"scale{index}": wide.astype(np.float32),
            f"shift{index}": (rng.standard_normal(CHANNELS) * 0.3 * wide).astype(np.float32),
            f"mean{index}": np.zeros(CHANNELS, np.float32),
            f"variance{index}": np.ones(CHANNELS, np.float32),
        }
        parameters = [f"{part}{index}" for part in ("scale", "shift", "mean", "variance")]
        nodes += [
            helper.make_node(
                "Conv", [x, f"w{index}", f"b{index}"], [f"c{index}"], f"conv{index}", pads=[1, 1, 1, 1], group=groups
            ),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu{index}"),
            helper.make_node("BatchNormalization", [f"r{index}", *parameters], [f"n{index}"], f"norm{index}"),
        ]
        x, inputs = f"n{index}", CHANNELS
    constants["w3"] = (weights(rng, 32, CHANNELS, 3, 3) / wide.reshape(1, -1, 1, 1)).astype(np.float32)
    constants["w4"] = weights(rng, 10, 32)
    constants["b4"] = np.zeros(10, np.float32)
    nodes += [
        helper.make_node("Conv", [x, "w3"], ["c3"], "conv3", strides=[2, 2]),
        helper.make_node("Relu", ["c3"], ["r3"], "relu3"),
        helper.make_node("GlobalAveragePool", ["r3"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], "gemm", transB=1),
    ]
    return _calibrated(nodes, constants)


def pictures(count: int, *, seed: int = 1, side: int = 12) -> list[dict[str, np.ndarray]]:
    """Inputs for `wide_net`: a few bright places on a noisy ground, so that they differ from each other."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, 1, 3, side, side)) * rng.uniform(0.2, 2.0, (count, 1, 3, 1, 1))
    tint = rng.standard_normal((count, 1, 3, 1, 1))
    return [{"x": array.astype(np.float32)} for array in noise + tint]


def agreement(reference: Model, candidate: Model, samples: Sequence[dict[str, np.ndarray]]) -> float:
    """Share of samples with the same largest score."""
    truth, judged = Reference(reference), Reference(candidate)
    same = [truth.run(s)["y"].argmax() == judged.run(s)["y"].argmax() for s in samples]
    return float(np.mean(same))


def _calibrated(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> Model:
    """Give the batch normalizations the statistics of their inputs, and the classes the same mean score."""
    samples = pictures(32, seed=99)
    for index in (1, 2):
        model = graph_of(nodes, constants, shape=[1, 3, 12, 12])
        runs = [Reference(model, extra_outputs=[f"r{index}"]).run(sample)[f"r{index}"] for sample in samples]
        values = np.concatenate(runs)
        constants[f"mean{index}"] = values.mean(axis=(0, 2, 3)).astype(np.float32)
        constants[f"variance{index}"] = values.var(axis=(0, 2, 3)).astype(np.float32)
    model = graph_of(nodes, constants, shape=[1, 3, 12, 12])
    scores = np.concatenate([Reference(model).run(sample)["y"] for sample in samples])
    constants["b4"] = -scores.mean(axis=0)
    return graph_of(nodes, constants, shape=[1, 3, 12, 12])
