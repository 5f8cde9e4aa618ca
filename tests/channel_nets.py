"""Small convolutional nets, built layer by layer, whose channels are tied in all the usual ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from host.compress.constants import set_constant
from host.compress.prune.ties import find_ties
from host.compress.recipe import ChannelGroup
from host.model import Model, copied
from host.passes.normalise import normalise
from tests.graphs import model_of

SIDE = 8


class Net:
    """A net that grows. Each method adds a layer and returns the name of what it gives out, also the node's name."""

    def __init__(self, *, seed: int = 0, side: int = SIDE, channels: int = 3) -> None:
        self.rng = np.random.default_rng(seed)
        self.shapes: dict[str, tuple[int, ...]] = {"x": (1, channels, side, side)}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, array: np.ndarray) -> str:
        name = f"k{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def weights(self, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) or 1
        return self.constant((self.rng.standard_normal(shape) * (2 / fan_in) ** 0.5).astype(np.float32))

    def vector(self, *shape: int, above: float = -0.5) -> str:
        return self.constant(self.rng.uniform(above, above + 1, shape).astype(np.float32))

    def add(self, operator: str, inputs: Sequence[str], shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"{operator.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name, **attributes))
        self.shapes[name] = shape
        return name

    def also(self, node: str, shape: tuple[int, ...]) -> str:
        """Give the node that was added last one more output."""
        name = f"{node}_{len(self._nodes[-1].output)}"
        self._nodes[-1].output.append(name)
        self.shapes[name] = shape
        return name

    # ------------------------------------------------------------------------------------------------------- layers
    def conv(self, source: str, channels: int, *, kernel: int = 3, stride: int = 1, bias: bool = True) -> str:
        _, before, height, width = self.shapes[source]
        inputs = [source, self.weights(channels, before, kernel, kernel), *([self.vector(channels)] if bias else [])]
        shape = (1, channels, -(-height // stride), -(-width // stride))
        pads = [kernel // 2] * 4
        return self.add("Conv", inputs, shape, pads=pads, strides=[stride, stride])

    def depthwise(self, source: str, *, times: int = 1) -> str:
        _, channels, height, width = self.shapes[source]
        inputs = [source, self.weights(channels * times, 1, 3, 3), self.vector(channels * times)]
        return self.add("Conv", inputs, (1, channels * times, height, width), pads=[1] * 4, group=channels)

    def same(self, operator: str, *sources: str, **attributes: Any) -> str:
        return self.add(operator, sources, self.shapes[sources[0]], **attributes)

    def batch_norm(self, source: str) -> str:
        channels = self.shapes[source][1]
        vectors = [self.vector(channels, above=0.5) for _ in range(4)]
        return self.same("BatchNormalization", source, *vectors)

    def prelu(self, source: str) -> str:
        return self.same("PRelu", source, self.vector(self.shapes[source][1], 1, 1, above=0))

    def scale(self, source: str) -> str:
        return self.same("Mul", source, self.vector(1, self.shapes[source][1], 1, 1, above=0.5))

    def excite(self, source: str) -> str:
        _, channels, _, _ = self.shapes[source]
        pooled = self.add("GlobalAveragePool", [source], (1, channels, 1, 1))
        squeezed = self.same("Relu", self.conv(pooled, 4, kernel=1))
        gate = self.same("Sigmoid", self.conv(squeezed, channels, kernel=1))
        return self.same("Mul", source, gate)

    def concat(self, *sources: str) -> str:
        _, _, height, width = self.shapes[sources[0]]
        channels = sum(self.shapes[source][1] for source in sources)
        return self.add("Concat", sources, (1, channels, height, width), axis=1)

    def pool(self, source: str) -> str:
        _, channels, height, width = self.shapes[source]
        shape = (1, channels, height // 2, width // 2)
        return self.add("MaxPool", [source], shape, kernel_shape=[2, 2], strides=[2, 2])

    def flatten(self, source: str) -> str:
        return self.add("Flatten", [source], (1, int(np.prod(self.shapes[source]))))

    def reshape(self, source: str, *shape: int) -> str:
        total = int(np.prod(self.shapes[source]))
        known = int(np.prod([size for size in shape if size != -1]))
        made = tuple(total // known if size == -1 else size for size in shape)
        return self.add("Reshape", [source, self.constant(np.array(shape, np.int64))], made)

    def mean(self, source: str) -> str:
        return self.flatten(self.add("GlobalAveragePool", [source], (*self.shapes[source][:2], 1, 1)))

    def gemm(self, source: str, outputs: int, *, transposed: bool = True) -> str:
        before = self.shapes[source][1]
        weight = self.weights(outputs, before) if transposed else self.weights(before, outputs)
        return self.add("Gemm", [source, weight, self.vector(outputs)], (1, outputs), transB=int(transposed))

    def model(self, *outputs: str, opset: int = 18) -> Model:
        graph = helper.make_graph(
            self._nodes,
            "net",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(self.shapes["x"]))],
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
            self._constants,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        return normalise(model_of(proto))


def images(count: int, *, seed: int = 0, side: int = SIDE, channels: int = 3) -> list[dict[str, np.ndarray]]:
    """Smooth pictures: few waves each, as photos have more coarse than fine structure."""
    rng = np.random.default_rng(seed)
    grid = np.arange(side) / side
    found = []
    for _ in range(count):
        picture = np.zeros((channels, side, side))
        for _ in range(4):
            down, right, phase = rng.uniform(0, 2.5, 3)
            wave = np.sin(2 * np.pi * (down * grid[:, None] + right * grid[None, :] + phase))
            picture += rng.standard_normal((channels, 1, 1)) * wave
        found.append({"x": picture[None].astype(np.float32)})
    return found


def without_readers(model: Model, groups: Sequence[ChannelGroup]) -> Model:
    """The same graph, but nobody reads the channels that are not kept: taking them out must change nothing."""
    graph = copied(model.ir)
    ties = find_ties(graph)
    stays = ties.stays(groups)
    for cut in ties.cuts:
        value = cut.node.inputs[cut.input]
        if cut.role == "reads" and value is not None and value.const_value is not None:
            array = value.const_value.numpy().copy()
            rows = np.moveaxis(array, cut.axis, 0)
            rows[~stays[cut.ids]] = 0
            set_constant(value, array)
    return model.with_ir(graph)
