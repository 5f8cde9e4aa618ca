"""Runs side by side: the ways to hand their parts to kinds of devices, each priced once before the search."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Counts = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fork:
    """One way to cut a section into parts that run side by side.

    Attributes:
        enter: cut at which the run before it ends.
        leave: cut at which the run after it starts.
        bounds: first unit of each part, and the unit after the last.
        cost: of each way of `handings`, for every type of the run before and after, `[ways, types, types]`; an axis of
            one where that makes no difference.
    """

    enter: int
    leave: int
    bounds: tuple[int, ...]
    cost: Floats

    @property
    def parts(self) -> int:
        """How many run side by side."""
        return len(self.bounds) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Bend:
    """One device that runs before and after forks.

    Attributes:
        enter, leave: cuts of the forks.
        cost: of the run from cut i to `enter` and of that from `leave` to cut j together, by i and j - leave - 1,
            `[types, enter, cuts - leave - 1]`; infinity where it is not possible.
    """

    enter: int
    leave: int
    cost: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class ForkGroup:
    """Forks of equally many parts, reduced to the best way for each multiset of types.

    Attributes:
        parts: how many each of them has.
        enter, leave: cuts of each fork.
        used: devices of each type in each multiset, `[multisets, types]`.
        flats: the same as a difference of flat states, `[multisets]`.
        costs: `[multisets, types before or 1, types after or 1, forks]`.
    """

    parts: int
    enter: tuple[int, ...]
    leave: tuple[int, ...]
    used: Ints
    flats: Ints
    costs: Floats


@functools.lru_cache(maxsize=64)
def handings(counts: Counts, parts: int) -> Ints:
    """Return every way to hand parts to types, `[ways, parts]`; ways that use the same devices are neighbours."""
    ways = [
        way
        for way in itertools.product(range(len(counts)), repeat=parts)
        if all(way.count(type_) <= counts[type_] for type_ in set(way))
    ]
    ways.sort(key=lambda way: (sorted(way), way))
    handed = np.array(ways, dtype=np.int64).reshape(-1, parts)
    handed.setflags(write=False)
    return handed


def used_counts(ways: Ints, types: int) -> Ints:
    """Return how many devices of each type each way takes, `[ways, types]`."""
    return np.stack([(ways == type_).sum(axis=1) for type_ in range(types)], axis=1)


def grouped(forks: Sequence[Fork], counts: Counts, strides: Counts) -> list[ForkGroup]:
    """Return the forks by their number of parts."""
    groups: list[ForkGroup] = []
    for parts in sorted({fork.parts for fork in forks}):
        members = [fork for fork in forks if fork.parts == parts]
        used = used_counts(handings(counts, parts), len(counts))
        if not len(used):
            continue
        starts = np.flatnonzero(np.concatenate(([True], (used[1:] != used[:-1]).any(axis=1))))
        reduced = [np.minimum.reduceat(fork.cost, starts, axis=0) for fork in members]
        groups.append(
            ForkGroup(
                parts=parts,
                enter=tuple(fork.enter for fork in members),
                leave=tuple(fork.leave for fork in members),
                used=used[starts],
                flats=used[starts] @ np.array(strides, dtype=np.int64),
                costs=np.stack(np.broadcast_arrays(*reduced), axis=-1),
            )
        )
    return groups
