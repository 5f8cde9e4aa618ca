"""Which parts of a model may run side by side, from its manifest alone; pure.

1. A unit (a shard, or a layer) depends on another where it reads a tensor that the other makes.
2. In a run of units, a *break* is a place that no dependency between two units of the run crosses. Breaks divide a run
   into branches: the 1x1 and the 3x3 half of a fire module, a residual block and the convolution on its shortcut, the
   slices of a layer.
3. What a run is worth is what all its branches but the heaviest weigh: so much can run beside that one. Sections are
   the runs, none over another, that are worth most together; of equal ones the longest.
4. A section worth less than a thousandth of the model is none. The first and the last unit belong to none, so that a
   request enters and leaves at one device.

Branches are found where each lies in one piece. Whoever writes the manifest sees to that
(`host.partition.reordering`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edge.formats.bundle import Manifest
from host.planning.costs import Section

_PARTS = 1_000_000
_LEAST = 1_000
_LONGEST = 512
"""Units of a section at most, so that thousands of layers take seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Branches:
    """What of a model may run side by side.

    Attributes:
        sections: bounds of the branches of each: first unit of every branch, and the unit after the last.
        worth: of all sections together, in millionths of the work and of the weights.
    """

    sections: tuple[tuple[int, ...], ...]
    worth: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A shard or a layer.

    Attributes:
        needs: indices of the units before it that it reads from.
        macs: its multiply-accumulates.
        weight_bytes: its constants.
    """

    needs: frozenset[int]
    macs: int
    weight_bytes: int


def units_of(
    cuts: Sequence[Collection[str]], reads: Sequence[Collection[str]], macs: Sequence[int], weight_bytes: Sequence[int]
) -> tuple[Unit, ...]:
    """Return the units of a model.

    Args:
        cuts: names alive before each unit, and after the last.
        reads: names that each unit takes from before it.
        macs: of each unit.
        weight_bytes: of each unit.
    """
    maker: dict[str, int] = {}
    units = []
    for index, names in enumerate(reads):
        needs = frozenset(maker[name] for name in names if name in maker)
        units.append(Unit(needs=needs, macs=macs[index], weight_bytes=weight_bytes[index]))
        before = set(cuts[index])
        maker |= dict.fromkeys((name for name in cuts[index + 1] if name not in before), index)
    return tuple(units)


def sections_of(manifest: Manifest, sizes: Mapping[str, int]) -> tuple[Section, ...]:
    """Return where branches of a bundle may run side by side.

    What a stage of neighbouring branches receives and sends does not depend on the other stages of its step: the first
    stage that reads a tensor is the one that holds the first branch that does.

    Args:
        manifest: of the bundle.
        sizes: bytes on the wire by name of the tensor.
    """
    shards = manifest.shards
    layers = [manifest.layers[shard.first_layer : shard.stop_layer] for shard in shards]
    cuts = [frozenset(manifest.cut_before(index)) for index in range(len(shards) + 1)]
    units = units_of(
        cuts,
        [shard.reads for shard in shards],
        [sum(layer.macs for layer in group) for group in layers],
        [shard.size_bytes for shard in shards],
    )
    return tuple(
        _section(bounds, cuts, [shard.reads for shard in shards], sizes) for bounds in find_branches(units).sections
    )


def _section(
    bounds: tuple[int, ...],
    cuts: Sequence[frozenset[str]],
    shard_reads: Sequence[Collection[str]],
    sizes: Mapping[str, int],
) -> Section:
    before, after = cuts[bounds[0]], cuts[bounds[-1]]
    reads = [{name for names in shard_reads[a:b] for name in names} for a, b in pairwise(bounds)]
    made = [{name for shard in range(a, b) for name in cuts[shard + 1] - cuts[shard]} for a, b in pairwise(bounds)]
    count = len(reads)
    # The first branch that reads what goes past the section forwards it, else the first of all.
    forwards: list[set[str]] = [set() for _ in reads]
    for name in before & after:
        forwards[next((branch for branch, names in enumerate(reads) if name in names), 0)].add(name)

    def table(wanted: frozenset[str], names: Sequence[set[str]]) -> tuple[tuple[int, ...], ...]:
        rows = []
        for first in range(count):
            held: set[str] = set()
            row = [0] * (count + 1)
            for stop in range(first + 1, count + 1):
                held |= (names[stop - 1] | forwards[stop - 1]) & wanted
                row[stop] = sum(sizes[name] for name in held)
            rows.append(tuple(row))
        return tuple(rows)

    return Section(bounds=bounds, received=table(before, reads), sent=table(after, made))


def find_branches(units: Sequence[Unit]) -> Branches:
    """Find the sections that are worth most together.

    Weighted interval scheduling over all runs with branches: the best for every prefix of the units.
    """
    count = len(units)
    # (worth, units covered) up to a unit, and the first unit of the section that ends there.
    best: list[tuple[int, int]] = [(0, 0)] * (count + 1)
    taken = [0] * (count + 1)
    runs = _runs(units)
    for stop in range(1, count + 1):
        best[stop] = best[stop - 1]
        for first, value in runs.get(stop, ()):
            found = (best[first][0] + value, best[first][1] + stop - first)
            if found > best[stop]:
                best[stop], taken[stop] = found, first
    chosen: list[tuple[int, ...]] = []
    stop = count
    while stop > 0:
        if first := taken[stop]:
            chosen.append((first, *_breaks(units, first, stop), stop))
        stop = first or stop - 1
    return Branches(sections=tuple(reversed(chosen)), worth=best[count][0])


def _runs(units: Sequence[Unit]) -> dict[int, list[tuple[int, int]]]:
    """Return the first unit and the worth of every run that is a section, by the unit after it."""
    all_macs = max(1, sum(unit.macs for unit in units))
    all_bytes = max(1, sum(unit.weight_bytes for unit in units))
    sums = [0]
    for unit in units:
        sums.append(sums[-1] + unit.macs * _PARTS // all_macs + unit.weight_bytes * _PARTS // all_bytes)
    found: dict[int, list[tuple[int, int]]] = {}
    for first in range(1, len(units) - 2):
        breaks: list[int] = []
        for index in range(first + 1, min(first + _LONGEST, len(units) - 1)):
            _extend(breaks, units, first, index)
            if not breaks:
                continue
            heaviest = max(sums[b] - sums[a] for a, b in pairwise((first, *breaks, index + 1)))
            if (value := sums[index + 1] - sums[first] - heaviest) >= _LEAST:
                found.setdefault(index + 1, []).append((first, value))
    return found


def _breaks(units: Sequence[Unit], first: int, stop: int) -> tuple[int, ...]:
    breaks: list[int] = []
    for index in range(first + 1, stop):
        _extend(breaks, units, first, index)
    return tuple(breaks)


def _extend(breaks: list[int], units: Sequence[Unit], first: int, index: int) -> None:
    """Bring the breaks of the run `[first, index)` to `[first, index + 1)`."""
    breaks.append(index)
    nearest = min((need for need in units[index].needs if need >= first), default=index)
    while breaks and breaks[-1] > nearest:
        breaks.pop()
