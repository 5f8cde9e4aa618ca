"""The best assignment for each objective: one search after another, each among the best of the one before."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edge.formats.plan import Objective
from host.planning.search.assignment import ROUNDING, Assignment, Grid, Search
from host.planning.search.budgets import Rates, within_budgets
from host.planning.search.forks import Counts, Floats
from host.planning.search.grid import energy_grid, latency_grid, load_grid, part_grid, shared_grids
from host.planning.search.limits import blended, capped, divided, fastest_within, search_within
from host.planning.search.tables import Tables

PeriodOf = Callable[[Assignment], float]

_SECOND = 1e-9
"""Weight of what decides between sums that are equal but for rounding."""

_MOST_TRIED = 200
"""Sets of fewer devices that are looked at where what hops share may rule one out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """An assignment and how good it is.

    Attributes:
        assignment: the best, or the best found.
        bound: nothing is better than this: seconds, joules or a part, as the objective is.
        by_used: the least that any set of used devices reaches, `[count + 1, …]` over the kinds; None where not all
            were looked at.
        reached: what the best found costs where the assignment gives up some of that for fewer devices.
    """

    assignment: Assignment
    bound: float
    by_used: Floats | None
    reached: float | None = None


def best_of(
    objective: Objective,
    tables: Tables,
    *,
    most_replicas: int,
    least: Counts,
    period_of: PeriodOf,
    worth: float = 0.0,
) -> Found | None:
    """Return the best assignment, or None when nothing is possible.

    Args:
        objective: what is least.
        tables: what everything takes.
        most_replicas: devices that may share a stage, for throughput.
        least: how many of each kind must take part.
        period_of: the time between two results of an assignment, with all that hops share, and for throughput with
            what the window allows.
        worth: for throughput, the part of the period up to which devices are not worth it.
    """
    latency = latency_grid(tables)
    if objective == "latency":
        return _least_sum(latency, least)
    if objective == "energy":
        return _least_energy(energy_grid(tables), latency, least)
    load, shared = load_grid(tables), shared_grids(tables)
    if objective == "throughput":
        rates = Rates(
            load=load,
            latency=latency,
            shared=shared,
            window=tables.window,
            most_replicas=most_replicas,
            least=least,
            period_of=period_of,
        )
        best = _highest_rate(rates)
        return best if best is None or not worth else _with_fewer_devices(best, rates, worth)
    part = part_grid(tables)
    emptiest = Search(part, np.maximum, (part.run,))
    limit = emptiest.least(least)
    if not math.isfinite(limit):
        return None
    near = limit * (1 + ROUNDING)
    found = _highest_rate(
        Rates(
            load=capped(load, part, near),
            latency=capped(latency, part, near),
            shared=tuple(capped(grid, part, near) for grid in shared),
            window=0,
            most_replicas=1,
            least=least,
            period_of=period_of,
        )
    )
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


def _highest_rate(rates: Rates) -> Found | None:
    """Shortest period, then least latency, then fewest devices."""
    load, most_replicas, least = rates.load, rates.most_replicas, rates.least
    widest = Search(load, np.maximum, divided(load, most_replicas))
    period = widest.least(least)
    if not math.isfinite(period):
        return None
    found = fastest_within(load, rates.latency, period, most_replicas, least)
    if found is None:
        return None
    if rates.period_of(found) <= period * (1 + ROUNDING):
        return Found(assignment=found, bound=period, by_used=widest.costs)
    found, bound = within_budgets(rates, found, period)
    by_used = np.maximum(widest.costs, bound)
    if rates.window:
        soonest = Search(rates.latency, np.add, (rates.latency.run,)).costs
        by_used = np.maximum(by_used, soonest / rates.window)
    return Found(assignment=found, bound=bound, by_used=by_used)


def _with_fewer_devices(best: Found, rates: Rates, worth: float) -> Found:
    """The fewest devices that come near enough to the best, then least latency; the best where none are fewer."""
    reached, devices = rates.period_of(best.assignment), devices_of(best.assignment)
    limit = reached * (1 + worth)
    search = search_within(rates.load, rates.latency, limit, rates.most_replicas, rates.least)
    soonest = search.ranked(rates.least, limit * rates.window * (1 + ROUNDING))
    for count, fewer in itertools.islice(soonest, _MOST_TRIED):
        if count >= devices:
            break
        if rates.period_of(fewer) <= limit * (1 + ROUNDING):
            return replace(best, assignment=fewer, reached=reached)
    return best


def devices_of(assignment: Assignment) -> int:
    """Return how many devices an assignment uses."""
    return sum(run.count for run in assignment.runs if not run.again)
