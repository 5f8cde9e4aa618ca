"""The highest rate where sums limit it: what hops take of the broker or of a Wi-Fi cell, and the latency.

No more than the window of requests is in flight, so that no result comes sooner than `latency / window` after another.
What a request takes adds up, and the period is at least that sum. With one such budget, let S(T) be the least sum
among the assignments with no load above T: it falls where T passes the cost of a run or hop, and the best period is the
least of max(T, S(T)). So it is found by halving among those costs: it is the first cost T with S(T) ≤ T, or S just
before it.

With several budgets each alone gives a bound, and the trade-offs between them the best (`trade_offs`) where the
instance is small; else the best of what was seen counts, and its distance from the bound is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from host.planning.search.assignment import ROUNDING, Assignment, Grid
from host.planning.search.forks import Counts, Floats
from host.planning.search.limits import blended, divided, scaled, search_within
from host.planning.search.trade_offs import best_trade_off

_SECOND = 1e-9
"""Weight of the latency beside a sum that comes first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What the rate of an assignment depends on.

    Attributes:
        load: of runs and hops, the largest of which is part of the period.
        latency: what decides between equal periods.
        shared: budgets, each a sum that is part of the period.
        window: requests in flight, which limit the rate too; 0 where that does not count.
        most_replicas: devices that may share a run.
        least: how many of each type must take part.
        period_of: the time between two results of an assignment, with all of this.
    """

    load: Grid
    latency: Grid
    shared: tuple[Grid, ...]
    window: int
    most_replicas: int
    least: Counts
    period_of: Callable[[Assignment], float]


def within_budgets(rates: Rates, found: Assignment, period: float) -> tuple[Assignment, float]:
    """Return the assignment of the least period that was found, and the least period that there can be.

    Args:
        rates: what the period depends on.
        found: the best without budgets.
        period: its largest load.
    """
    load, latency, most_replicas, least = rates.load, rates.latency, rates.most_replicas, rates.least
    period_of = rates.period_of
    shared = (*rates.shared, scaled(latency, 1 / rates.window)) if rates.window else rates.shared
    bounds = [_alone(load, grid, period, most_replicas, least) for grid in shared]
    bound = max(bounds)
    tightest = shared[bounds.index(bound)]
    candidates = [found]
    for costs in (tightest, *(shared if len(shared) > 1 else ())):
        both = blended(costs, 1.0, latency, _SECOND * bound / _finite_most(latency))
        best = search_within(load, both, bound, most_replicas, least).best(least)
        candidates += [best] if best is not None else []
    if not rates.shared and period_of(candidates[-1]) <= bound * (1 + ROUNDING):
        return candidates[-1], bound
    best = min(candidates, key=period_of)
    exact = best_trade_off(load, shared, latency, most_replicas=most_replicas, least=least, ceiling=period_of(best))
    if exact is None:
        return best, bound
    return exact, period_of(exact)


def _alone(load: Grid, shared: Grid, period: float, most_replicas: int, least: Counts) -> float:
    """The least period with one budget."""

    def least_sum(limit: float) -> float:
        return search_within(load, shared, limit, most_replicas, least).least(least)

    above = least_sum(period)
    if above <= period:
        return period
    costs = _costs(load, most_replicas)
    costs = costs[(costs > period) & (costs < above)]
    # At costs[low - 1] the sum is above the cost, from costs[high] on it is not.
    low, high, before = 0, len(costs), above
    while low < high:
        middle = (low + high) // 2
        taken = least_sum(float(costs[middle]))
        if taken <= costs[middle]:
            high = middle
        else:
            low, before = middle + 1, taken
    return min(before, float(costs[high])) if high < len(costs) else before


def _costs(load: Grid, most_replicas: int) -> Floats:
    """Every single cost, rising."""
    single = [*(fork.cost for fork in load.forks), *(bend.cost for bend in load.bends)]
    every = [*divided(load, most_replicas), load.link, load.entry, load.exit, *single]
    costs = np.unique(np.concatenate([costs.ravel() for costs in every]))
    finite: Floats = costs[np.isfinite(costs)]
    return finite


def _finite_most(grid: Grid) -> float:
    """The largest single cost, as a scale."""
    finite = grid.run[np.isfinite(grid.run)]
    return float(finite.max(initial=0.0)) or 1.0
