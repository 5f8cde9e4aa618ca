"""Average first, then convolve: a mean and a pointwise convolution are linear in different axes and commute.

1. A pointwise Conv without padding or stride, then GlobalAveragePool, ReduceMean over all spatial axes, or
   AveragePool with a stride: the pooling goes first, so that the Conv works on fewer places.
2. Groups and a bias do no harm: the mean of a constant is the constant.
3. Not where AveragePool counts padding as zeros, because then the weights of its mean do not add up to one.
4. The Conv has no other reader.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from host.passes.neighbours import constant, is_standard, sole_maker, swap
from host.passes.rewriting import at_every_node
from host.passes.window import window_of


def _swap(node: ir.Node, main: ir.Graph) -> bool:  # noqa: ARG001 - the form of an edit
    conv = sole_maker(node, 0, ("Conv",))
    weights = None if conv is None else constant(conv, 1)
    if conv is None or weights is None or not is_standard(conv) or not is_standard(node):
        return False
    window = window_of(conv, weights.shape[2:])
    if window is None or not window.is_pointwise or window.is_padded or math.prod(window.strides) > 1:
        return False
    if not _is_mean(node, weights.ndim):
        return False
    swap(conv, node)
    return True


def _is_mean(node: ir.Node, rank: int) -> bool:
    match node.op_type:
        case "GlobalAveragePool":
            return True
        case "AveragePool":
            window = window_of(node)
            if window is None or math.prod(window.strides) == 1:
                return False
            return not window.is_padded or not node.attributes.get_int("count_include_pad", 0)
        case "ReduceMean":
            axes = _axes(node)
            return node.attributes.get_int("keepdims", 1) == 1 and {axis % rank for axis in axes} == set(range(2, rank))
        case _:
            return False


def _axes(node: ir.Node) -> tuple[int, ...]:
    """Axes of a reduction, an attribute before opset 18 and an input since; none when they are not known."""
    if len(node.inputs) > 1:
        value = node.inputs[1]
        if value is None or not value.is_initializer() or value.const_value is None:
            return ()
        return tuple(int(axis) for axis in value.const_value.numpy().reshape(-1))
    return tuple(node.attributes.get_ints("axes", ()))


pool_before_pointwise = at_every_node(_swap)
