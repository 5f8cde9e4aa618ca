"""Where a stage may start and end, and how many bytes cross there.

Beside the plain cuts before and after every shard, each way to cut a section into parts has a cut that only ends stages
(the one before sends every part what it reads, so that more bytes may cross than in one piece) and a cut that only
starts them. Ways of equal bytes share their cuts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from host.planning.costs import Section, Workload
from host.planning.search.forks import Floats

MAX_WAYS = 20_000
"""Ways to hand the parts of a section to kinds of devices that are priced; finer divisions are not considered."""

MAX_PRICES = 4_000_000
"""Prices kept for all ways of all sections; the finest divisions of the last sections go first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Division:
    """A section in parts.

    Attributes:
        enter, leave: its cuts.
        bounds: first shard of each part, and the shard after the last.
        received, sent: bytes of each part, as they travel.
        raw_received, raw_sent: the same in memory.
    """

    enter: int
    leave: int
    bounds: tuple[int, ...]
    received: tuple[int, ...]
    sent: tuple[int, ...]
    raw_received: tuple[int, ...]
    raw_sent: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cuts:
    """All cuts in order; the first is before the first shard, the last after the last.

    Attributes:
        places: the shard after each.
        sizes: bytes that cross, as they travel, `[cuts]`.
        raw: the same in memory, `[cuts]`.
        starts, ends: whether a stage may start or end there, `[cuts]`.
        divisions: of sections.
    """

    places: tuple[int, ...]
    sizes: Floats
    raw: Floats
    starts: npt.NDArray[np.bool_]
    ends: npt.NDArray[np.bool_]
    divisions: tuple[Division, ...]


def cuts_of(workload: Workload, *, kinds: int, devices: int, side_by_side: bool) -> Cuts:
    """Return the cuts of a workload.

    Args:
        workload: what is cut.
        kinds: how many kinds of devices there are.
        devices: how many there are in all.
        side_by_side: whether sections may be divided.
    """
    shards = workload.shards
    plain = [(0, "both", shards[0].received_bytes, shards[0].raw_received)]
    plain += [(place, "both", shard.sent_bytes, shard.raw_sent) for place, shard in enumerate(shards, start=1)]
    divided = _divided(workload.sections, kinds, devices) if side_by_side else []
    around = [
        (
            (bounds[0], "ends", sum(_picked(section.received, groups)), sum(_picked(section.raw_received, groups))),
            (bounds[-1], "starts", sum(_picked(section.sent, groups)), sum(_picked(section.raw_sent, groups))),
        )
        for section, bounds, groups in divided
    ]
    ordered = sorted({*plain, *itertools.chain(*around)})
    index = {cut: number for number, cut in enumerate(ordered)}
    return Cuts(
        places=tuple(place for place, _, _, _ in ordered),
        sizes=np.array([size for _, _, size, _ in ordered], dtype=np.float64),
        raw=np.array([raw for _, _, _, raw in ordered], dtype=np.float64),
        starts=np.array([use != "ends" for _, use, _, _ in ordered]),
        ends=np.array([use != "starts" for _, use, _, _ in ordered]),
        divisions=tuple(
            Division(
                enter=index[enter],
                leave=index[leave],
                bounds=bounds,
                received=_picked(section.received, groups),
                sent=_picked(section.sent, groups),
                raw_received=_picked(section.raw_received, groups),
                raw_sent=_picked(section.raw_sent, groups),
            )
            for (section, bounds, groups), (enter, leave) in zip(divided, around, strict=True)
        ),
    )


_Groups = tuple[tuple[int, int], ...]


def _picked(table: Sequence[Sequence[int]], groups: _Groups) -> tuple[int, ...]:
    return tuple(table[first][stop] for first, stop in groups)


def _divided(sections: Sequence[Section], kinds: int, devices: int) -> list[tuple[Section, tuple[int, ...], _Groups]]:
    """Sections, the bounds of their parts, and the branches of each part."""
    found: list[tuple[Section, tuple[int, ...], _Groups]] = []
    prices, parts = 0, 2
    while parts < devices and kinds**parts <= MAX_WAYS:
        for section in sections:
            branches = len(section.bounds) - 1
            for inner in itertools.combinations(range(1, branches), parts - 1):
                prices += kinds ** (parts + 2)
                if prices > MAX_PRICES:
                    return found
                ends = (0, *inner, branches)
                bounds = tuple(section.bounds[branch] for branch in ends)
                found.append((section, bounds, tuple(itertools.pairwise(ends))))
        parts += 1
        if all(len(section.bounds) - 1 < parts for section in sections):
            break
    return found
