"""Set single weights to zero: by size, by share, or N of each M. Looks at no data; biases stay.

It saves transfer only, not time and not memory: dense kernels multiply the zeros like any other number, and the tensors
keep their size. Zeros compress well, which `compressed_bytes` shows.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edge.formats.tensor import Array
from host.compress.constants import constant_of, set_constant
from host.compress.prune.ties import refuse_unknown
from host.compress.prune.tracing import input_at
from host.compress.recipe import PruneWeights
from host.errors import RecipeError
from host.model import Graph, Model, copied

Mask = npt.NDArray[np.bool_]

_LEVEL = 6
"""Of zlib: its default."""


def _gemm_axis(node: ir.Node) -> int:
    return 1 if node.attributes.get_int("transB", 0) != 0 else 0


# Positions of the weights among the inputs, and the axis along which the inputs of the layer lie.
_WEIGHTS: dict[str, tuple[tuple[int, Callable[[ir.Node], int]], ...]] = {
    "Conv": ((1, lambda _: 1),),
    "ConvTranspose": ((1, lambda _: 0),),
    "Gemm": ((1, _gemm_axis),),
    "MatMul": ((0, lambda _: -1), (1, lambda _: -2)),
    "LSTM": ((1, lambda _: 2), (2, lambda _: 2)),
    "GRU": ((1, lambda _: 2), (2, lambda _: 2)),
    "RNN": ((1, lambda _: 2), (2, lambda _: 2)),
}


def structure(model: Model, step: PruneWeights) -> Model:
    """Set weights to zero.

    Args:
        model: Optimised and normalised.
        step: Which; a tensor that an excluded node takes stays, whoever else takes it.

    Returns:
        A new model with the same nodes and names.

    Raises:
        RecipeError: If a name in ``step.exclude`` is no node's, or no rule is given.
    """
    refuse_unknown(model.ir, step.exclude)
    stays = _rule(step)
    graph = copied(model.ir)
    excluded = set(step.exclude)
    kept = {value for node in graph.graph if node.name in excluded for value in node.inputs}
    for value, axis in _weights(graph):
        array = constant_of(value)
        if array is not None and value not in kept:
            set_constant(value, np.where(stays(array, axis), array, array.dtype.type(0)))
    return model.with_ir(graph)


def sparsity(model: Model) -> float:
    """Share of the weights of layers that are exactly zero; 0 for a model without weights."""
    arrays = [array for value, _ in _weights(model.ir) if (array := constant_of(value)) is not None]
    total = sum(array.size for array in arrays)
    return sum(array.size - int(np.count_nonzero(array)) for array in arrays) / total if total else 0.0


def compressed_bytes(model: Model) -> int:
    """Bytes of all constants of the main graph, each compressed by zlib: about what a compressed transfer takes."""
    total = 0
    for value in model.ir.graph.initializers.values():
        if value.const_value is not None:
            total += len(zlib.compress(value.const_value.tobytes(), _LEVEL))
    return total


def _weights(graph: Graph) -> Iterator[tuple[ir.Value, int]]:
    """Each weight tensor once, in graph order, with its input axis, not negative."""
    seen: set[ir.Value] = set()
    for node in graph.graph:
        for index, axis_of in _WEIGHTS.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ():
            value = input_at(node, index)
            array = constant_of(value)
            if value is None or array is None or array.ndim < 2 or array.dtype.kind != "f" or value in seen:
                continue
            seen.add(value)
            yield value, axis_of(node) % array.ndim


def _rule(step: PruneWeights) -> Callable[[Array, int], Mask]:
    """Which weights stay, as a function of a tensor and its input axis."""
    if step.threshold is not None:
        least = step.threshold
        return lambda array, _: np.abs(array) >= least
    if step.ratio is not None:
        share = step.ratio
        return lambda array, _: _largest(array, share)
    if step.pattern is not None:
        kept, block = map(int, step.pattern.split(":"))
        return lambda array, axis: _pattern(array, axis, kept, block)
    raise RecipeError("prune: give one of threshold, ratio and pattern")


def _largest(array: Array, share: float) -> Mask:
    order = np.argsort(np.abs(array).ravel(), kind="stable")
    mask = np.ones(array.size, np.bool_)
    mask[order[: int(array.size * share)]] = False
    return mask.reshape(array.shape)


def _pattern(array: Array, axis: int, kept: int, block: int) -> Mask:
    """The ``kept`` largest of each ``block`` along an axis; the rest at its end counts as a block with zeros added."""
    rows = np.abs(np.moveaxis(array, axis, -1)).astype(np.float64)
    length = rows.shape[-1]
    padded = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -length % block)], constant_values=-1)
    blocks = padded.reshape(*padded.shape[:-1], -1, block)
    # The first of equals stays: a stable sort of the negated sizes.
    order = np.argsort(-blocks, axis=-1, kind="stable")
    mask = np.zeros(blocks.shape, np.bool_)
    np.put_along_axis(mask, order[..., :kept], values=True, axis=-1)
    return np.moveaxis(mask.reshape(padded.shape)[..., :length], -1, axis)
