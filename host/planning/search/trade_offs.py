"""The best assignment where several sums limit the period together: every trade-off between them is kept.

A *label* is a way to reach a cut with certain devices: its largest load, its sums, its latency. One that is worse than
another in nothing replaces it; those of one (used devices, last kind, cut) that are better in something each are all
kept (Martins: "On a multicriteria shortest path problem", EJOR 16, 1984). That is exact, and grows fast: for small
instances.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from host.planning.search.assignment import ROUNDING, Assignment, Grid, Run, bent_runs, part_runs
from host.planning.search.forks import Counts, Floats, Ints, handings, used_counts
from host.planning.search.turns import around

MAX_LABELS = 30_000
"""Labels kept in all; an instance with more is given up."""

MAX_MOVES = 30_000
"""Sets of used devices times ways to go on from each; an instance with more is not begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Labels:
    """Labels of one set of used devices.

    Attributes:
        values: largest load, sums, latency, `[labels, measures]`.
        last: type of the last run, `[labels]`.
        cut: where it ends, `[labels]`.
        ids: of each, `[labels]`.
    """

    values: Floats
    last: Ints
    cut: Ints
    ids: Ints

    def chosen(self, which: Ints) -> _Labels:
        return _Labels(values=self.values[which], last=self.last[which], cut=self.cut[which], ids=self.ids[which])


def best_trade_off(
    load: Grid, shared: Sequence[Grid], latency: Grid, *, most_replicas: int, least: Counts, ceiling: float
) -> Assignment | None:
    """Return the assignment whose largest load or sum is least, then its latency, then its devices.

    Args:
        load: divided by how many devices share a run; the largest counts.
        shared: each summed up.
        latency: summed up.
        most_replicas: devices that may share a run.
        least: how many of each type must take part.
        ceiling: what the best does not exceed.

    Returns:
        None where it was given up.
    """
    bending = len(load.counts) if load.bends else 0
    moves = sum(fork.cost.shape[0] for fork in load.forks) * (1 + bending) + len(load.counts)
    if np.prod([count + 1 for count in load.counts]) * moves > MAX_MOVES:
        return None
    return _TradeOffs(load, shared, latency, most_replicas, ceiling * (1 + ROUNDING)).best(least)


class _TradeOffs:
    def __init__(self, load: Grid, shared: Sequence[Grid], latency: Grid, most_replicas: int, ceiling: float) -> None:
        self._load, self._sums, self._ceiling, self._most = load, (*shared, latency), ceiling, most_replicas
        self._types = len(load.counts)
        self._ways = {parts: handings(load.counts, parts) for parts in {fork.parts for fork in load.forks}}
        self._made: list[tuple[int, tuple[Run, ...]]] = []
        self._by_used: dict[Counts, _Labels] = {}

    def best(self, least: Counts) -> Assignment | None:
        ends: list[tuple[float, float, int, int]] = []
        for state in itertools.product(*(range(count + 1) for count in self._load.counts)):
            if not any(state):
                continue
            labels = self._filled(state)
            if len(self._made) > MAX_LABELS:
                return None
            self._by_used[state] = labels
            if any(used < wanted for used, wanted in zip(state, least, strict=True)):
                continue
            done = labels.chosen(np.flatnonzero(labels.cut == self._load.run.shape[1] - 1))
            exits = self._hop(done.values, [grid.exit[done.last] for grid in (self._load, *self._sums)])
            for values, label in zip(exits, done.ids, strict=True):
                ends.append((float(values[:-1].max()), float(values[-1]), sum(state), int(label)))
        if not ends:
            return None
        near = min(ends)[0] * (1 + ROUNDING)
        soonest = min(latency for period, latency, _, _ in ends if period <= near) * (1 + ROUNDING)
        _, period, label = min((d, p, i) for p, latency, d, i in ends if p <= near and latency <= soonest)
        return Assignment(cost=period, runs=self._trace(label))

    def _filled(self, state: Counts) -> _Labels:
        found: list[_Labels] = []
        for type_, used in enumerate(state):
            for count in range(1, min(used, self._most) + 1):
                before = _less(state, [type_] * count)
                for labels, between in self._arrived(before, type_):
                    found += self._run(labels, between, type_, count)
            found += self._bent(state, type_) if used else []
        return _joined(found, len(self._sums) + 1)

    def _arrived(self, state: Counts, type_: int) -> list[tuple[_Labels, tuple[Run, ...]]]:
        """Labels that have come to where a run of a type may start, and what ran side by side just before."""
        if not any(state):
            entry = np.array([[grid.entry[type_] for grid in (self._load, *self._sums)]])
            start = np.zeros(1, dtype=np.int64)
            return [(_Labels(values=entry, last=start, cut=start, ids=start - 1), ())]
        labels = self._by_used[state]
        links = [grid.link[labels.last, type_, labels.cut] for grid in (self._load, *self._sums)]
        entering = {fork.enter for fork in self._load.forks}
        plain = np.flatnonzero(~np.isin(labels.cut, list(entering)))
        hopped = _Labels(values=self._hop(labels.values, links), last=labels.last, cut=labels.cut, ids=labels.ids)
        return [(hopped.chosen(plain), ()), *self._forked(state, type_)]

    def _forked(self, state: Counts, type_: int) -> list[tuple[_Labels, tuple[Run, ...]]]:
        found = []
        for index, fork in enumerate(self._load.forks):
            ways = self._ways[fork.parts]
            used = used_counts(ways, self._types)
            for way in np.flatnonzero((used <= np.array(state)).all(axis=1)):
                labels = self._by_used.get(_less(state, ways[way].tolist()))
                if labels is None or not (labels.cut == fork.enter).any():
                    continue
                labels = labels.chosen(np.flatnonzero(labels.cut == fork.enter))
                costs = [
                    _outside(grid.forks[index].cost[way], labels.last, type_) for grid in (self._load, *self._sums)
                ]
                values = self._hop(labels.values, costs)
                if np.isfinite(values).all(axis=1).any():
                    leave = np.full(len(labels.cut), fork.leave)
                    parts = tuple(part_runs(fork, ways[way].tolist()))
                    found.append((_Labels(values=values, last=labels.last, cut=leave, ids=labels.ids), parts))
        return found

    def _run(self, labels: _Labels, between: tuple[Run, ...], type_: int, count: int) -> list[_Labels]:
        """Labels after one more run on `count` devices of a type."""
        place = self._load.place
        costs = [self._load.run[type_, labels.cut] / count, *(grid.run[type_, labels.cut] for grid in self._sums)]
        return self._gone_on(
            labels,
            costs,
            type_,
            0,
            lambda first, stop: (*between, Run(type=type_, first=place(first), stop=place(stop), count=count)),
        )

    def _bent(self, state: Counts, type_: int) -> list[_Labels]:
        """Labels after a bend on a device of a type."""
        found: list[_Labels] = []
        bends = {(bend.enter, bend.leave): index for index, bend in enumerate(self._load.bends)}
        room = np.array(_less(state, [type_]))
        for index, fork in enumerate(self._load.forks):
            bend = bends.get((fork.enter, fork.leave))
            ways = self._ways[fork.parts]
            which = np.flatnonzero((used_counts(ways, self._types) <= room).all(axis=1))
            for way in which.tolist() if bend is not None else ():
                types = ways[way].tolist()
                for labels, between in self._arrived(_less(state, [type_, *types]), type_):
                    found += self._around(labels, between, type_, index, way)
        return found

    def _around(self, labels: _Labels, between: tuple[Run, ...], type_: int, index: int, way: int) -> list[_Labels]:
        fork = self._load.forks[index]
        labels = labels.chosen(np.flatnonzero(labels.cut < fork.enter))
        bend = next(i for i, b in enumerate(self._load.bends) if (b.enter, b.leave) == (fork.enter, fork.leave))
        runs = [grid.bends[bend].cost[type_, labels.cut] for grid in (self._load, *self._sums)]
        parts = [float(around(grid.forks[index], type_)[way]) for grid in (self._load, *self._sums)]
        costs = [np.maximum(runs[0], parts[0]), *(run + part for run, part in zip(runs[1:], parts[1:], strict=True))]
        types = self._ways[fork.parts][way].tolist()
        return self._gone_on(
            labels,
            costs,
            type_,
            fork.leave + 1,
            lambda first, stop: (
                *between,
                *bent_runs(self._load, index, types, type_=type_, first=first, stop=stop),
            ),
        )

    def _gone_on(
        self,
        labels: _Labels,
        costs: Sequence[Floats],
        type_: int,
        nearest: int,
        runs: Callable[[int, int], tuple[Run, ...]],
    ) -> list[_Labels]:
        """Labels after one more move that costs so much up to each cut from `nearest` on, `[labels, cuts]`."""
        load = np.maximum(labels.values[:, :1], costs[0])
        sums = [labels.values[:, [1 + i]] + cost for i, cost in enumerate(costs[1:])]
        values = np.stack([load, *sums], axis=-1)
        within = np.isfinite(values).all(axis=-1) & (values[..., :-1] <= self._ceiling).all(axis=-1)
        found = []
        for stop in np.flatnonzero(within.any(axis=0)).tolist():
            rows = np.flatnonzero(within[:, stop])
            rows = rows[_undominated(values[rows, stop])]
            first = len(self._made)
            for row in rows.tolist():
                self._made.append((int(labels.ids[row]), runs(int(labels.cut[row]), nearest + stop)))
            found.append(
                _Labels(
                    values=values[rows, stop],
                    last=np.full(len(rows), type_),
                    cut=np.full(len(rows), nearest + stop),
                    ids=np.arange(first, len(self._made)),
                )
            )
        return found

    def _hop(self, values: Floats, costs: Sequence[Floats]) -> Floats:
        """The values after one more cost of each measure: the larger load, the sums of the others."""
        more = np.stack(list(costs), axis=-1).reshape(values.shape)
        added = values + more
        added[:, 0] = np.maximum(values[:, 0], more[:, 0])
        return added

    def _trace(self, label: int) -> tuple[Run, ...]:
        runs: tuple[Run, ...] = ()
        while label >= 0:
            label, last = self._made[label]
            runs = last + runs
        return runs


def _outside(costs: Floats, before: Ints, after: int) -> Floats:
    """Pick from `[types or 1, types or 1]`."""
    picked: Floats = costs[before if costs.shape[0] > 1 else np.zeros_like(before), after if costs.shape[1] > 1 else 0]
    return picked


def _joined(chunks: Sequence[_Labels], measures: int) -> _Labels:
    """All labels, without those that another of the same type and cut makes needless."""
    if not chunks:
        none = np.zeros(0, dtype=np.int64)
        return _Labels(values=np.zeros((0, measures)), last=none, cut=none, ids=none)
    every = _Labels(
        values=np.concatenate([chunk.values for chunk in chunks]),
        last=np.concatenate([chunk.last for chunk in chunks]),
        cut=np.concatenate([chunk.cut for chunk in chunks]),
        ids=np.concatenate([chunk.ids for chunk in chunks]),
    )
    kept = []
    for last, cut in sorted({(int(last), int(cut)) for last, cut in zip(every.last, every.cut, strict=True)}):
        here = np.flatnonzero((every.last == last) & (every.cut == cut))
        kept.append(here[_undominated(every.values[here])])
    return every.chosen(np.concatenate(kept))


def _undominated(values: Floats) -> Ints:
    """Indexes of the rows that no other row is as good as in everything; of equal rows the first."""
    order = np.lexsort(values.T[::-1])
    kept: list[int] = []
    for row in order.tolist():
        if not kept or not (values[kept] <= values[row]).all(axis=1).any():
            kept.append(row)
    return np.array(sorted(kept), dtype=np.int64)


def _less(state: Counts, types: Sequence[int]) -> Counts:
    return tuple(count - types.count(type_) for type_, count in enumerate(state))
