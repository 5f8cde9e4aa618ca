"""Plans for fleets that the exact search cannot hold: time-bounded, with a bound that says how far from the best.

Sections are not divided here, and the bound is over plans that do not divide them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edge.formats.plan import Objective
from host.planning.search.assignment import ROUNDING, Assignment, Grid
from host.planning.search.grid import energy_grid, latency_grid, load_grid, part_grid, shared_grids
from host.planning.search.limits import blended, capped
from host.planning.search.objectives import Found, PeriodOf, devices_of
from host.planning.search.tables import Tables

if TYPE_CHECKING:
    from host.planning.search.anytime import Bounded

_SECOND = 1e-6
"""Weight of what decides between sums that are equal."""

_FIRST = 0.8
"""Part of the time for the least largest load; the rest is for what decides between such plans."""

_SEARCHES = 8
"""In the rest of the time, about."""

_LIMITS = 5
"""Largest loads that are tried between the least one and what the window allows."""


def best_of_large(
    objective: Objective,
    tables: Tables,
    *,
    most_replicas: int,
    seconds: float,
    period_of: PeriodOf,
    latency_of: Callable[[Assignment], float],
    worth: float = 0.0,
) -> Found | None:
    """Return the best assignment that was found in the time, or None when none was.

    Args:
        objective: what is least.
        tables: what everything takes.
        most_replicas: devices that may share a stage, for throughput.
        seconds: processor time.
        period_of: the time between two results of an assignment, with all that hops share and what the window allows.
        latency_of: what one request alone takes.
        worth: for throughput, the part of the period up to which devices are not worth it.
    """
    # Its solver takes longer to import than a plan takes to make.
    from host.planning.search.anytime import improve, improve_sum

    searches: dict[Objective, Callable[[], Bounded | None]] = {
        "latency": lambda: improve_sum(latency_grid(tables), seconds=seconds),
        "energy": lambda: improve_sum(energy_grid(tables), seconds=seconds),
        "memory": lambda: improve(part_grid(tables), seconds=seconds),
        "throughput": lambda: improve(load_grid(tables), most_replicas=most_replicas, seconds=seconds * _FIRST),
    }
    end = time.thread_time() + seconds
    bounded = searches[objective]()
    if bounded is None or bounded.assignment is None:
        return None
    if objective == "memory":
        part = part_grid(tables)
        emptiest = capped(load_grid(tables), part, bounded.cost * (1 + ROUNDING))
        quickest = improve(emptiest, seconds=seconds / 2, first=bounded.assignment)
        if quickest is not None and quickest.assignment is not None:
            return Found(assignment=quickest.assignment, bound=bounded.bound, by_used=None)
    if objective != "throughput":
        return Found(assignment=bounded.assignment, bound=bounded.bound, by_used=None)
    rates = _Rates(
        tables=tables,
        load=load_grid(tables),
        latency=latency_grid(tables),
        most_replicas=most_replicas,
        seconds=max(end - time.thread_time(), seconds * (1 - _FIRST)) / _SEARCHES,
        period_of=period_of,
        latency_of=latency_of,
    )
    return rates.best(bounded.assignment, bounded.cost, bounded.bound, worth)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rates:
    """What decides between assignments for throughput; arguments as of `best_of_large`, seconds of one search."""

    tables: Tables
    load: Grid
    latency: Grid
    most_replicas: int
    seconds: float
    period_of: PeriodOf
    latency_of: Callable[[Assignment], float]

    def best(self, first: Assignment, period: float, bound: float, worth: float) -> Found:
        """The shortest time between two results that is found, then least latency, then fewest devices.

        Args:
            first: of the least largest load.
            period: that load.
            bound: no largest load is less.
            worth: as of `best_of_large`.
        """
        found = [first, *self.within(self.latency, period, first)]
        if self.shortest(found) > period * (1 + ROUNDING):
            more, bound = self.held_up(period, bound, found)
            found += more
        reached = self.shortest(found)
        limit = reached * (1 + worth)
        fewest = blended(_ones(self.latency), 1.0, self.latency, _SECOND / _scale(self.latency))
        best = min(found, key=lambda one: (self.period_of(one) > reached * (1 + ROUNDING), self.latency_of(one)))
        # What is known already may share its runs among more devices than this limit asks for: it begins anew.
        found += self.within(fewest, limit, None)
        near = [one for one in found if self.period_of(one) <= limit * (1 + ROUNDING)]
        if worth:
            chosen = min(near, key=lambda one: (devices_of(one), self.latency_of(one)))
            if devices_of(chosen) < devices_of(best):
                return Found(assignment=chosen, bound=bound, by_used=None, reached=reached)
        else:
            soonest = min(map(self.latency_of, near)) * (1 + ROUNDING)
            best = min((one for one in near if self.latency_of(one) <= soonest), key=devices_of)
        return Found(assignment=best, bound=bound, by_used=None)

    def held_up(self, period: float, bound: float, found: list[Assignment]) -> tuple[list[Assignment], float]:
        """Assignments that take less of what adds up, and the bound with that."""
        from host.planning.search.anytime import improve_sum

        more: list[Assignment] = []
        for grid, share in (*((grid, 1) for grid in shared_grids(self.tables)), (self.latency, self.tables.window)):
            sparing = improve_sum(grid, seconds=self.seconds)
            if sparing is not None:
                bound = max(bound, sparing.bound / share)
                more += [sparing.assignment] if sparing.assignment is not None else []
        low, high = period, self.shortest([*found, *more])
        for _ in range(_LIMITS):
            limit = math.sqrt(low * high)
            within = self.bounded(self.latency, limit, found[0])
            if within is None:
                bound, low = max(bound, limit), limit
                continue
            # What is loaded no longer takes so long at least; all else is loaded longer.
            bound = max(bound, min(limit, within.bound / self.tables.window))
            more += [within.assignment] if within.assignment is not None else []
            low, high = (limit, high) if within.cost / self.tables.window > limit else (low, limit)
        return more, bound

    def within(self, grid: Grid, limit: float, first: Assignment | None) -> list[Assignment]:
        """The assignment of least costs that is found with no load above a limit, or none."""
        found = self.bounded(grid, limit, first)
        return [] if found is None or found.assignment is None else [found.assignment]

    def bounded(self, grid: Grid, limit: float, first: Assignment | None) -> Bounded | None:
        """The same with the least that there can be; None where nothing is possible."""
        from host.planning.search.anytime import improve_sum

        return improve_sum(
            grid,
            within=self.load,
            limit=limit * (1 + ROUNDING),
            most_replicas=self.most_replicas,
            seconds=self.seconds,
            first=first,
        )

    def shortest(self, found: list[Assignment]) -> float:
        return min(map(self.period_of, found))


def _ones(grid: Grid) -> Grid:
    """A grid of which each possible run costs 1."""
    return replace(
        grid,
        run=np.where(np.isfinite(grid.run), 1.0, np.inf),
        link=np.zeros_like(grid.link),
        entry=np.zeros_like(grid.entry),
        exit=np.zeros_like(grid.exit),
    )


def _scale(grid: Grid) -> float:
    """The largest single cost."""
    return max(float(np.max(grid.run, where=np.isfinite(grid.run), initial=0.0)), 1e-12)
