"""Whether the index arrays of a sparse constant stay within it: the kernel that fills in its zeros does not look."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edge.formats.tensor import Array
from host.errors import IngestError

_DENSE = 0
_CSR = 1


def check_sparsity(tensor: Any, shape: tuple[int, ...], values: int, *, where: str) -> None:
    """Walk the levels of a sparse tensor as its kernel does.

    A tensor of rank n with b blocked dimensions has n + b levels. A dense level holds every index below its size; a
    compressed one names, for each entry of the level above, which indices it has (`arraySegments`, `arrayIndices`).

    Args:
        tensor: a `TensorT` with `sparsity`.
        shape: of the dense tensor.
        values: elements in its data.
        where: for messages.

    Raises:
        IngestError: the levels do not fit its shape, or an index leaves its level.
    """
    sparsity = tensor.sparsity
    order, blocks, levels = _ints(sparsity.traversalOrder), _ints(sparsity.blockMap), sparsity.dimMetadata or []
    rank = len(shape)
    if not rank or sorted(order) != list(range(rank + len(blocks))) or len(levels) != len(order):
        raise IngestError(f"{where}: its sparsity does not have {rank} + {len(blocks)} levels in some order")
    if sorted(order[:rank]) != list(range(rank)) or any(not 0 <= axis < rank for axis in blocks):
        raise IngestError(f"{where}: its sparsity blocks dimensions that it does not have")
    sizes = list(shape)
    for place, axis in enumerate(blocks):
        level = levels[order.index(rank + place)]
        block = int(level.denseSize)
        if level is None or level.format != _DENSE or block <= 0 or sizes[axis] % block:
            raise IngestError(f"{where}: a block of {block} does not divide dimension {axis} of {list(shape)}")
        sizes[axis] //= block
        sizes.append(block)
    entries = 1
    for level, axis in zip(levels, order, strict=True):
        entries = _entries(level, sizes[axis], entries, where)
        if entries > math.prod(shape):
            raise IngestError(f"{where}: its sparsity has more values than its shape {list(shape)}")
    if entries != values:
        raise IngestError(f"{where}: {values} values where its sparsity names {entries}")


def _entries(level: Any, size: int, above: int, where: str) -> int:
    if level is not None and level.format == _DENSE:
        if int(level.denseSize) != size:
            raise IngestError(f"{where}: a level of {level.denseSize} where its shape says {size}")
        return above * size
    if level is None or level.format != _CSR or level.arraySegments is None or level.arrayIndices is None:
        raise IngestError(f"{where}: a level of its sparsity is neither dense nor compressed")
    segments, indices = _array(level.arraySegments.values), _array(level.arrayIndices.values)
    ascending = len(segments) == above + 1 and segments[0] == 0 and bool(np.all(np.diff(segments) >= 0))
    if not ascending or segments[-1] != len(indices) or np.any(indices < 0) or np.any(indices >= size):
        raise IngestError(f"{where}: an index of its sparsity is out of range")
    return len(indices)


def _ints(values: Any) -> list[int]:
    return [int(value) for value in _array(values)]


def _array(values: Any) -> Array:
    return np.empty(0, np.int64) if values is None else np.atleast_1d(np.asarray(values)).astype(np.int64)
