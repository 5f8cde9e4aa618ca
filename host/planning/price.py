"""What a plan costs, whoever made it: its loads by name, latency, energy, memory and bytes.

Written from the definitions, stage by stage, so that it holds for any plan: also one that was made for other costs.

- A stage takes `session + its shards + 2 messages + bytes received and sent · per byte` of processor time, and where
  tensors travel compressed `bytes sent · deflate + bytes received · inflate`, those bytes as they are in memory. Queues
  hold them as they are in memory, too; links, media and the broker carry them as they travel.
- The load of a device is the time of its stage, divided by how many take turns with it; so are the loads of their
  links, `bytes sent / up` and `bytes received / down`. A device of two stages, before and after a section, has the
  loads and the memory of both. A pair's own link stands for both ends' links. Every byte of every hop passes the
  broker, and a medium once for each end of the hop that is in it.
- One request alone takes the hop to the first stage, each step, and the hop to the next (`hops`); stages side by side
  count as the slowest of them with its hops.
- No more than the window of requests is in flight, so that a result comes at least every `latency / window`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from edge.formats.plan import LeftOut, Objective, Plan, Stage, Takes
from host.errors import PlanError
from host.planning.costs import DeviceCost, Medium, Network, PairLink, Section, ShardCost, Workload
from host.planning.forms import with_runtimes, with_takes
from host.planning.hops import hop_seconds, shared_rates
from host.planning.search.assignment import ROUNDING
from host.planning.search.kinds import CLIENT


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Something that one request keeps busy for a while.

    Attributes:
        seconds: how long.
        what: for a person, such as `compute of pi-1`.
    """

    seconds: float
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Hop:
    """Bytes from the devices of one stage to those of another; the client where there is no stage."""

    sender: Stage | None
    receiver: Stage | None
    size: int


def price_plan(
    workload: Workload,
    devices: Sequence[DeviceCost],
    stages: Sequence[Stage],
    *,
    objective: Objective = "throughput",
    window: int = 8,
    network: Network | None = None,
    gap: float = 0.0,
    left_out: tuple[LeftOut, ...] = (),
) -> Plan:
    """Return the plan of these stages with what it costs.

    Args:
        workload: one request.
        devices: all that have a stage, and any others.
        stages: of each, the device, its replicas, its shards and whether it runs beside the one before are read. Where
            the bundle has several builds, the form in which tensors come to each is chosen here (`forms`).
        objective: what the plan is for; with `memory`, what binds is the fullest device.
        window: requests in flight.
        network: between the devices; every link to one broker when left out.
        gap: how much worse than the best it may be.
        left_out: devices that were not used.

    Raises:
        PlanError: a device that is not given, or stages side by side that are no section.
    """
    network, by_name = network or Network(), {device.name: device for device in devices}
    for stage in stages:
        for name in stage.runners:
            if name not in by_name:
                raise PlanError(f"stage {stage.index} is on {name}, whose costs are not known")
    sizes = _sizes(workload, stages)
    full = _with_sizes(workload, by_name, stages, sizes, window)
    if workload.builds:
        steps = _steps(full)
        full = with_takes(steps, workload, by_name, lambda place, form: _received(workload, steps, place, form))
        sizes = _sizes(workload, full)
        full = _with_sizes(workload, by_name, full, sizes, window)
    hops = _hops(full)
    loads = _loads(by_name, full, sizes, hops, network)
    latency = _latency(full, hops, by_name, network)
    in_flight = Load(seconds=latency / window, what=f"window of {window}")
    largest = max(loads, key=lambda load: load.seconds)
    limit = in_flight if in_flight.seconds > largest.seconds * (1 + ROUNDING) else largest
    plan = Plan(
        objective=objective,
        stages=full,
        bottleneck_seconds=largest.seconds,
        latency_seconds=latency,
        energy_joules=sum(_joules(by_name, stage, size) for stage, size in zip(full, sizes, strict=True)),
        binds=_fullest(full, by_name) if objective == "memory" else limit.what,
        network_bytes=sum(hop.size for hop in hops),
        gap=gap,
        left_out=left_out,
    )
    return with_runtimes(plan, devices)


def plan_loads(
    plan: Plan, workload: Workload, devices: Sequence[DeviceCost], network: Network | None = None
) -> list[Load]:
    """Return everything that limits a priced plan's throughput, largest first.

    Args:
        plan: as `price_plan` returned it.
        workload: one request.
        devices: all that have a stage, and any others.
        network: between the devices.
    """
    by_name = {device.name: device for device in devices}
    loads = _loads(by_name, plan.stages, _sizes(workload, plan.stages), _hops(plan.stages), network or Network())
    return sorted(loads, key=lambda load: (-load.seconds, load.what))


def stage_memory(shards: Sequence[ShardCost], *, received: int, sent: int, window: int) -> int:
    """Return the bytes that a stage needs beside its session's own.

    Args:
        shards: that it runs; a blob of several counts once.
        received: bytes of one request that come in, in memory; there is room for `window` of them.
        sent: bytes of one request that go out, in memory.
        window: requests in flight.
    """
    blobs = {digest: size for shard in shards for digest, size in shard.blobs.items()}
    extra = sum(shard.extra_bytes for shard in shards)
    peak = max(shard.peak_activation_bytes for shard in shards)
    return sum(blobs.values()) + extra + peak + window * received + sent


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sizes:
    """What a stage receives and sends, as it travels and in memory."""

    received: int
    sent: int
    raw_received: int
    raw_sent: int


def _sizes(workload: Workload, stages: Sequence[Stage]) -> list[_Sizes]:
    """Return what each stage receives and sends."""
    sizes: list[_Sizes] = []
    steps = _steps(stages)
    takes: list[Takes] = [*(step[0].takes for step in steps), ""]
    own = [
        [_own_sizes(workload, step, stage, gives=gives) for stage in step]
        for step, gives in zip(steps, takes[1:], strict=True)
    ]
    for number, step in enumerate(own):
        before, after = own[number - 1] if number else [], own[number + 1] if number + 1 < len(own) else []
        for size in step:
            full = size
            if len(before) > 1:
                received, raw = sum(other.sent for other in before), sum(other.raw_sent for other in before)
                full = dataclasses.replace(full, received=received, raw_received=raw)
            if len(after) > 1:
                sent, raw = sum(other.received for other in after), sum(other.raw_received for other in after)
                full = dataclasses.replace(full, sent=sent, raw_sent=raw)
            sizes.append(full)
    return sizes


def _with_sizes(
    workload: Workload,
    by_name: Mapping[str, DeviceCost],
    stages: Sequence[Stage],
    sizes: Sequence[_Sizes],
    window: int,
) -> tuple[Stage, ...]:
    sized: list[Stage] = []
    for stage, size in zip(stages, sizes, strict=True):
        device = by_name[stage.device]
        shards = workload.of(device.shard_format).shards[stage.first_shard : stage.stop_shard]
        needed = stage_memory(shards, received=size.raw_received, sent=size.raw_sent, window=window)
        full = msgspec.structs.replace(
            stage,
            index=len(sized),
            predicted_seconds=_busy(stage, size, device),
            source=device.source,
            memory_bytes=device.session_bytes + needed,
            received_bytes=size.received,
            sent_bytes=size.sent,
        )
        sized.append(full)
    return tuple(sized)


def _received(workload: Workload, steps: Sequence[Sequence[Stage]], place: int, form: Takes) -> int:
    """Bytes of all that comes to a step in one form, as it travels."""
    arriving = [msgspec.structs.replace(stage, takes=form) for stage in steps[place]]
    return sum(_own_sizes(workload, arriving, stage, gives="").received for stage in arriving)


def _own_sizes(workload: Workload, step: Sequence[Stage], stage: Stage, *, gives: Takes) -> _Sizes:
    """What a stage receives and sends where no neighbour is in parts, and the next step takes the form `gives`."""
    before, after = workload.of(stage.takes), workload.of(gives)
    if len(step) == 1:
        first, last = before.shards[stage.first_shard], after.shards[stage.stop_shard - 1]
        return _Sizes(
            received=first.received_bytes,
            sent=last.sent_bytes,
            raw_received=first.raw_received,
            raw_sent=last.raw_sent,
        )
    came, left = _section(before, step), _section(after, step)
    a, b = came.bounds.index(stage.first_shard), came.bounds.index(stage.stop_shard)
    return _Sizes(
        received=came.received[a][b],
        sent=left.sent[a][b],
        raw_received=came.raw_received[a][b],
        raw_sent=left.raw_sent[a][b],
    )


def _section(workload: Workload, step: Sequence[Stage]) -> Section:
    first, stop = step[0].first_shard, step[-1].stop_shard
    for section in workload.sections:
        inner = {bound for stage in step for bound in (stage.first_shard, stage.stop_shard)}
        if (section.first, section.stop) == (first, stop) and inner <= set(section.bounds):
            return section
    raise PlanError(
        f"the stages of shards {first} to {stop - 1} run side by side, and are not the branches of a section"
    )


def _busy(stage: Stage, size: _Sizes, device: DeviceCost) -> float:
    """Processor time of one request on a device."""
    compute = sum(device.shard_seconds[stage.first_shard : stage.stop_shard])
    crossing = (size.received + size.sent) * device.message_seconds_per_byte
    packing = size.raw_received * device.inflate_seconds_per_byte + size.raw_sent * device.deflate_seconds_per_byte
    return device.session_seconds + compute + 2 * device.message_seconds + crossing + packing


def _joules(by_name: Mapping[str, DeviceCost], stage: Stage, size: _Sizes) -> float:
    runners = [by_name[name] for name in stage.runners]
    return sum(_busy(stage, size, device) * device.busy_watts for device in runners) / len(runners)


def _hops(stages: Sequence[Stage]) -> list[_Hop]:
    steps = _steps(stages)
    hops = [_Hop(sender=None, receiver=steps[0][0], size=steps[0][0].received_bytes)]
    for step, following in itertools.pairwise(steps):
        # Who is alone may send several parts, or join them; who is beside others sends and receives once.
        hops += [
            _Hop(
                sender=sender,
                receiver=receiver,
                size=receiver.received_bytes if len(step) == 1 < len(following) else sender.sent_bytes,
            )
            for sender in step
            for receiver in following
        ]
    return [*hops, _Hop(sender=steps[-1][0], receiver=None, size=steps[-1][0].sent_bytes)]


def _loads(
    by_name: Mapping[str, DeviceCost],
    stages: Sequence[Stage],
    sizes: Sequence[_Sizes],
    hops: Sequence[_Hop],
    network: Network,
) -> list[Load]:
    computes = defaultdict[str, float](float)
    for stage, size in zip(stages, sizes, strict=True):
        for name in stage.runners:
            computes[name] += _busy(stage, size, by_name[name]) / len(stage.runners)
    loads = [Load(seconds=seconds, what=f"compute of {name}") for name, seconds in computes.items()]
    up, down = defaultdict[str, float](float), defaultdict[str, float](float)
    for hop in hops:
        pair = _pair(hop, network)
        if pair is not None and hop.sender and hop.receiver:
            what = f"from {hop.sender.device} to {hop.receiver.device}"
            loads.append(Load(seconds=hop.size / pair.bytes_per_second, what=what))
            continue
        for name in _names(hop.sender):
            up[name] += hop.size / len(_names(hop.sender))
        for name in _names(hop.receiver):
            down[name] += hop.size / len(_names(hop.receiver))
    links = {CLIENT: network.client} | {name: device.link for name, device in by_name.items() if name != CLIENT}
    loads += [
        Load(seconds=size / links[name].up_bytes_per_second, what=f"uplink of {name}") for name, size in up.items()
    ]
    loads += [
        Load(seconds=size / links[name].down_bytes_per_second, what=f"downlink of {name}")
        for name, size in down.items()
    ]
    for medium in network.media:
        taken = sum(hop.size * (_inside(medium, hop.sender) + _inside(medium, hop.receiver)) for hop in hops)
        loads.append(Load(seconds=taken / medium.bytes_per_second, what=medium.name))
    loads.append(Load(seconds=sum(hop.size for hop in hops) / network.broker_bytes_per_second, what="the broker"))
    return loads


def _names(stage: Stage | None) -> tuple[str, ...]:
    return (CLIENT,) if stage is None else stage.runners


def _inside(medium: Medium, stage: Stage | None) -> float:
    """The part of a stage's traffic that is in a medium."""
    names = _names(stage)
    return sum(name in medium.nodes for name in names) / len(names)


def _pair(hop: _Hop, network: Network) -> PairLink | None:
    if hop.sender is None or hop.receiver is None or hop.sender.replicas or hop.receiver.replicas:
        return None
    return network.pairs.get((hop.sender.device, hop.receiver.device))


def _latency(
    stages: Sequence[Stage], hops: Sequence[_Hop], by_name: Mapping[str, DeviceCost], network: Network
) -> float:
    beside = {stage.index for step in _steps(stages) if len(step) > 1 for stage in step}

    def media_of(stage: Stage | None) -> list[int]:
        return [index for index, medium in enumerate(network.media) if _inside(medium, stage)]

    def busy_with(hop: _Hop) -> float:
        """How long the broker and the media are busy with the hops of all parts, where this is into or out of one."""
        if hop.receiver is not None and hop.receiver.index in beside:
            like = [other for other in hops if other.sender is hop.sender]
        elif hop.sender is not None and hop.sender.index in beside:
            like = [other for other in hops if other.receiver is hop.receiver]
        else:
            return 0.0
        busy = [sum(other.size for other in like) / network.broker_bytes_per_second]
        for medium in network.media:
            if _inside(medium, hop.sender) or _inside(medium, hop.receiver):
                ends = [_inside(medium, other.sender) + _inside(medium, other.receiver) for other in like]
                carried = sum(other.size * count for other, count in zip(like, ends, strict=True))
                busy.append(carried / medium.bytes_per_second)
        return max(busy)

    def taken(hop: _Hop) -> float:
        sender = network.client if hop.sender is None else by_name[hop.sender.device].link
        receiver = network.client if hop.receiver is None else by_name[hop.receiver.device].link
        # Who is alone sends to all parts, or has it of all; a part has no more than its own hops.
        return float(
            hop_seconds(
                sender,
                receiver,
                np.array(float(hop.size)),
                _pair(hop, network),
                shared=shared_rates(network, media_of(hop.sender), media_of(hop.receiver)),
                busy=busy_with(hop),
                sent_bytes=float(hop.sender.sent_bytes) if hop.sender else 0.0,
                received_bytes=float(hop.receiver.received_bytes) if hop.receiver else 0.0,
            )
        )

    total = 0.0
    for step in _steps(stages):
        seconds = [stage.predicted_seconds for stage in step]
        if len(step) > 1:
            for place, stage in enumerate(step):
                seconds[place] += sum(taken(hop) for hop in hops if stage in (hop.sender, hop.receiver))
        total += max(seconds)
    alone = [hop for hop in hops if not beside & {stage.index for stage in (hop.sender, hop.receiver) if stage}]
    return total + sum(map(taken, alone))


def memory_of(stages: Sequence[Stage]) -> dict[str, int]:
    """Return the bytes of memory that each device needs for its stages, by name; standbys have none."""
    needed = defaultdict[str, int](int)
    for stage in stages:
        for name in stage.runners:
            needed[name] += stage.memory_bytes
    return dict(needed)


def _fullest(stages: Sequence[Stage], by_name: Mapping[str, DeviceCost]) -> str:
    used = {name: needed / max(by_name[name].memory_bytes, 1) for name, needed in memory_of(stages).items()}
    return f"memory of {max(used, key=lambda name: used[name])}"


def _steps(stages: Sequence[Stage]) -> tuple[tuple[Stage, ...], ...]:
    bare = Plan(objective="throughput", stages=tuple(stages), bottleneck_seconds=0, latency_seconds=0, binds="")
    return bare.steps()
