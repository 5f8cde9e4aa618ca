"""Join two convolutions in a row into one, where one of them is pointwise.

1. Conv by a kernel of any size, then a pointwise Conv; or a pointwise Conv, then one by a kernel of any size. Neither
   has groups, the first has no other reader, and nothing stands between them.
2. The second has no padding: it would pad with zeros where the joined one would see the first one's bias.
3. Strides multiply; the first one's padding stays; the first one's bias goes through the second one's kernel.
4. Only where it pays: the new weights are no larger than those that go, and so no more work is left at any output.
   The bottlenecks of MobileNet and ResNet stay as they are.
"""

from __future__ import annotations

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


def _fuse(node: ir.Node, main: ir.Graph) -> bool:
    first = sole_maker(node, 0, ("Conv",)) if node.op_type == "Conv" else None
    if first is None or not _is_plain(first) or not _is_plain(node):
        return False
    inner, outer = constant(first, 1), constant(node, 1)
    if inner is None or outer is None or inner.dtype != outer.dtype or outer.shape[1] != inner.shape[0]:
        return False
    window = _joined_window(window_of(first, inner.shape[2:]), window_of(node, outer.shape[2:]))
    if window is None:
        return False
    weights = _joined_weights(inner.astype(np.float64), outer.astype(np.float64)).astype(inner.dtype)
    bias = _joined_bias(constant(first, 2), outer, constant(node, 2))
    size = weights.size + (0 if bias is None else bias.size)
    if size > freed_elements(first, node) or weights.size > inner.size + outer.size:
        return False
    if not np.isfinite(weights).all() or (bias is not None and not np.isfinite(bias).all()):
        return False
    source, named = first.inputs[0], node.inputs[1]
    values = [source, add_constant(main, named, weights)]
    set_inputs(node, *values, *([] if bias is None else [add_constant(main, named, bias)]))
    set_window(node, window)
    remove_made_for(node, first)
    return True


def _is_plain(node: ir.Node) -> bool:
    has_bias_known = is_absent(node, 2) or constant(node, 2) is not None
    return is_standard(node) and node.attributes.get_int("group", 1) == 1 and has_bias_known


def _joined_window(first: Window | None, second: Window | None) -> Window | None:
    if first is None or second is None or second.is_padded or not (first.is_pointwise or second.is_pointwise):
        return None
    steps = first.dilations
    if first.is_pointwise:
        # Neighbouring outputs of the first lie its stride apart in its input.
        steps = tuple(a * b for a, b in zip(first.strides, second.dilations, strict=True))
    kernel = tuple(max(a, b) for a, b in zip(first.kernel, second.kernel, strict=True))
    return Window(
        kernel=kernel,
        strides=tuple(a * b for a, b in zip(first.strides, second.strides, strict=True)),
        dilations=tuple(1 if size == 1 else step for size, step in zip(kernel, steps, strict=True)),
        pads=first.pads,
    )


def _joined_weights(inner: Array, outer: Array) -> Array:
    """``[H, I, k1…]`` and ``[O, H, k2…]`` to ``[O, I, k…]``; one of the kernels holds one element."""
    if inner[0, 0].size == 1:
        # [O, H, k…] · [H, I] over H leaves [O, k…, I].
        return np.moveaxis(np.tensordot(outer, inner.reshape(inner.shape[:2]), axes=(1, 0)), -1, 1)
    return np.tensordot(outer.reshape(outer.shape[:2]), inner, axes=(1, 0))


def _joined_bias(inner: Array | None, outer: Array, bias: Array | None) -> Array | None:
    if inner is None:
        return bias
    through = outer.astype(np.float64).reshape(*outer.shape[:2], -1).sum(axis=2) @ inner.astype(np.float64)
    total: Array = (through if bias is None else through + bias).astype(outer.dtype)
    return total


fuse_convs = at_every_node(_fuse)
