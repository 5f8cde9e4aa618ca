"""Join a convolution and the average pooling after it into one convolution with a larger kernel and stride.

1. Conv, then AveragePool without padding, gaps or rounding up: the kernel is the mean of the Conv's kernel at the
   places of the pooling's window, the strides multiply, padding and bias of the Conv stay.
2. The Conv has no other reader and no gaps in its kernel.
3. Only where it pays: less work at every output of the pooling than the Conv took for its window, so mostly where the
   windows do not overlap; and at most 16 KiB of weights more.
4. The other order, AveragePool and then Conv, never pays: the pooling has made the places few before the Conv works.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx_ir as ir

from edge.formats.tensor import Array
from host.passes.neighbours import (
    add_constant,
    constant,
    freed_elements,
    is_absent,
    is_standard,
    remove_made_for,
    set_inputs,
    sole_maker,
)
from host.passes.rewriting import at_every_node
from host.passes.window import Window, set_window, window_of

MAX_GROWN_BYTES = 16 * 1024


def _fuse(node: ir.Node, main: ir.Graph) -> bool:
    conv = sole_maker(node, 0, ("Conv",)) if node.op_type == "AveragePool" else None
    weights = None if conv is None else constant(conv, 1)
    if conv is None or weights is None or not is_standard(conv) or not is_standard(node):
        return False
    inner, outer = window_of(conv, weights.shape[2:]), window_of(node)
    if inner is None or outer is None or outer.is_padded or outer.is_dilated or inner.is_dilated:
        return False
    window = Window(
        kernel=tuple(a + s * (b - 1) for a, s, b in zip(inner.kernel, inner.strides, outer.kernel, strict=True)),
        strides=tuple(a * b for a, b in zip(inner.strides, outer.strides, strict=True)),
        dilations=(1,) * len(inner.kernel),
        pads=inner.pads,
    )
    if math.prod(window.kernel) >= math.prod(inner.kernel) * math.prod(outer.strides):
        return False
    merged = _mean_kernel(weights, inner, outer, window)
    bias = None if is_absent(conv, 2) else conv.inputs[2]
    kept = 0 if bias is None or bias.const_value is None or len(bias.uses()) > 1 else bias.const_value.size
    if (merged.size + kept - freed_elements(conv)) * merged.itemsize > MAX_GROWN_BYTES:
        return False
    source, named, groups = conv.inputs[0], conv.inputs[1], conv.attributes.get_int("group", 1)
    set_inputs(node, source, add_constant(main, named, merged), *([] if bias is None else [bias]))
    node.op_type = "Conv"
    node.attributes.clear()
    node.attributes.add(ir.AttrInt64("group", groups))
    set_window(node, window)
    remove_made_for(node, conv)
    return True


def _mean_kernel(weights: Array, inner: Window, outer: Window, window: Window) -> Array:
    merged = np.zeros((*weights.shape[:2], *window.kernel), np.float64)
    for place in itertools.product(*(range(size) for size in outer.kernel)):
        starts = [step * stride for step, stride in zip(place, inner.strides, strict=True)]
        region = tuple(slice(start, start + size) for start, size in zip(starts, inner.kernel, strict=True))
        merged[(slice(None), slice(None), *region)] += weights
    return (merged / math.prod(outer.kernel)).astype(weights.dtype)


fuse_average_pools = at_every_node(_fuse)
