"""What TFLite operators cost: multiply-accumulates, weight bytes and peak activation bytes.

Shapes of weights are those of the TFLite kernels: convolutions `[out, height, width, in]`, depthwise ones
`[1, height, width, out]`, fully connected ones `[out, in]`, three-dimensional ones `[depth, height, width, in, out]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from host.observe import Observed
from host.tflite.graph import TfliteOperator, kind_of
from host.tflite.layers import Working
from host.tflite.model import TfliteModel
from host.tflite.vectors import items

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """An operator with the shapes it met; `()` for what is absent."""

    options: Any
    made: Shape
    taken: tuple[Shape, ...]

    def shape(self, index: int) -> Shape:
        return self.taken[index] if index < len(self.taken) else ()


def _elementwise(work: _Work) -> int:
    return math.prod(work.made)


def _conv(work: _Work) -> int:
    """Output elements × weights of an output channel, `[out, height, width, in/groups]`."""
    return math.prod(work.made) * math.prod(work.shape(1)[1:])


def _depthwise(work: _Work) -> int:
    """Output elements × weights of an output channel, `[1, height, width, out]`."""
    return math.prod(work.made) * math.prod(work.shape(1)[1:3])


def _conv_3d(work: _Work) -> int:
    """Output elements × weights of an output channel, `[depth, height, width, in, out]`."""
    return math.prod(work.made) * math.prod(work.shape(1)[:4])


def _transposed(picture: int) -> Callable[[_Work], int]:
    """Input elements × weights of an input channel, `[out, height, width, in]`."""

    def count(work: _Work) -> int:
        return math.prod(work.shape(picture)) * math.prod(work.shape(1)[:3])

    return count


def _matmul(work: _Work) -> int:
    """Output elements × length of the contracted axis of the left operand."""
    left = work.shape(0)
    turned = bool(getattr(work.options, "adjX", False)) and len(left) > 1
    return math.prod(work.made) * (left[-2 if turned else -1] if left else 1)


def _fully_connected(work: _Work) -> int:
    """Output elements × columns of the weights, `[out, in]`."""
    weights = work.shape(1)
    return math.prod(work.made) * (weights[-1] if weights else 1)


def _recurrent(work: _Work) -> int:
    """Every weight of the matrices once a step and sequence: `[batch, steps, width]`, or without steps."""
    steps = math.prod(work.shape(0)[:-1])
    return steps * sum(math.prod(shape) for shape in work.taken[1:] if len(shape) == 2)


_MACS: dict[str, Callable[[_Work], int]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "CONV_3D": _conv_3d,
    "TRANSPOSE_CONV": _transposed(2),
    "Convolution2DTransposeBias": _transposed(0),
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _matmul,
    "LSTM": _recurrent,
    "RNN": _recurrent,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _recurrent,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _recurrent,
    "BIDIRECTIONAL_SEQUENCE_LSTM": _recurrent,
    "BIDIRECTIONAL_SEQUENCE_RNN": _recurrent,
    "SVDF": _recurrent,
}
"""Operators whose work is more than one step an output element."""

_FREE = frozenset(("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "SHAPE", "BITCAST", "VAR_HANDLE", "CALL_ONCE"))
"""Operators that move no data."""


def operator_macs(model: TfliteModel, operator: TfliteOperator, observed: Mapping[str, Observed]) -> int:
    """Return the multiply-accumulates of an operator in the first run; other operators count one a output element.

    Bodies of branches and loops count once: how often they run is in the data.

    Args:
        model: that it is of.
        operator: one of its main subgraph.
        observed: shapes as they were seen.
    """

    def seen_shape(index: int) -> Shape:
        tensor = model.graph.tensors[index]
        if tensor.variable:
            return ()
        seen = observed.get(tensor.name)
        return seen.shape if seen is not None and seen.dtype else tensor.shape

    total = _macs(model, model.tree.subgraphs[0].operators[operator.index], seen_shape)
    for number in operator.calls:
        body = model.tree.subgraphs[number]
        shapes = [items(tensor.shape) for tensor in body.tensors]
        total += sum(_macs(model, record, shapes.__getitem__) for record in body.operators)
    return total


def _macs(model: TfliteModel, record: Any, shape_of: Callable[[int], Shape]) -> int:
    kind = kind_of(model.tree, record)
    makes = items(record.outputs)
    if kind in _FREE or not makes:
        return 0
    taken = tuple(shape_of(index) if index >= 0 else () for index in items(record.inputs))
    return _MACS.get(kind, _elementwise)(_Work(options=record.builtinOptions, made=shape_of(makes[0]), taken=taken))


def weight_bytes(model: TfliteModel, working: Working, operators: Iterable[TfliteOperator]) -> int:
    """Return what the constants of operators occupy once materialised, each once, those made of others included."""
    chosen = tuple(operators)
    behind = working.behind(chosen)
    read = {index for operator in (*chosen, *behind) for index in operator.reads if index in working.constants}
    return sum(model.graph.tensors[index].size_bytes for index in read)


def peak_activation_bytes(
    model: TfliteModel, operators: Iterable[TfliteOperator], entering: Iterable[str], observed: Mapping[str, Observed]
) -> int:
    """Return the largest sum of tensors alive at once while a layer runs, its entering cut set included."""
    alive = {name: observed[name].size_bytes for name in entering}
    for operator in operators:
        for index in operator.makes:
            tensor = model.graph.tensors[index]
            seen = observed.get(tensor.name)
            alive[tensor.name] = seen.size_bytes if seen is not None and seen.dtype else tensor.size_bytes
    return sum(alive.values())
