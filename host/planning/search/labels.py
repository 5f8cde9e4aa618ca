"""A search for one assignment within the counts, guided by prices: labels at cut positions, the hopeless left out.

A label is what a partial plan has used so far. One that cannot end within the ceiling by any of the guides' bounds is
dropped, which loses nothing; of the rest each position keeps the most promising, which may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from host.planning.search.arcs import Arcs, Crossing, Move, Path
from host.planning.search.forks import Floats, Ints
from host.planning.search.relaxation import Out, Potential

_WHOLE_CODE = 62
"""Bits of a number that tells any two used-count vectors apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much a search keeps.

    Attributes:
        labels: at each cut.
        arcs: from each cut on each type.
    """

    labels: int
    arcs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        path: runs within the counts; None when it found none.
        complete: nothing was dropped but what is proven hopeless, so that no path means that there is none.
    """

    path: Path | None
    complete: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Labels:
    """Partial plans that end at one position, a row each.

    Attributes:
        used: devices of each type, `[labels, types]`.
        last: type of the last run; `types + v` after a fork that is followed by type v.
        cost: so far.
        score: largest bound on the end's cost.
        parent: number of the label before.
        first: cut where the last move starts.
        count: devices of the last run; `-1 - team` after a fork.
        fork: index of the fork; -1 after a run.
    """

    used: Ints
    last: Ints
    cost: Floats
    score: Floats
    parent: Ints
    first: Ints
    count: Ints
    fork: Ints

    def at(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> _Labels:
        return _Labels(
            used=self.used[rows],
            last=self.last[rows],
            cost=self.cost[rows],
            score=self.score[rows],
            parent=self.parent[rows],
            first=self.first[rows],
            count=self.count[rows],
            fork=self.fork[rows],
        )


def search(
    arcs: Arcs, guides: Sequence[Potential], *, ceiling: float, effort: Effort, out: Out = lambda: False
) -> Found:
    """Look for a plan of least cost whose bounds do not exceed the ceiling.

    Args:
        arcs: what is possible.
        guides: prices and what is left to pay at them, the best first.
        ceiling: bounds above it are hopeless.
        effort: how much to keep.
        out: whether to stop early.
    """
    return _Search(arcs, guides, ceiling, effort).run(out)


class _Search:
    def __init__(self, arcs: Arcs, guides: Sequence[Potential], ceiling: float, effort: Effort) -> None:
        self.arcs, self.ceiling, self.effort = arcs, ceiling, effort
        self.prices = np.array([guide.prices for guide in guides])
        self.onward = np.array([guide.onward for guide in guides])
        self.enter = np.array([guide.enter for guide in guides])
        self.paid_back = self.prices @ arcs.counts
        self.weights, self.whole = _weights(arcs.counts)
        self.complete = self.whole
        self.kept: list[_Labels] = []
        self.starts: list[int] = []
        self.total = 0
        self.buckets: list[list[_Labels]] = [[] for _ in range(arcs.units + 1)]

    def run(self, out: Out) -> Found:
        types = len(self.arcs.counts)
        zero = np.zeros(1, dtype=np.int64)
        root = _Labels(
            used=np.zeros((1, types), dtype=np.int64),
            last=zero,
            cost=np.zeros(1),
            score=np.zeros(1),
            parent=zero - 1,
            first=zero,
            count=zero,
            fork=zero - 1,
        )
        for position in range(self.arcs.units):
            if position % 32 == 0 and out():
                return Found(path=None, complete=False)
            labels = root if position == 0 else self._gather(position)
            if labels is not None:
                self._extend(position, labels)
                for index, crossing in enumerate(self.arcs.crossings):
                    if crossing.enter == position:
                        self._cross(index, crossing, labels)
        ends = self._gather(self.arcs.units)
        if ends is None:
            return Found(path=None, complete=self.complete)
        best = int(np.argmin(ends.cost + self.arcs.leave[ends.last]))
        return Found(path=self._trace(ends, best), complete=self.complete)

    def _gather(self, position: int) -> _Labels | None:
        """The labels that reached a position: of equal ones the cheapest, of the rest the most promising."""
        chunks, self.buckets[position] = self.buckets[position], []
        if not chunks:
            return None
        labels = _joined(chunks)
        code = labels.used @ self.weights
        if self.arcs.closed[position] or position == self.arcs.units:
            code = code * (2 * len(self.arcs.counts)) + labels.last
        order = np.lexsort((labels.cost, code))
        ranked = code[order]
        first = np.ones(len(order), dtype=np.bool_)
        np.not_equal(ranked[1:], ranked[:-1], out=first[1:])
        keep = order[first]
        if len(keep) > self.effort.labels:
            # Equal scores are common: the order of codes decides between them, the same every time.
            keep = keep[np.argsort(labels.score[keep], kind="stable")[: self.effort.labels]]
            self.complete = False
        labels = labels.at(keep)
        self.kept.append(labels)
        self.starts.append(self.total)
        self.total += len(keep)
        return labels

    def _extend(self, position: int, labels: _Labels) -> None:
        """Send every label along the best arcs of every type."""
        arcs, types = self.arcs, len(self.arcs.counts)
        lengths, possible = self._best_arcs(position)
        on = np.arange(types)[:, None]
        need = np.ones(lengths.shape) if arcs.need is None else arcs.need[position][on, lengths]
        base = np.where(possible, arcs.base[position][on, lengths], np.inf)
        stops = position + 1 + lengths
        into = arcs.into(position, labels.last)
        cost = labels.cost[:, None, None] + into[:, :, None] + base
        room = labels.used[:, :, None] + need <= arcs.counts[:, None]
        score = np.full(cost.shape, -np.inf)
        used = labels.used @ self.prices.T
        for guide, prices in enumerate(self.prices):
            left = self.onward[guide][on, stops] + prices[:, None] * need - self.paid_back[guide]
            np.maximum(score, cost + (left + used[:, guide, None, None]), out=score)
        row, type_, arc = np.nonzero(room & (score <= self.ceiling) & np.isfinite(score))
        if not row.size:
            return
        stop = stops[type_, arc]
        order = np.argsort(stop, kind="stable")
        row, type_, arc, stop = row[order], type_[order], arc[order], stop[order]
        count = need[type_, arc].astype(np.int64)
        now = labels.used[row]
        now[np.arange(len(row)), type_] += count
        start = self.starts[-1] if position else -1
        sent = _Labels(
            used=now,
            last=type_,
            cost=cost[row, type_, arc],
            score=score[row, type_, arc],
            parent=row + start if position else np.full(len(row), -1),
            first=np.full(len(row), position),
            count=count,
            fork=np.full(len(row), -1),
        )
        borders = np.flatnonzero(np.diff(stop)) + 1
        for begin, end in zip([0, *borders.tolist()], [*borders.tolist(), len(stop)], strict=True):
            self.buckets[int(stop[begin])].append(sent.at(np.arange(begin, end)))

    def _cross(self, index: int, crossing: Crossing, labels: _Labels) -> None:
        """Send every label that ends with a run through a fork, with every team and type after it."""
        types, start = len(self.arcs.counts), self.starts[-1]
        runs = np.flatnonzero(labels.last < types)
        cost = labels.cost[runs, None, None] + np.moveaxis(crossing.cost[:, labels.last[runs]], 1, 0)
        used = labels.used[runs, None, :] + crossing.used
        score = np.full(cost.shape, -np.inf)
        for guide, prices in enumerate(self.prices):
            left = self.enter[guide][crossing.leave] - self.paid_back[guide]
            np.maximum(score, cost + ((used @ prices)[:, :, None] + left), out=score)
        room = np.asarray((used <= self.arcs.counts).all(axis=2))
        row, team, after = np.nonzero(room[:, :, None] & (score <= self.ceiling) & np.isfinite(score))
        if not row.size:
            return
        self.buckets[crossing.leave].append(
            _Labels(
                used=used[row, team].astype(np.int64),
                last=types + after,
                cost=cost[row, team, after],
                score=score[row, team, after],
                parent=runs[row] + start,
                first=np.full(len(row), crossing.enter),
                count=-1 - team,
                fork=np.full(len(row), index),
            )
        )

    def _best_arcs(self, position: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """Lengths of the arcs to follow, `[types, arcs]`: least left to pay, then the longest; which are possible."""
        arcs = self.arcs
        within = arcs.longest
        left = arcs.base[position] + self.onward[0][:, position + 1 : position + 1 + within]
        if arcs.need is not None:
            left = left + arcs.need[position] * self.prices[0][:, None]
        possible = np.isfinite(left)
        if within <= self.effort.arcs:
            every = np.broadcast_to(np.arange(within), left.shape)
            return every, possible
        if possible.sum(axis=1).max() > self.effort.arcs:
            self.complete = False
        slope = 1e-9 * np.arange(within, 0, -1)
        chosen = np.argpartition(left + slope, self.effort.arcs - 1, axis=1)[:, : self.effort.arcs]
        chosen.sort(axis=1)
        return chosen, np.take_along_axis(possible, chosen, axis=1)

    def _trace(self, ends: _Labels, row: int) -> Path:
        moves: list[Move] = []
        labels, stop, types = ends, self.arcs.units, len(self.arcs.counts)
        while True:
            first, count = int(labels.first[row]), int(labels.count[row])
            fork, on = int(labels.fork[row]), int(labels.last[row]) % types
            if fork < 0:
                moves.append(Move(type=on, first=first, stop=stop, count=count))
            else:
                moves.append(Move(type=on, first=first, stop=stop, fork=fork, team=-1 - count))
            parent = int(labels.parent[row])
            if parent < 0:
                return tuple(reversed(moves))
            block = int(np.searchsorted(self.starts, parent, side="right")) - 1
            labels, row, stop = self.kept[block], parent - self.starts[block], first


def _joined(chunks: Sequence[_Labels]) -> _Labels:
    if len(chunks) == 1:
        return chunks[0]
    return _Labels(
        used=np.concatenate([chunk.used for chunk in chunks]),
        last=np.concatenate([chunk.last for chunk in chunks]),
        cost=np.concatenate([chunk.cost for chunk in chunks]),
        score=np.concatenate([chunk.score for chunk in chunks]),
        parent=np.concatenate([chunk.parent for chunk in chunks]),
        first=np.concatenate([chunk.first for chunk in chunks]),
        count=np.concatenate([chunk.count for chunk in chunks]),
        fork=np.concatenate([chunk.fork for chunk in chunks]),
    )


def _weights(counts: Floats) -> tuple[Ints, bool]:
    """Numbers whose products with used counts tell these apart: for certain, or almost when there are too many."""
    bits = float(np.log2(counts + 1.0).sum() + 1 + np.log2(len(counts)))
    if bits <= _WHOLE_CODE:
        return np.concatenate(([1], np.cumprod(counts[:-1].astype(np.int64) + 1))).astype(np.int64), True
    return np.random.default_rng(0).integers(1, 2**62, size=len(counts)), False
