"""Small models for tests, written in ONNX's text format."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from host.model import Model, Origin, from_proto

HEADER = '<ir_version: 9, opset_import: ["" : 18]>\n'


def parsed(text: str, *, header: str = HEADER) -> onnx.ModelProto:
    """Read ``name (inputs) => (outputs) <constants> { nodes }``."""
    return onnx.parser.parse_model(header + text)


def model_of(text: str | onnx.ModelProto, *, header: str = HEADER, name: str = "small") -> Model:
    """A model from text or a message."""
    proto = parsed(text, header=header) if isinstance(text, str) else text
    return Model(name=name, ir=from_proto(proto), origin=Origin(format="onnx", digest="sha256:0", description="test"))


def conv_net(*, seed: int = 0, side: int = 8) -> onnx.ModelProto:
    """Conv, Relu, Conv, Add, GlobalAveragePool, Flatten, Gemm: ``[1, 3, side, side]`` to ``[1, 4]``."""
    rng = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) * 0.3).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["a"], "add"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])],
        [
            weights("w1", 8, 3, 3, 3),
            weights("b1", 8),
            weights("w2", 8, 8, 3, 3),
            weights("b2", 8),
            weights("w3", 4, 8),
            weights("b3", 4),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def photos(count: int, *, seed: int = 1, side: int = 8) -> list[dict[str, np.ndarray]]:
    """Inputs for `conv_net`."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, side, side)).astype(np.float32)} for _ in range(count)]
