"""Rules for operators that move channels about: to another axis, behind each other, apart, or into another shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from host.compress.prune.shapes import Shape
from host.compress.prune.tracing import KEPT, Layout, Tracing, input_at, is_computed, numbers_of


def unchanged(tracing: Tracing, node: ir.Node, layout: Layout) -> None:
    """Give the first output the layout of the input; further outputs that are used freeze it."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        tracing.freeze(layout.ids)
        return
    tracing.layouts[node.outputs[0]] = layout


def reduce(tracing: Tracing, node: ir.Node) -> None:
    """Over other axes than the channels."""
    layout = tracing.layout(node.inputs[0])
    axes = numbers_of(node, 1, "axes")
    if layout is None or not axes or layout.axis in (gone := [axis % layout.rank for axis in axes]):
        tracing.give_up(node)
        return
    if node.attributes.get_int("keepdims", 1):
        unchanged(tracing, node, layout)
    else:
        _without(tracing, node, layout, gone)


def squeeze(tracing: Tracing, node: ir.Node) -> None:
    """Other axes than the channels go."""
    layout = tracing.layout(node.inputs[0])
    axes = numbers_of(node, 1, "axes")
    if layout is None or not axes or layout.axis in (gone := [axis % layout.rank for axis in axes]):
        tracing.give_up(node)
        return
    _without(tracing, node, layout, gone)


def _without(tracing: Tracing, node: ir.Node, layout: Layout, gone: Sequence[int]) -> None:
    axis = layout.axis - sum(other < layout.axis for other in set(gone))
    tracing.place(node.outputs[0], axis=axis, rank=layout.rank - len(set(gone)), ids=layout.ids)


def unsqueeze(tracing: Tracing, node: ir.Node) -> None:
    """New axes come."""
    layout = tracing.layout(node.inputs[0])
    axes = numbers_of(node, 1, "axes")
    if layout is None or not axes:
        tracing.give_up(node)
        return
    rank = layout.rank + len(axes)
    new = {axis % rank for axis in axes}
    old = [axis for axis in range(rank) if axis not in new]
    tracing.place(node.outputs[0], axis=old[layout.axis], rank=rank, ids=layout.ids)


def transpose(tracing: Tracing, node: ir.Node) -> None:
    """Axes change places."""
    layout = tracing.layout(node.inputs[0])
    if layout is None:
        return
    found = node.attributes.get("perm")
    order = list(found.as_ints()) if found is not None else list(reversed(range(layout.rank)))
    tracing.place(node.outputs[0], axis=order.index(layout.axis), rank=layout.rank, ids=layout.ids)


def concat(tracing: Tracing, node: ir.Node) -> None:
    """Along the channels they stand one after another; along another axis they are tied."""
    layouts = [tracing.layout(value) for value in node.inputs]
    known = [layout for layout in layouts if layout is not None]
    if not known or len({(layout.axis, layout.rank) for layout in known}) != 1:
        tracing.give_up(node)
        return
    axis, rank = known[0].axis, known[0].rank
    if node.attributes.get_int("axis", 0) % rank != axis:
        if len(known) != len(layouts) or any(len(layout.ids) != len(known[0].ids) for layout in known):
            tracing.give_up(node)
            return
        for other in known:
            tracing.tie(known[0].ids, other.ids)
        tracing.place(node.outputs[0], axis=axis, rank=rank, ids=known[0].ids)
        return
    parts = []
    for value, layout in zip(node.inputs, layouts, strict=True):
        size = (tracing.shape(value) or (None,) * rank)[axis] if layout is None else len(layout.ids)
        if size is None:
            tracing.give_up(node)
            return
        parts.append(layout.ids if layout is not None else np.full(size, KEPT, np.int64))
    tracing.place(node.outputs[0], axis=axis, rank=rank, ids=np.concatenate(parts))


def split(tracing: Tracing, node: ir.Node) -> None:
    """Along another axis each part has all channels; along the channels, equal parts stay equal."""
    layout = tracing.layout(node.inputs[0])
    if layout is None:
        return
    parts = len(node.outputs)
    if node.attributes.get_int("axis", 0) % layout.rank != layout.axis:
        for value in node.outputs:
            tracing.layouts[value] = layout
        return
    sizes = numbers_of(node, 1, "split")
    if sizes is None and not is_computed(node, 1) and len(layout.ids) % parts == 0:
        pieces = np.split(layout.ids, parts)
        for piece in pieces[1:]:
            tracing.tie(pieces[0], piece)
    elif sizes is not None and input_at(node, 1) is not None and sum(sizes) == len(layout.ids):
        pieces = np.split(layout.ids, np.cumsum(sizes)[:-1])
        for index, piece in enumerate(pieces):
            tracing.counted(node, 1, index, piece)
    else:
        tracing.give_up(node)
        return
    for value, piece in zip(node.outputs, pieces, strict=True):
        tracing.place(value, axis=layout.axis, rank=layout.rank, ids=piece)


def flatten(tracing: Tracing, node: ir.Node) -> None:
    """``[N, C, H, W]`` to ``[N, C·H·W]``: H·W positions a channel."""
    layout, shape = tracing.layout(node.inputs[0]), tracing.shape(node.inputs[0])
    axis = node.attributes.get_int("axis", 1)
    if layout is None or shape is None or len(shape) != layout.rank:
        tracing.give_up(node)
        return
    axis += layout.rank if axis < 0 else 0
    _regroup(tracing, node, layout, shape, (_product(shape[:axis]), _product(shape[axis:])))


def reshape(tracing: Tracing, node: ir.Node) -> None:
    """To a constant shape that keeps the channels apart from each other."""
    layout, shape = tracing.layout(node.inputs[0]), tracing.shape(node.inputs[0])
    wanted = numbers_of(node, 1, "shape")
    # Some exporters set `allowzero` everywhere; it matters only where there is a zero.
    if (
        layout is None
        or shape is None
        or wanted is None
        or (0 in wanted and node.attributes.get_int("allowzero", 0) != 0)
    ):
        tracing.give_up(node)
        return
    if any(number == 0 and at >= len(shape) for at, number in enumerate(wanted)):
        tracing.give_up(node)
        return
    made: list[int | None] = [shape[at] if number == 0 else number for at, number in enumerate(wanted)]
    if -1 in wanted:
        at = wanted.index(-1)
        # What is copied from the front is copied from the front of both, and need not be known.
        copied = next((index for index, number in enumerate(wanted) if number != 0), len(wanted))
        left, right = _product(shape[copied:]), _product([*made[copied:at], *made[at + 1 :]])
        made[at] = left // right if left is not None and right else None
    axis = _regroup(tracing, node, layout, shape, made)
    if axis is None or wanted[axis] == -1 or (wanted[axis] == 0 and axis == layout.axis):
        return
    if wanted[axis] == 0:
        tracing.freeze(layout.ids)
        return
    tracing.counted(node, 1, axis, tracing.layouts[node.outputs[0]].ids)


def _regroup(tracing: Tracing, node: ir.Node, layout: Layout, shape: Shape, made: Sequence[int | None]) -> int | None:
    """Find the output axis that holds each channel ``r`` times in a row, in row-major order.

    Position ``c·T + t`` of the input, T the product of the axes after the channels, is position ``(c·T + t) // U``
    along an output axis with U elements after it: ``c·r + …`` where ``T = r·U``.
    """
    channels, tail = len(layout.ids), _product(shape[layout.axis + 1 :])
    for axis, size in enumerate(made):
        after = _product(made[axis + 1 :])
        if tail and after and tail % after == 0 and size == channels * (tail // after):
            ids = np.repeat(layout.ids, tail // after)
            tracing.place(node.outputs[0], axis=axis, rank=len(made), ids=ids)
            return axis
    tracing.give_up(node)
    return None


def _product(sizes: Sequence[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None
