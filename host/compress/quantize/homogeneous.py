"""The ways from one scalable layer to the next over operators that scale with their input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from edge.formats.tensor import Array
from host.compress.constants import constant_of
from host.compress.quantize.scalable import PerChannel, Scalable, scalable
from host.model import to_proto

_UNARY = frozenset(
    {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "PRelu", "Relu"}
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sink:
    """Where a way ends.

    Attributes:
        layer: What takes the channels.
        repeats: Neighbouring input channels of it that one channel became, by flattening.
    """

    layer: Scalable
    repeats: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Route:
    """All ways from one layer.

    Attributes:
        source: The layer whose output channels are scaled.
        shifts: Constants that are added on the way, and scaled with them.
        sinks: At least one.
    """

    source: Scalable
    shifts: tuple[PerChannel, ...]
    sinks: tuple[Sink, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """Rank and channels of a tensor on the way; once it is flat, each channel is a run of columns."""

    rank: int
    channels: int
    flat: bool = False


class _Walk:
    """Finds routes in one graph."""

    def __init__(self, graph: ir.Model) -> None:
        self._graph = graph.graph
        self._layers = {str(node.name): layer for node in graph.graph if (layer := scalable(node)) is not None}
        self._rows = _row_sizes(graph)
        self.shifts: dict[str, PerChannel] = {}

    @property
    def layers(self) -> Sequence[Scalable]:
        return (*self._layers.values(), *self.shifts.values())

    def routes(self) -> tuple[Route, ...]:
        found: list[Route] = []
        ranks: dict[str, _Form] = {}
        for node in self._graph:
            form = self._output_form(node, ranks)
            if form is None:
                continue
            ranks[str(node.outputs[0].name)] = form
            layer = self._layers.get(str(node.name))
            if layer is None or not layer.is_source or form.flat:
                continue
            sinks: list[Sink] = []
            shifts: list[PerChannel] = []
            if self._follow(node.outputs[0], form, sinks, shifts):
                found.append(Route(source=layer, shifts=tuple(shifts), sinks=tuple(sinks)))
        return tuple(found)

    def _output_form(self, node: ir.Node, forms: Mapping[str, _Form]) -> _Form | None:
        layer = self._layers.get(str(node.name))
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and layer is not None:
            weight = constant_of(node.inputs[1])
            return _Form(rank=weight.ndim, channels=layer.channels) if weight is not None else None
        values = [value for value in node.inputs if value is not None]
        form = next((forms[str(value.name)] for value in values if str(value.name) in forms), None)
        if form is None:
            return None
        if node.op_type in ("Mul", "Add", "Sub"):
            given = _per_channel(node, form)
            if given is None:
                return None
            self._note(node, *given, form)
            return form
        if node.op_type == "BatchNormalization":
            return form if layer is not None and layer.channels == form.channels and not form.flat else None
        return self._passed(node, form)

    def _note(self, node: ir.Node, index: int, factors: Array, form: _Form) -> None:
        name = str(node.name)
        if factors.size == 1 and node.op_type == "Mul":
            return
        if name in self._layers or name in self.shifts:
            return
        row = np.broadcast_to(factors.reshape(-1), form.channels)
        layer = PerChannel(node, index, row, form.rank)
        if node.op_type == "Mul":
            self._layers[name] = layer
        else:
            self.shifts[name] = layer

    def _follow(self, value: ir.Value, form: _Form, sinks: list[Sink], shifts: list[PerChannel]) -> bool:
        """Walk on from a tensor; False if one of its readers is not homogeneous."""
        if value.is_graph_output() or not value.uses():
            return False
        return all(self._step(use.node, use.idx, form, sinks, shifts) for use in value.uses())

    def _step(self, node: ir.Node, index: int, form: _Form, sinks: list[Sink], shifts: list[PerChannel]) -> bool:
        if node.graph is not self._graph:
            return False
        after: _Form | None
        if node.op_type in ("Mul", "Add", "Sub"):
            given = _per_channel(node, form)
            if given is None or node.inputs[given[0]] is node.inputs[index]:
                return False
            self._note(node, *given, form)
            if node.op_type == "Mul" and (layer := self._layers.get(str(node.name))) is not None:
                sinks.append(Sink(layer=layer, repeats=1))
                return True
            if node.op_type != "Mul":
                shifts.append(self.shifts[str(node.name)])
            after = form
        elif index != 0:
            return False
        elif (layer := self._layers.get(str(node.name))) is not None:
            width = layer.entering().size
            if width % form.channels or (width != form.channels and not form.flat):
                return False
            sinks.append(Sink(layer=layer, repeats=width // form.channels))
            return True
        else:
            after = self._passed(node, form)
        return after is not None and self._follow(node.outputs[0], after, sinks, shifts)

    def _passed(self, node: ir.Node, form: _Form) -> _Form | None:
        """The form behind an operator that scales with its input, or None for any other operator."""
        if node.domain or any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
            return None
        kind = node.op_type
        if kind in _UNARY:
            return form
        if kind == "Clip":
            return form if _is_relu(node) else None
        if kind == "Flatten" and not form.flat:
            axis = node.attributes.get("axis")
            flat = _Form(rank=2, channels=form.channels, flat=True)
            return flat if axis is None or int(axis.value) in (1, 1 - form.rank) else None
        if kind == "Reshape" and not form.flat:
            return self._reshaped(node, form)
        if kind in ("ReduceMean", "Squeeze") and not form.flat:
            return _without_axes(node, form)
        return _padded(node, form) if kind == "Pad" else None

    def _reshaped(self, node: ir.Node, form: _Form) -> _Form | None:
        target = constant_of(node.inputs[1])
        if target is None or target.size != 2:
            return None
        first, second = (int(size) for size in target)
        row = self._rows.get(str(node.inputs[0].name)) if node.inputs[0] is not None else None
        # ``[0, ?]`` and ``[1, ?]`` keep the batch; another first size only if a row is all of one sample.
        if first in (0, 1) or (row is not None and row == second):
            return _Form(rank=2, channels=form.channels, flat=True)
        return None


def routes(graph: ir.Model) -> tuple[tuple[Route, ...], tuple[Scalable, ...]]:
    """Find the routes of a main graph, in graph order, and the layers that they may change."""
    walk = _Walk(graph)
    return walk.routes(), tuple(walk.layers)


def _per_channel(node: ir.Node, form: _Form) -> tuple[int, Array] | None:
    """Place and value of a constant operand that holds one number, or one for each channel."""
    if len(node.inputs) != 2 or node.domain:
        return None
    for index in (1,) if node.op_type == "Sub" else (0, 1):
        array = constant_of(node.inputs[index])
        if array is None or array.dtype != np.float32 or array.ndim > form.rank:
            continue
        if array.size == 1 and not (form.flat and node.op_type != "Mul"):
            return index, array
        wanted = (1, form.channels, *[1] * (form.rank - 2))
        if not form.flat and (1,) * (form.rank - array.ndim) + array.shape == wanted:
            return index, array
    return None


def _is_relu(node: ir.Node) -> bool:
    low, high = (node.inputs[i] if len(node.inputs) > i else None for i in (1, 2))
    bound = constant_of(low)
    return high is None and bound is not None and bound.size == 1 and float(bound.item()) == 0.0


def _axes(node: ir.Node) -> list[int] | None:
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return [int(axis) for axis in attribute.value]
    given = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return [int(axis) for axis in given.reshape(-1)] if given is not None else None


def _without_axes(node: ir.Node, form: _Form) -> _Form | None:
    axes = _axes(node)
    if not axes:
        return None
    axes = [axis % form.rank for axis in axes]
    if min(axes) < 2:
        return None
    keeps = node.op_type == "ReduceMean" and (
        (attribute := node.attributes.get("keepdims")) is None or int(attribute.value) == 1
    )
    return form if keeps else _Form(rank=form.rank - len(axes), channels=form.channels)


def _padded(node: ir.Node, form: _Form) -> _Form | None:
    mode = node.attributes.get("mode")
    pads = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    zero = fill is None or ((value := constant_of(fill)) is not None and not value.any())
    axes = len(node.inputs) > 3 and node.inputs[3] is not None
    if form.flat or axes or not zero or pads is None or (mode is not None and str(mode.value) != "constant"):
        return None
    if pads.size != 2 * form.rank or pads[1] or pads[1 + form.rank]:
        return None
    return form


def _row_sizes(graph: ir.Model) -> dict[str, int]:
    """Elements of one sample of each tensor whose shape can be inferred."""
    if not any(node.op_type == "Reshape" for node in graph.graph):
        return {}
    inferred = onnx.shape_inference.infer_shapes(to_proto(graph)).graph
    sizes: dict[str, int] = {}
    for value in inferred.value_info:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if len(dims) > 1 and all(dims[1:]):
            sizes[value.name] = math.prod(dims[1:])
    return sizes
