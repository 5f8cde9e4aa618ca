"""How channels go through each operator: one rule an operator, in an explicit table. What is not in it, stops them.

A rule is conservative: what it cannot prove it freezes. In the comments ``ids`` are numbers of channels, see
`host.compress.prune.tracing`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from host.compress.constants import constant_of
from host.compress.prune import movements
from host.compress.prune.movements import unchanged
from host.compress.prune.tracing import Layout, Tracing, input_at, is_computed, numbers_of

Rule = Callable[[Tracing, ir.Node], None]


# ---------------------------------------------------------------------------------------------- producers and readers
def _conv(tracing: Tracing, node: ir.Node) -> None:
    """``Y = conv(X, W [M, C/group, …], B [M])``: channels at axis 1 of X and Y."""
    weight = tracing.own_weight(node, 1)
    if weight is None:
        tracing.give_up(node)
        return
    group = node.attributes.get_int("group", 1)
    source = _at(tracing, node, axis=1, rank=weight.ndim)
    if group == 1:
        if source is not None:
            tracing.reads(node, 1, 1, source)
        ids = tracing.makes(node, 1, 0, weight.shape[0])
    elif source is not None and weight.shape[1] == 1 and len(source.ids) == group:
        ids = np.repeat(source.ids, weight.shape[0] // group)
        tracing.follows(node, 1, 0, ids)
        tracing.counted(node, None, 0, source.ids)
    else:
        tracing.give_up(node)
        return
    tracing.follows(node, 2, 0, ids)
    tracing.place(node.outputs[0], axis=1, rank=weight.ndim, ids=ids)


def _conv_transpose(tracing: Tracing, node: ir.Node) -> None:
    """Like `_conv`, with ``W [C, M/group, …]``."""
    weight = tracing.own_weight(node, 1)
    group = node.attributes.get_int("group", 1)
    source = _at(tracing, node, axis=1, rank=weight.ndim) if weight is not None else None
    if weight is None or (group != 1 and (source is None or weight.shape[1] != 1 or len(source.ids) != group)):
        tracing.give_up(node)
        return
    if group == 1:
        if source is not None:
            tracing.reads(node, 1, 0, source)
        ids = tracing.makes(node, 1, 1, weight.shape[1])
    else:
        ids = source.ids if source is not None else np.zeros(0, np.int64)
        tracing.follows(node, 1, 0, ids)
        tracing.counted(node, None, 0, ids)
    tracing.follows(node, 2, 0, ids)
    tracing.place(node.outputs[0], axis=1, rank=weight.ndim, ids=ids)


def _gemm(tracing: Tracing, node: ir.Node) -> None:
    """``Y = A [m, k] · B [k, n] + C``: channels at axis 1 of A and Y."""
    weight = tracing.own_weight(node, 1)
    if weight is None or node.attributes.get_int("transA", 0) != 0:
        tracing.give_up(node)
        return
    inputs_axis = 1 if node.attributes.get_int("transB", 0) else 0
    source = _at(tracing, node, axis=1, rank=2)
    if source is not None:
        tracing.reads(node, 1, inputs_axis, source)
    ids = tracing.makes(node, 1, 1 - inputs_axis, weight.shape[1 - inputs_axis])
    bias = constant_of(input_at(node, 2))
    if bias is not None and bias.ndim and bias.shape[-1] == len(ids):
        tracing.follows(node, 2, bias.ndim - 1, ids)
    elif bias is None or bias.size != 1:
        # An absent one is fine, a computed one or an odd broadcast is not.
        tracing.follows(node, 2, 0, ids)
    tracing.place(node.outputs[0], axis=1, rank=2, ids=ids)


def _matmul(tracing: Tracing, node: ir.Node) -> None:
    """``Y = A [… k] · B [k, n]`` with a constant B: channels at the last axis of A and Y."""
    weight = tracing.own_weight(node, 1)
    source = tracing.layout(node.inputs[0])
    shape = tracing.shape(node.inputs[0])
    rank = source.rank if source is not None else len(shape) if shape is not None else None
    if weight is None or weight.ndim != 2 or rank is None or rank < 2 or (source and source.axis != rank - 1):
        tracing.give_up(node)
        return
    if source is not None:
        tracing.reads(node, 1, 0, source)
    ids = tracing.makes(node, 1, 1, weight.shape[1])
    tracing.place(node.outputs[0], axis=rank - 1, rank=rank, ids=ids)


def _at(tracing: Tracing, node: ir.Node, *, axis: int, rank: int) -> Layout | None:
    """The layout of a node's first input if its channels are where the node expects them; else they are frozen."""
    layout = tracing.layout(node.inputs[0])
    if layout is not None and (layout.axis != axis or layout.rank != rank):
        tracing.freeze(layout.ids)
        return None
    return layout


# ----------------------------------------------------------------------------------------------- one channel at a time
def _elementwise(tracing: Tracing, node: ir.Node) -> None:
    """Broadcasting from the right: channels at the same place are tied, constants along them follow."""
    inputs = [value for value in node.inputs if value is not None]
    layouts = [layout for layout in map(tracing.layout, inputs) if layout is not None]
    ranks = [_rank(tracing, value) for value in inputs]
    places = {layout.rank - layout.axis for layout in layouts}
    if len(places) != 1 or None in ranks:
        tracing.give_up(node)
        return
    from_right = places.pop()
    ids = max((layout.ids for layout in layouts), key=len)
    if any(len(layout.ids) not in (1, len(ids)) for layout in layouts):
        tracing.give_up(node)
        return
    for index, value in enumerate(node.inputs):
        layout = tracing.layout(value)
        if value is None:
            continue
        if layout is not None:
            if len(layout.ids) == len(ids):
                tracing.tie(ids, layout.ids)
            else:
                # One channel that all others share, as the map of a spatial gate.
                tracing.freeze(layout.ids)
            continue
        shape = tracing.shape(value) or ()
        size = shape[-from_right] if len(shape) >= from_right else 1
        if size != 1:
            # A computed tensor without channels that could go freezes ours.
            tracing.follows(node, index, len(shape) - from_right, ids)
    rank = max(rank for rank in ranks if rank is not None)
    tracing.place(node.outputs[0], axis=rank - from_right, rank=rank, ids=ids)


def _rank(tracing: Tracing, value: ir.Value) -> int | None:
    layout = tracing.layout(value)
    if layout is not None:
        return layout.rank
    shape = tracing.shape(value)
    return len(shape) if shape is not None else None


def _pass(tracing: Tracing, node: ir.Node) -> None:
    """One tensor in, the same layout out; further inputs are scalars."""
    layout = tracing.layout(node.inputs[0])
    if layout is None or any(tracing.layout(value) is not None for value in node.inputs[1:]):
        tracing.give_up(node)
        return
    unchanged(tracing, node, layout)


def _pool(tracing: Tracing, node: ir.Node) -> None:
    """Over the axes from 2 on."""
    layout = tracing.layout(node.inputs[0])
    if layout is None or layout.axis > 1:
        tracing.give_up(node)
        return
    unchanged(tracing, node, layout)


def _normalization(tracing: Tracing, node: ir.Node) -> None:
    """Scale, bias and, for batches, mean and variance: one value a channel, at axis 1."""
    layout = tracing.layout(node.inputs[0])
    if layout is None or layout.axis != 1 or node.attributes.get_int("training_mode", 0) != 0:
        tracing.give_up(node)
        return
    for index in range(1, len(node.inputs)):
        tracing.follows(node, index, 0, layout.ids)
    unchanged(tracing, node, layout)


def _softmax(tracing: Tracing, node: ir.Node) -> None:
    """Along another axis than the channels. Before operator set 13 it went along all axes from one on."""
    layout = tracing.layout(node.inputs[0])
    if layout is None or tracing.opset < 13 or node.attributes.get_int("axis", -1) % layout.rank == layout.axis:
        tracing.give_up(node)
        return
    unchanged(tracing, node, layout)


def _pad(tracing: Tracing, node: ir.Node) -> None:
    """Not along the channels."""
    layout = tracing.layout(node.inputs[0])
    pads = numbers_of(node, 1, "pads")
    axes = numbers_of(node, 3, "axes")
    if layout is None or pads is None or is_computed(node, 3):
        tracing.give_up(node)
        return
    axes = [axis % layout.rank for axis in axes] if axes is not None else list(range(layout.rank))
    amounts = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    if amounts.get(layout.axis, (0, 0)) != (0, 0):
        tracing.give_up(node)
        return
    unchanged(tracing, node, layout)


def _resize(tracing: Tracing, node: ir.Node) -> None:
    """Not along the channels: scale 1, or a constant size that is counted again."""
    layout = tracing.layout(node.inputs[0])
    scales, sizes = constant_of(input_at(node, 2)), constant_of(input_at(node, 3))
    if layout is None or "axes" in node.attributes or is_computed(node, 1):
        tracing.give_up(node)
        return
    if scales is not None and scales.size == layout.rank and scales.ravel()[layout.axis] == 1:
        unchanged(tracing, node, layout)
    elif sizes is not None and sizes.size == layout.rank and int(sizes.ravel()[layout.axis]) == len(layout.ids):
        tracing.counted(node, 3, layout.axis, layout.ids)
        unchanged(tracing, node, layout)
    else:
        tracing.give_up(node)


_UNARY = (
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
    "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_BROADCASTING = ("Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum")
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare")

RULES: dict[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _normalization,
    "InstanceNormalization": _normalization,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Pad": _pad,
    "Resize": _resize,
    "Squeeze": movements.squeeze,
    "Unsqueeze": movements.unsqueeze,
    "Transpose": movements.transpose,
    "Concat": movements.concat,
    "Split": movements.split,
    "Flatten": movements.flatten,
    "Reshape": movements.reshape,
    **dict.fromkeys(_UNARY, _pass),
    **dict.fromkeys(_BROADCASTING, _elementwise),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_REDUCTIONS, movements.reduce),
}
"""Rule by operator of the default domain."""
