"""How good plans are and how long they take, against every placement there is, proven bounds and simpler splits.

Small instances are compared with brute force written from the definitions (`benchmarks.placements`), each device type
and network drawn at random. Large ones come with the gap that the planner proves. Baselines: the same number of layers
on each device, layers by memory, and the best pipeline that takes device types in a fixed order. CPU time, one thread.
"""

from __future__ import annotations

import math
import os
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.measure import Figure, Key, main_of, own_cpu_seconds, say
from benchmarks.placements import (
    Instance,
    Placed,
    busy_seconds,
    fits,
    latency,
    least_latency,
    least_seconds,
    period,
    result_seconds,
    small_instance,
)
from edge.formats.plan import Constraints, Objective, Plan
from host.errors import PlanError
from host.planning.costs import DeviceCost, LinkCost, Network, ShardCost
from host.planning.planner import plan_pipeline

SMALL = 5_000
LATENCY_EVERY = 5
RENAMED_EVERY = 10
SPLITS = 40
SEEDS = 3

MIB = 2**20
LARGE_WINDOW = 256

KEYS = (
    Key(name="instances", meaning="random instances of at most 8 layers and 5 devices, memory, links and replicas"),
    Key(name="impossible", meaning="of these, where both planner and brute force say that nothing fits"),
    Key(
        name="worst_ratio_to_brute_force",
        meaning="time between results of the plan / the least there is, worst",
    ),
    Key(name="worst_latency_ratio", meaning="the same of latency, every fifth instance"),
    Key(
        name="worst_change_renamed",
        meaning="the same of the plan after renaming and shuffling the devices / the least, worst",
    ),
    Key(name="fixed_order_worst_ratio", meaning="the best pipeline in a fixed order of types / the least, worst"),
    Key(
        name="fixed_order_3_slow_1_fast", meaning="8 layers, 3 slow devices and a fast one: the slow first / the least"
    ),
    Key(name="fixed_order_renamed", meaning="the same after swapping the names of both types"),
    Key(name="planner_3_slow_1_fast", meaning="the plan's time there / the least, the worse of both namings"),
    Key(name="even_split_ratio", meaning="time of as many layers on each device / the plan's, median"),
    Key(name="memory_split_ratio", meaning="time of layers by room for them / the plan's, median"),
    Key(name="seconds_200x16", meaning="CPU time to plan 200 layers on 16 devices of 4 types, worst of three fleets"),
    Key(name="gap_200x16", meaning="proven distance from the least period, worst of these"),
    Key(
        name="seconds_1000x100",
        meaning="CPU time to plan 1,000 layers on 100 devices of 6 types, worst of three fleets",
    ),
    Key(name="gap_1000x100", meaning="proven distance from the least period, worst of these"),
)


def planned(instance: Instance, objective: Objective = "throughput") -> Plan | None:
    """Plan an instance; None when nothing fits."""
    try:
        return plan_pipeline(
            instance.workload,
            instance.devices,
            objective=objective,
            window=instance.window,
            network=instance.network,
            constraints=Constraints(most_replicas=instance.most_replicas),
        )
    except PlanError:
        return None


def placement_of(instance: Instance, plan: Plan) -> tuple[Placed, ...]:
    """Return a plan's stages, checked: every shard once, each device once, all with room."""
    by_name = {device.name: device for device in instance.devices}
    placement = tuple(
        Placed(first=stage.first_shard, stop=stage.stop_shard, devices=tuple(by_name[name] for name in stage.runners))
        for stage in plan.stages
    )
    names = [device.name for placed in placement for device in placed.devices]
    assert len(names) == len(set(names))
    bounds = [0, *(placed.stop for placed in placement)]
    assert bounds == [*(placed.first for placed in placement), len(instance.shards)]
    assert all(fits(instance, placed) for placed in placement)
    return placement


def ratio_to(best: float, instance: Instance, objective: Objective) -> float:
    """Return what the plan costs by the definitions / the least; infinity where only one of both finds none."""
    plan = planned(instance, objective)
    if plan is None or best == math.inf:
        return 1.0 if plan is None and best == math.inf else math.inf
    cost = (latency if objective == "latency" else result_seconds)(instance, placement_of(instance, plan))
    return cost / best if best else 1.0 + cost


def renamed(instance: Instance, seed: int) -> Instance:
    """Return the same instance with other names of the devices, in another order."""
    draw = random.Random(seed)
    names = [f"x{index}" for index in range(len(instance.devices))]
    draw.shuffle(names)
    new = {device.name: name for device, name in zip(instance.devices, names, strict=True)}
    devices = [replace(device, name=new[device.name]) for device in instance.devices]
    draw.shuffle(devices)
    network = replace(
        instance.network,
        pairs={(new[sender], new[receiver]): pair for (sender, receiver), pair in instance.network.pairs.items()},
        media=tuple(
            replace(medium, nodes=frozenset(new.get(node, node) for node in medium.nodes))
            for medium in instance.network.media
        ),
    )
    return replace(instance, devices=tuple(devices), network=network)


def in_order(instance: Instance, devices: Sequence[DeviceCost]) -> float:
    """Return the least time between results of pipelines with the devices in one order, each or not, no replicas."""
    count, best = len(instance.shards), math.inf

    def onward(first: int, index: int, done: tuple[Placed, ...]) -> None:
        nonlocal best
        if first == count:
            best = min(best, result_seconds(instance, done))
            return
        for at in range(index, len(devices)):
            for stop in range(first + 1, count + 1):
                placed = Placed(first=first, stop=stop, devices=(devices[at],))
                if busy_seconds(instance, placed) < best and fits(instance, placed):
                    onward(stop, at + 1, (*done, placed))

    onward(0, 0, ())
    return best


def by_type(instance: Instance) -> list[DeviceCost]:
    """Return the devices type by type, the types by the name of their first device."""
    types: dict[DeviceCost, list[DeviceCost]] = {}
    for device in sorted(instance.devices, key=lambda device: device.name):
        types.setdefault(_unnamed(device), []).append(device)
    return [device for members in types.values() for device in members]


def _unnamed(device: DeviceCost) -> DeviceCost:
    return replace(device, name="")


def slow_and_fast(slow: str, fast: str) -> Instance:
    """Return eight layers of uneven work, three slow devices and one twice as fast."""
    work = (7.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0)
    link = LinkCost(up_bytes_per_second=1e9, down_bytes_per_second=1e9, latency_seconds=0.0)
    shards = tuple(ShardCost(blobs={}, received_bytes=1, sent_bytes=1) for _ in work)

    def device(name: str, speed: float) -> DeviceCost:
        seconds = tuple(each / speed for each in work)
        return DeviceCost(name=name, shard_seconds=seconds, link=link, memory_bytes=1000, flash_bytes=1000)

    devices = (*(device(f"{slow}-{index}", 1.0) for index in range(3)), device(f"{fast}-0", 2.0))
    return Instance(shards=shards, devices=devices, network=Network(client=link), most_replicas=1, window=64)


def random_fleet(seed: int, *, layers: int, devices: int, types: int) -> Instance:
    """Return a large instance: layers that differ by 30, speeds by 10, flash and links that bind for some types."""
    draw = random.Random(seed)

    def spread(low: float, high: float) -> float:
        return math.exp(draw.uniform(math.log(low), math.log(high)))

    work = [spread(0.001, 0.03) for _ in range(layers)]
    weights = [round(spread(0.02, 2) * MIB) for _ in range(layers)]
    cuts = [round(spread(0.01, 0.5) * MIB) for _ in range(layers + 1)]
    shards = tuple(
        ShardCost(
            blobs={f"layer-{index}": size},
            peak_activation_bytes=cuts[index] + cuts[index + 1],
            received_bytes=cuts[index],
            sent_bytes=cuts[index + 1],
        )
        for index, size in enumerate(weights)
    )
    share = sum(weights) / devices
    kinds = []
    for _ in range(types):
        speed = spread(0.3, 3)
        kinds.append(
            DeviceCost(
                name="",
                shard_seconds=tuple(seconds / speed * draw.uniform(0.8, 1.25) for seconds in work),
                link=LinkCost(
                    up_bytes_per_second=spread(2e6, 1e8), down_bytes_per_second=spread(2e6, 1e8), latency_seconds=0.001
                ),
                memory_bytes=round(share * 100 + LARGE_WINDOW * MIB),
                flash_bytes=round(share * spread(0.8, 6)),
                session_seconds=0.0005,
                message_seconds=0.0005,
                message_seconds_per_byte=2e-9,
            )
        )
    every = [*range(types), *(draw.randrange(types) for _ in range(devices - types))]
    fleet = tuple(replace(kinds[type_], name=f"d{index}") for index, type_ in enumerate(every))
    return Instance(shards=shards, devices=fleet, network=Network(client=_FAST), most_replicas=1, window=LARGE_WINDOW)


_FAST = LinkCost(up_bytes_per_second=1e8, down_bytes_per_second=1e8, latency_seconds=0.001)


def split(instance: Instance, shares: Sequence[float]) -> float:
    """Return the time between results of layers handed out by shares, devices in order, room not asked for."""
    count, total = len(instance.shards), sum(shares)
    bounds = [round(count * sum(shares[:index]) / total) for index in range(len(shares) + 1)]
    placement = [
        Placed(first=first, stop=stop, devices=(device,))
        for device, first, stop in zip(instance.devices, bounds, bounds[1:], strict=False)
        if stop > first
    ]
    return result_seconds(instance, placement)


def _small(figures: dict[str, Figure]) -> None:
    worst = worst_latency = worst_renamed = worst_order = 1.0
    impossible = 0
    for seed in range(SMALL):
        instance = small_instance(seed)
        best = least_seconds(instance)
        worst = max(worst, ratio_to(best, instance, "throughput"))
        impossible += best == math.inf
        if seed % LATENCY_EVERY == 0:
            worst_latency = max(worst_latency, ratio_to(least_latency(instance), instance, "latency"))
        if seed % RENAMED_EVERY == 0 and best < math.inf:
            worst_renamed = max(worst_renamed, ratio_to(best, renamed(instance, seed), "throughput"))
            alone = replace(instance, most_replicas=1)
            least, ordered = least_seconds(alone), in_order(alone, by_type(alone))
            worst_order = max(worst_order, ordered / least if least and ordered < math.inf else 1.0)
    figures["instances"], figures["impossible"] = SMALL, impossible
    figures["worst_ratio_to_brute_force"] = worst
    figures["worst_latency_ratio"] = worst_latency
    figures["worst_change_renamed"] = worst_renamed
    figures["fixed_order_worst_ratio"] = worst_order


def _published(figures: dict[str, Figure]) -> None:
    first, second = slow_and_fast("a", "b"), slow_and_fast("b", "a")
    least = least_seconds(first)
    figures["fixed_order_3_slow_1_fast"] = in_order(first, by_type(first)) / least
    figures["fixed_order_renamed"] = in_order(second, by_type(second)) / least
    figures["planner_3_slow_1_fast"] = max(ratio_to(least, instance, "throughput") for instance in (first, second))


def _splits(figures: dict[str, Figure]) -> None:
    even: list[float] = []
    memory: list[float] = []
    for seed in range(SPLITS):
        draw = random.Random(seed)
        instance = random_fleet(seed, layers=draw.randint(20, 60), devices=draw.randint(3, 8), types=3)
        plan = planned(instance)
        if plan is not None:
            least = result_seconds(instance, placement_of(instance, plan))
            even.append(split(instance, [1.0] * len(instance.devices)) / least)
            memory.append(split(instance, [float(device.flash_bytes) for device in instance.devices]) / least)
    figures["even_split_ratio"] = statistics.median(even)
    figures["memory_split_ratio"] = statistics.median(memory)


def _large(figures: dict[str, Figure], *, layers: int, devices: int, types: int) -> None:
    name = f"{layers}x{devices}"
    seconds: list[float] = []
    gaps: list[float] = []
    for seed in range(SEEDS):
        say(f"planning {name}, fleet {seed + 1} of {SEEDS}")
        instance = random_fleet(seed, layers=layers, devices=devices, types=types)
        before = own_cpu_seconds()
        plan = planned(instance)
        seconds.append(own_cpu_seconds() - before)
        assert plan is not None
        assert math.isclose(period(instance, placement_of(instance, plan)), plan.bottleneck_seconds, rel_tol=1e-6)
        gaps.append(plan.gap)
    figures[f"seconds_{name}"], figures[f"gap_{name}"] = max(seconds), max(gaps)


def measure() -> dict[str, Figure]:
    """Take all figures."""
    figures: dict[str, Figure] = {}
    say(f"comparing {SMALL} small instances with brute force")
    _small(figures)
    _published(figures)
    say("comparing with simpler splits")
    _splits(figures)
    _large(figures, layers=200, devices=16, types=4)
    _large(figures, layers=1_000, devices=100, types=6)
    return figures


def main() -> None:
    """Print them."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main_of(__doc__, measure, KEYS)


if __name__ == "__main__":
    main()
