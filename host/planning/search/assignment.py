"""Exact assignment of consecutive runs to kinds of devices, by dynamic programming over how many of each are used.

The state is (used count per kind, cut reached, kind of the last run), one device or several replicas a run:
`h[S + r·v][v][y] = min over x of max(a[S][v][x], run_v(x, y) / r)`, where `a[S][v][x] = min over u of
max(h[S][u][x], link(u, v, x))` is what it costs to have arrived at cut x with the next run on kind v. For sums, `max`
is `+`. Devices of equal cost share a kind, so ten different devices make 2^10 states and thirty of three kinds 11^3.

Runs side by side (a *fork*) go from one cut to another in one move: all ways to hand its parts to kinds were priced
beforehand for every kind of the run before and after, and the best way for each multiset of kinds enters `a`.

One device may run what is before a fork and what is after it (a *bend*): both runs and the parts between them are one
move of `h`, priced together, as the device is used once (`turns`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from host.planning.search.forks import Bend, Counts, Floats, Fork, grouped, handings, used_counts
from host.planning.search.turns import Turns

Combine = Callable[[Floats, Floats], Floats]

ROUNDING = 1e-9
"""Part by which two costs may differ and still be the same sum in another order."""

_TIE = 1e-12
"""The same for what sets of used devices cost, close enough to keep what was blended in to decide between equals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Every cost that an assignment may meet; infinity where something is not possible.

    Attributes:
        run: cost of the run from cut i to cut j on one device of a type, `[types, cuts, cuts]`. Without forks, cut i
            is before unit i.
        link: cost of a hop from one type to another at a cut, `[types, types, cuts]`.
        entry: cost of the hop from the client to a type, `[types]`.
        exit: cost of the hop from a type back to the client, `[types]`.
        counts: how many devices of each type there are.
        places: the unit after each cut, rising; empty where cut i is before unit i.
        forks: what may run side by side.
        bends: one device before and after forks.
    """

    run: Floats
    link: Floats
    entry: Floats
    exit: Floats
    counts: Counts
    places: tuple[int, ...] = ()
    forks: tuple[Fork, ...] = ()
    bends: tuple[Bend, ...] = ()

    @property
    def units(self) -> int:
        """Number of units to assign, where there are no forks."""
        return int(self.run.shape[1]) - 1

    def place(self, cut: int) -> int:
        """Return the unit after a cut."""
        return self.places[cut] if self.places else cut


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Units `[first, stop)` on `count` devices of a type.

    Attributes:
        type: of the devices.
        first, stop: units.
        count: devices that take turns.
        beside: whether it runs side by side with the run before it.
        again: whether it is on the device of the run before those side by side that it joins.
    """

    type: int
    first: int
    stop: int
    count: int = 1
    beside: bool = False
    again: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """A best assignment and its cost."""

    cost: float
    runs: tuple[Run, ...]


def smallest_maximum(grid: Grid, *, most_replicas: int = 1, least: Counts = ()) -> Assignment | None:
    """Return an assignment whose largest cost is least, or None when nothing is possible.

    Args:
        grid: the costs.
        most_replicas: devices that may share a run, each having its cost once in so many turns.
        least: how many devices of each type must take part.
    """
    return Search(grid, np.maximum, [grid.run / count for count in range(1, most_replicas + 1)]).best(least)


def smallest_sum(grid: Grid, *, least: Counts = ()) -> Assignment | None:
    """Return an assignment whose sum of costs is least, or None when nothing is possible.

    Args:
        grid: the costs.
        least: how many devices of each type must take part.
    """
    return Search(grid, np.add, (grid.run,)).best(least)


class Search:
    """The filled table of one search: what every set of used devices can reach.

    Attributes:
        costs: least cost by used counts, `[count + 1, …]` over the types; infinity where nothing is possible.
    """

    def __init__(self, grid: Grid, combine: Combine, runs: Sequence[Floats]) -> None:
        """Fill the table.

        Args:
            grid: the costs; its runs are not read.
            combine: `np.maximum` or `np.add`.
            runs: costs of a run on 1, 2, … devices, each `[types, cuts, cuts]`.
        """
        self._grid, self._combine = grid, combine
        self._types, self._cuts = len(grid.counts), int(runs[0].shape[1])
        self._shape = tuple(count + 1 for count in grid.counts)
        self._strides = tuple(math.prod(self._shape[type_ + 1 :]) for type_ in range(self._types))
        self._bands = [[_Band(costs[type_], combine) for costs in runs] for type_ in range(self._types)]
        self._groups = grouped(grid.forks, grid.counts, self._strides)
        self._coupled = bool(
            grid.link.any() or np.ptp(grid.entry) or any(group.costs.shape[2] > 1 for group in self._groups)
        )
        states = math.prod(self._shape)
        self._turns = Turns(grid.bends, self._groups, grid.counts, self._strides, cuts=self._cuts, combine=combine)
        self._ahead = np.full((states, self._types if self._coupled else 1, self._cuts), np.inf)
        self._ahead[0, :, 0] = grid.entry if self._coupled else grid.entry[0]
        self._entering = [np.full((states, self._types, len(group.enter)), np.inf) for group in self._groups]
        costs = np.full(states, np.inf)
        for flat, state in enumerate(itertools.product(*(range(size) for size in self._shape))):
            if flat:
                costs[flat] = self._fill(flat, state)
            if self._turns:
                self._turns.push(flat, state, self._ahead[flat])
        self.costs: Floats = costs.reshape(self._shape)

    def least(self, least: Counts = ()) -> float:
        """Return the least cost with at least so many devices of each type; infinity where nothing is possible."""
        return float(self.costs[tuple(slice(count, None) for count in least)].min(initial=np.inf))

    def best(self, least: Counts = ()) -> Assignment | None:
        """Return a best assignment, of the fewest devices, with at least so many of each type."""
        cost = self.least(least)
        if not math.isfinite(cost):
            return None
        good = np.argwhere(self.costs <= cost * (1 + _TIE))
        states = [tuple(map(int, state)) for state in good]
        enough = [state for state in states if all(a >= b for a, b in zip(state, least, strict=False))]
        state = min(enough, key=lambda state: (sum(state), self.costs[state]))
        return Assignment(cost=float(self.costs[state]), runs=self._trace(state))

    def ranked(self, least: Counts, limit: float) -> Iterator[tuple[int, Assignment]]:
        """Yield the best assignment of every set of devices that costs no more, and how many those are.

        The fewest devices come first, then what costs least.

        Args:
            least: how many of each type must take part.
            limit: largest cost.
        """
        good = [tuple(map(int, state)) for state in np.argwhere(self.costs <= limit)]
        enough = [state for state in good if all(a >= b for a, b in zip(state, least, strict=False))]
        for state in sorted(enough, key=lambda state: (sum(state), self.costs[state])):
            yield sum(state), Assignment(cost=float(self.costs[state]), runs=self._trace(state))

    def _fill(self, flat: int, state: Counts) -> float:
        rows = self._turns.rows[flat] if self._turns else np.full((self._types, self._cuts), np.inf)
        for type_, used in enumerate(state):
            for count, band in enumerate(self._bands[type_][:used], start=1):
                before = self._ahead[flat - count * self._strides[type_], type_ if self._coupled else 0]
                np.minimum(rows[type_], band.through(before), out=rows[type_])
        ahead = self._ahead[flat]
        if self._coupled:
            ahead[:] = self._combine(rows[:, None], self._grid.link).min(axis=0)
        else:
            rows.min(axis=0, out=ahead[0])
        for group, entering in zip(self._groups, self._entering, strict=True):
            entering[flat] = rows[:, group.enter]
            there = (group.used <= np.array(state)).all(axis=1)
            if there.any():
                before = entering[flat - group.flats[there]][:, :, None]
                left = self._combine(before, group.costs[there]).min(axis=(0, 1))
                for place, cut in enumerate(group.leave):
                    np.minimum(ahead[:, cut], left[:, place], out=ahead[:, cut])
        return float(self._combine(rows[:, -1], self._grid.exit).min())

    def _column(self, state: Counts, cut: int) -> Floats:
        """Least cost of ending at a cut with the last run on each type, `[types]`."""
        return np.array(
            [min(self._step(state, type_, cut)[0], self._bent(state, type_, cut)) for type_ in range(self._types)]
        )

    def _bent(self, state: Counts, type_: int, cut: int) -> float:
        """Least cost of ending at a cut with a bend on a type, or with a single run."""
        return float(self._turns.rows[self._flat(state), type_, cut]) if self._turns else math.inf

    def _step(self, state: Counts, type_: int, cut: int) -> tuple[float, int, int]:
        """Cost of ending at a cut on a type, how many devices its run takes, and where that starts."""
        best = (math.inf, 0, 0)
        for count, band in enumerate(self._bands[type_][: state[type_]], start=1):
            before = self._ahead[self._flat(state) - count * self._strides[type_], type_ if self._coupled else 0]
            through = self._combine(before, band.costs[:, cut])
            first = int(np.argmin(through))
            best = min(best, (float(through[first]), count, first))
        return best

    def _flat(self, state: Counts) -> int:
        return sum(used * stride for used, stride in zip(state, self._strides, strict=True))

    def _trace(self, state: Counts) -> tuple[Run, ...]:
        """Walk back from the end: only costs were stored, so each choice is found again."""
        place, runs, cut = self._grid.place, list[Run](), self._cuts - 1
        type_ = int(np.argmin(self._combine(self._column(state, cut), self._grid.exit)))
        while True:
            cost, count, first = self._step(state, type_, cut)
            if self._bent(state, type_, cut) < cost:
                fork, first, way = self._turns.found(self._grid.forks, state, type_, cut, self._ahead)
                runs += reversed(bent_runs(self._grid, fork, way, type_=type_, first=first, stop=cut))
                state = _less(state, (type_, *way))
            else:
                runs.append(Run(type=type_, first=place(first), stop=place(cut), count=count))
                state = _less(state, count * (type_,))
            if not any(state):
                return tuple(reversed(runs))
            if any(first in group.leave for group in self._groups):
                parts, state, type_, cut = self._fork(state, type_, first)
                runs += reversed(parts)
            else:
                link = self._grid.link[:, type_, first]
                type_, cut = int(np.argmin(self._combine(self._column(state, first), link))), first

    def _fork(self, state: Counts, after: int, leave: int) -> tuple[list[Run], Counts, int, int]:
        """The runs side by side before a cut; what was used before them, on which type, and where that ended."""
        best = (math.inf, 0, 0, 0)
        forks = self._grid.forks
        ways = {parts: handings(self._grid.counts, parts) for parts in {fork.parts for fork in forks}}
        for index, fork in enumerate(forks):
            used = used_counts(ways[fork.parts], self._types)
            for way in map(int, np.flatnonzero((used <= np.array(state)).all(axis=1)) if fork.leave == leave else []):
                before = self._entered(fork, self._flat(state) - self._flat(tuple(used[way])))
                costs = np.broadcast_to(fork.cost[way], 2 * (self._types,))[:, after]
                priced = self._combine(before, costs)
                before_type = int(np.argmin(priced))
                best = min(best, (float(priced[before_type]), index, way, before_type))
        _, index, way, before_type = best
        fork, types = forks[index], tuple(map(int, ways[forks[index].parts][way]))
        parts = part_runs(fork, types)
        return parts, _less(state, types), before_type, fork.enter

    def _entered(self, fork: Fork, flat: int) -> Floats:
        for group, entering in zip(self._groups, self._entering, strict=True):
            if fork.enter in group.enter and fork.parts == group.parts:
                return entering[flat, :, group.enter.index(fork.enter)]
        raise AssertionError("every fork belongs to a group")


def part_runs(fork: Fork, types: Sequence[int]) -> list[Run]:
    """Return the runs of a fork's parts on devices of these types."""
    return [
        Run(type=type_, first=first, stop=stop, beside=place > 0)
        for place, (type_, (first, stop)) in enumerate(zip(types, itertools.pairwise(fork.bounds), strict=True))
    ]


def bent_runs(grid: Grid, fork: int, types: Sequence[int], *, type_: int, first: int, stop: int) -> list[Run]:
    """Return the runs of a bend.

    Args:
        grid: whose cuts they are.
        fork: index of what runs in between.
        types: of its parts.
        type_: of the device that bends.
        first: cut at which it starts.
        stop: cut at which it ends.
    """
    between = grid.forks[fork]
    return [
        Run(type=type_, first=grid.place(first), stop=between.bounds[0]),
        *part_runs(between, types),
        Run(type=type_, first=between.bounds[-1], stop=grid.place(stop), again=True),
    ]


class _Band:
    """Costs of runs between cuts that are near each other: what is further apart is not possible and not stored."""

    def __init__(self, costs: Floats, combine: Combine) -> None:
        cuts = len(costs)
        firsts, stops = np.nonzero(np.isfinite(costs))
        width = int((stops - firsts).max(initial=0))
        self.costs, self._combine = costs, combine
        self._near = np.full((width, cuts), np.inf)
        for near in range(width):
            self._near[near, width - near :] = np.diagonal(costs, offset=width - near)
        self._padded = np.full(width + cuts, np.inf)
        self._shifted = np.lib.stride_tricks.sliding_window_view(self._padded, cuts)[:width]

    def through(self, before: Floats) -> Floats:
        """Return the least cost of ending at each cut after the least costs of starting at each, `[cuts]`."""
        if not len(self._near):
            return np.full(len(before), np.inf)
        self._padded[len(self._near) :] = before
        least: Floats = self._combine(self._shifted, self._near).min(axis=0)
        return least


def _less(state: Counts, types: Sequence[int]) -> Counts:
    return tuple(count - types.count(type_) for type_, count in enumerate(state))
