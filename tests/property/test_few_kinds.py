"""Plans in little time: what is planned for a few kinds fits the devices as they are, and its gap is no lie."""

from __future__ import annotations

import random

import pytest

from benchmarks.chain import chain_manifest
from edge.formats.plan import Objective, Plan
from host.planning.costs import DeviceCost, LinkCost, Workload
from host.planning.planner import plan_pipeline
from host.planning.price import memory_of
from host.planning.search.few_kinds import FEW_KINDS, MOST_KINDS, grouped, kind_count
from host.planning.settle import best_plan
from host.planning.workload import workload_of

_OBJECTIVES: tuple[Objective, ...] = ("throughput", "latency", "energy")


def chain(draw: random.Random, shards: int) -> Workload:
    return workload_of(chain_manifest([4 * draw.randrange(1000, 50_000) for _ in range(shards + 1)]))


def fleet(draw: random.Random, count: int, shards: int) -> list[DeviceCost]:
    """Devices of which no two are alike."""
    return [
        DeviceCost(
            name=f"pi-{number}",
            shard_seconds=tuple(draw.uniform(0.01, 0.1) for _ in range(shards)),
            link=LinkCost(
                up_bytes_per_second=draw.uniform(1e6, 1e7),
                down_bytes_per_second=draw.uniform(1e6, 1e7),
                latency_seconds=draw.uniform(0.0, 0.01),
            ),
            memory_bytes=draw.randrange(1 << 24, 1 << 25),
            flash_bytes=1 << 30,
            session_seconds=draw.uniform(0.0, 0.001),
            message_seconds=draw.uniform(0.0, 0.001),
            busy_watts=draw.uniform(1.0, 5.0),
        )
        for number in range(count)
    ]


def value(plan: Plan, objective: Objective) -> float:
    values = {"throughput": plan.bottleneck_seconds, "latency": plan.latency_seconds, "energy": plan.energy_joules}
    return values[objective]


@pytest.mark.parametrize("worst", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_a_group_is_as_bad_or_as_good_in_all_as_the_worst_or_best_of_it(seed: int, worst: bool) -> None:
    draw = random.Random(seed)
    devices = fleet(draw, 20, 3)
    made = grouped(devices, FEW_KINDS, worst=worst)
    assert [device.name for device in made] == [device.name for device in devices]
    assert kind_count(devices) == 20
    assert kind_count(made) <= FEW_KINDS
    for device, like in zip(devices, made, strict=True):
        bad, good = (like, device) if worst else (device, like)
        assert all(slow >= fast for slow, fast in zip(bad.shard_seconds, good.shard_seconds, strict=True))
        assert bad.link.up_bytes_per_second <= good.link.up_bytes_per_second
        assert bad.link.latency_seconds >= good.link.latency_seconds
        assert bad.memory_bytes <= good.memory_bytes
        assert bad.session_seconds >= good.session_seconds
        assert bad.busy_watts >= good.busy_watts


@pytest.mark.parametrize("objective", _OBJECTIVES)
@pytest.mark.parametrize("seed", range(3))
def test_a_hurried_plan_of_many_kinds_fits_and_is_no_further_from_the_best_than_it_says(
    seed: int, objective: Objective
) -> None:
    draw, shards = random.Random(seed), 4
    work, devices = chain(draw, shards), fleet(draw, MOST_KINDS + 2, shards)
    plan = best_plan(work, devices, objective=objective, window=4, seconds=1.5)
    room = {device.name: device.memory_bytes for device in devices}
    assert all(needed <= room[name] for name, needed in memory_of(plan.stages).items())
    taken_time = plan_pipeline(work, devices, objective=objective, window=4)
    assert value(plan, objective) <= value(taken_time, objective) * (1 + plan.gap) * (1 + 1e-9)


def test_many_different_devices_and_shards_get_a_plan_in_the_time_of_a_coordinator() -> None:
    draw = random.Random(3)
    work, devices = chain(draw, 60), fleet(draw, 60, 60)
    plan = best_plan(work, devices, objective="throughput", window=8, seconds=1.5)
    assert plan.stages[-1].stop_shard == 60
    assert plan.gap > 0


def test_with_time_enough_or_few_kinds_a_plan_is_the_best_one() -> None:
    draw = random.Random(4)
    work, devices = chain(draw, 5), fleet(draw, 6, 5)
    hurried = best_plan(work, devices, objective="throughput", window=8, seconds=1.5)
    assert hurried == best_plan(work, devices, objective="throughput", window=8)
    assert hurried.gap == 0


@pytest.mark.parametrize("seed", range(5))
def test_with_hardly_any_time_there_is_a_plan_where_there_is_one(seed: int) -> None:
    draw = random.Random(seed)
    work, devices = chain(draw, 6), fleet(draw, 8, 6)
    best = plan_pipeline(work, devices)
    plan = plan_pipeline(work, devices, seconds=1e-9)
    assert best.bottleneck_seconds <= plan.bottleneck_seconds * (1 + 1e-9)
    assert plan.bottleneck_seconds <= best.bottleneck_seconds * (1 + plan.gap) * (1 + 1e-9)
