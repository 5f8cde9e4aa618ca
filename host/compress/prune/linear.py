"""Convolutions, Gemm and MatMul as what they are: rows times a matrix, at positions of their choice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edge.formats.tensor import Array
from host.compress.constants import constant_of
from host.compress.prune.tracing import input_at

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Linear:
    """A linear layer of a graph: ``Y = X W + b`` in g groups with F inputs and O outputs each.

    Attributes:
        node: Its node.
        weight: Its weight's initializer, which no other node takes.
        bias: Its bias's, if it has one of its own.
        outputs_axis: Axis of its output that holds the outputs of all groups, negative ones from the end.
        groups: g.
    """

    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    outputs_axis: int
    groups: int

    def matrix(self) -> Floats:
        """W as float64[g, F, O]."""
        array = _known(self.weight).astype(np.float64)
        if self.node.op_type == "Conv":
            return array.reshape(self.groups, array.shape[0] // self.groups, -1).transpose(0, 2, 1)
        return array.T[None] if self._is_transposed else array[None]

    def array(self, matrix: Floats) -> Array:
        """The weight's array from W."""
        old = _known(self.weight)
        if self.node.op_type == "Conv":
            kernels: Array = matrix.transpose(0, 2, 1).reshape(old.shape).astype(old.dtype)
            return kernels
        plain: Array = (matrix[0].T if self._is_transposed else matrix[0]).astype(old.dtype)
        return plain

    def offsets(self) -> Floats:
        """The biases b as float64[g, O]; zero if there are none."""
        value = input_at(self.node, 2)
        array = constant_of(value)
        outputs = self.matrix().shape[2]
        if array is None:
            return np.zeros((self.groups, outputs))
        return np.broadcast_to(array.astype(np.float64).ravel(), (self.groups * outputs,)).reshape(self.groups, outputs)

    @property
    def _is_transposed(self) -> bool:
        return self.node.op_type == "Gemm" and self.node.attributes.get_int("transB", 0) != 0

    def positions(self, made: Array, count: int, rng: np.random.Generator) -> Positions:
        """At most ``count`` positions of an output, ascending, of those that ``rng`` draws."""
        total = made.size // made.shape[self.outputs_axis]
        return np.sort(rng.permutation(total)[:count])

    def answers(self, made: Array, at: Positions) -> Floats:
        """Y at positions, float64[g, P, O]."""
        rows = np.moveaxis(made, self.outputs_axis, -1).reshape(-1, made.shape[self.outputs_axis])[at]
        return rows.astype(np.float64).reshape(len(at), self.groups, -1).transpose(1, 0, 2)

    def rows(self, taken: Array, made_shape: tuple[int, ...], at: Positions) -> Floats:
        """X at positions of the output, float64[g, P, F]."""
        if self.node.op_type != "Conv":
            return taken.reshape(-1, taken.shape[-1])[at].astype(np.float64)[None]
        if taken.ndim == 3:
            taken, made_shape = taken[:, :, None], (*made_shape[:2], 1, made_shape[2])
        height, width = made_shape[2:]
        kernel, strides, pads, dilations = _window(self.node, _known(self.weight).shape[2:], taken.shape[2:])
        padded = np.pad(taken, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
        batch, rest = at // (height * width), at % (height * width)
        down = (rest // width * strides[0])[:, None, None] + (np.arange(kernel[0]) * dilations[0])[None, :, None]
        right = (rest % width * strides[1])[:, None, None] + (np.arange(kernel[1]) * dilations[1])[None, None, :]
        patches = padded[batch[:, None, None], :, down, right].transpose(0, 3, 1, 2).astype(np.float64)
        return patches.reshape(len(at), self.groups, -1).transpose(1, 0, 2)


def as_linear(node: ir.Node) -> Linear | None:
    """A node as a linear layer, or None if it is none, or one whose weight is computed, shared or odd."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return None
    weight, bias = input_at(node, 1), input_at(node, 2)
    array = constant_of(weight)
    if weight is None or array is None or array.dtype != np.float32 or len(weight.uses()) != 1:
        return None
    groups, axis = 1, -1
    if node.op_type == "Conv":
        groups, axis = node.attributes.get_int("group", 1), 1
        if array.ndim not in (3, 4) or array.shape[0] % groups:
            return None
    elif array.ndim != 2 or not _is_plain(node):
        return None
    if bias is not None and constant_of(bias) is None:
        return None
    own = bias is not None and len(bias.uses()) == 1 and _is_vector(bias, array.shape, axis, node)
    return Linear(node=node, weight=weight, bias=bias if own else None, outputs_axis=axis, groups=groups)


def _is_plain(node: ir.Node) -> bool:
    attributes = node.attributes
    return (
        attributes.get_int("transA", 0) == 0
        and attributes.get_float("alpha", 1.0) == 1.0
        and attributes.get_float("beta", 1.0) == 1.0
    )


def _is_vector(bias: ir.Value, weight_shape: tuple[int, ...], axis: int, node: ir.Node) -> bool:
    transposed = node.op_type == "Conv" or node.attributes.get_int("transB", 0) != 0
    outputs = weight_shape[0] if transposed or axis == 1 else weight_shape[1]
    return _known(bias).size == outputs


def _window(
    node: ir.Node, kernel: tuple[int, ...], size: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int], tuple[int, int]]:
    """Kernel, strides, pads (begin of both axes, end of both) and dilations of a convolution, two-dimensional."""
    axes = len(kernel)
    strides, dilations = _ints(node, "strides", [1] * axes), _ints(node, "dilations", [1] * axes)
    pads = _ints(node, "pads", [0] * 2 * axes)
    if axes == 1:
        kernel, strides, dilations = (1, *kernel), [1, *strides], [1, *dilations]
        pads = [0, pads[0], 0, pads[1]]
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode.startswith("SAME"):
        for axis in range(2):
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            total = max((math.ceil(size[axis] / strides[axis]) - 1) * strides[axis] + reach - size[axis], 0)
            less, more = total // 2, total - total // 2
            pads[axis], pads[axis + 2] = (less, more) if mode == "SAME_UPPER" else (more, less)
    elif mode == "VALID":
        pads = [0, 0, 0, 0]
    return (
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        (pads[0], pads[1], pads[2], pads[3]),
        (dilations[0], dilations[1]),
    )


def _ints(node: ir.Node, name: str, otherwise: list[int]) -> list[int]:
    found = node.attributes.get(name)
    return [int(number) for number in found.as_ints()] if found is not None else otherwise


def _known(value: ir.Value) -> Array:
    array = constant_of(value)
    assert array is not None, "as_linear takes constants only"  # noqa: S101 - an invariant of this module
    return array
