"""Take the maximum first, then the activation, which then has fewer elements to work on.

1. Relu, LeakyRelu, Clip, Sigmoid, Tanh, HardSigmoid or Elu, then MaxPool with a stride or GlobalMaxPool: the pooling
   goes first. These functions never fall, so that the largest input gives the largest output.
2. Not after a Conv, with or without batch normalisation or arithmetic in between that the runtime may fold into it: the
   runtime computes an activation there for nothing, while it writes the Conv's output.
3. Not with indices, gaps in the window, or rounding up; the activation has no other reader.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from host.passes.neighbours import is_standard, sole_maker, swap
from host.passes.rewriting import at_every_node
from host.passes.window import window_of

# Each with the attribute that must not be negative, if there is one.
_RISING = {
    "Relu": "",
    "Clip": "",
    "Sigmoid": "",
    "Tanh": "",
    "LeakyRelu": "alpha",
    "HardSigmoid": "alpha",
    "Elu": "alpha",
}
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
# What a runtime may fold into a convolution before it, and how many of them in a row.
_FOLDED = frozenset({"BatchNormalization", "Add", "Sub", "Mul", "Div"})
_FOLDED_STEPS = 3


def _swap(node: ir.Node, main: ir.Graph) -> bool:  # noqa: ARG001 - the form of an edit
    activation = sole_maker(node, 0, _RISING) if _shrinks(node) else None
    if activation is None or not is_standard(activation):
        return False
    slope = _RISING[activation.op_type]
    if slope and activation.attributes.get_float(slope, 0.0) < 0:
        return False
    before = activation.inputs[0]
    if before is None or _is_fused(before):
        return False
    swap(activation, node)
    return True


def _shrinks(node: ir.Node) -> bool:
    if not is_standard(node):
        return False
    if node.op_type == "GlobalMaxPool":
        return True
    window = window_of(node) if node.op_type == "MaxPool" else None
    return window is not None and not window.is_dilated and math.prod(window.strides) > 1


def _is_fused(value: ir.Value, steps: int = _FOLDED_STEPS) -> bool:
    maker = value.producer()
    if maker is None or maker.op_type in _CONVOLUTIONS:
        return maker is not None
    if maker.op_type not in _FOLDED or not steps:
        return False
    return any(operand is not None and _is_fused(operand, steps - 1) for operand in maker.inputs)


pool_before_activation = at_every_node(_swap)
