"""Exact assignment of consecutive runs to device types, by dynamic programming over how many of each type are used.

The state is (units done, used count per type, type of the last run), as in the design's
`h[j][S + u][v] = min over i of max(h[i][S][u], time_u(i, j), link(u, v, j))`, with one device a run. Identical devices
share a type, so ten different devices make 2^10 states and thirty of three kinds make at most 11^3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = tuple[int, ...]
Combine = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Every cost that an assignment may meet; infinity where something is not possible.

    Attributes:
        run: cost of the run `[i, j)` on a type, `[types, units + 1, units + 1]`.
        link: cost of a hop from one type to another at a cut, `[types, types, units + 1]`.
        entry: cost of the hop from the client to a type, `[types]`.
        exit: cost of the hop from a type back to the client, `[types]`.
        counts: how many devices of each type there are.
    """

    run: Floats
    link: Floats
    entry: Floats
    exit: Floats
    counts: Counts

    @property
    def units(self) -> int:
        """Number of units to assign."""
        return int(self.run.shape[1]) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Units `[first, stop)` on one device of a type."""

    type: int
    first: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """A best assignment and its cost."""

    cost: float
    runs: tuple[Run, ...]


def smallest_maximum(grid: Grid, *, use_all: bool = False) -> Assignment | None:
    """Return an assignment whose largest run or hop cost is least, or None when nothing is possible.

    Args:
        grid: the costs.
        use_all: every device must take part.
    """
    return _solve(grid, np.maximum, use_all=use_all)


def smallest_sum(grid: Grid, *, limit: float = float("inf"), use_all: bool = False) -> Assignment | None:
    """Return an assignment whose sum of costs is least while no single cost exceeds `limit`, or None.

    Args:
        grid: the costs.
        limit: largest single cost allowed.
        use_all: every device must take part.
    """

    def capped(costs: Floats) -> Floats:
        return np.where(costs <= limit, costs, np.inf)

    within = Grid(
        run=capped(grid.run),
        link=capped(grid.link),
        entry=capped(grid.entry),
        exit=capped(grid.exit),
        counts=grid.counts,
    )
    return _solve(within, np.add, use_all=use_all)


def _solve(grid: Grid, combine: Combine, *, use_all: bool) -> Assignment | None:
    table: dict[Counts, Floats] = {}
    types = range(len(grid.counts))
    best: tuple[float, Counts, int] | None = None
    for state in _states(grid.counts, most=grid.units):
        rows = np.full((len(grid.counts), grid.units + 1), np.inf)
        for last in types:
            if state[last]:
                reached = _reached(grid, combine, table, state, last)
                rows[last] = combine(reached[:, None], grid.run[last]).min(axis=0)
        table[state] = rows
        if use_all and state != grid.counts:
            continue
        for last in types:
            cost = float(combine(rows[last, -1], grid.exit[last]))
            if np.isfinite(cost) and (best is None or cost < best[0]):
                best = (cost, state, last)
    if best is None:
        return None
    return Assignment(cost=best[0], runs=_trace(grid, combine, table, best[1], best[2]))


def _states(counts: Counts, *, most: int) -> Iterator[Counts]:
    """Yield every used-count vector with 1 to `most` devices, a part always before the whole."""
    for state in itertools.product(*(range(count + 1) for count in counts)):
        if 1 <= sum(state) <= most:
            yield state


def _reached(grid: Grid, combine: Combine, table: dict[Counts, Floats], state: Counts, last: int) -> Floats:
    """Least cost of having units `[0, i)` done and sent to a device of type `last`, for every i, `[units + 1]`."""
    reached = np.full(grid.units + 1, np.inf)
    if sum(state) == 1:
        reached[0] = grid.entry[last]
        return reached
    before = table[_without(state, last)]
    least: Floats = combine(before, grid.link[:, last]).min(axis=0)
    return least


def _without(state: Counts, type_: int) -> Counts:
    return (*state[:type_], state[type_] - 1, *state[type_ + 1 :])


def _trace(grid: Grid, combine: Combine, table: dict[Counts, Floats], state: Counts, last: int) -> tuple[Run, ...]:
    """Walk back from the end: nothing was stored but the costs, so each choice is found again."""
    runs: list[Run] = []
    stop = grid.units
    while True:
        through = combine(_reached(grid, combine, table, state, last), grid.run[last, :, stop])
        first = int(np.argmin(through))
        runs.append(Run(type=last, first=first, stop=stop))
        if first == 0:
            return tuple(reversed(runs))
        state = _without(state, last)
        before = combine(table[state][:, first], grid.link[:, last, first])
        last, stop = int(np.argmin(before)), first
