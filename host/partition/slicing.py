"""Cutting a node that is too large for one shard into slices of its output channels, and a Concat that joins them.

1. A slice computes neighbouring channels from the whole input with its part of the weights. Each is a branch of its
   own: slices stand one after another, do not read from each other, and can run side by side.
2. Slices are as few as fit, and hold multiples of eight channels as far as that can be: kernels work in such blocks.
3. What is read along the channels but computed (a residual that a convolution adds, the input of grouped channels) is
   cut by a Slice node in the same branch.
4. The first node of a model gets an Identity before it, so that a request enters at one device; behind the last one is
   the Concat.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from host.model import Model, copied
from host.observe import Observed
from host.partition.cost import constant_bytes, constant_closure
from host.partition.layers import LayerNodes, Layers
from host.partition.sliceable import QUANTIZERS, Part, Sliceable, is_constant, shapes, sliceable
from host.passes.unique_names import free_name
from host.work import node_reads

CHANNELS_AT_ONCE = 8
"""Slices hold multiples of this where they can; slices that nobody needs hold at least so many."""

_NODE_BYTES = 1024
_LONGEST = 180


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """How one node is cut.

    Attributes:
        node: its name.
        how: what of its inputs a slice needs.
        bounds: first channel of each slice, and the number of channels.
        first: whether nothing runs before it.
    """

    node: str
    how: Sliceable
    bounds: tuple[int, ...]
    first: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Cuts:
    """Which nodes are cut.

    Attributes:
        cuts: in graph order.
        why: reason by index of the layers that are too large and stay whole.
    """

    cuts: tuple[Cut, ...] = ()
    why: Mapping[int, str] = field(default_factory=dict)


def choose_cuts(
    layers: Layers,
    graph: ir.Graph,
    observed: Mapping[str, Observed],
    sizes: Sequence[int],
    *,
    max_shard_bytes: int,
    slice_above_bytes: int | None = None,
    whole: Collection[str] = (),
) -> Cuts:
    """Choose what is cut, and into how many slices.

    Args:
        layers: of the model.
        graph: of the model.
        observed: from `observe`.
        sizes: of a shard of each layer alone, bytes.
        max_shard_bytes: what exceeds this must be cut.
        slice_above_bytes: what exceeds this is cut too, where slices keep `CHANNELS_AT_ONCE` channels; None for no
            more than must be.
        whole: names of nodes that are slices already.
    """
    cuts: list[Cut] = []
    why: dict[int, str] = {}
    for index, (layer, size) in enumerate(zip(layers.layers, sizes, strict=True)):
        wanted = min(max_shard_bytes, slice_above_bytes or max_shard_bytes)
        node = max(layer.nodes, key=lambda node: _constants_of(node, graph, layers))
        if size <= wanted or (node.name in whole and size <= max_shard_bytes):
            continue
        how = sliceable(node, shapes(observed))
        if isinstance(how, str):
            why[index] = how
            continue
        bounds = None
        if wanted < max_shard_bytes:
            bounds = _bounds(node, how, _other_bytes(layer, size, graph, layers), wanted, graph, layers, freely=True)
        if bounds is None and size > max_shard_bytes:
            other = _other_bytes(layer, size, graph, layers)
            bounds = _bounds(node, how, other, max_shard_bytes, graph, layers, freely=False)
        if bounds is None:
            why[index] = f"{how.channels} slices of it would still be too large"
            continue
        cuts.append(Cut(node=str(node.name), how=how, bounds=bounds, first=index == 0 and node is layer.nodes[0]))
    return Cuts(cuts=tuple(cuts), why=why)


def _constants_of(node: ir.Node, graph: ir.Graph, layers: Layers) -> int:
    names = [name for name in node_reads(node) if name in graph.initializers or name in layers.constant_nodes]
    return constant_bytes(constant_closure(names, layers), graph, layers)


def _other_bytes(layer: LayerNodes, size: int, graph: ir.Graph, layers: Layers) -> int:
    """Return what a slice needs beside its constants: its nodes, and the small print around them."""
    if len(layer.nodes) > 1:
        return _NODE_BYTES * 4
    return max(0, size - _constants_of(layer.nodes[0], graph, layers)) + _NODE_BYTES


def _bounds(
    node: ir.Node, how: Sliceable, other: int, limit: int, graph: ir.Graph, layers: Layers, *, freely: bool
) -> tuple[int, ...] | None:
    """Return the bounds of as few slices as fit into `limit` bytes each; None where none do."""
    cut = whole = 0
    for index, value in enumerate(node.inputs):
        if value is not None and is_constant(value):
            size = constant_bytes(constant_closure([str(value.name)], layers), graph, layers)
            cut, whole = (cut + size, whole) if index in how.parts else (cut, whole + size)
    room = limit - other - whole
    widest = room * how.channels // cut if room > 0 and cut else 0
    most = how.channels // max(how.together, CHANNELS_AT_ONCE if freely else 1)
    if widest < how.together:
        return None
    for count in range(max(2, -(-how.channels // widest)), most + 1):
        for block in _blocks(how.together):
            bounds = _even(how.channels, block, count)
            if bounds and max(b - a for a, b in pairwise(bounds)) <= widest:
                return bounds
    return None


def _blocks(together: int) -> Iterator[int]:
    """Give the sizes of blocks to try, the best first; all multiples of `together`."""
    for block in (CHANNELS_AT_ONCE, CHANNELS_AT_ONCE // 2, CHANNELS_AT_ONCE // 4, 1):
        yield int(np.lcm(block, together))


def _even(channels: int, block: int, count: int) -> tuple[int, ...]:
    """Deal blocks out to slices as evenly as can be, the short block last; empty where there are too few."""
    blocks = -(-channels // block)
    if blocks < count:
        return ()
    least, more = divmod(blocks, count)
    bounds = [0]
    for index in range(count):
        bounds.append(bounds[-1] + (least + (index < more)) * block)
    return (*bounds[:-1], channels)


def with_slices(model: Model, cuts: Sequence[Cut], observed: Mapping[str, Observed]) -> tuple[Model, frozenset[str]]:
    """Return the model with nodes cut, and the names of the nodes that the slices are made of.

    Args:
        model: normalised and fused; it is not changed.
        cuts: from `choose_cuts` of the same model.
        observed: from `observe`.
    """
    graph = copied(model.ir)
    knife = _Knife(graph.graph, observed)
    nodes = {str(node.name): node for node in graph.graph}
    for cut in cuts:
        knife.cut(nodes[cut.node], cut)
    knife.sweep()
    return model.with_ir(graph), frozenset(knife.made)


class _Knife:
    """Cuts nodes of one graph, in place; equal slices of a constant are one."""

    def __init__(self, graph: ir.Graph, observed: Mapping[str, Observed]) -> None:
        self._graph = graph
        self._shape_of = shapes(observed)
        self._names = {str(value.name) for node in graph.all_nodes() for value in node.outputs}
        self._names |= {str(value.name) for value in (*graph.inputs, *graph.initializers.values())}
        self._nodes = {str(node.name) for node in graph.all_nodes()}
        self._slices: dict[tuple[str, int, int, int], ir.Value] = {}
        self._cut: dict[str, None] = {}
        self.made: set[str] = set()

    def cut(self, node: ir.Node, cut: Cut) -> None:
        """Put slices and a Concat in the place of a node."""
        if cut.first:
            self._pass_on(node)
        made = node.outputs[0]
        name = str(made.name)[:_LONGEST]
        slices = []
        for index, (first, stop) in enumerate(pairwise(cut.bounds)):
            inputs = [
                self._part(value, cut.how.parts[place], first, stop, cut, node)
                if value is not None and place in cut.how.parts
                else value
                for place, value in enumerate(node.inputs)
            ]
            output = ir.Value(name=free_name(f"{name}/slice_{index}", self._names), type=made.type)
            attributes = dict(node.attributes)
            if cut.how.counted:
                count = (stop - first) // cut.how.together
                attributes[cut.how.counted] = ir.AttrInt64(cut.how.counted, count)
            name_of = f"{node.name}/slice_{index}"
            self.made.add(self._insert(node, node.op_type, inputs, output, name_of, attributes, node.domain))
            slices.append(output)
        joined = ir.Value(name=made.name, type=made.type)
        made.name = None
        axis = {"axis": ir.AttrInt64("axis", cut.how.axis)}
        self._insert(node, "Concat", slices, joined, f"{node.name}/join", axis)
        made.replace_all_uses_with(joined, replace_graph_outputs=True)
        self._cut |= dict.fromkeys(str(value.name) for value in node.inputs if value is not None and is_constant(value))
        self._graph.remove(node, safe=True)

    def sweep(self) -> None:
        """Remove the constants that nobody reads any more."""
        waiting = list(self._cut)
        makers = {str(value.name): node for node in self._graph for value in node.outputs}
        while waiting:
            name = waiting.pop()
            if name in self._graph.initializers:
                if not self._graph.initializers[name].uses():
                    self._graph.initializers.pop(name)
            elif (maker := makers.get(name)) is not None and not any(value.uses() for value in maker.outputs):
                del makers[name]
                waiting += [str(value.name) for value in maker.inputs if value is not None]
                self._graph.remove(maker, safe=True)

    def _pass_on(self, node: ir.Node) -> None:
        """Let an Identity before a node take the first of its inputs that is computed."""
        for place, value in enumerate(tuple(node.inputs)):
            if value is not None and not is_constant(value):
                passed = ir.Value(name=free_name(f"{str(value.name)[:_LONGEST]}/passed", self._names), type=value.type)
                self._insert(node, "Identity", [value], passed, f"{node.name}/pass", {})
                node.replace_input_with(place, passed)
                return

    def _part(self, value: ir.Value, part: Part, first: int, stop: int, cut: Cut, node: ir.Node) -> ir.Value:
        """Return the part of an input that the channels `[first, stop)` need."""
        start, end = first * part.of // cut.how.channels, stop * part.of // cut.how.channels
        if is_constant(value):
            return self._slice(value, part.axis, start, end, node)
        name = str(value.name)[:_LONGEST]
        limits = [
            self._constant(f"{name}/{kind}", np.array([number], np.int64))
            for kind, number in (("from", start), ("to", end), ("axis", part.axis))
        ]
        output = ir.Value(name=free_name(f"{name}/{part.axis}_{start}_{end}", self._names), type=value.type)
        self.made.add(self._insert(node, "Slice", [value, *limits], output, f"{node.name}/part_{first}", {}))
        return output

    def _slice(self, value: ir.Value, axis: int, start: int, end: int, before: ir.Node) -> ir.Value:
        """Return a part of a constant; of one that nodes make, the same nodes on parts of what they read."""
        key = (str(value.name), axis, start, end)
        if key in self._slices:
            return self._slices[key]
        name = f"{str(value.name)[:_LONGEST]}/{axis}_{start}_{end}"
        held, maker = value.const_value, value.producer()
        if maker is None and held is not None:
            # 4-bit values have a byte each in numpy, and are packed again when they are stored.
            taken = held.numpy()[(slice(None),) * axis + (slice(start, end),)]
            found = self._constant(name, np.ascontiguousarray(taken), held.dtype)
        elif maker is not None and maker.op_type == "ConstantOfShape":
            shape = np.array(self._shape_of(value), np.int64)
            shape[axis] = end - start
            found = ir.Value(name=free_name(name, self._names), type=value.type)
            sizes = self._constant(f"{name}/shape", shape)
            self._insert(before, maker.op_type, [sizes], found, f"{maker.name}/{name}", maker.attributes)
        elif maker is not None:
            inputs: list[ir.Value | None] = [
                self._slice(read, place, start, end, before) if read is not None and place >= 0 else read
                for read, place in zip(maker.inputs, self._axes(maker, axis), strict=True)
            ]
            found = ir.Value(name=free_name(name, self._names), type=value.type)
            self._insert(before, maker.op_type, inputs, found, f"{maker.name}/{name}", maker.attributes, maker.domain)
        self._slices[key] = found
        return found

    def _axes(self, maker: ir.Node, axis: int) -> list[int]:
        """Return along which axis each input of a constant's node is cut, for an axis of its output; -1 for none."""
        if maker.op_type == "Transpose":
            rank = len(self._shape_of(maker.inputs[0]) or ()) if maker.inputs[0] is not None else 0
            order = maker.attributes.get_ints("perm", tuple(reversed(range(rank))))
            return [int(order[axis])]
        if maker.op_type not in QUANTIZERS:
            return [axis]
        scales = self._shape_of(maker.inputs[1]) if maker.inputs[1] is not None else ()
        # One scale for all is a scalar or has one element.
        many = bool(scales) and scales != (1,)
        own = maker.attributes.get_int("axis", 1) % len(self._shape_of(maker.outputs[0]) or (1,))
        return [axis, *(0 if many and own == axis else -1 for _ in maker.inputs[1:])]

    def _constant(self, name: str, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
        name = free_name(name, self._names)
        tensor = ir.tensor(array, dtype=dtype, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def _insert(
        self,
        before: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value | None],
        output: ir.Value,
        name: str,
        attributes: Mapping[str, ir.Attr],
        domain: str = "",
    ) -> str:
        node = ir.Node(
            domain,
            operator,
            inputs,
            [ir.Attr(attribute.name, attribute.type, attribute.value) for attribute in attributes.values()],
            outputs=[output],
            name=free_name(name[-200:], self._nodes),
        )
        self._graph.insert_before(before, node)
        return str(node.name)
