"""Layers whose channels can be scaled: what leaves them divided, what enters them multiplied back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from edge.formats.tensor import Array
from host.compress.constants import constant_of, is_shared, own_constant, set_constant

# Of the standard deviation: how far a normal channel reaches, as in Nagel et al. (2019).
_DEVIATIONS = 3


class Scalable(Protocol):
    """A layer with channels; its arrays are kept in float64 until it is written."""

    channels: int
    """Of its output."""
    is_source: bool
    """Whether `divide_output` may be called."""

    def leaving(self) -> Array:
        """Range of each output channel, up to a common factor, shape ``[channels]``."""

    def entering(self) -> Array:
        """Largest magnitude that each input channel is multiplied by, shape ``[input channels]``."""

    def incoming(self) -> Array | None:
        """Range of each input channel where the layer knows it, shape ``[input channels]``."""

    def divide_output(self, scale: Array) -> None:
        """Divide each output channel, shape ``[channels]``."""

    def multiply_input(self, scale: Array) -> None:
        """Compensate for input channels that were divided, shape ``[input channels]``."""

    def write(self, graph: ir.Model, taken: set[str]) -> None:
        """Put changed constants into the graph, rounded to float32; shared ones are copied first."""


class _Linear:
    """Conv, ConvTranspose or Gemm.

    Its weights are seen as ``[groups, outputs, inputs, kernel]``, or with outputs and inputs swapped.
    """

    def __init__(self, node: ir.Node, weight: Array, *, groups: int, swapped: bool) -> None:
        self._node = node
        self._shape = weight.shape
        self._weight = weight.astype(np.float64).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        self._inputs, self._outputs = (1, 2) if swapped else (2, 1)
        self.channels = groups * self._weight.shape[self._outputs]
        given = node.inputs[2] if len(node.inputs) > 2 else None
        bias = constant_of(given)
        is_row = bias is not None and bias.size in (1, self.channels) and bias.shape[:-1] in ((), (1,))
        self.is_source = given is None or is_row
        self._bias = (
            np.broadcast_to(bias.reshape(-1), self.channels).astype(np.float64) if is_row and bias is not None else None
        )
        self._changed = False

    def leaving(self) -> Array:
        largest: Array = np.abs(self._weight).max(axis=(self._inputs, 3), initial=0.0).reshape(-1)
        return largest

    def entering(self) -> Array:
        largest: Array = np.abs(self._weight).max(axis=(self._outputs, 3), initial=0.0).reshape(-1)
        return largest

    def incoming(self) -> Array | None:
        return None

    def divide_output(self, scale: Array) -> None:
        self._weight = self._weight / self._along(scale, self._outputs)
        if self._bias is not None:
            self._bias = self._bias / scale
        self._changed = True

    def multiply_input(self, scale: Array) -> None:
        self._weight = self._weight * self._along(scale, self._inputs)
        self._changed = True

    def _along(self, scale: Array, axis: int) -> Array:
        shape = [self._weight.shape[0], 1, 1, 1]
        shape[axis] = self._weight.shape[axis]
        return scale.reshape(shape)

    def write(self, graph: ir.Model, taken: set[str]) -> None:
        if not self._changed:
            return
        weight = own_constant(graph, self._node, 1, taken)
        set_constant(weight, self._weight.reshape(self._shape).astype(np.float32))
        if self._bias is not None:
            set_constant(own_constant(graph, self._node, 2, taken), self._bias.astype(np.float32))


class _BatchNorm:
    """BatchNormalization: ``(x - mean) / sqrt(variance + epsilon) * scale + shift``."""

    is_source = True

    def __init__(self, node: ir.Node, parameters: Sequence[Array]) -> None:
        self._node = node
        self._scale, self._shift, self._mean, variance = (array.astype(np.float64) for array in parameters)
        epsilon = node.attributes.get("epsilon")
        self._deviation = np.sqrt(variance + (float(epsilon.value) if epsilon is not None else 1e-5))
        self.channels = self._scale.size
        self._changed = False

    def leaving(self) -> Array:
        reach: Array = np.abs(self._shift) + _DEVIATIONS * np.abs(self._scale)
        return reach

    def entering(self) -> Array:
        return np.abs(self._scale) / self._deviation

    def incoming(self) -> Array | None:
        reach: Array = np.abs(self._mean) + _DEVIATIONS * self._deviation
        return reach

    def divide_output(self, scale: Array) -> None:
        self._scale, self._shift = self._scale / scale, self._shift / scale
        self._changed = True

    def multiply_input(self, scale: Array) -> None:
        # The variance stays as it is written, because epsilon is added to it: the scale takes the factor.
        self._mean, self._deviation, self._scale = self._mean / scale, self._deviation / scale, self._scale * scale
        self._changed = True

    def write(self, graph: ir.Model, taken: set[str]) -> None:
        if self._changed:
            for index, array in ((1, self._scale), (2, self._shift), (3, self._mean)):
                set_constant(own_constant(graph, self._node, index, taken), array.astype(np.float32))


class PerChannel:
    """Mul by, or Add of, a constant for each channel.

    Args:
        node: The operator.
        index: Of the constant among its inputs.
        factors: The constant, shape ``[channels]``.
        rank: Of the tensor; channels are its second axis.
    """

    is_source = True

    def __init__(self, node: ir.Node, index: int, factors: Array, rank: int) -> None:
        self.channels = factors.size
        self._node, self._index, self._factors = node, index, factors.astype(np.float64)
        self._shape = (1, -1, *[1] * (rank - 2))
        self._changed = False

    def leaving(self) -> Array:
        """Magnitude of each factor."""
        return np.abs(self._factors)

    def entering(self) -> Array:
        """Magnitude of each factor."""
        return np.abs(self._factors)

    def incoming(self) -> Array | None:
        """Not known."""
        return None

    def divide_output(self, scale: Array) -> None:
        """Divide the constant."""
        self._factors = self._factors / scale
        self._changed = True

    def multiply_input(self, scale: Array) -> None:
        """Multiply the constant."""
        self._factors = self._factors * scale
        self._changed = True

    def write(self, graph: ir.Model, taken: set[str]) -> None:
        """Put the constant into the graph if it changed."""
        if self._changed:
            value = own_constant(graph, self._node, self._index, taken)
            set_constant(value, self._factors.reshape(self._shape).astype(np.float32))


def scalable(node: ir.Node) -> Scalable | None:
    """The layer that a node is, or None if its channels cannot be scaled; Mul is left to who knows its rank."""
    if node.domain:
        return None
    if node.op_type == "BatchNormalization":
        return _batch_norm(node)
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.inputs) < 2:
        return None
    weight = constant_of(node.inputs[1])
    if weight is None or weight.dtype != np.float32 or weight.ndim < 2 or not weight.size or is_shared(node.inputs[1]):  # type: ignore[arg-type]  # it is there: it has data
        return None
    if node.op_type == "Gemm":
        if _integer(node, "transA", 0):
            return None
        return _Linear(node, weight, groups=1, swapped=not _integer(node, "transB", 0))
    return _Linear(node, weight, groups=_integer(node, "group", 1), swapped=node.op_type == "ConvTranspose")


def _batch_norm(node: ir.Node) -> Scalable | None:
    parameters = [array for value in node.inputs[1:5] if (array := constant_of(value)) is not None]
    in_training = _integer(node, "training_mode", 0) or any(value.uses() for value in node.outputs[1:])
    if len(parameters) < 4 or in_training or any(array.dtype != np.float32 for array in parameters):
        return None
    return _BatchNorm(node, parameters)


def _integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return int(attribute.value) if attribute is not None else default
