"""Lower bounds on assignments with limited counts: shortest paths with a price on every device of a type.

Runs are arcs between cut positions, and a plan is a path from the first position to the last that uses no type more
often than there are devices of it. With prices λ on the types the counts may be forgotten: a path of least
`cost + λ·used` is found by one pass over the positions, and `min (cost + λ·used) − λ·counts` is no more than what any
plan costs (Lagrangian relaxation; Handler and Zang, "A dual algorithm for the constrained shortest path problem",
Networks 10(4), 1980). The best prices solve a linear program that has one row for each path seen so far: Kelley's
cutting planes, solved with HiGHS (Huangfu and Hall, "Parallelizing the dual revised simplex method", 2018).

Every bound given out is computed by the pass over positions, never taken from the solver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import highspy
import numpy as np

from host.planning.search.arcs import Arcs, Move, Path
from host.planning.search.forks import Floats

Out = Callable[[], bool]
"""Whether the time is used up."""

GUIDES = 4
"""Potentials that guide a search."""

_FEW_TYPES = 8
"""Types up to which prices may move half way at once."""

_REMEMBERED = 300
"""Paths that are tried again at another limit."""

_NOTHING_NEW = 1e-6
_TOLERANCE = 1e-7
"""Relative room for rounding: a bound counts only where it exceeds by more than this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Potential:
    """What is left to pay from every cut at some prices.

    Attributes:
        prices: of a device of each type, `[types]`.
        value: `cost + prices·used` of the best path.
        enter: from a cut with the next run on a type, `[units, types]`.
        onward: from a cut with the last run on a type, `[types, units + 1 + longest]`, infinity past the end.
        path: a best path; empty when there is none.
    """

    prices: Floats
    value: float
    enter: Floats
    onward: Floats
    path: Path


def potential(arcs: Arcs, prices: Floats) -> Potential:
    """Find a path of least cost at some prices, and what is left to pay from everywhere."""
    units, types, longest = arcs.base.shape
    priced = arcs.base if arcs.need is None else arcs.base + arcs.need * prices[:, None]
    forks: dict[int, list[int]] = {}
    for index, crossing in enumerate(arcs.crossings):
        forks.setdefault(crossing.enter, []).append(index)
    onward = np.full((types, units + 1 + longest), np.inf)
    onward[:, units] = arcs.leave
    enter = np.empty((units, types))
    through = np.empty((types, longest))
    closed = arcs.closed.tolist()
    for cut in range(units - 1, -1, -1):
        np.add(priced[cut], onward[:, cut + 1 : cut + 1 + longest], out=through)
        row = enter[cut]
        np.minimum.reduce(through, axis=1, out=row)
        if arcs.need is None:
            row += prices
        if arcs.link is not None and closed[cut]:
            onward[:, cut] = (arcs.link[cut] + row).min(axis=1)
        else:
            onward[:, cut] = row.min()
        for index in forks.get(cut, ()):
            crossed = _crossed(arcs, index, prices, enter).min(axis=(0, 2), initial=np.inf)
            np.minimum(onward[:, cut], crossed, out=onward[:, cut])
    value = float((arcs.entry + enter[0]).min())
    found = Potential(prices=prices, value=value, enter=enter, onward=onward, path=())
    return replace(found, path=_path(arcs, priced, found, forks)) if np.isfinite(value) else found


def _crossed(arcs: Arcs, index: int, prices: Floats, enter: Floats) -> Floats:
    """What is left to pay before a fork, `[teams, types before, types after]`."""
    crossing = arcs.crossings[index]
    return np.asarray(crossing.cost + (crossing.used @ prices)[:, None, None] + enter[crossing.leave])


def _path(arcs: Arcs, priced: Floats, found: Potential, forks: Mapping[int, Sequence[int]]) -> Path:
    """Walk from the start: no choice was stored, so each is found again."""
    moves: list[Move] = []
    cut, on = 0, int(np.argmin(arcs.entry + found.enter[0]))
    while True:
        window = found.onward[on, cut + 1 : cut + 1 + arcs.longest]
        length = int(np.argmin(priced[cut, on] + window))
        count = 1 if arcs.need is None else int(arcs.need[cut, on, length])
        moves.append(Move(type=on, first=cut, stop=cut + 1 + length, count=count))
        cut += 1 + length
        if cut == arcs.units:
            return tuple(moves)
        left = found.enter[cut] if arcs.link is None else arcs.link[cut][on] + found.enter[cut]
        best, following = float(left.min()), int(np.argmin(left))
        fork: Move | None = None
        for index in forks.get(cut, ()):
            costs = _crossed(arcs, index, found.prices, found.enter)[:, on]
            if costs.min(initial=np.inf) < best:
                best = float(costs.min())
                team, following = (int(at) for at in np.unravel_index(int(np.argmin(costs)), costs.shape))
                leave = arcs.crossings[index].leave
                fork = Move(type=following, first=cut, stop=leave, fork=index, team=team)
        if fork is not None:
            moves.append(fork)
            cut = fork.stop
        on = following


class _Solver(highspy.Highs):
    """HiGHS, silent from its first line: it prints a banner as it registers its callbacks."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # its stub leaves out the return type

    def enableCallbacks(self) -> None:  # noqa: N802 - HiGHS calls it so
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()  # type: ignore[no-untyped-call]  # as above


class Prices:
    """The linear program over the prices: the greatest `least` with `least - prices·used <= cost` for each path.

    Args:
        counts: devices of each type.
        shares: the prices of all devices add up to one, and `value` is the share of the fleet that a path needs; else
            prices are at most `top`, and the value is a cost, counts paid back.
        top: greatest price.
    """

    def __init__(self, counts: Floats, *, shares: bool, top: float = 1.0) -> None:
        self._counts, self._shares = counts, shares
        self._solver = _Solver()
        self._solver.setOptionValue("parallel", "off")
        types = len(counts)
        for count in counts:
            self._solver.addVar(0.0, (1.0 / max(count, 1.0) if shares else top) if count else 0.0)
        self._solver.addVar(-highspy.kHighsInf, 1e30 if shares else highspy.kHighsInf)
        self._solver.changeObjectiveSense(highspy.ObjSense.kMaximize)
        self._solver.changeColCost(types, 1.0)
        columns = np.arange(types, dtype=np.int32)
        if shares:
            self._solver.addRow(1.0, 1.0, types, columns, counts)
        else:
            for column, count in enumerate(counts):
                self._solver.changeColCost(column, -float(count))
        self._columns = np.arange(types + 1, dtype=np.int32)

    def add(self, used: Floats, cost: float = 0.0) -> None:
        """Add a path."""
        row = np.append(-used, 1.0)
        self._solver.addRow(-highspy.kHighsInf, cost, len(row), self._columns, row)

    def best(self) -> tuple[Floats, float] | None:
        """Return the best prices for the paths so far and their value, or None when the solver fails."""
        self._solver.run()
        if self._solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        prices = np.maximum(np.array(self._solver.getSolution().col_value[:-1]), 0.0)
        if self._shares:
            prices /= float(prices @ self._counts)
        return prices, float(self._solver.getObjectiveValue())


@dataclass(frozen=True, kw_only=True, slots=True)
class Relaxed:
    """What the prices say.

    Attributes:
        bound: no plan needs less: a share of the fleet for `needed_share`, a cost for `least_cost`.
        guides: potentials, the best first, at most `GUIDES`.
    """

    bound: float
    guides: tuple[Potential, ...]


def proves_impossible(share: float) -> bool:
    """Whether a share of the fleet is more than the fleet, by more than rounding."""
    return share > 1.0 + _TOLERANCE


def needed_share(
    arcs: Arcs,
    seen: list[Path],
    centre: Floats,
    *,
    settle: bool,
    most: int,
    precision: float = 1e-5,
    out: Out = lambda: False,
) -> Relaxed:
    """Bound from below the share of the fleet that any path needs; more than 1 means that no plan meets the limit.

    Prices are asked for half way between the program's best and the best known, which keeps them from leaping about
    (Wentges, "Weighted Dantzig-Wolfe decomposition for linear mixed-integer programming", ITOR 4(2), 1997).

    Args:
        arcs: what the limit leaves, costs free.
        seen: paths found before at other limits; those found now are added.
        centre: prices to begin with, such as the best at another limit; all devices' add up to one.
        settle: go on to the best prices; else stop as soon as it is known on which side of 1 they are.
        most: steps at most; the prices to begin with are always tried.
        precision: relative distance to the best value at which prices are settled.
        out: whether to stop early.
    """
    types = len(arcs.counts)
    best = potential(arcs, centre)
    found = [best]
    program: Prices | None = None
    stay = 0.5 if types <= _FEW_TYPES else 0.8
    weight = stay
    for _ in range(most):
        if not best.path or (not settle and proves_impossible(best.value)) or out():
            break
        if program is None:
            program = _program(arcs, seen)
        seen.append(found[-1].path)
        program.add(arcs.used(found[-1].path))
        asked = program.best()
        if asked is None:
            break
        prices, upper = asked
        if best.value >= upper * (1 - precision) or (not settle and upper <= 1.0):
            break
        now = potential(arcs, weight * best.prices + (1 - weight) * prices)
        found.append(now)
        if now.value > best.value:
            best = now
        # A path that says nothing new about the program's prices: ask at these next.
        weight = 0.0 if arcs.used(now.path) @ prices >= upper * (1 - _NOTHING_NEW) else stay
    found.sort(key=lambda each: -each.value)
    return Relaxed(bound=found[0].value, guides=tuple(found[:GUIDES]))


def _program(arcs: Arcs, seen: Sequence[Path]) -> Prices:
    program = Prices(arcs.counts, shares=True)
    for path in seen[-_REMEMBERED:]:
        if (now := _at_limit(arcs, path)) is not None:
            program.add(arcs.used(now))
    return program


def least_cost(
    arcs: Arcs,
    *,
    top: float,
    most: int,
    out: Out = lambda: False,
) -> Relaxed:
    """Bound from below what any plan costs in sum; infinity when there is none.

    Args:
        arcs: what the limit leaves, costs summed.
        top: greatest price; any positive number is valid, one above the cost of all plans is enough.
        most: steps at most.
        out: whether to stop early.
    """
    types = len(arcs.counts)
    program = Prices(arcs.counts, shares=False, top=top)
    prices, upper = np.zeros(types), float("inf")
    found: list[tuple[float, Potential]] = []
    bound = -float("inf")
    for _ in range(most):
        now = potential(arcs, prices)
        value = now.value - float(prices @ arcs.counts)
        found.append((value, now))
        bound = max(bound, value)
        if not now.path or out():
            break
        program.add(arcs.used(now.path), arcs.cost(now.path))
        best = program.best()
        if best is None:
            break
        prices, upper = best
        if bound >= upper - 1e-9 * abs(upper):
            break
    found.sort(key=lambda each: -each[0])
    return Relaxed(bound=bound, guides=tuple(each for _, each in found[:GUIDES]))


def _at_limit(arcs: Arcs, path: Path) -> Path | None:
    """A path with the devices that it needs under another limit, or None when that forbids it."""
    if arcs.cost(path) == np.inf:
        return None
    if arcs.need is None:
        return path
    return tuple(
        replace(move, count=int(arcs.need[move.first, move.type, move.stop - move.first - 1]))
        if move.fork < 0
        else move
        for move in path
    )
