"""Every placement of a small workload on a few devices, judged by the definitions of a plan's costs and nothing else.

Written without the planner, to compare it with. A branch of the search ends where its cost exceeds the best so far.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from host.planning.costs import DeviceCost, LinkCost, Medium, Network, PairLink, ShardCost, Workload

PACKET_BYTES = 128 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """Shards `[first, stop)` on devices that take turns."""

    first: int
    stop: int
    devices: tuple[DeviceCost, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A workload, the devices and the network."""

    shards: tuple[ShardCost, ...]
    devices: tuple[DeviceCost, ...]
    network: Network
    most_replicas: int
    window: int

    @property
    def workload(self) -> Workload:
        """As the planner takes it."""
        return Workload(shards=self.shards)


def small_instance(seed: int) -> Instance:
    """Draw at most 8 shards and 5 devices; some alike, some with little memory, links that bind, replicas."""
    draw = random.Random(seed)
    count = draw.randint(1, 8)
    cuts = [draw.randint(0, 60) for _ in range(count + 1)]
    blobs = {digest: draw.randint(1, 40) for digest in "abcdef"}
    shards = tuple(
        ShardCost(
            blobs={digest: blobs[digest] for digest in draw.sample("abcdef", draw.randint(0, 2))},
            extra_bytes=draw.randint(0, 10),
            peak_activation_bytes=draw.randint(0, 40),
            received_bytes=cuts[index],
            sent_bytes=cuts[index + 1],
        )
        for index in range(count)
    )
    work = [draw.uniform(0.2, 6.0) for _ in shards]
    devices: list[DeviceCost] = []
    for index in range(draw.randint(1, 5)):
        if devices and draw.random() < 0.4:
            devices.append(replace(draw.choice(devices), name=f"d{index}"))
        else:
            devices.append(_device(draw, f"d{index}", work))
    return Instance(
        shards=shards,
        devices=tuple(devices),
        network=_network(draw, [device.name for device in devices]),
        most_replicas=draw.choice([1, 1, 2, 3]),
        window=draw.choice([1, 2, 2, 4, 8]),
    )


def _device(draw: random.Random, name: str, work: Sequence[float]) -> DeviceCost:
    speed = draw.choice([0.5, 1.0, 3.0, 5.0])
    return DeviceCost(
        name=name,
        shard_seconds=tuple(seconds / speed * draw.uniform(0.8, 1.2) for seconds in work),
        link=_link(draw),
        memory_bytes=draw.choice([120, 200, 300, 1000]),
        flash_bytes=draw.choice([60, 120, 1000]),
        session_bytes=draw.choice([0, 10]),
        session_seconds=draw.choice([0.0, 0.3]),
        message_seconds=draw.choice([0.0, 0.1]),
        message_seconds_per_byte=draw.choice([0.0, 0.01]),
    )


def _link(draw: random.Random) -> LinkCost:
    return LinkCost(
        up_bytes_per_second=draw.choice([8.0, 30.0, 1000.0]),
        down_bytes_per_second=draw.choice([8.0, 30.0, 1000.0]),
        latency_seconds=draw.choice([0.0, 0.2]),
    )


def _network(draw: random.Random, names: Sequence[str]) -> Network:
    kind = draw.choice(["plain", "plain", "pair", "medium", "broker"])
    pairs: dict[tuple[str, str], PairLink] = {}
    media: tuple[Medium, ...] = ()
    broker = math.inf
    if kind == "pair" and len(names) > 1:
        sender, receiver = draw.sample(list(names), 2)
        pairs[sender, receiver] = PairLink(bytes_per_second=draw.choice([5.0, 500.0]), latency_seconds=0.1)
    if kind == "medium":
        nodes = frozenset(name for name in [*names, "client"] if draw.random() < 0.6)
        media = (Medium(name="wifi", bytes_per_second=draw.choice([30.0, 100.0]), nodes=nodes),)
    if kind == "broker":
        broker = draw.choice([30.0, 100.0])
    return Network(client=_link(draw), broker_bytes_per_second=broker, pairs=pairs, media=media)


def fits(instance: Instance, placed: Placed) -> bool:
    """Whether a stage has room in the memory and flash of its devices."""
    run, device = instance.shards[placed.first : placed.stop], placed.devices[0]
    blobs = {digest: size for shard in run for digest, size in shard.blobs.items()}
    stored = sum(blobs.values())
    memory = stored + sum(shard.extra_bytes for shard in run) + max(shard.peak_activation_bytes for shard in run)
    memory += instance.window * run[0].received_bytes + run[-1].sent_bytes + device.session_bytes
    return memory <= device.memory_bytes and stored <= device.flash_bytes


def busy_seconds(instance: Instance, placed: Placed) -> float:
    """Processor time of one request in a stage, on one of its devices."""
    device = placed.devices[0]
    crossing = instance.shards[placed.first].received_bytes + instance.shards[placed.stop - 1].sent_bytes
    work = sum(device.shard_seconds[placed.first : placed.stop])
    return device.session_seconds + work + 2 * device.message_seconds + crossing * device.message_seconds_per_byte


def _pair(instance: Instance, sender: Placed, receiver: Placed) -> PairLink | None:
    if len(sender.devices) > 1 or len(receiver.devices) > 1:
        return None
    return instance.network.pairs.get((sender.devices[0].name, receiver.devices[0].name))


def period(instance: Instance, placement: Sequence[Placed]) -> float:
    """Largest load of one request: processors, uplinks, downlinks, pairs' links, media and the broker."""
    shards, network = instance.shards, instance.network
    first, last = shards[0].received_bytes, shards[-1].sent_bytes
    loads = [first / network.client.up_bytes_per_second, last / network.client.down_bytes_per_second]
    hops: list[tuple[float, tuple[str, ...], tuple[str, ...]]] = []
    for index, placed in enumerate(placement):
        names, turns = tuple(device.name for device in placed.devices), len(placed.devices)
        link = placed.devices[0].link
        loads.append(busy_seconds(instance, placed) / turns)
        received = shards[placed.first].received_bytes
        before = placement[index - 1] if index else None
        pair = None if before is None else _pair(instance, before, placed)
        if pair is None:
            loads.append(received / link.down_bytes_per_second / turns)
        else:
            loads.append(received / pair.bytes_per_second)
        sender = ("client",) if before is None else tuple(device.name for device in before.devices)
        hops.append((received, sender, names))
        after = placement[index + 1] if index + 1 < len(placement) else None
        if after is None or _pair(instance, placed, after) is None:
            loads.append(shards[placed.stop - 1].sent_bytes / link.up_bytes_per_second / turns)
    hops.append((last, tuple(device.name for device in placement[-1].devices), ("client",)))
    for medium in network.media:
        share = [
            size * sum(sum(name in medium.nodes for name in end) / len(end) for end in (sender, receiver))
            for size, sender, receiver in hops
        ]
        loads.append(sum(share) / medium.bytes_per_second)
    loads.append(sum(size for size, _, _ in hops) / network.broker_bytes_per_second)
    return max(loads)


def result_seconds(instance: Instance, placement: Sequence[Placed]) -> float:
    """Time between two results: the period, or what the requests in flight allow."""
    return max(period(instance, placement), latency(instance, placement) / instance.window)


def latency(instance: Instance, placement: Sequence[Placed]) -> float:
    """What one request alone takes."""
    shards, client = instance.shards, ("client", instance.network.client)
    ends = [client, *((placed.devices[0].name, placed.devices[0].link) for placed in placement), client]
    sizes = [*(shards[placed.first].received_bytes for placed in placement), shards[-1].sent_bytes]
    pairs = [None, *(_pair(instance, one, other) for one, other in itertools.pairwise(placement)), None]
    hops = zip(itertools.pairwise(ends), sizes, pairs, strict=True)
    total = sum(_hop(instance.network, sender, receiver, size, pair) for (sender, receiver), size, pair in hops)
    return total + sum(busy_seconds(instance, placed) for placed in placement)


def _hop(
    network: Network, sender: tuple[str, LinkCost], receiver: tuple[str, LinkCost], size: int, pair: PairLink | None
) -> float:
    ends = {medium: (sender[0] in medium.nodes) + (receiver[0] in medium.nodes) for medium in network.media}
    shared = [network.broker_bytes_per_second]
    shared += [medium.bytes_per_second / count for medium, count in ends.items() if count]
    if pair is not None:
        return pair.latency_seconds + size / min(pair.bytes_per_second, *shared)
    rates = sorted([sender[1].up_bytes_per_second, receiver[1].down_bytes_per_second, *shared])
    waiting = sender[1].latency_seconds + receiver[1].latency_seconds
    return waiting + size / rates[0] + min(size, PACKET_BYTES) / rates[1]


def placements(instance: Instance, *, most_replicas: int, under: list[float]) -> Iterator[tuple[Placed, ...]]:
    """Yield every placement whose processors are no busier than `under[0]`, which may fall meanwhile."""
    count = len(instance.shards)

    def onward(first: int, done: tuple[Placed, ...], free: tuple[DeviceCost, ...]) -> Iterator[tuple[Placed, ...]]:
        if first == count:
            yield done
            return
        for team in _teams(instance, free, most_replicas):
            left = tuple(device for device in free if device not in team)
            for stop in range(first + 1, count + 1):
                placed = Placed(first=first, stop=stop, devices=team)
                if busy_seconds(instance, placed) / len(team) <= under[0] and fits(instance, placed):
                    yield from onward(stop, (*done, placed), left)

    return onward(0, (), instance.devices)


def _teams(instance: Instance, free: Sequence[DeviceCost], most_replicas: int) -> Iterator[tuple[DeviceCost, ...]]:
    """Devices that may share a stage: of equal cost, in the same media, in no pair."""
    paired = {name for pair in instance.network.pairs for name in pair}

    def likeness(device: DeviceCost) -> tuple[DeviceCost, tuple[bool, ...], str]:
        media = tuple(device.name in medium.nodes for medium in instance.network.media)
        return replace(device, name=""), media, device.name if device.name in paired else ""

    alike = {device.name: likeness(device) for device in free}
    for size in range(1, most_replicas + 1):
        for team in itertools.combinations(free, size):
            if all(alike[device.name] == alike[team[0].name] for device in team):
                yield team


def least_seconds(instance: Instance) -> float:
    """Return the least time between two results of all placements; infinity when nothing fits."""
    under = [math.inf]
    for placement in placements(instance, most_replicas=instance.most_replicas, under=under):
        under[0] = min(under[0], result_seconds(instance, placement))
    return under[0]


def least_latency(instance: Instance) -> float:
    """Return the least latency of all placements; infinity when nothing fits."""
    under = [math.inf]
    for placement in placements(instance, most_replicas=1, under=under):
        under[0] = min(under[0], latency(instance, placement))
    return under[0]
