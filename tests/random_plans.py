"""Random small planning problems without ties, the same for a seed everywhere."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edge.formats.plan import Constraints, Objective, Pin
from host.planning.costs import DeviceCost, LinkCost, Medium, Network, PairLink, Section, ShardCost, Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Everything that the planner is given."""

    workload: Workload
    devices: tuple[DeviceCost, ...]
    objective: Objective
    window: int
    network: Network
    constraints: Constraints


def random_problem(
    seed: int,
    *,
    objectives: Sequence[Objective] = ("throughput", "latency", "energy", "memory"),
    most_shards: int = 6,
    most_devices: int = 4,
    features: Sequence[str] = (),
) -> Problem:
    """Return a problem; about one in five has no plan.

    Args:
        seed: of everything.
        objectives: one of these.
        most_shards: largest number of shards.
        most_devices: largest number of devices.
        features: of `alike`, `sections`, `pins`, `pairs`, `budget`, `budgets`, `codec`, `bends`, `builds`.
    """
    draw = random.Random(seed)
    inviting = "bends" in features
    count = draw.randint(5 if inviting else 3 if "sections" in features else 1, most_shards)
    workload = _workload(draw, count, divided="sections" in features)
    if "codec" in features:
        workload = _deflated(draw, workload)
    devices = _devices(draw, count, draw.randint(3 if inviting else 1, most_devices), features)
    if inviting:
        devices = _inviting(draw, workload, devices)
    if "builds" in features:
        workload, devices = _mixed(draw, workload, devices)
    names = [device.name for device in devices]
    constraints = Constraints(use_all=draw.random() < 0.15, most_replicas=draw.randint(1, 4))
    if "pins" in features:
        constraints = Constraints(
            pins=tuple(Pin(layer=draw.randrange(count), device=draw.choice(names)) for _ in range(1)),
            forbidden=tuple(
                Pin(layer=draw.randrange(count), device=draw.choice(names)) for _ in range(draw.randrange(3))
            ),
            most_replicas=constraints.most_replicas,
        )
    return Problem(
        workload=workload,
        devices=devices,
        objective=draw.choice(list(objectives)),
        window=draw.randint(1, 8),
        network=_network(draw, names, features),
        constraints=constraints,
    )


def _workload(draw: random.Random, count: int, *, divided: bool) -> Workload:
    blobs = {digest: draw.randint(1, 60) for digest in "abcd"}
    cuts = [draw.randrange(80) for _ in range(count + 1)]
    shards = tuple(
        ShardCost(
            blobs={digest: blobs[digest] for digest in draw.sample("abcd", draw.randrange(3))},
            extra_bytes=draw.randrange(20),
            peak_activation_bytes=draw.randrange(60),
            received_bytes=received,
            sent_bytes=sent,
        )
        for received, sent in itertools.pairwise(cuts)
    )
    sections = []
    if divided and count >= 4:
        first = draw.randint(1, count - 3)
        stop = draw.randint(first + 2, count - 1)
        sections.append(_section(draw, first, stop))
        if stop + 3 <= count - 1:
            sections.append(_section(draw, stop + draw.randint(0, 1), count - 1))
    return Workload(shards=shards, sections=tuple(sections))


def _section(draw: random.Random, first: int, stop: int) -> Section:
    inner = sorted(draw.sample(range(first + 1, stop), draw.randint(1, min(3, stop - first - 1))))
    bounds = (first, *inner, stop)
    size = len(bounds)
    return Section(
        bounds=bounds,
        received=tuple(tuple(draw.randrange(50) for _ in range(size)) for _ in range(size)),
        sent=tuple(tuple(draw.randrange(50) for _ in range(size)) for _ in range(size)),
    )


def _deflated(draw: random.Random, workload: Workload) -> Workload:
    """The same workload with tensors that are larger in memory than on the way."""

    def table(wire: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(size + draw.randrange(40) for size in row) for row in wire)

    raw = [size + draw.randrange(60) for size in (0, *(shard.sent_bytes for shard in workload.shards))]
    raw[0] += workload.shards[0].received_bytes
    return Workload(
        shards=tuple(
            replace(shard, received_raw_bytes=received, sent_raw_bytes=sent)
            for shard, (received, sent) in zip(workload.shards, itertools.pairwise(raw), strict=True)
        ),
        sections=tuple(
            replace(section, received_raw=table(section.received), sent_raw=table(section.sent))
            for section in workload.sections
        ),
    )


def _devices(draw: random.Random, shards: int, count: int, features: Sequence[str]) -> tuple[DeviceCost, ...]:
    alike, packs = "alike" in features, "codec" in features
    devices = [
        DeviceCost(
            name=f"d{index}",
            shard_seconds=tuple(draw.uniform(0, 30) for _ in range(shards)),
            link=LinkCost(
                up_bytes_per_second=draw.uniform(2, 50),
                down_bytes_per_second=draw.uniform(2, 50),
                latency_seconds=draw.uniform(0, 2),
            ),
            memory_bytes=draw.randint(80, 600),
            flash_bytes=draw.randint(60, 300),
            session_bytes=draw.randrange(20),
            session_seconds=draw.uniform(0, 2),
            message_seconds=draw.uniform(0, 1),
            message_seconds_per_byte=draw.uniform(0, 0.05),
            deflate_seconds_per_byte=draw.uniform(0, 0.2) if packs else 0.0,
            inflate_seconds_per_byte=draw.uniform(0, 0.1) if packs else 0.0,
            busy_watts=draw.uniform(1, 9),
        )
        for index in range(count)
    ]
    for index in range(1, count):
        if draw.random() < (0.6 if alike else 0.15):
            devices[index] = replace(devices[draw.randrange(index)], name=f"d{index}")
    return tuple(devices)


def _inviting(draw: random.Random, workload: Workload, devices: Sequence[DeviceCost]) -> tuple[DeviceCost, ...]:
    """Devices with fast links: one is good outside of sections, the others inside."""
    inside = {shard for section in workload.sections for shard in range(section.first, section.stop)}
    hub = draw.randrange(len(devices))
    slow = [
        [
            draw.uniform(0.5, 3) if (shard in inside) == (index == hub) else draw.uniform(0.02, 0.3)
            for shard in range(len(workload.shards))
        ]
        for index in range(len(devices))
    ]
    return tuple(
        replace(
            device,
            shard_seconds=tuple(a * b for a, b in zip(device.shard_seconds, factors, strict=True)),
            link=replace(
                device.link,
                up_bytes_per_second=device.link.up_bytes_per_second * 8,
                down_bytes_per_second=device.link.down_bytes_per_second * 8,
                latency_seconds=device.link.latency_seconds / 8,
            ),
            memory_bytes=device.memory_bytes + 200,
        )
        for device, factors in zip(devices, slow, strict=True)
    )


def _mixed(
    draw: random.Random, workload: Workload, devices: Sequence[DeviceCost]
) -> tuple[Workload, tuple[DeviceCost, ...]]:
    """The same work in a second build, whose files are others and whose tensors are not; some devices run that."""
    blobs = {digest: draw.randint(1, 60) for digest in "cdef"}
    shards = tuple(
        replace(
            shard,
            blobs={digest: blobs[digest] for digest in draw.sample("cdef", draw.randrange(3))},
            extra_bytes=draw.randrange(20),
        )
        for shard in workload.shards
    )
    runtimes = [draw.choice(("onnxruntime", "litert")) for _ in devices]
    return (
        replace(workload, builds={"tflite": replace(workload, shards=shards)}),
        tuple(replace(device, runtime=runtime) for device, runtime in zip(devices, runtimes, strict=True)),
    )


def _network(draw: random.Random, names: Sequence[str], features: Sequence[str]) -> Network:
    pairs, media, broker = {}, list[Medium](), float("inf")
    if "pairs" in features and len(names) > 1:
        for _ in range(draw.randint(1, 4)):
            one, other = draw.sample(list(names), 2)
            pairs[one, other] = PairLink(bytes_per_second=draw.uniform(1, 60), latency_seconds=draw.uniform(0, 2))
    wanted = 1 if "budget" in features else 2 + draw.randrange(2) if "budgets" in features else 0
    if wanted == 1 and draw.random() < 0.5:
        broker = draw.uniform(2, 20)
    elif wanted:
        for index in range(min(wanted, 2)):
            nodes = frozenset(name for name in (*names, "client") if draw.random() < 0.6)
            media.append(Medium(name=f"Wi-Fi cell {index}", bytes_per_second=draw.uniform(2, 20), nodes=nodes))
        broker = draw.uniform(2, 20) if wanted == 3 else broker
    return Network(
        client=LinkCost(
            up_bytes_per_second=draw.uniform(2, 60),
            down_bytes_per_second=draw.uniform(2, 60),
            latency_seconds=draw.uniform(0, 1),
        ),
        broker_bytes_per_second=broker,
        pairs=pairs,
        media=tuple(media),
    )
