"""Searches among what costs little enough by another measure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from host.planning.search.assignment import ROUNDING, Assignment, Grid, Search
from host.planning.search.forks import Counts, Floats


def capped(grid: Grid, by: Grid, limit: float) -> Grid:
    """Return a grid without all that costs more than a limit by another one."""

    def within(costs: Floats, measured: Floats) -> Floats:
        return np.where(measured <= limit, costs, np.inf)

    return replace(
        grid,
        run=within(grid.run, by.run),
        link=within(grid.link, by.link),
        entry=within(grid.entry, by.entry),
        exit=within(grid.exit, by.exit),
        forks=tuple(
            replace(fork, cost=within(fork.cost, other.cost)) for fork, other in zip(grid.forks, by.forks, strict=True)
        ),
        bends=tuple(
            replace(bend, cost=within(bend.cost, other.cost)) for bend, other in zip(grid.bends, by.bends, strict=True)
        ),
    )


def scaled(grid: Grid, factor: float) -> Grid:
    """Return a grid of which everything costs so many times what it does; the factor is above 0."""
    return replace(
        grid,
        run=factor * grid.run,
        link=factor * grid.link,
        entry=factor * grid.entry,
        exit=factor * grid.exit,
        forks=tuple(replace(fork, cost=factor * fork.cost) for fork in grid.forks),
        bends=tuple(replace(bend, cost=factor * bend.cost) for bend in grid.bends),
    )


def divided(grid: Grid, most_replicas: int) -> tuple[Floats, ...]:
    """Return the costs of runs on 1, 2, … devices that take turns."""
    return tuple(grid.run / count for count in range(1, most_replicas + 1))


def blended(first: Grid, weight: float, second: Grid, other_weight: float) -> Grid:
    """Return the weighted sum of two grids."""
    return replace(
        first,
        run=weight * first.run + other_weight * second.run,
        link=weight * first.link + other_weight * second.link,
        entry=weight * first.entry + other_weight * second.entry,
        exit=weight * first.exit + other_weight * second.exit,
        forks=tuple(
            replace(a, cost=weight * a.cost + other_weight * b.cost)
            for a, b in zip(first.forks, second.forks, strict=True)
        ),
        bends=tuple(
            replace(a, cost=weight * a.cost + other_weight * b.cost)
            for a, b in zip(first.bends, second.bends, strict=True)
        ),
    )


def search_within(load: Grid, costs: Grid, period: float, most_replicas: int, least: Counts) -> Search:
    """Return the search for least sums of costs among what is loaded no longer than a period.

    Args:
        load: divided by how many devices share a run.
        costs: not divided.
        period: largest load.
        most_replicas: devices that may share a run.
        least: how many of each type must take part; where none must, no run has more devices than it needs.
    """
    limit = period * (1 + ROUNDING)
    runs: list[Floats] = []
    enough = np.zeros(load.run.shape, dtype=bool)
    for shared in divided(load, most_replicas):
        allowed = shared <= limit
        runs.append(np.where(allowed & ~enough, costs.run, np.inf))
        if not any(least):
            enough |= allowed
    return Search(capped(costs, load, limit), np.add, runs)


def fastest_within(load: Grid, latency: Grid, period: float, most_replicas: int, least: Counts) -> Assignment | None:
    """Return the assignment of least latency among those with no load longer than a period; see `search_within`."""
    return search_within(load, latency, period, most_replicas, least).best(least)
