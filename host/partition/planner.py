"""The planner: which device runs which consecutive shards. Pure; no IO.

Times of one request:

- a stage `[i, j)` on device d takes `session_d + sum over its layers of max(macs / macs_per_second, moved bytes /
  memory_bytes_per_second)`, the roofline model (Williams, Waterman, Patterson: "Roofline", CACM 52(4), 2009), plus the
  processor time to receive and send its two frames, `2 * message_d + bytes * per_byte_d`: a one-core device cannot
  overlap them with compute;
- a hop from u to v through the broker takes `latency_u + bytes / up_u + latency_v + bytes / down_v`; the client is the
  first sender and the last receiver.

Memory of a stage: its blobs, each once however many of its shards share it, what its constants occupy beyond that, the
largest peak activation (a maximum, not a sum), the queue of received frames, one sent frame, and the session's own.

`throughput` minimises the largest of all stage and hop times, and among the plans that reach it takes the one of least
latency; `latency` minimises their sum. Both are exact, whatever the order of the devices, for as many devices as
`MAX_STATES` admits (any twelve; more where devices are identical). Beyond it the fastest devices are tried, then the
roomiest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edge.formats.plan import Plan, Stage
from host.errors import PlanError
from host.partition.assignment import Assignment, Floats, Grid, smallest_maximum, smallest_sum

Objective = Literal["throughput", "latency"]

MAX_STATES = 4096
"""Used-count vectors that the search may visit."""

_CLIENT = "client"
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerWork:
    """Work of one layer.

    Attributes:
        macs: multiply-accumulates.
        moved_bytes: weights and activations that pass through memory.
    """

    macs: int
    moved_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCost:
    """What one shard asks of a device.

    Attributes:
        layers: work of its layers.
        blobs: size of each of its files by digest; shards may share one.
        extra_bytes: what its constants occupy in memory beyond the files.
        peak_activation_bytes: largest sum of live activations inside it.
        received_bytes: cut set before it.
        sent_bytes: cut set after it.
    """

    layers: tuple[LayerWork, ...]
    blobs: Mapping[str, int]
    extra_bytes: int = 0
    peak_activation_bytes: int = 0
    received_bytes: int
    sent_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class LinkCost:
    """The link between a node and the broker.

    Attributes:
        up_bytes_per_second: node to broker.
        down_bytes_per_second: broker to node.
        latency_seconds: one way, for a small packet.
    """

    up_bytes_per_second: float
    down_bytes_per_second: float
    latency_seconds: float


LOCAL_NETWORK = LinkCost(up_bytes_per_second=117.6e6, down_bytes_per_second=117.6e6, latency_seconds=0.0003)
"""Gigabit Ethernet as `firmware_profiles/rpi4.toml` has it: the client's link when nothing better is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceCost:
    """What one device offers for the bundle at hand.

    Attributes:
        name: name of the device.
        macs_per_second: for the dtype of the bundle.
        memory_bytes_per_second: bytes read plus bytes written a second.
        link: to the broker.
        memory_bytes: RAM that a new stage may use.
        flash_bytes: room for its blobs.
        session_bytes: memory of a session beside weights, activations and queues.
        session_seconds: cost of calling a session once.
        message_seconds: processor time to receive or send one frame.
        message_seconds_per_byte: the same for each byte of it.
    """

    name: str
    macs_per_second: float
    memory_bytes_per_second: float
    link: LinkCost
    memory_bytes: int
    flash_bytes: int
    session_bytes: int = 0
    session_seconds: float = 0.0
    message_seconds: float = 0.0
    message_seconds_per_byte: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loads:
    """Per range of shards `[i, j)`, `[L + 1, L + 1]`: what it holds, independent of the device."""

    stored: Floats
    memory: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fleet:
    """Devices in groups of identical ones; the groups in an order that does not depend on their names."""

    kinds: tuple[DeviceCost, ...]
    names: tuple[tuple[str, ...], ...]

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(len(names) for names in self.names)

    @property
    def devices(self) -> str:
        return ", ".join(sorted(name for names in self.names for name in names))


def plan_pipeline(
    shards: Sequence[ShardCost],
    devices: Sequence[DeviceCost],
    *,
    objective: Objective = "throughput",
    window: int = 8,
    client: LinkCost = LOCAL_NETWORK,
    use_all: bool = False,
) -> Plan:
    """Place consecutive shards on devices so that the objective is least.

    Args:
        shards: in the order of the model; each sends what the next receives.
        devices: in any order; those that do not help stay unused.
        objective: `throughput` or `latency`.
        window: requests in flight, which every queue has room for.
        client: link of the one who sends requests.
        use_all: give every device a stage.

    Raises:
        PlanError: nothing fits; the text says what binds and by how much.
    """
    _check(shards, devices, use_all=use_all)
    loads = _loads(shards, window)
    preferences: tuple[Callable[[DeviceCost], float], ...] = (
        lambda device: device.macs_per_second,
        lambda device: device.memory_bytes,
    )
    fleet = _fleet(devices)
    for preferred in preferences:
        fleet = _fleet(_at_most(devices, len(shards), preferred))
        grid = _time_grid(shards, loads, fleet, client)
        found = _best(grid, objective, use_all=use_all)
        if found is not None:
            return _plan(objective, found, grid, loads, fleet, shards)
    raise PlanError(_why_nothing_fits(shards, loads, fleet, use_all=use_all))


def _check(shards: Sequence[ShardCost], devices: Sequence[DeviceCost], *, use_all: bool) -> None:
    names = [device.name for device in devices]
    if not shards or not devices:
        raise PlanError(f"no plan for {len(shards)} shards on {len(devices)} devices: both need at least one")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PlanError(f"device {twice[0]!r} is given twice")
    if use_all and len(devices) > len(shards):
        raise PlanError(
            f"{len(devices)} devices shall all take part, and the bundle has {len(shards)} shards: "
            "name fewer devices, or package for a smaller profile"
        )
    if use_all and _state_count(_fleet(devices), len(shards)) > MAX_STATES:
        raise PlanError(f"{len(devices)} different devices are too many to use them all: name fewer")


def _best(grid: Grid, objective: Objective, *, use_all: bool) -> Assignment | None:
    if objective == "latency":
        return smallest_sum(grid, use_all=use_all)
    widest = smallest_maximum(grid, use_all=use_all)
    # The same time summed in another order may differ in its last bits: it is no worse for that.
    return None if widest is None else smallest_sum(grid, limit=widest.cost * (1 + _ROUNDING), use_all=use_all)


def _fleet(devices: Sequence[DeviceCost]) -> _Fleet:
    groups: dict[tuple[float | LinkCost, ...], list[DeviceCost]] = {}
    for device in devices:
        groups.setdefault(_kind(device), []).append(device)
    keys = sorted(groups, key=repr)
    return _Fleet(
        kinds=tuple(groups[key][0] for key in keys),
        names=tuple(tuple(sorted(device.name for device in groups[key])) for key in keys),
    )


def _kind(device: DeviceCost) -> tuple[float | LinkCost, ...]:
    return (
        float(device.macs_per_second),
        float(device.memory_bytes_per_second),
        device.link,
        device.memory_bytes,
        device.flash_bytes,
        device.session_bytes,
        device.session_seconds,
        device.message_seconds,
        device.message_seconds_per_byte,
    )


def _state_count(fleet: _Fleet, shards: int) -> int:
    return math.prod(min(count, shards) + 1 for count in fleet.counts)


def _at_most(
    devices: Sequence[DeviceCost], shards: int, preferred: Callable[[DeviceCost], float]
) -> Sequence[DeviceCost]:
    """Return the most preferred devices, as many as the search can hold."""
    ranked = sorted(devices, key=lambda device: (-preferred(device), repr(_kind(device)), device.name))
    while _state_count(_fleet(ranked), shards) > MAX_STATES:
        ranked = ranked[:-1]
    return ranked


def _loads(shards: Sequence[ShardCost], window: int) -> _Loads:
    size = len(shards) + 1
    stored, memory = np.full((size, size), np.inf), np.full((size, size), np.inf)
    for first, shard in enumerate(shards):
        seen: set[str] = set()
        blob_bytes = extra_bytes = peak_bytes = 0
        for stop in range(first + 1, size):
            last = shards[stop - 1]
            blob_bytes += sum(last.blobs[digest] for digest in last.blobs.keys() - seen)
            seen |= last.blobs.keys()
            extra_bytes += last.extra_bytes
            peak_bytes = max(peak_bytes, last.peak_activation_bytes)
            queue_bytes = window * shard.received_bytes + last.sent_bytes
            stored[first, stop] = blob_bytes
            memory[first, stop] = blob_bytes + extra_bytes + peak_bytes + queue_bytes
    return _Loads(stored=stored, memory=memory)


def _time_grid(shards: Sequence[ShardCost], loads: _Loads, fleet: _Fleet, client: LinkCost) -> Grid:
    cut_bytes = np.array([shards[0].received_bytes, *(shard.sent_bytes for shard in shards)], dtype=np.float64)
    kinds = fleet.kinds
    return Grid(
        run=np.stack([_run_seconds(shards, loads, device, cut_bytes) for device in kinds]),
        link=np.array([[_hop_seconds(a.link, b.link, cut_bytes) for b in kinds] for a in kinds]),
        entry=np.array([_hop_seconds(client, device.link, cut_bytes[0]) for device in kinds]),
        exit=np.array([_hop_seconds(device.link, client, cut_bytes[-1]) for device in kinds]),
        counts=fleet.counts,
    )


def _run_seconds(shards: Sequence[ShardCost], loads: _Loads, device: DeviceCost, cut_bytes: Floats) -> Floats:
    work = [
        sum(
            max(layer.macs / device.macs_per_second, layer.moved_bytes / device.memory_bytes_per_second)
            for layer in shard.layers
        )
        for shard in shards
    ]
    done = np.concatenate(([0.0], np.cumsum(work)))
    messages = 2 * device.message_seconds + (cut_bytes[:, None] + cut_bytes) * device.message_seconds_per_byte
    seconds = device.session_seconds + (done - done[:, None]) + messages
    fits = (loads.memory + device.session_bytes <= device.memory_bytes) & (loads.stored <= device.flash_bytes)
    return np.where(fits, seconds, np.inf)


def _hop_seconds(sender: LinkCost, receiver: LinkCost, size_bytes: Floats) -> Floats:
    up = sender.latency_seconds + size_bytes / sender.up_bytes_per_second
    return np.asarray(up + receiver.latency_seconds + size_bytes / receiver.down_bytes_per_second)


def _plan(
    objective: Objective,
    found: Assignment,
    grid: Grid,
    loads: _Loads,
    fleet: _Fleet,
    shards: Sequence[ShardCost],
) -> Plan:
    free = [list(names) for names in fleet.names]
    stages: list[Stage] = []
    costs: list[tuple[float, str]] = []
    for index, run in enumerate(found.runs):
        device = free[run.type].pop(0)
        sender = stages[-1].device if stages else _CLIENT
        before = found.runs[index - 1].type if index else run.type
        hop = grid.link[before, run.type, run.first] if index else grid.entry[run.type]
        seconds = float(grid.run[run.type, run.first, run.stop])
        costs += [(float(hop), f"link {sender} to {device}"), (seconds, f"compute of {device}")]
        stages.append(
            Stage(
                index=index,
                device=device,
                first_shard=run.first,
                stop_shard=run.stop,
                predicted_seconds=seconds,
                memory_bytes=int(loads.memory[run.first, run.stop]) + fleet.kinds[run.type].session_bytes,
                received_bytes=shards[run.first].received_bytes,
                sent_bytes=shards[run.stop - 1].sent_bytes,
            )
        )
    costs.append((float(grid.exit[found.runs[-1].type]), f"link {stages[-1].device} to {_CLIENT}"))
    bottleneck, binds = max(costs, key=lambda cost: cost[0])
    return Plan(
        objective=objective,
        stages=tuple(stages),
        bottleneck_seconds=bottleneck,
        latency_seconds=sum(seconds for seconds, _ in costs),
        binds=binds,
    )


def _why_nothing_fits(shards: Sequence[ShardCost], loads: _Loads, fleet: _Fleet, *, use_all: bool) -> str:
    """Say what binds and the least that every device lacks: the same search over shortfalls instead of times."""
    unique = {digest: size for shard in shards for digest, size in shard.blobs.items()}
    needed = f"no plan fits: the shards need {_mib(sum(unique.values()))} of weights"
    memory = [loads.memory + kind.session_bytes - kind.memory_bytes for kind in fleet.kinds]
    flash = [loads.stored - kind.flash_bytes for kind in fleet.kinds]
    short = {what: _shortfall(lacks, fleet, use_all=use_all) for what, lacks in (("memory", memory), ("flash", flash))}
    if not any(short.values()):
        return f"{needed}, and devices {fleet.devices} lack memory where they have flash: add a device"
    what = "memory" if short["memory"] else "flash"
    rooms = [
        (name, kind.memory_bytes if what == "memory" else kind.flash_bytes)
        for kind, names in zip(fleet.kinds, fleet.names, strict=True)
        for name in names
    ]
    have = ", ".join(f"{name} {_mib(room)}" for name, room in sorted(rooms))
    beside = " and room for activations and queues beside them" if what == "memory" else ""
    return (
        f"{needed}{beside}, devices have {what}: {have}; {_mib(short[what])} more on each would do: "
        "add a device or free some, use a smaller window, or package for a smaller profile"
    )


def _shortfall(lacks: Sequence[Floats], fleet: _Fleet, *, use_all: bool) -> int:
    kinds, size = len(lacks), lacks[0].shape[0]
    grid = Grid(
        run=np.stack([np.maximum(lack, 0.0) for lack in lacks]),
        link=np.zeros((kinds, kinds, size)),
        entry=np.zeros(kinds),
        exit=np.zeros(kinds),
        counts=fleet.counts,
    )
    found = smallest_maximum(grid, use_all=use_all)
    return 0 if found is None else math.ceil(found.cost)


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
