"""Assignments for instances that the exact dynamic program cannot hold, with a bound that proves how good they are.

The largest cost T of a plan is searched for from both sides. A T at which even the cheapest path at some prices needs
more than the whole fleet is impossible (`relaxation`): the bound. At those above it a search guided by the same prices
looks for a plan within the counts (`labels`): the answer. Where the search drops nothing but what is proven hopeless,
its failure raises the bound too, so that small instances are solved to the end.

The steps are counted, so that the same instance gives the same answer on a machine that is fast enough for `seconds`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from host.planning.search.arcs import Arcs, Layout, Path
from host.planning.search.assignment import Assignment, Grid
from host.planning.search.forks import Floats
from host.planning.search.labels import Effort, search
from host.planning.search.relaxation import Potential, Relaxed, least_cost, needed_share, proves_impossible

LADDER = (0.0, 0.004, 0.01, 0.02, 0.035, 0.06, 0.1, 0.2, 0.5, 1.0, 3.0, 15.0)
"""How far above the bound plans are looked for, in turn."""

QUICK = Effort(labels=24, arcs=3)
THOROUGH = Effort(labels=200, arcs=6)
DEEP = Effort(labels=1_000, arcs=10)
WHOLE = Effort(labels=20_000, arcs=1_000_000)

CLOSE = 5e-4
"""Relative distance of two limits that are as good as one."""

GOOD = 1e-2
"""Gap at which no deeper search is begun."""

_ALMOST = 0.99
"""Share of the fleet near enough to the whole."""
_FEW = 8
"""Steps of the relaxation that are enough when the prices are good already."""
_STEPS = 40
"""Limits tried at most in each part of the search."""
_DEEP_STEPS = 5
_CEILING = 1e-6
"""Devices beyond the fleet's, in shares of it, that only rounding can be."""
_WHOLE_WORK = 4e6
"""Arcs times sets of used devices up to which `WHOLE` is quick."""
_TIE = 1e-7
_LEAST = 1e-290


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounded:
    """An assignment and a proof of how good it is.

    Attributes:
        assignment: the best found; None when none was found and none was proven impossible.
        cost: of it; infinity without one.
        bound: no assignment costs less.
    """

    assignment: Assignment | None
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How much more it costs than the bound, as a share of the bound; 0 when it is proven to be a best one."""
        if self.cost <= self.bound:
            return 0.0
        return self.cost / self.bound - 1.0 if self.bound > 0 else math.inf


def improve(
    grid: Grid, *, most_replicas: int = 1, seconds: float = 8.0, first: Assignment | None = None
) -> Bounded | None:
    """Look for an assignment whose largest run, link, entry, exit or fork cost is least, for a limited time.

    Args:
        grid: the costs.
        most_replicas: most devices that share one run, which divide its cost.
        seconds: processor time of this thread; what is begun is ended soon after.
        first: an assignment known already; its cost is looked up again, and it counts only without forks.

    Returns:
        The best assignment and the bound, or None when it is proven that none is possible.
    """
    return _Maximum(grid, most_replicas, seconds, first).run()


def improve_sum(
    grid: Grid,
    *,
    within: Grid | None = None,
    limit: float = math.inf,
    most_replicas: int = 1,
    seconds: float = 4.0,
    first: Assignment | None = None,
) -> Bounded | None:
    """Look for an assignment of least sum of costs while no single cost exceeds `limit`, for a limited time.

    A run counts in full in the sum, however many devices share it; they are as few as the limit allows.

    Args:
        grid: the costs that are added up.
        within: the costs that are limited, of the same shape; `grid` itself when left out.
        limit: largest single cost allowed, that of a run divided by its devices.
        most_replicas: most devices that share one run.
        seconds: processor time of this thread; what is begun is ended soon after.
        first: an assignment known already, as for `improve`.

    Returns:
        The best assignment and the bound, or None when it is proven that none is possible.
    """
    clock = _Clock(seconds)
    layout = Layout(grid, within=within, most_replicas=most_replicas)
    arcs = layout.arcs(limit, summed=True)
    known = layout.path_of(first.runs) if first is not None else None
    best: Assignment | None = None
    if known is not None and layout.largest(known) <= limit:
        best = _cheapest(None, arcs.cost(known), known, layout, limit)
    relaxed = least_cost(arcs, top=_dearest(arcs), most=80 + 4 * len(arcs.counts), out=clock.out)
    if relaxed.bound == math.inf:
        return None
    bound = max(relaxed.bound, 0.0)
    for effort in (QUICK, THOROUGH, WHOLE):
        if clock.out() or (best and best.cost <= bound * (1 + _TIE)) or (effort is WHOLE and not _small(arcs)):
            break
        ceiling = math.inf if best is None else best.cost * (1 - _TIE)
        found = search(arcs, relaxed.guides, ceiling=ceiling, effort=effort, out=clock.out)
        if found.path is not None:
            best = _cheapest(best, arcs.cost(found.path), found.path, layout, limit)
        if found.complete:
            if best is None:
                return None
            # What the ceiling hid is not better by more than rounding.
            bound = max(bound, best.cost * (1 - _TIE))
            break
    return _bounded(best, bound)


def _cheapest(best: Assignment | None, cost: float, path: Path, layout: Layout, limit: float) -> Assignment | None:
    """The better of what was found before and a path that costs so much."""
    if cost == math.inf or (best is not None and best.cost <= cost):
        return best
    return Assignment(cost=cost, runs=layout.assigned(path, limit))


class _Clock:
    def __init__(self, seconds: float) -> None:
        self._end = time.thread_time() + seconds

    def out(self) -> bool:
        return time.thread_time() > self._end


class _Maximum:
    """The search for the least largest cost: `low` is proven impossible, `best` was found."""

    def __init__(self, grid: Grid, most_replicas: int, seconds: float, first: Assignment | None) -> None:
        self.layout, self.clock = Layout(grid, most_replicas=most_replicas), _Clock(seconds)
        known = self.layout.path_of(first.runs) if first is not None else None
        self.best = None if known is None else self._assignment(known)
        self.counts = np.array(grid.counts, dtype=np.float64)
        self.low = -math.inf
        self.rates = self._rates()
        self.prices = self.rates / float(self.rates @ self.counts)
        self.paths: list[Path] = []
        self.most = 40 + 4 * len(grid.counts)
        self._latest: tuple[float, Arcs] | None = None

    def run(self) -> Bounded | None:
        """Search."""
        if not self.counts.any() or self._impossible(math.inf, most=self.most):
            return None
        if not self._impossible(0.0, most=self.most):
            self._look(0.0, WHOLE if _small(self._arcs(0.0)) else THOROUGH)
        if self.best is None or self.best.cost > 0:
            high = self._narrow(self._estimate(), most=0)
            self._climb(high)
            self._narrow(high if self.best is None else min(high, self.best.cost), most=self.most)
            self._descend(THOROUGH, _STEPS)
            if self.best is not None and self.best.cost > self._bound() * (1 + GOOD):
                self._descend(DEEP, _DEEP_STEPS)
        return None if self.low == math.inf else _bounded(self.best, self._bound())

    def _arcs(self, limit: float) -> Arcs:
        if self._latest is None or self._latest[0] != limit:
            self._latest = (limit, self.layout.arcs(limit))
        return self._latest[1]

    def _rates(self) -> Floats:
        """Requests in a second of a device of each type, were units divisible: what it is worth, about."""
        units = self.layout.runs[:, :, 0]
        possible = np.isfinite(units)
        total = np.where(possible, units, 0.0).sum(axis=0) * len(units) / np.maximum(possible.sum(axis=0), 1)
        rates: Floats = np.where(total > 0, 1.0 / np.maximum(total, _LEAST), 0.0)
        return rates if (rates * self.counts).any() else np.ones(len(rates))

    def _impossible(self, limit: float, *, most: int) -> bool:
        """Whether the relaxation proves that no plan meets the limit; then it is the lower bound."""
        return proves_impossible(self._relaxed(limit, most=most, settle=False).bound)

    def _relaxed(self, limit: float, *, most: int, settle: bool, precision: float = 1e-4) -> Relaxed:
        relaxed = needed_share(
            self._arcs(limit),
            self.paths,
            self.prices,
            settle=settle,
            most=most,
            precision=precision,
            out=self.clock.out,
        )
        self.prices = relaxed.guides[0].prices
        if proves_impossible(relaxed.bound):
            self.low = max(self.low, limit)
        return relaxed

    def _estimate(self) -> float:
        """Return a limit at which the relaxation needs about the whole fleet, and find good prices by the way.

        What it needs falls about as the limit rises, so that one step goes most of the way.
        """
        limit = max(1.0 / float(self.rates @ self.counts), _LEAST)
        for _ in range(_STEPS):
            share = self._relaxed(limit, most=self.most, settle=True, precision=5e-3).bound
            if self.clock.out() or _ALMOST <= share <= 1.0:
                break
            following = limit * min(max(share * (1 + CLOSE), 0.25), 4.0)
            if following <= self.low:
                following = math.sqrt(self.low * limit) if limit > self.low else limit * (1 + CLOSE)
            limit = following
        return limit

    def _narrow(self, high: float, *, most: int) -> float:
        """Halve what is between the bound and a limit that is not proven impossible; return the last such limit."""
        if self.low <= 0:
            self._impossible(high / 2, most=most)
        for _ in range(_STEPS):
            if self.clock.out() or high <= self.low * (1 + CLOSE) or self.low <= 0:
                break
            middle = math.sqrt(self.low * high)
            if not self._impossible(middle, most=most):
                high = middle
        return high

    def _climb(self, high: float) -> None:
        """Look for a first plan, ever further above the bound."""
        for effort in (QUICK, THOROUGH):
            for step in LADDER:
                limit = high * (1 + step)
                if self.clock.out() or (self.best is not None and limit >= self.best.cost):
                    return
                if self._look(limit, effort):
                    return
        self._look(math.inf, WHOLE if _small(self._arcs(math.inf)) else DEEP)

    def _descend(self, effort: Effort, steps: int) -> None:
        """Close in between what is impossible, or was not found, and the best plan."""
        floor = self.low
        for _ in range(steps):
            if self.best is None or self.clock.out():
                return
            cost = self.best.cost
            under = math.nextafter(cost, 0.0)
            whole = _small(self._arcs(under))
            floor = self.low if whole else max(floor, self.low)
            if self._bound() >= cost or cost <= floor * (1 + (0.0 if whole else CLOSE)):
                return
            near = whole and cost <= floor * 1.02
            limit = under if near else min(math.sqrt(max(floor, cost / 4) * cost), under)
            if not self._impossible(limit, most=self.most) and not self._look(limit, WHOLE if whole else effort):
                floor = max(floor, limit)

    def _look(self, limit: float, effort: Effort) -> bool:
        """Search at a limit; whether it found a plan."""
        relaxed = self._relaxed(limit, most=_FEW, settle=True)
        if proves_impossible(relaxed.bound):
            return False
        guides: tuple[Potential, ...] = relaxed.guides
        found = search(self._arcs(limit), guides, ceiling=_CEILING, effort=effort, out=self.clock.out)
        if found.path is None:
            if found.complete:
                self.low = max(self.low, limit)
            return False
        better = self._assignment(found.path)
        if self.best is None or better.cost < self.best.cost:
            self.best = better
        return True

    def _assignment(self, path: Path) -> Assignment:
        return Assignment(cost=self.layout.largest(path), runs=self.layout.assigned(path))

    def _bound(self) -> float:
        """The least cost above what is impossible: no plan has one between."""
        above = self.layout.least_above(self.low)
        return above if self.best is None else min(above, self.best.cost)


def _bounded(best: Assignment | None, bound: float) -> Bounded:
    if best is None:
        return Bounded(assignment=None, cost=math.inf, bound=bound)
    return Bounded(assignment=best, cost=best.cost, bound=min(bound, best.cost))


def _small(arcs: Arcs) -> bool:
    """Whether a search that keeps everything is quick."""
    states = float(np.prod(np.minimum(arcs.counts, arcs.units) + 1.0))
    return states <= WHOLE.labels and arcs.base.size * states <= _WHOLE_WORK


def _dearest(arcs: Arcs) -> float:
    """More than any plan costs: no price above it makes the bound better."""
    costs = [arcs.base, arcs.entry, arcs.leave, *(crossing.cost for crossing in arcs.crossings)]
    costs += [] if arcs.link is None else [arcs.link]
    return 1.0 + arcs.units * sum(float(np.max(part, where=np.isfinite(part), initial=0.0)) for part in costs)
