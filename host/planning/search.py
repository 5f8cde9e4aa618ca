"""The best assignment for each objective: one search after another, each among the best of the one before."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edge.formats.plan import Objective
from host.planning.assignment import ROUNDING, Assignment, Grid, Search
from host.planning.budgets import within_budgets
from host.planning.forks import Counts, Floats
from host.planning.grid import energy_grid, latency_grid, load_grid, part_grid, shared_grids
from host.planning.limits import blended, capped, divided, fastest_within
from host.planning.tables import Tables

PeriodOf = Callable[[Assignment], float]

_SECOND = 1e-9
"""Weight of what decides between sums that are equal but for rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """An assignment and how good it is.

    Attributes:
        assignment: the best, or the best found.
        bound: nothing is better than this: seconds, joules or a part, as the objective is.
        by_used: the least that any set of used devices reaches, `[count + 1, …]` over the kinds; None where not all
            were looked at.
    """

    assignment: Assignment
    bound: float
    by_used: Floats | None


def best_of(
    objective: Objective, tables: Tables, *, most_replicas: int, least: Counts, period_of: PeriodOf
) -> Found | None:
    """Return the best assignment, or None when nothing is possible.

    Args:
        objective: what is least.
        tables: what everything takes.
        most_replicas: devices that may share a stage, for throughput.
        least: how many of each kind must take part.
        period_of: the bottleneck of an assignment, with all that hops share.
    """
    latency = latency_grid(tables)
    if objective == "latency":
        return _least_sum(latency, least)
    if objective == "energy":
        return _least_energy(energy_grid(tables), latency, least)
    load, shared = load_grid(tables), shared_grids(tables)
    if objective == "throughput":
        return _highest_rate(load, latency, shared, most_replicas, least, period_of)
    part = part_grid(tables)
    emptiest = Search(part, np.maximum, (part.run,))
    limit = emptiest.least(least)
    if not math.isfinite(limit):
        return None
    near = limit * (1 + ROUNDING)
    shared = tuple(capped(grid, part, near) for grid in shared)
    found = _highest_rate(capped(load, part, near), capped(latency, part, near), shared, 1, least, period_of)
    return None if found is None else replace(found, bound=limit, by_used=emptiest.costs)


def _least_sum(grid: Grid, least: Counts) -> Found | None:
    search = Search(grid, np.add, (grid.run,))
    found = search.best(least)
    return None if found is None else Found(assignment=found, bound=found.cost, by_used=search.costs)


def _least_energy(energy: Grid, latency: Grid, least: Counts) -> Found | None:
    """Least energy, then least latency: both in one sum, the second so light that it only decides between equals."""
    first = _least_sum(energy, least)
    if first is None:
        return None
    if not first.bound:
        second = _least_sum(capped(latency, energy, 0.0), least)
    else:
        scale = Search(latency, np.add, (latency.run,)).least()
        second = _least_sum(blended(energy, 1 / first.bound, latency, _SECOND / scale if scale else 1.0), least)
    return first if second is None else replace(first, assignment=second.assignment)


def _highest_rate(
    load: Grid,
    latency: Grid,
    shared: tuple[Grid, ...],
    most_replicas: int,
    least: Counts,
    period_of: PeriodOf,
) -> Found | None:
    """Shortest period, then least latency, then fewest devices."""
    widest = Search(load, np.maximum, divided(load, most_replicas))
    period = widest.least(least)
    if not math.isfinite(period):
        return None
    found = fastest_within(load, latency, period, most_replicas, least)
    if found is None:
        return None
    if period_of(found) <= period * (1 + ROUNDING):
        return Found(assignment=found, bound=period, by_used=widest.costs)
    found, bound = within_budgets(load, latency, shared, found, period, most_replicas, least, period_of)
    return Found(assignment=found, bound=bound, by_used=np.maximum(widest.costs, bound))
