"""Moves of the exact search in which one device runs before and after what runs side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from host.planning.search.forks import Bend, Counts, Floats, Fork, ForkGroup, Ints, handings, used_counts

Combine = Callable[[Floats, Floats], Floats]

Turn = tuple[int, int, tuple[int, ...]]
"""Index of a fork, first cut of the run before it, and the types of its parts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Moves:
    """Ways to take a device that bends and the devices of a fork's parts.

    Attributes:
        used: devices of each type in all, `[ways, types]`.
        flats: the same as a difference of flat states, `[ways]`.
        types: of the device that bends, `[ways]`.
        bends: that the forks are of.
        costs: of the parts around it, `[ways, bends]`.
    """

    used: Ints
    flats: Ints
    types: Ints
    bends: tuple[int, ...]
    costs: Floats


class Turns:
    """What every set of used devices reaches by a bend, filled from the sets before it.

    From a set S, a device of type u and a multiset of types M for the parts lead to `S + u + M`: the cheapest first cut
    for every last cut depends on u alone, what the parts cost around u on M.

    Attributes:
        rows: least cost of ending at each cut with a bend on each type as the last, `[states, types, cuts]`.
    """

    def __init__(
        self,
        bends: Sequence[Bend],
        groups: Sequence[ForkGroup],
        counts: Counts,
        strides: Counts,
        *,
        cuts: int,
        combine: Combine,
    ) -> None:
        """Prepare an empty table.

        Args:
            bends: what both runs of a device cost.
            groups: what may run between them.
            counts: how many devices of each type there are.
            strides: of a set's number.
            cuts: how many there are.
            combine: `np.maximum` or `np.add`.
        """
        self._bends = [bend for bend in bends if np.isfinite(bend.cost).any()]
        self._counts, self._strides, self._combine = np.array(counts), np.array(strides, dtype=np.int64), combine
        self._boxes = [_box(bend.cost) for bend in self._bends]
        self._moves = [self._moves_of(group) for group in groups if self._bends]
        states = math.prod(count + 1 for count in counts) if self._bends else 0
        self.rows: Floats = np.full((states, len(counts), cuts), np.inf)

    def __bool__(self) -> bool:
        return bool(self._bends)

    def push(self, flat: int, state: Counts, ahead: Floats) -> None:
        """Enter what a set of used devices leads to.

        Args:
            flat: number of the set.
            state: its counts.
            ahead: least cost of having come to each cut, next run on each type, `[types or 1, cuts]`.
        """
        room = self._counts - np.array(state)
        ready = [(move, np.flatnonzero((move.used <= room).all(axis=1))) for move in self._moves]
        if not any(len(which) for _, which in ready):
            return
        through = self._through(ahead)
        for move, which in ready:
            on = move.types[which]
            at = (flat + move.flats[which], on)
            reached = [(place, through[bend]) for place, bend in enumerate(move.bends) if bend in through]
            if not len(which) or not reached:
                continue
            after = self.rows[at]
            for place, (nearest, least) in reached:
                last = slice(nearest, nearest + least.shape[1])
                priced = self._combine(move.costs[which, place][:, None], least[on])
                np.minimum(after[:, last], priced, out=after[:, last])
            self.rows[at] = after

    def found(self, forks: Sequence[Fork], state: Counts, type_: int, cut: int, ahead: Floats) -> Turn:
        """Return the best bend that ends at a cut.

        Args:
            forks: of the grid.
            state: used devices, the bend's among them.
            type_: of the device that bends.
            cut: at which it ends.
            ahead: as it was pushed, of all sets, `[states, types or 1, cuts]`.
        """
        best: tuple[float, Turn] = (math.inf, (0, 0, ()))
        flat, row = int(np.array(state) @ self._strides), type_ if ahead.shape[1] > 1 else 0
        room = np.array(state) - (np.arange(len(state)) == type_)
        for index, fork in enumerate(forks):
            ways = handings(tuple(map(int, self._counts)), fork.parts)
            used = used_counts(ways, len(state))
            which = np.flatnonzero((used <= room).all(axis=1))
            before = flat - int(self._strides[type_]) - used[which] @ self._strides
            for bend in self._bends:
                if (bend.enter, bend.leave) != (fork.enter, fork.leave) or cut <= bend.leave or not len(which):
                    continue
                arrived = ahead[before, row, : bend.enter]
                through = self._combine(arrived, bend.cost[type_, :, cut - bend.leave - 1])
                priced = self._combine(through.min(axis=1), around(fork, type_)[which])
                least = int(np.argmin(priced))
                way = tuple(map(int, ways[which[least]]))
                best = min(best, (float(priced[least]), (index, int(np.argmin(through[least])), way)))
        return best[1]

    def _through(self, ahead: Floats) -> dict[int, tuple[int, Floats]]:
        """For each bend that can be begun, the nearest cut at which it may end, and the least cost of every end."""
        through: dict[int, tuple[int, Floats]] = {}
        for index, (bend, (firsts, stops)) in enumerate(zip(self._bends, self._boxes, strict=True)):
            before = ahead[:, firsts]
            if not np.isfinite(before).any():
                continue
            least = self._combine(before[:, :, None], bend.cost[:, firsts, stops]).min(axis=1)
            through[index] = (bend.leave + 1 + stops.start, least)
        return through

    def _moves_of(self, group: ForkGroup) -> _Moves:
        types, ends = len(self._counts), list(zip(group.enter, group.leave, strict=True))
        own = [index for index, bend in enumerate(self._bends) if (bend.enter, bend.leave) in ends]
        teams = np.repeat(np.arange(len(group.used)), types)
        on = np.tile(np.arange(types), len(group.used))
        used = group.used[teams] + np.eye(types, dtype=np.int64)[on]
        costs = np.full((len(group.used), types, len(own)), np.inf)
        for place, bend in enumerate(own):
            for fork, end in enumerate(ends):
                if (self._bends[bend].enter, self._bends[bend].leave) == end:
                    around_it = _diagonal(group.costs[..., fork], types)
                    np.minimum(costs[:, :, place], around_it, out=costs[:, :, place])
        there = (used <= self._counts).all(axis=1)
        return _Moves(
            used=used[there],
            flats=(group.flats[teams] + self._strides[on])[there],
            types=on[there],
            bends=tuple(own),
            costs=costs.reshape(len(on), len(own))[there],
        )


def around(fork: Fork, type_: int) -> Floats:
    """Return what a fork costs with one type before and after it, `[ways]`."""
    before, after = (type_ if size > 1 else 0 for size in fork.cost.shape[1:])
    picked: Floats = fork.cost[:, before, after]
    return picked


def _diagonal(costs: Floats, types: int) -> Floats:
    """Costs with the same type before and after, `[multisets, types]`."""
    every = np.broadcast_to(costs, (len(costs), types, types))
    return np.diagonal(every, axis1=1, axis2=2)


def _box(costs: Floats) -> tuple[slice, slice]:
    """The firsts and stops outside of which nothing is possible."""
    _, firsts, stops = (np.unique(indexes) for indexes in np.nonzero(np.isfinite(costs)))
    return slice(int(firsts[0]), int(firsts[-1]) + 1), slice(int(stops[0]), int(stops[-1]) + 1)
