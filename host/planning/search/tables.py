"""What every stage of a workload would take of every kind of device, before it is judged."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from host.planning.costs import DeviceCost, Network, ShardCost, Workload
from host.planning.search.bends import Bent, bent_of
from host.planning.search.cuts import Cuts, Division, cuts_of
from host.planning.search.forks import Floats, Ints, handings
from host.planning.search.kinds import Kinds

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """What every stage would take, before it is judged.

    Attributes:
        kinds: of devices.
        network: between them.
        window: requests in flight.
        cuts: where stages start and end.
        stored: blobs of the shards `[i, j)`, `[…, shards + 1, shards + 1]`; the first axis are the types where kinds
            run different builds, else it is not there.
        held: blobs, constants and activations, the same shape.
        memory: of a stage from cut to cut without the session's own, `[…, cuts, cuts]`, in the same way.
        allowed: whether a stage may be there, room aside, `[types, cuts, cuts]`.
        seconds: processor time of a stage, infinity where it does not fit, `[types, cuts, cuts]`.
        ways: of handing so many parts to kinds, `[ways, parts]`.
        part_allowed: as `allowed`, of each part of each division, `[parts, types]`.
        part_seconds: of each part of each division, infinity where it does not fit, `[parts, types]`.
        part_memory: memory of each part without the session's own, `[parts, types]`, or `[parts, 1]` for all kinds.
        bent: one device around each division.
    """

    kinds: Kinds
    network: Network
    window: int
    cuts: Cuts
    stored: Floats
    held: Floats
    memory: Floats
    allowed: Flags
    seconds: Floats
    ways: dict[int, Ints]
    part_allowed: tuple[Flags, ...]
    part_seconds: tuple[Floats, ...]
    part_memory: tuple[Floats, ...]
    bent: tuple[Bent, ...]


def tables_of(workload: Workload, kinds: Kinds, network: Network, *, window: int, side_by_side: bool) -> Tables:
    """Price every stage on every kind.

    Args:
        workload: one request.
        kinds: of devices.
        network: between them.
        window: requests in flight, which every queue has room for.
        side_by_side: whether sections may be divided.
    """
    cuts = cuts_of(workload, kinds=len(kinds.devices), devices=sum(kinds.counts), side_by_side=side_by_side)
    stored, held = _contents_on(kinds, workload)
    at = np.array(cuts.places)
    memory = held[..., at[:, None], at] + window * cuts.raw[:, None] + cuts.raw
    between = cuts.starts[:, None] & cuts.ends & (at[:, None] < at)
    inside = [_inside(len(workload.shards), forbidden) for forbidden in kinds.forbidden]
    done = [np.concatenate(([0.0], np.cumsum(device.shard_seconds))) for device in kinds.devices]
    allowed = np.stack([between & (before[at][:, None] == before[at]) for before in inside])
    seconds = np.full(allowed.shape, np.inf)
    for type_, device in enumerate(kinds.devices):
        fits = allowed[type_] & (on_kind(memory, type_) + device.session_bytes <= device.memory_bytes)
        fits &= on_kind(stored, type_)[np.ix_(at, at)] <= device.flash_bytes
        compute = done[type_][at] - done[type_][at][:, None]
        spent = _stage_seconds(device, compute, (cuts.sizes[:, None], cuts.sizes), (cuts.raw[:, None], cuts.raw))
        seconds[type_] = np.where(fits, spent, np.inf)
    parts = [_parts(division, kinds, inside, done, held, stored, window) for division in cuts.divisions]
    return Tables(
        kinds=kinds,
        network=network,
        window=window,
        cuts=cuts,
        stored=stored,
        held=held,
        memory=memory,
        allowed=allowed,
        seconds=seconds,
        ways={parts: handings(kinds.counts, parts) for parts in {len(d.received) for d in cuts.divisions}},
        part_allowed=tuple(allowed for allowed, _, _ in parts),
        part_seconds=tuple(seconds for _, seconds, _ in parts),
        part_memory=tuple(memory for _, _, memory in parts),
        bent=bent_of(
            [workload.of(device.shard_format).shards for device in kinds.devices],
            kinds,
            cuts,
            stored=stored[..., at[:, None], at],
            memory=memory,
            allowed=allowed,
            seconds=seconds,
        ),
    )


def _parts(
    division: Division,
    kinds: Kinds,
    inside: Sequence[Ints],
    done: Sequence[Floats],
    held: Floats,
    stored: Floats,
    window: int,
) -> tuple[Flags, Floats, Floats]:
    """Whether the parts of a division may be on each kind, their processor time there, and their memory."""
    moved = np.array([division.received, division.sent], dtype=np.float64)
    raw = np.array([division.raw_received, division.raw_sent], dtype=np.float64)
    firsts, stops = np.array(division.bounds[:-1]), np.array(division.bounds[1:])
    memory = by_part(held[..., firsts, stops] + window * raw[0] + raw[1])
    allowed = np.stack([before[firsts] == before[stops] for before in inside], axis=1)
    seconds = np.full(allowed.shape, np.inf)
    for type_, device in enumerate(kinds.devices):
        fits = allowed[:, type_] & (
            memory[:, min(type_, memory.shape[1] - 1)] + device.session_bytes <= device.memory_bytes
        )
        fits &= on_kind(stored, type_)[firsts, stops] <= device.flash_bytes
        compute = done[type_][stops] - done[type_][firsts]
        spent = _stage_seconds(device, compute, (moved[0], moved[1]), (raw[0], raw[1]))
        seconds[:, type_] = np.where(fits, spent, np.inf)
    return allowed, seconds, memory


def on_kind(of_stages: Floats, type_: int) -> Floats:
    """Return what stages take on one kind, `[places, places]`, of a table with or without an axis of types."""
    found: Floats = of_stages[type_] if of_stages.ndim > 2 else of_stages
    return found


def by_part(of_parts: Floats) -> Floats:
    """Return `[types, parts]` as `[parts, types]`, and `[parts]` as `[parts, 1]`."""
    return np.atleast_2d(of_parts).T


def _contents_on(kinds: Kinds, workload: Workload) -> tuple[Floats, Floats]:
    """Return `_contents` for all kinds at once, or where they run different builds for each of them."""
    formats = [device.shard_format if device.shard_format in workload.builds else "" for device in kinds.devices]
    found = {each: _contents(workload.of(each).shards) for each in dict.fromkeys(formats)}
    if len(found) == 1:
        return found[formats[0]]
    return np.stack([found[each][0] for each in formats]), np.stack([found[each][1] for each in formats])


def _contents(shards: Sequence[ShardCost]) -> tuple[Floats, Floats]:
    """Bytes of blobs, each once, and with constants and activations, of the shards `[i, j)`."""
    count = len(shards)
    sizes = np.array([sum(shard.blobs.values()) for shard in shards], dtype=np.float64)
    fresh = np.tile(sizes, (count, 1))
    seen: dict[str, int] = {}
    for index, shard in enumerate(shards):
        for digest, size in shard.blobs.items():
            # Who starts at or before the shard that had it already does not hold it twice.
            fresh[: seen.get(digest, -1) + 1, index] -= size
            seen[digest] = index
    extra = np.concatenate(([0.0], np.cumsum([shard.extra_bytes for shard in shards])))
    peaks = np.array([shard.peak_activation_bytes for shard in shards], dtype=np.float64)
    stored, held = np.full((count + 1, count + 1), np.inf), np.full((count + 1, count + 1), np.inf)
    for first in range(count):
        stored[first, first + 1 :] = np.cumsum(fresh[first, first:])
        activations = np.maximum.accumulate(peaks[first:])
        held[first, first + 1 :] = stored[first, first + 1 :] + extra[first + 1 :] - extra[first] + activations
    return stored, held


def _inside(shards: int, forbidden: frozenset[int]) -> Ints:
    """How many forbidden shards are before each place."""
    flags = [int(shard in forbidden) for shard in range(shards)]
    return np.array([0, *itertools.accumulate(flags)], dtype=np.int64)


def _stage_seconds(
    device: DeviceCost, compute: Floats, moved: tuple[Floats, Floats], raw: tuple[Floats, Floats]
) -> Floats:
    """Processor time of stages that receive and send so many bytes, as they travel and in memory."""
    messages = 2 * device.message_seconds + (moved[0] + moved[1]) * device.message_seconds_per_byte
    packing = raw[0] * device.inflate_seconds_per_byte + raw[1] * device.deflate_seconds_per_byte
    return device.session_seconds + compute + messages + packing
