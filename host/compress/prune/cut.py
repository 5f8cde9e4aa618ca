"""Take channels out of a graph: slice every constant that has them, and count again what counts them.

A constant that several nodes take is sliced for each as that node needs it, and gets another name where they differ.
Which names there are afterwards depends on what is sliced, never on what the constants hold.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edge.formats.tensor import Array
from host.compress.constants import add_constant, constant_of, own_constant, set_constant, taken_names
from host.compress.prune.ties import Mask, Ties
from host.compress.prune.tracing import input_at
from host.model import Graph

_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")
"""Operators whose third input is a bias."""

Slot = tuple[ir.Node, int]


@dataclass(kw_only=True, slots=True)
class _Edits:
    """What is done to one input of one node: along which axis what stays, and which number becomes what."""

    masks: list[tuple[int, Mask]] = field(default_factory=list)
    numbers: list[tuple[int, int]] = field(default_factory=list)

    def signature(self) -> tuple[object, ...]:
        return (*((axis, mask.tobytes()) for axis, mask in self.masks), *self.numbers)

    def carried_out(self, array: Array) -> Array:
        for axis, mask in self.masks:
            array = np.compress(mask, array, axis=axis)
        if self.numbers:
            array = array.copy()
            for index, number in self.numbers:
                array[index] = number
        return np.ascontiguousarray(array)


def remove_channels(graph: Graph, ties: Ties, stays: Mask) -> None:
    """Slice a graph, in place.

    Args:
        graph: The one that ``ties`` were found in.
        ties: What shrinks with which channel.
        stays: For each number of a channel, whether it stays.
    """
    wanted: dict[Slot, _Edits] = defaultdict(_Edits)
    for cut in ties.cuts:
        mask = stays[cut.ids]
        if not mask.all():
            wanted[cut.node, cut.input].masks.append((cut.axis, mask))
    for count in ties.counts:
        left = int(stays[count.ids].sum())
        if left == len(count.ids):
            continue
        if count.input is None:
            count.node.attributes["group"] = ir.AttrInt64("group", left)
        else:
            wanted[count.node, count.input].numbers.append((count.index, left))
    _replace(graph, wanted)


def own_biases(graph: Graph, ties: Ties, stays: Mask) -> None:
    """Give each layer that loses inputs a bias of its own, in place, zero where it had none.

    Least squares can then put the mean of what was removed there without changing the graph.
    """
    taken = taken_names(graph)
    touched = {cut.node: None for cut in ties.cuts if cut.role == "reads" and not stays[cut.ids].all()}
    outputs = {cut.node: len(cut.ids) for cut in ties.cuts if cut.role == "makes"}
    for node in touched:
        weight = constant_of(node.inputs[1])
        if node.op_type not in _WITH_BIAS or weight is None:
            continue
        bias = input_at(node, 2)
        if bias is None:
            node.resize_inputs(3)
            zeros = np.zeros(outputs[node], weight.dtype)
            node.replace_input_with(2, add_constant(graph, f"{node.name}_bias", zeros, taken))
        elif constant_of(bias) is not None:
            own_constant(graph, node, 2, taken)


def _replace(graph: Graph, wanted: dict[Slot, _Edits]) -> None:
    taken = taken_names(graph)
    by_value: dict[ir.Value, list[Slot]] = defaultdict(list)
    for node, index in wanted:
        value = node.inputs[index]
        if value is not None:
            by_value[value].append((node, index))
    for value, slots in by_value.items():
        array = constant_of(value)
        if array is None:
            continue
        everywhere = len(slots) == len(value.uses()) and not value.is_graph_output()
        if everywhere and len({wanted[slot].signature() for slot in slots}) == 1:
            set_constant(value, wanted[slots[0]].carried_out(array))
            continue
        for node, index in slots:
            edited = wanted[node, index].carried_out(array)
            node.replace_input_with(index, add_constant(graph, str(value.name), edited, taken))
