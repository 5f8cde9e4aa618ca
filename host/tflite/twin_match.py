"""Finding the tensors that two models of the same weights share, by their values.

Names, operators and layouts differ after a conversion; values do not. Both models run on the same inputs with all inner
tensors visible, and a tensor of one has a *partner* in the other where they are equal up to an order of axes. Equal
values may be held several times (a Relu of what is not negative, an Identity, zeros), so this is a relation, not a map;
`host.tflite.twin_cuts` chooses from it. Needs numpy only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from edge.formats.tensor import Array
from host.compare import relative_error

CLOSE = 1e-3
"""Largest relative error, max|a-b| / max|b|, between partners in floats."""

QUANTIZED_CLOSE = 0.25
"""Largest relative error in the Euclidean norm, |a-b| / |b|, between a float and what was quantized, end to end."""

_CLEARLY = 1.5
_MOST_RANK_FOR_ALL_ORDERS = 4

Runs = Sequence[Array]
"""One tensor as it was seen: its real value in each run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two tensors with the same values.

    Attributes:
        own: name in the first model.
        other: name in the second.
        axes: `numpy.transpose(own, axes)` is laid out as the other; empty for the same order.
        error: the largest of all runs, as its limit measures it.
    """

    own: str
    other: str
    axes: tuple[int, ...]
    error: float


def match_values(own: Mapping[str, Runs], other: Mapping[str, Runs], *, quantized: bool = False) -> tuple[Pair, ...]:
    """Return every pair of partners.

    Args:
        own: tensors of the first model, in order of production; at least one run, better two.
        other: of the second, real values (dequantized where it holds integers), of the same runs.
        quantized: whether the second computes with fewer bits, so that values are only near. Then a pair has to be
            the best of both its tensors, and clearly so.

    Returns:
        Pairs in the order of `own`, then of `other`.
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, runs in other.items():
        groups.setdefault(_shape_key(runs), []).append(name)
    weights = {name: _moments(runs) for name, runs in other.items()}
    found: list[Pair] = []
    for name, runs in own.items():
        mine = _moments(runs)
        for candidate in groups.get(_shape_key(runs), ()):
            if quantized or _may_be_close(mine, weights[candidate]):
                pair = paired(name, runs, candidate, other[candidate], quantized=quantized)
                if pair is not None:
                    found.append(pair)
    return _best(found) if quantized else tuple(found)


def paired(own: str, mine: Runs, other: str, theirs: Runs, *, quantized: bool = False) -> Pair | None:
    """Return the pair of two tensors if some order of axes makes them equal in every run; the usual orders first."""
    limit = QUANTIZED_CLOSE if quantized else CLOSE
    found: Pair | None = None
    for axes in orders(mine[0].shape, theirs[0].shape):
        error = max(distance(np.transpose(a, axes), b, quantized=quantized) for a, b in zip(mine, theirs, strict=True))
        if error <= limit and (found is None or error < found.error):
            same = axes == tuple(range(len(axes)))
            found = Pair(own=own, other=other, axes=() if same else axes, error=error)
            if not quantized:
                break
    return found


def distance(expected: Array, value: Array, *, quantized: bool) -> float:
    """Return how far two arrays are apart, as `CLOSE` or `QUANTIZED_CLOSE` measures it; infinite for other shapes.

    What is not floating point has to be equal.
    """
    if expected.shape != value.shape:
        return float("inf")
    if expected.dtype.kind != "f" or value.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, value) else float("inf")
    if not quantized:
        return relative_error(value, expected)
    a, b = value.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    size, difference = float(np.linalg.norm(b)), float(np.linalg.norm(a - b))
    if size == 0.0 or not np.isfinite(size + difference):
        return 0.0 if np.array_equal(a, b) else float("inf")
    return difference / size


def orders(own: Sequence[int], other: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the orders of axes that turn one shape into another: none changed, channels last, channels first, the rest.

    Orders that differ only in where axes of size 1 go move no data differently; the first of them stands for all. Above
    rank 4 only the first three kinds are tried.
    """
    rank = len(own)
    if rank != len(other):
        return
    same = tuple(range(rank))
    usual = [same]
    if rank >= 3:
        usual += [(0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))]
    rest = permutations(same) if rank <= _MOST_RANK_FOR_ALL_ORDERS else ()
    seen: set[tuple[int, ...]] = set()
    for axes in (*usual, *rest):
        moved = tuple(axis for axis in axes if own[axis] != 1)
        if moved not in seen and all(own[axis] == size for axis, size in zip(axes, other, strict=True)):
            seen.add(moved)
            yield axes


def _shape_key(runs: Runs) -> tuple[object, ...]:
    kind = runs[0].dtype.kind.replace("u", "i")
    return (kind, *(tuple(sorted(array.shape)) for array in runs))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Moments:
    """What no order of axes changes, of each run; `largest` is max|a|."""

    mean: tuple[float, ...]
    root_mean_square: tuple[float, ...]
    largest: tuple[float, ...]


def _moments(runs: Runs) -> _Moments:
    wide = [array.astype(np.float64) for array in runs]
    return _Moments(
        mean=tuple(float(array.mean()) if array.size else 0.0 for array in wide),
        root_mean_square=tuple(float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0 for array in wide),
        largest=tuple(float(np.max(np.abs(array), initial=0.0)) for array in wide),
    )


def _may_be_close(a: _Moments, b: _Moments) -> bool:
    """Whether two tensors can be within `CLOSE`: mean and root mean square move by no more than an element can."""
    for mean, other_mean, square, other_square, largest in zip(
        a.mean, b.mean, a.root_mean_square, b.root_mean_square, a.largest, strict=True
    ):
        if not np.isfinite(largest):
            continue
        # Doubled, since the sums are rounded too.
        slack = 2 * CLOSE * largest
        if not (abs(mean - other_mean) <= slack and abs(square - other_square) <= slack):
            return False
    return True


def _best(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Keep the pairs that are the best of both their tensors, and clearly better than the next best."""
    of_own: dict[str, list[float]] = {}
    of_other: dict[str, list[float]] = {}
    for pair in pairs:
        of_own.setdefault(pair.own, []).append(pair.error)
        of_other.setdefault(pair.other, []).append(pair.error)

    def clear(error: float, errors: Sequence[float]) -> bool:
        rest = sorted(errors)
        return error == rest[0] and (len(rest) == 1 or rest[1] >= _CLEARLY * error)

    return tuple(p for p in pairs if clear(p.error, of_own[p.own]) and clear(p.error, of_other[p.other]))
