"""Whether a plan is replaced: never for noise, only when it pays, and moving as little as can be."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.formats.plan import Constraints, Plan, Stage
from edge.formats.speed import StageLoad
from host.planning.costs import DeviceCost, LinkCost, ShardCost, Workload
from host.planning.planner import plan_pipeline
from host.planning.replan import (
    BAND,
    LEAST_FRAMES,
    Aim,
    Situation,
    believed,
    decide,
    measured_slowness,
    shared_slowness,
)
from host.planning.search.matching import least_assignment
from host.planning.settle import best_plan, bytes_to_move, held_with, settle
from host.planning.standing import run_seconds, slowed, standing_of

LINK = LinkCost(up_bytes_per_second=10e6, down_bytes_per_second=10e6, latency_seconds=0.001)
ALONE = Constraints(most_replicas=1)
AIM = Aim(objective="throughput", constraints=ALONE)


def workload(*sizes: int) -> Workload:
    """Shards of these weights in MB, with small tensors between them."""
    return Workload(
        shards=tuple(
            ShardCost(blobs={f"w{i}": size * 10**6}, received_bytes=1000, sent_bytes=1000)
            for i, size in enumerate(sizes)
        )
    )


def device(name: str, *seconds: float, held: frozenset[str] = frozenset()) -> DeviceCost:
    return DeviceCost(name=name, shard_seconds=seconds, link=LINK, memory_bytes=10**9, flash_bytes=10**9, held=held)


WORK = workload(1, 1, 1, 1)
EVEN = (0.1, 0.1, 0.1, 0.1)


def plan_on(devices: Sequence[DeviceCost], work: Workload = WORK, constraints: Constraints = ALONE) -> Plan:
    return plan_pipeline(work, devices, objective="throughput", constraints=constraints)


def users(plan: Plan) -> set[str]:
    return {name for stage in plan.stages for name in stage.runners}


# --------------------------------------------------------------------------------------------------- when to replan
@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.9, 1.1), min_size=8, max_size=40))
def test_noise_of_ten_per_cent_never_replans(noises: list[float]) -> None:
    devices = [device("pi-1", *EVEN), device("pi-2", *EVEN)]
    plan = plan_on(devices)
    known = {"pi-1": 1.0, "pi-2": 1.0}
    for at, noise in enumerate(noises):
        name = f"pi-{1 + at % 2}"
        known[name] = believed(known[name], noise)
        assert decide(plan, WORK, Situation(devices=devices, slowness=known), AIM).plan is None


@settings(max_examples=60, deadline=None)
@given(st.floats(0.5, 4.0), st.lists(st.floats(0.9, 1.1), min_size=4, max_size=40))
def test_a_steady_factor_with_noise_is_believed_once_and_kept(truth: float, noises: list[float]) -> None:
    factor, changes = 1.0, 0
    for noise in noises:
        after = believed(factor, truth * noise)
        changes += after != factor
        factor = after
    assert changes <= 1
    assert 1 / BAND**2 <= factor / truth <= BAND**2


def test_a_device_twice_as_slow_as_predicted_gets_less_if_it_pays() -> None:
    devices = [device("pi-1", *EVEN), device("pi-2", *EVEN)]
    plan = plan_on(devices)
    slow = plan.stages[0].device
    found = decide(plan, WORK, Situation(devices=devices, slowness={slow: 2.0}), AIM)
    assert found.plan is not None
    shards = {stage.device: stage.stop_shard - stage.first_shard for stage in found.plan.stages}
    assert shards[slow] == 1
    assert found.gain == pytest.approx(0.25, abs=0.01), "three shards of 0.1 s instead of two of 0.2 s"
    assert found.moved_bytes == 10**6
    assert "instead of" in found.reason

    short = decide(plan, WORK, Situation(devices=devices, slowness={slow: 2.0}), replace(AIM, horizon_seconds=5.0))
    assert short.plan is None
    assert short.reason.startswith("another plan does not pay: ")


def test_a_fast_device_that_joins_is_used_and_a_useless_one_is_not() -> None:
    devices = [device("pi-1", *EVEN), device("pi-2", *EVEN)]
    plan = plan_on(devices)
    useless = decide(plan, WORK, Situation(devices=[*devices, device("pi-3", *(10 * s for s in EVEN))]), AIM)
    assert useless.plan is None
    assert useless.reason.startswith("the plan is still the best")
    fast = decide(plan, WORK, Situation(devices=[*devices, device("pi-3", *(0.1 * s for s in EVEN))]), AIM)
    assert fast.plan is not None
    assert "pi-3" in users(fast.plan)


def test_a_small_gain_is_not_worth_a_change() -> None:
    devices = [device("pi-1", *EVEN), device("pi-2", *EVEN)]
    plan = plan_on(devices)
    found = decide(plan, WORK, Situation(devices=[*devices, device("pi-3", *(0.95 * s for s in EVEN))]), AIM)
    better = decide(plan, WORK, Situation(devices=[*devices, device("pi-3", *(0.9 * s for s in EVEN))]), AIM)
    for decision in (found, better):
        if decision.plan is None:
            assert decision.gain < 0.15
        else:
            assert decision.gain >= 0.15


def test_a_plan_without_a_device_is_replaced_whatever_it_costs_or_left_when_nothing_fits() -> None:
    devices = [device("pi-1", *EVEN), device("pi-2", *EVEN)]
    plan = plan_on(devices)
    left = [one for one in devices if one.name != plan.stages[0].device]
    found = decide(plan, WORK, Situation(devices=left), replace(AIM, horizon_seconds=0.0))
    assert found.broken
    assert found.plan is not None
    assert users(found.plan) == {left[0].name}
    small = [replace(left[0], memory_bytes=10**6)]
    nothing = decide(plan, WORK, Situation(devices=small), AIM)
    assert nothing.broken
    assert nothing.plan is None
    assert "no plan fits" in nothing.reason
    barred = decide(plan, WORK, Situation(devices=left, barred=[left[0].name]), AIM)
    assert barred.reason == "no device is here that can take part"


def test_a_plan_with_a_replica_that_is_away_is_replaced_by_one_that_is_no_worse() -> None:
    devices = [device("pi-1", *EVEN), device("pi-2", *EVEN)]
    plan = plan_on(devices, constraints=Constraints())
    assert [stage.replicas for stage in plan.stages] == [("pi-2",)]
    aim = replace(AIM, constraints=None)
    found = decide(plan, WORK, Situation(devices=devices[:1]), aim)
    assert found.plan is not None
    assert not found.broken
    assert users(found.plan) == {"pi-1"}
    assert (found.moved_bytes, found.gain) == (0, 0.0)
    assert found.reason.startswith("a replica is away; ")
    back = decide(found.plan, WORK, Situation(devices=devices), aim)
    assert back.plan is not None
    assert users(back.plan) == {"pi-1", "pi-2"}


def test_measured_times_count_after_enough_frames_and_only_when_sane() -> None:
    one = device("pi-1", *EVEN)
    stage = plan_on([one]).stages[0]

    def load(frames: int, seconds: float) -> StageLoad:
        return StageLoad(deployment="n", epoch="1-a-1", stage=0, frames=frames, run_seconds=seconds, queued_seconds=0.0)

    assert measured_slowness([(stage, load(LEAST_FRAMES - 1, 0.8))], one) is None
    assert measured_slowness([(stage, load(LEAST_FRAMES, 0.8))], one) == pytest.approx(2.0)
    for absurd in (float("nan"), float("inf"), -1.0, 0.0, 1e300):
        assert measured_slowness([(stage, load(LEAST_FRAMES, absurd))], one) is None


def test_a_device_of_two_stages_is_as_slow_as_both_together() -> None:
    one = device("pi-1", *EVEN)
    short, long = (Stage(index=at, device="pi-1", first_shard=at, stop_shard=at + 1 + 2 * at) for at in (0, 1))

    def load(stage: Stage, seconds: float, frames: int = LEAST_FRAMES) -> tuple[Stage, StageLoad]:
        found = StageLoad(
            deployment="n", epoch="1-a-1", stage=stage.index, frames=frames, run_seconds=seconds, queued_seconds=0.0
        )
        return stage, found

    stages = [load(short, 0.5), load(long, 0.3)]
    assert measured_slowness(stages, one) == measured_slowness(stages[::-1], one) == pytest.approx(2.0)
    assert measured_slowness([load(short, 0.5, frames=1), load(long, 0.3)], one) == pytest.approx(1.0)
    assert measured_slowness([], one) is None


def test_a_slow_processor_is_slow_for_messages_too() -> None:
    one = replace(device("pi-1", *EVEN), message_seconds=0.2, message_seconds_per_byte=1e-5, session_seconds=0.1)
    plan = plan_on([one])
    before, after = (standing_of(plan, WORK, {"pi-1": slowed(one, factor)}, window=8) for factor in (1.0, 3.0))
    assert before is not None
    assert after is not None
    assert after.bottleneck_seconds == pytest.approx(3 * before.bottleneck_seconds)


def test_every_device_gets_a_stage_where_that_was_asked_for_whatever_it_gains() -> None:
    devices = [device("pi-1", *EVEN), device("pi-2", *(9 * s for s in EVEN))]
    plan = plan_on(devices[:1])
    aim = replace(AIM, constraints=Constraints(use_all=True), horizon_seconds=0.0)
    found = decide(plan, WORK, Situation(devices=devices), aim)
    assert found.plan is not None
    assert users(found.plan) == {"pi-1", "pi-2"}
    assert found.gain < 0
    assert found.reason.startswith("every device must have a stage, and pi-2 has none; ")
    assert decide(found.plan, WORK, Situation(devices=devices), aim).plan is None
    assert decide(plan, WORK, Situation(devices=devices, barred=["pi-2"]), aim).plan is None
    assert decide(plan, WORK, Situation(devices=devices), replace(aim, constraints=ALONE)).plan is None


def test_a_few_requests_in_flight_are_what_a_plan_is_worth() -> None:
    devices = [device("pi-1", *EVEN), device("pi-2", *EVEN)]
    costs = {one.name: one for one in devices}
    alone, many = (standing_of(plan_on(devices), WORK, costs, window=window) for window in (1, 8))
    assert alone is not None
    assert many is not None
    assert alone.of("throughput") == alone.latency_seconds > 0.4
    assert many.of("throughput") == many.bottleneck_seconds == pytest.approx(0.2)


# --------------------------------------------------------------------------------------- replicas that differ by now
def shared(*names: str) -> Plan:
    """One stage of everything, on these devices in turn."""
    stage = Stage(index=0, device=names[0], replicas=names[1:], first_shard=0, stop_shard=4)
    return Plan(objective="throughput", stages=(stage,), bottleneck_seconds=0, latency_seconds=0, binds="")


@settings(max_examples=40, deadline=None)
@given(st.permutations([1.0, 2.0, 10.0]), st.integers(1, 3))
def test_the_rate_of_a_stage_is_the_sum_of_its_runners_rates(factors: list[float], count: int) -> None:
    costs = {f"d{at}": slowed(device(f"d{at}", *EVEN), factor) for at, factor in enumerate(factors[:count])}
    standing = standing_of(shared(*costs), WORK, costs, window=100)
    assert standing is not None
    rates = [1 / sum(cost.shard_seconds) for cost in costs.values()]
    assert standing.bottleneck_seconds == pytest.approx(1 / sum(rates))
    hops = standing.latency_seconds - count / sum(rates)  # what is left of the mean over all requests
    assert 2 * LINK.latency_seconds < hops < 0.004
    turned = standing_of(shared(*reversed(costs)), WORK, costs, window=100)
    assert turned is not None
    assert turned.bottleneck_seconds == pytest.approx(standing.bottleneck_seconds)
    assert turned.latency_seconds == pytest.approx(standing.latency_seconds)


def test_who_has_a_slow_link_takes_what_it_lets_through() -> None:
    thin = replace(LINK, up_bytes_per_second=1000.0)  # a result a second
    costs = {"a": device("a", *EVEN), "b": replace(device("b", *EVEN), link=thin)}
    standing = standing_of(shared("a", "b"), WORK, costs, window=1000)
    assert standing is not None
    assert standing.bottleneck_seconds == pytest.approx(1 / (1 / 0.4 + 1))


def test_a_replica_that_is_slow_now_is_no_reason_for_a_plan_that_is_slower() -> None:
    devices = [replace(device(f"pi-{at}", *EVEN), message_seconds=0.05) for at in range(3)]
    plan = shared("pi-0", "pi-1", "pi-2")
    aim = replace(AIM, constraints=None)
    for factor in (2.0, 3.0, 5.0, 10.0):
        found = decide(plan, WORK, Situation(devices=devices, slowness={"pi-0": factor}), aim)
        assert found.plan is None, found.reason


def test_two_devices_that_miss_their_prediction_alike_say_that_the_prediction_is_wrong() -> None:
    fleet = [device(f"pi-{i}", *EVEN) for i in range(4)]
    assert "pi-3" not in shared_slowness(fleet, {"pi-0": 2.0})
    assert shared_slowness(fleet, {"pi-0": 2.0, "pi-1": 2.1})["pi-3"] == 2.0
    other = device("x", *(2 * s for s in EVEN))
    assert "x" not in shared_slowness([*fleet, other], {"pi-0": 2.0, "pi-1": 2.1})


# ------------------------------------------------------------------------------------------------------ how to move
instances = st.integers(0, 2**32 - 1).map(random.Random)


def _instance(draw: random.Random) -> tuple[Workload, list[DeviceCost], Plan]:
    shards = draw.randint(1, 4)
    work = workload(*(draw.randint(1, 9) for _ in range(shards)))
    kinds = [tuple(draw.choice((0.1, 0.2, 0.4)) for _ in range(shards)) for _ in range(2)]
    names = [f"d{i}" for i in range(draw.randint(1, 5))]
    fleet = [
        device(name, *draw.choice(kinds), held=frozenset(f"w{i}" for i in range(shards) if draw.random() < 0.4))
        for name in names
    ]
    return work, fleet, plan_on(fleet, work, Constraints(most_replicas=draw.choice((1, 4))))


@settings(max_examples=80, deadline=None)
@given(instances)
def test_names_within_a_kind_are_dealt_out_so_that_the_fewest_bytes_move(draw: random.Random) -> None:
    work, fleet, plan = _instance(draw)
    held = {one.name: one.held for one in fleet}
    settled = settle(plan, work, fleet, held=held)
    kinds = {one.name: one.shard_seconds for one in fleet}
    places = [(stage, name) for stage in plan.stages for name in stage.runners]
    least = min(
        sum(_bytes(work, stage, held[name]) for (stage, _), name in zip(places, names, strict=True))
        for names in itertools.permutations(kinds, len(places))
        if all(kinds[name] == kinds[before] for (_, before), name in zip(places, names, strict=True))
    )
    assert sum(bytes_to_move(settled, work, held).values()) == least
    assert users(settled) | {left.device for left in settled.left_out} <= set(kinds)
    assert len(users(settled)) == len(users(plan))
    costs = {one.name: one for one in fleet}
    assert standing_of(settled, work, costs, window=8) == standing_of(plan, work, costs, window=8)


def _bytes(work: Workload, stage: Stage, held: frozenset[str]) -> int:
    blobs: dict[str, int] = {}
    for shard in work.shards[stage.first_shard : stage.stop_shard]:
        blobs.update(shard.blobs)
    return sum(size for digest, size in blobs.items() if digest not in held)


@settings(max_examples=60, deadline=None)
@given(instances)
def test_an_assignment_is_the_cheapest_of_all(draw: random.Random) -> None:
    rows = draw.randint(1, 4)
    columns = draw.randint(rows, 5)
    cost = np.array([[float(draw.randint(0, 9)) for _ in range(columns)] for _ in range(rows)])
    found = least_assignment(cost)
    assert len(set(found)) == rows
    least = min(
        sum(cost[row, column] for row, column in enumerate(chosen))
        for chosen in itertools.permutations(range(columns), rows)
    )
    assert sum(cost[row, column] for row, column in enumerate(found)) == least


@settings(max_examples=50, deadline=None)
@given(instances)
def test_the_same_is_decided_under_every_renaming_and_order(draw: random.Random) -> None:
    work, fleet, plan = _instance(draw)
    slowness = {one.name: draw.choice((1.0, 1.0, 2.0, 5.0)) for one in fleet}
    away = draw.choice([None, *users(plan)])
    here = [one for one in fleet if one.name != away]
    names = [one.name for one in fleet]
    new = dict(zip(names, draw.sample([f"z{i}" for i in range(9)], len(names)), strict=True))
    renamed = msgspec.structs.replace(
        plan,
        stages=tuple(
            msgspec.structs.replace(s, device=new[s.device], replicas=tuple(new[r] for r in s.replicas))
            for s in plan.stages
        ),
    )
    shuffled = draw.sample([replace(one, name=new[one.name]) for one in here], len(here))
    a = decide(plan, work, Situation(devices=here, slowness=slowness), AIM)
    b = decide(renamed, work, Situation(devices=shuffled, slowness={new[n]: f for n, f in slowness.items()}), AIM)
    assert (a.plan is None) == (b.plan is None), (a, b)
    assert (a.broken, a.moved_bytes) == (b.broken, b.moved_bytes)
    assert a.gain == pytest.approx(b.gain)


@settings(max_examples=50, deadline=None)
@given(instances)
def test_what_was_decided_is_decided_no_second_time(draw: random.Random) -> None:
    work, fleet, plan = _instance(draw)
    slowness = {one.name: draw.choice((1.0, 2.0, 5.0)) for one in fleet}
    situation = Situation(devices=fleet, slowness=slowness)
    first = decide(plan, work, situation, AIM)
    if first.plan is not None:
        assert decide(first.plan, work, situation, AIM).plan is None


def test_the_current_cuts_are_kept_where_another_plan_is_no_better() -> None:
    work = workload(50, 1, 1, 50)
    current = plan_on([device("a", 0.1, 0.1, 0.1, 0.1), device("b", 0.1, 0.1, 0.1, 0.1)], work)
    assert [stage.stop_shard for stage in current.stages] == [2, 4]
    # Of these two plans, 3 + 1 and 2 + 2, none is better by more than a hundredth; one of them moves nothing.
    fleet = [
        device("a", 0.1, 0.1, 0.1005, 0.1),
        device("b", 0.1, 0.1, 0.1, 0.1),
    ]
    kept = best_plan(work, fleet, objective="throughput", window=8, constraints=ALONE, current=current)
    assert sum(bytes_to_move(kept, work, held_with(current, work)).values()) == 0


def test_a_spare_takes_the_stage_of_a_device_that_left() -> None:
    work = workload(9, 9, 9, 9)
    fleet = [device(name, *EVEN) for name in ("a", "b", "c")]
    current = plan_on(fleet[:2], work)
    gone = current.stages[1].device
    found = decide(current, work, Situation(devices=[one for one in fleet if one.name != gone]), AIM)
    assert found.plan is not None
    assert found.moved_bytes == 18 * 10**6, "what stays where it is does not move"
    assert found.plan.stages[0].device == current.stages[0].device


def test_the_standing_of_a_fresh_plan_is_what_its_planner_says() -> None:
    draw = random.Random(7)
    for _ in range(100):
        work, fleet, plan = _instance(draw)
        standing = standing_of(plan, work, {one.name: one for one in fleet}, window=8)
        assert standing is not None
        assert standing.bottleneck_seconds == pytest.approx(plan.bottleneck_seconds, rel=0.05)
        assert all(
            run_seconds(stage, slowed(fleet[0], 2.0)) == 2 * run_seconds(stage, fleet[0]) for stage in plan.stages
        )
