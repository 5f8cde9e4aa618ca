"""Moves from cut to cut that a limit on single costs leaves: runs, and forks of runs side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from host.planning.search.assignment import Grid, Run
from host.planning.search.forks import Counts, Floats, Ints, handings, used_counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One step of a plan: from cut `first` to cut `stop`.

    Attributes:
        type: of the devices of a run; for a fork the type of the run that follows it.
        first: cut.
        stop: cut.
        count: devices of a run.
        fork: index among `Arcs.crossings`; -1 for a run.
        team: index of the devices that the fork takes.
    """

    type: int
    first: int
    stop: int
    count: int = 1
    fork: int = -1
    team: int = -1


Path = Sequence[Move]


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """A fork with the teams that can run it.

    Attributes:
        enter: cut at which the run before it ends.
        leave: cut at which the run after it starts.
        used: devices of each type in each team, `[teams, types]`.
        cost: of each team for the types before and after, infinity where not possible, `[teams, types, types]`.
    """

    enter: int
    leave: int
    used: Floats
    cost: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Arcs:
    """What is possible within a limit, by first cut, type and length.

    Attributes:
        base: cost of a run; infinity where it is not possible, `[units, types, longest]`; length w + 1 at index w.
        need: devices that it takes, each `run / need <= limit`; None when that is always one.
        entry: `[types]`; as `leave`, what the hop from or to the client costs, infinity where it is not possible.
        leave: `[types]`.
        link: cost of the hop from `u` to `v` at a cut, `[units + 1, u, v]`; None where all hops are free.
        closed: whether it matters at a cut on which type the last run was, `[units + 1]`.
        counts: devices of each type, `[types]`.
        crossings: forks.
    """

    base: Floats
    need: Floats | None
    entry: Floats
    leave: Floats
    link: Floats | None
    closed: npt.NDArray[np.bool_]
    counts: Floats
    crossings: tuple[Crossing, ...] = ()

    @property
    def units(self) -> int:
        """Number of cuts but one."""
        return int(self.base.shape[0])

    @property
    def longest(self) -> int:
        """Units in the longest run."""
        return int(self.base.shape[2])

    def into(self, cut: int, last: Ints) -> Floats:
        """Return the cost of the hop into each type after each last type, `[labels or 1, types]`.

        Args:
            cut: where the hop is.
            last: type of the last run; `types + v` after a fork that is followed by type v.
        """
        types = len(self.counts)
        if cut == 0:
            return self.entry[None, :]
        if not self.closed[cut]:
            return np.zeros((1, types))
        direct = np.zeros((types, types)) if self.link is None else self.link[cut]
        forced = np.where(np.eye(types, dtype=np.bool_), 0.0, np.inf)
        rows: Floats = np.concatenate((direct, forced))[last]
        return rows

    def used(self, path: Path) -> Floats:
        """Return the devices of each type on a path, `[types]`."""
        used = np.zeros(len(self.counts))
        for move in path:
            if move.fork < 0:
                used[move.type] += move.count
            else:
                used += self.crossings[move.fork].used[move.team]
        return used

    def cost(self, path: Path) -> float:
        """Return the sum of the costs of a path; infinity when it is not possible."""
        total = float(self.entry[path[0].type] + self.leave[path[-1].type])
        for index, move in enumerate(path):
            before = path[index - 1] if index else None
            if move.fork >= 0 and before is not None:
                total += float(self.crossings[move.fork].cost[move.team, before.type, move.type])
                continue
            length = move.stop - move.first - 1
            total += float(self.base[move.first, move.type, length]) if length < self.longest else np.inf
            if before is not None and before.fork < 0 and self.link is not None:
                total += float(self.link[move.first, before.type, move.type])
        return total


class Layout:
    """A grid rearranged once for many limits.

    Args:
        grid: the costs, added up where sums are asked for.
        within: what the limits are for; the grid itself when left out.
        most_replicas: most devices in one run.
    """

    def __init__(self, grid: Grid, *, within: Grid | None = None, most_replicas: int = 1) -> None:
        self.grid, self.within = grid, within or grid
        self.most_replicas = max(1, min(most_replicas, max(grid.counts, default=1)))
        self.runs = _by_length(self.within)
        self._costs = self.runs if within is None else _by_length(grid)
        self._shortest = self.runs.min(axis=(0, 1))
        self._teams = [
            _Teams(grid.counts, fork.parts, fork.cost, other.cost)
            for fork, other in zip(grid.forks, self.within.forks, strict=True)
        ]

    def arcs(self, limit: float, *, summed: bool = False) -> Arcs:
        """Return what remains when no single cost may exceed the limit.

        Args:
            limit: largest run, link, entry or exit cost; a run's is divided by its devices.
            summed: costs are to be added up; else what remains is free.
        """
        fits = np.flatnonzero((self._shortest / self.most_replicas <= limit) & np.isfinite(self._shortest))
        longest = int(fits[-1]) + 1 if fits.size else 1
        runs = self.runs[:, :, :longest]
        need = None
        possible = (runs <= limit) & np.isfinite(runs)
        if self.most_replicas > 1:
            need = np.ones(runs.shape)
            for replicas in range(2, self.most_replicas + 1):
                enough = (runs / replicas <= limit) & np.isfinite(runs) & ~possible
                enough[:, [count < replicas for count in self.grid.counts]] = False
                need[enough] = replicas
                possible |= enough

        def cost(values: Floats, limited: Floats) -> Floats:
            return np.where((limited <= limit) & np.isfinite(limited), values if summed else 0.0, np.inf)

        grid, within = self.grid, self.within
        link = np.moveaxis(cost(grid.link, within.link), 2, 0).copy()
        link[0] = link[-1] = 0.0
        closed: npt.NDArray[np.bool_] = np.asarray(link.any(axis=(1, 2)))
        linked = bool(closed.any())
        for fork in grid.forks:
            closed[[fork.enter, fork.leave]] = True
        return Arcs(
            base=np.where(possible, self._costs[:, :, :longest] if summed else 0.0, np.inf),
            need=need,
            entry=cost(grid.entry, within.entry),
            leave=cost(grid.exit, within.exit),
            link=link if linked else None,
            closed=closed,
            counts=np.array(grid.counts, dtype=np.float64),
            crossings=tuple(
                Crossing(enter=fork.enter, leave=fork.leave, used=teams.used, cost=teams.least(cost))
                for fork, teams in zip(grid.forks, self._teams, strict=True)
            ),
        )

    def largest(self, path: Path) -> float:
        """Return the largest single cost of a path, from the definition."""
        grid = self.within
        costs = [float(grid.entry[path[0].type]), float(grid.exit[path[-1].type])]
        for index, move in enumerate(path):
            before = path[index - 1]
            if move.fork >= 0:
                costs.append(float(self._teams[move.fork].limits[move.team, before.type, move.type]))
                continue
            costs.append(float(grid.run[move.type, move.first, move.stop]) / move.count)
            if index and before.fork < 0:
                costs.append(float(grid.link[before.type, move.type, move.first]))
        return max(costs)

    def path_of(self, runs: Sequence[Run]) -> Path | None:
        """Return the path of an assignment, or None when it is not of this grid: then it says nothing here."""
        if self.grid.forks or any(run.beside for run in runs):
            return None
        cuts = {self.grid.place(cut): cut for cut in range(self.grid.run.shape[1])}
        if not runs or any(cuts.get(run.first) is None or cuts.get(run.stop) is None for run in runs):
            return None
        path = [
            Move(type=run.type, first=cuts[run.first], stop=cuts[run.stop], count=min(run.count, self.most_replicas))
            for run in runs
        ]
        return path if math.isfinite(self.largest(path)) else None

    def least_above(self, limit: float) -> float:
        """Return the least single cost above a limit; infinity when there is none."""
        grid = self.within
        parts = [self.runs / count for count in range(1, self.most_replicas + 1)]
        parts += [grid.link, grid.entry, grid.exit, *(fork.cost for fork in grid.forks)]
        return min(float(np.min(costs, where=costs > limit, initial=np.inf)) for costs in parts)

    def assigned(self, path: Path, limit: float = np.inf) -> tuple[Run, ...]:
        """Return the runs of a path on the units of the grid; forks in the way that costs least within the limit."""
        grid, runs = self.grid, list[Run]()
        for index, move in enumerate(path):
            if move.fork < 0:
                first, stop = grid.place(move.first), grid.place(move.stop)
                runs.append(Run(type=move.type, first=first, stop=stop, count=move.count))
                continue
            bounds = grid.forks[move.fork].bounds
            way = self._teams[move.fork].best(move.team, path[index - 1].type, move.type, limit)
            runs += [
                Run(type=int(type_), first=bounds[part], stop=bounds[part + 1], beside=part > 0)
                for part, type_ in enumerate(way)
            ]
        return tuple(runs)


class _Teams:
    """The ways to hand the parts of a fork to types, those that take the same devices together.

    Attributes:
        used: devices of each type in each team, `[teams, types]`.
        limits: what is limited of its best way, `[teams, types, types]`.
    """

    def __init__(self, counts: Counts, parts: int, costs: Floats, limited: Floats) -> None:
        types = len(counts)
        self._ways = handings(counts, parts)
        shape = (len(self._ways), types, types)
        self._costs, self._limited = np.broadcast_to(costs, shape), np.broadcast_to(limited, shape)
        used = used_counts(self._ways, types)
        new = np.ones(len(used), dtype=np.bool_)
        new[1:] = (used[1:] != used[:-1]).any(axis=1)
        self._starts = np.flatnonzero(new)
        self.used = used[self._starts].astype(np.float64)
        self.limits = self.least(lambda _, limited: limited)

    def least(self, cost: Callable[[Floats, Floats], Floats]) -> Floats:
        """Return the least over each team's ways of a function of its cost and what is limited."""
        if not len(self._starts):
            return np.zeros((0, *self._costs.shape[1:]))
        least: Floats = np.minimum.reduceat(cost(self._costs, self._limited), self._starts, axis=0)
        return least

    def best(self, team: int, before: int, after: int, limit: float) -> list[int]:
        """Return the types of the parts in the best way of a team."""
        stop = [*self._starts.tolist(), len(self._ways)][team + 1]
        ways = range(int(self._starts[team]), stop)
        limited, costs = self._limited[:, before, after], self._costs[:, before, after]
        return list(self._ways[min(ways, key=lambda way: (limited[way] > limit, costs[way], way))].tolist())


def _by_length(grid: Grid) -> Floats:
    """Costs of runs by first cut, type and length, `[units, types, units]`."""
    units = grid.run.shape[1] - 1
    runs = np.full((units, len(grid.counts), units), np.inf)
    for first in range(units):
        runs[first, :, : units - first] = grid.run[:, first, first + 1 :]
    runs[:, [not count for count in grid.counts], :] = np.inf
    return runs
