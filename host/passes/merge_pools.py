"""Join two poolings of one kind in a row into one with a larger window.

1. MaxPool after MaxPool: the largest of the largest is the largest of the joined window. The first one's windows leave
   no gaps between them, the second has no padding, and the joined window compares no more elements than both did.
2. AveragePool after AveragePool: the mean of means is the mean of the joined window where the first one's windows
   neither overlap nor leave gaps, and nobody pads.
3. Neither has gaps in its window, rounds its output's size up, or gives out indices; the first has no other reader.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from host.passes.neighbours import is_standard, remove_made_for, set_inputs, sole_maker
from host.passes.rewriting import at_every_node
from host.passes.window import Window, set_window, window_of


def _merge(node: ir.Node, main: ir.Graph) -> bool:  # noqa: ARG001 - the form of an edit
    first = sole_maker(node, 0, (node.op_type,)) if node.op_type in ("MaxPool", "AveragePool") else None
    if first is None or not is_standard(first) or not is_standard(node):
        return False
    inner, outer = window_of(first), window_of(node)
    if inner is None or outer is None or inner.is_dilated or outer.is_dilated or outer.is_padded:
        return False
    joins = _joins_largest if node.op_type == "MaxPool" else _joins_means
    window = Window(
        kernel=tuple(a + s * (b - 1) for a, s, b in zip(inner.kernel, inner.strides, outer.kernel, strict=True)),
        strides=tuple(a * b for a, b in zip(inner.strides, outer.strides, strict=True)),
        dilations=(1,) * len(inner.kernel),
        pads=inner.pads,
    )
    source = first.inputs[0]
    if source is None or not joins(inner, outer, window):
        return False
    set_inputs(node, source)
    set_window(node, window)
    remove_made_for(node, first)
    return True


def _joins_largest(inner: Window, outer: Window, joined: Window) -> bool:
    has_gaps = any(
        stride > size and taps > 1 for stride, size, taps in zip(inner.strides, inner.kernel, outer.kernel, strict=True)
    )
    # For each output of the second, about its strides' worth of outputs of the first are computed.
    before = math.prod(inner.kernel) * math.prod(outer.strides) + math.prod(outer.kernel)
    return not has_gaps and math.prod(joined.kernel) <= before


def _joins_means(inner: Window, outer: Window, joined: Window) -> bool:  # noqa: ARG001 - one form for both kinds
    return inner.kernel == inner.strides and not inner.is_padded


merge_pools = at_every_node(_merge)
