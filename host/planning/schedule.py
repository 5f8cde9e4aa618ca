"""When each part of a plan is busy: loads by name, and a time table of requests that follow each other. Pure.

Times are those of the design's section 8. A frame travels in packets of `PACKET_BYTES` that are stored and passed on,
so that the links on its way work at the same time, one packet apart: each is a server that keeps to the order of
arrival, and so is the processor of each device.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from edge.formats.plan import Plan, Stage
from host.planning.costs import DeviceCost, LinkCost, Network

PACKET_BYTES = 128 * 1024
CLIENT = "client"
MAX_REQUESTS = 256
"""A time table is for people: it shows no more requests than this."""

Kind = Literal["compute", "uplink", "downlink", "link", "medium", "broker"]
_ORDER: tuple[Kind, ...] = ("downlink", "compute", "uplink")


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Resource:
    """Something that serves one thing at a time.

    Attributes:
        kind: what it is.
        name: of the device, node or medium; empty for the broker.
        other: node at the far end of a link between two.
    """

    kind: Kind
    name: str = ""
    other: str = ""

    def __str__(self) -> str:
        """Name it in the words of `Plan.binds`."""
        match self.kind:
            case "broker":
                return "the broker"
            case "link":
                return f"from {self.name} to {self.other}"
            case "medium":
                return self.name
            case kind:
                return f"{kind} of {self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hop:
    """The tensors of one request that one stage sends to another; None stands for the client.

    Attributes:
        sender, receiver: index of the stage.
        size_bytes: of the tensors.
    """

    sender: int | None
    receiver: int | None
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One request at one resource.

    Attributes:
        request: number of the request, from 0.
        hop: which hop of the plan it is, by `hops_of`; None for the run of a stage.
        stage: that runs, or that the hop goes to; None where it goes to the client.
        start, end: in seconds from the first request.
    """

    resource: Resource
    request: int
    start: float
    end: float
    stage: int | None
    hop: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A time table.

    Attributes:
        bars: by start.
        sent: when each request was sent.
        answered: when the client had each result.
    """

    bars: tuple[Bar, ...]
    sent: tuple[float, ...]
    answered: tuple[float, ...]


def hops_of(plan: Plan) -> tuple[Hop, ...]:
    """Return every hop of one request, in order; the first is from the client and the last to it."""
    first, last = plan.stages[0], plan.stages[-1]
    hops = [Hop(sender=None, receiver=first.index, size_bytes=first.received_bytes)]
    for step, following in pairwise(plan.steps()):
        for sender in step:
            for receiver in following:
                # A stage that joins takes from each of those before it what that one has.
                size = receiver.received_bytes if len(step) == 1 else sender.sent_bytes
                hops.append(Hop(sender=sender.index, receiver=receiver.index, size_bytes=size))
    return (*hops, Hop(sender=last.index, receiver=None, size_bytes=last.sent_bytes))


def loads_of(plan: Plan, devices: Mapping[str, DeviceCost], network: Network) -> dict[Resource, float]:
    """Return the seconds that one request takes of each resource, on average over replicas.

    Args:
        plan: whose stages are on devices of `devices`.
        devices: by name.
        network: between them.
    """
    loads: defaultdict[Resource, float] = defaultdict(float)
    for stage in plan.stages:
        for runner in stage.runners:
            loads[Resource(kind="compute", name=runner)] += stage.predicted_seconds / len(stage.runners)
    for hop in hops_of(plan):
        ends = [_runners(plan, end) for end in (hop.sender, hop.receiver)]
        for sender in ends[0]:
            for receiver in ends[1]:
                share = 1 / (len(ends[0]) * len(ends[1]))
                for slot in _way(sender, receiver, hop.size_bytes, devices, network):
                    loads[slot.resource] += slot.seconds * share
    return dict(sorted(loads.items()))


def in_order(plan: Plan, resources: Iterable[Resource]) -> tuple[Resource, ...]:
    """Return resources in the order in which a request meets them; what several ways share comes last."""
    # A device that comes twice, before and after a section, has its place where it comes first.
    nodes = list(dict.fromkeys((CLIENT, *(name for stage in plan.stages for name in stage.runners))))
    ranks: dict[Resource, int] = {}
    for index, node in enumerate(nodes):
        for step, kind in enumerate(_ORDER):
            # The client sends first and has the answer last.
            place = len(nodes) if node == CLIENT and kind == "downlink" else index
            ranks[Resource(kind=kind, name=node)] = len(_ORDER) * place + step
    last = len(_ORDER) * (len(nodes) + 1)
    return tuple(sorted(resources, key=lambda resource: (ranks.get(resource, last), resource)))


def timetable(
    plan: Plan,
    devices: Mapping[str, DeviceCost],
    network: Network,
    *,
    requests: int,
    window: int,
    period_seconds: float = 0.0,
) -> Schedule:
    """Let requests follow each other through a plan.

    Args:
        plan: whose stages are on devices of `devices`.
        devices: by name.
        network: between them.
        requests: how many; at most `MAX_REQUESTS` are taken.
        window: how many may be on the way at once.
        period_seconds: between two that are sent, where the window allows.
    """
    run = _Run(plan=plan, devices=devices, network=network, window=window, period=period_seconds)
    return run.all(max(1, min(requests, MAX_REQUESTS)))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Slot:
    """Time at one resource on the way of a frame: whole, and of one packet; `late` passes before it can begin.

    What is shared by several ways is only busy: packets pass it as they come, unless others are in front of them.
    """

    resource: Resource
    seconds: float
    packet: float
    late: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """What waits for a resource: slots of one hop that are left, or the run of a stage.

    The first packet of a hop left the slot before this one at `head`, the last at `tail`.
    """

    request: int
    slots: tuple[_Slot, ...]
    stage: int | None
    hop: int | None = None
    head: float = 0.0
    tail: float = 0.0

    @property
    def ready(self) -> float:
        """When its first slot can begin, as all of it passes at once and nothing passes before it came."""
        slot = self.slots[0]
        return slot.late + max(self.head, self.tail + slot.packet - slot.seconds)


def _way(
    sender: str, receiver: str, size_bytes: int, devices: Mapping[str, DeviceCost], network: Network
) -> tuple[_Slot, ...]:
    """Return the slots that a frame takes from node to node."""
    rates: list[tuple[Resource, float, float, int]] = []
    packet = min(size_bytes, PACKET_BYTES)
    pair = network.pairs.get((sender, receiver))
    if pair is not None:
        link = Resource(kind="link", name=sender, other=receiver)
        rates.append((link, pair.bytes_per_second, 0.0, packet))
    else:
        up, down = _link(sender, devices, network), _link(receiver, devices, network)
        late = up.latency_seconds + down.latency_seconds
        rates.append((Resource(kind="uplink", name=sender), up.up_bytes_per_second, 0.0, packet))
        rates.extend((resource, rate, 0.0, 0) for resource, rate in _shared(sender, receiver, network))
        rates.append((Resource(kind="downlink", name=receiver), down.down_bytes_per_second, late, packet))
    return tuple(
        _Slot(resource=resource, seconds=size_bytes / rate, packet=stored / rate, late=late)
        for resource, rate, late, stored in rates
    )


def _shared(sender: str, receiver: str, network: Network) -> Iterator[tuple[Resource, float]]:
    for medium in network.media:
        ends = (sender in medium.nodes) + (receiver in medium.nodes)
        if ends:
            yield Resource(kind="medium", name=medium.name), medium.bytes_per_second / ends
    if math.isfinite(network.broker_bytes_per_second):
        yield Resource(kind="broker"), network.broker_bytes_per_second


def _link(node: str, devices: Mapping[str, DeviceCost], network: Network) -> LinkCost:
    return network.client if node == CLIENT else devices[node].link


def _runners(plan: Plan, stage: int | None) -> Sequence[str]:
    return (CLIENT,) if stage is None else plan.stages[stage].runners


@dataclass(kw_only=True, slots=True)
class _Run:
    """The events of a time table, in the order of time."""

    plan: Plan
    devices: Mapping[str, DeviceCost]
    network: Network
    window: int
    period: float
    bars: list[Bar] = field(default_factory=list)
    sent: dict[int, float] = field(default_factory=dict)
    answered: dict[int, float] = field(default_factory=dict)
    free: defaultdict[Resource, float] = field(default_factory=lambda: defaultdict(float))
    waiting: list[tuple[float, int, int, _Task]] = field(default_factory=list)
    missing: dict[tuple[int, int], int] = field(default_factory=dict)
    count: int = 0
    leaving: dict[int | None, list[tuple[int, Hop]]] = field(default_factory=dict)
    parts: dict[int | None, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, hop in enumerate(hops_of(self.plan)):
            self.leaving.setdefault(hop.sender, []).append((index, hop))
            self.parts[hop.receiver] = self.parts.get(hop.receiver, 0) + 1

    def all(self, requests: int) -> Schedule:
        """Run until every request is answered."""
        for request in range(min(requests, self.window)):
            self.send(request, request * self.period)
        while self.waiting:
            self.serve(heapq.heappop(self.waiting)[-1], requests)
        return Schedule(
            bars=tuple(sorted(self.bars, key=lambda bar: (bar.start, bar.request, bar.resource))),
            sent=tuple(self.sent[request] for request in range(requests)),
            answered=tuple(self.answered[request] for request in range(requests)),
        )

    def send(self, request: int, now: float) -> None:
        self.sent[request] = now
        self.hand_on(request, None, now)

    def put(self, task: _Task) -> None:
        self.count += 1
        heapq.heappush(self.waiting, (task.ready, task.request, self.count, task))

    def hand_on(self, request: int, stage: int | None, now: float) -> None:
        """Send what a stage made of a request, or the client's tensors, to all who wait for it."""
        for index, hop in self.leaving[stage]:
            ends = [self.runner(end, request) for end in (hop.sender, hop.receiver)]
            slots = _way(ends[0], ends[1], hop.size_bytes, self.devices, self.network)
            self.put(_Task(request=request, slots=slots, stage=hop.receiver, hop=index, head=now, tail=now))

    def serve(self, task: _Task, requests: int) -> None:
        slot, rest = task.slots[0], task.slots[1:]
        start = max(task.ready, self.free[slot.resource])
        end = self.free[slot.resource] = start + slot.seconds
        self.bars.append(
            Bar(resource=slot.resource, request=task.request, start=start, end=end, stage=task.stage, hop=task.hop)
        )
        if rest:
            # Packets pass while the next ones come: only what was in front of them holds the first one up.
            head = task.head + slot.late + slot.packet + (start - task.ready)
            self.put(dataclasses.replace(task, slots=rest, head=head, tail=end))
        elif task.hop is None and task.stage is not None:
            self.hand_on(task.request, task.stage, end)
        else:
            pair = self.network.pairs.get((slot.resource.name, slot.resource.other))
            late = pair.latency_seconds if slot.resource.kind == "link" and pair is not None else 0.0
            self.arrived(task.request, task.stage, end + late, requests)

    def arrived(self, request: int, stage: int | None, now: float, requests: int) -> None:
        if stage is None:
            self.answered[request] = now
            if (following := request + self.window) < requests:
                self.send(following, max(now, following * self.period))
            return
        left = self.missing[request, stage] = self.missing.get((request, stage), self.parts[stage]) - 1
        if left == 0:
            found: Stage = self.plan.stages[stage]
            compute = Resource(kind="compute", name=self.runner(stage, request))
            seconds = found.predicted_seconds
            slot = _Slot(resource=compute, seconds=seconds, packet=seconds)
            self.put(_Task(request=request, slots=(slot,), stage=stage, head=now, tail=now))

    def runner(self, stage: int | None, request: int) -> str:
        runners = _runners(self.plan, stage)
        return runners[request % len(runners)]
