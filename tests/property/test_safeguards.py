"""A plan outlives its devices: standbys, keepers, and what is said of each loss is what happens."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest

from edge.formats.bundle import Blob
from edge.formats.plan import Constraints, Deployment, Holding, Pin, Plan, decode_deployment, encode_deployment
from host.errors import PlanError
from host.planning.copies import at_risk
from host.planning.costs import DeviceCost, LinkCost, ShardCost, Workload
from host.planning.planner import plan_pipeline
from host.planning.replan import Aim, Situation, decide
from host.planning.safeguards import safeguarded
from host.planning.settle import bytes_to_move, held_with
from host.planning.standbys import with_standbys
from host.planning.survivors import Fleet, loaded_memory, plan_of_survivors, settled_in
from host.planning.swaps import plan_with_swaps

MB = 10**6
LINK = LinkCost(up_bytes_per_second=10e6, down_bytes_per_second=10e6, latency_seconds=0.001)
ALONE = Constraints(most_replicas=1)


def workload(*sizes: int) -> Workload:
    """Shards of these weights in MB."""
    return Workload(
        shards=tuple(
            ShardCost(blobs={f"w{i}": size * MB}, received_bytes=1000, sent_bytes=1000) for i, size in enumerate(sizes)
        )
    )


def device(name: str, *seconds: float, memory: int = 1000, disk: int = 1000) -> DeviceCost:
    return DeviceCost(
        name=name, shard_seconds=seconds, link=LINK, memory_bytes=memory * MB, flash_bytes=disk * MB, session_bytes=0
    )


WORK = workload(1, 1, 1, 1)
EVEN = (0.1, 0.1, 0.1, 0.1)


def fleet_of(*devices: DeviceCost, work: Workload = WORK, constraints: Constraints = ALONE) -> Fleet:
    return Fleet(workload=work, devices=devices, constraints=constraints)


def planned(fleet: Fleet, *, staying: bool = False) -> Plan:
    plan = plan_pipeline(fleet.workload, fleet.devices, window=fleet.window, constraints=fleet.constraints)
    return safeguarded(plan, fleet, staying=staying)


def fates(plan: Plan) -> dict[str, str]:
    return {loss.device: loss.then for loss in plan.losses}


# ---------------------------------------------------------------------------------------------------------- random
def random_fleet(seed: int) -> Fleet:
    rng = random.Random(seed)
    count, shards = rng.randint(1, 5), rng.randint(2, 6)
    work = workload(*(rng.randint(1, 8) for _ in range(shards)))
    names = [f"d{i}" for i in range(count)]
    devices = tuple(
        device(
            name,
            *(rng.choice((0.05, 0.1, 0.3)) for _ in range(shards)),
            memory=rng.choice((12, 25, 60)),
            disk=rng.choice((20, 40, 200)),
        )
        for name in names
    )
    constraints = Constraints(
        most_replicas=rng.choice((1, 2)),
        standbys=rng.choice((0, 1, 1, 2)),
        without=(rng.choice(names),) if count > 2 and rng.random() < 0.2 else (),
        forbidden=(Pin(layer=rng.randrange(shards), device=rng.choice(names)),) if rng.random() < 0.3 else (),
    )
    if rng.random() < 0.25 and not constraints.without and not constraints.forbidden:
        constraints = msgspec.structs.replace(constraints, pins=(Pin(layer=0, device=rng.choice(names)),))
    return fleet_of(*devices, work=work, constraints=constraints)


@pytest.mark.slow
def test_what_a_plan_says_of_each_loss_is_so_for_random_fleets() -> None:
    seen: dict[str, int] = {}
    for seed in range(250):
        fleet = random_fleet(seed)
        try:
            plan = planned(fleet, staying=bool(seed % 2))
        except PlanError:
            continue
        assert {loss.device for loss in plan.losses} == {name for stage in plan.stages for name in stage.runners}
        check_places(plan, fleet)
        for loss in plan.losses:
            seen[loss.then] = seen.get(loss.then, 0) + 1
            check_loss(plan, fleet, loss.device, loss.then)
    assert seen.keys() == {"replica", "standby", "replan", "move", "stops"}, "every fate occurs"


def check_places(plan: Plan, fleet: Fleet) -> None:
    """The plan can be sent, and has room for all that its devices load and keep."""
    manifest = Blob(digest="sha256:" + "0" * 64, size_bytes=1)
    value = Deployment(name="m", epoch="1-a-1", manifest=manifest, plan=plan, constraints=fleet.constraints)
    assert decode_deployment(encode_deployment(value)).plan == plan
    by_name = {one.name: one for one in fleet.devices}
    for name, size in loaded_memory(plan.stages).items():
        assert size <= by_name[name].memory_bytes
    sizes = {digest: size for shard in fleet.workload.shards for digest, size in shard.blobs.items()}
    for name, digests in held_with(plan, fleet.workload).items():
        assert sum(sizes[digest] for digest in digests) <= by_name[name].flash_bytes
    pinned = {pin.layer for pin in fleet.constraints.pins}
    for stage in plan.stages:
        assert len(stage.standbys) <= fleet.constraints.standbys
        assert not (stage.standbys and pinned & set(range(stage.first_shard, stage.stop_shard)))
        for name in (*stage.standbys, *stage.keepers):
            assert name not in fleet.constraints.without
            assert not any(
                pin.device == name and stage.first_shard <= pin.layer < stage.stop_shard
                for pin in fleet.constraints.forbidden
            )


def check_loss(plan: Plan, fleet: Fleet, lost: str, then: str) -> None:
    """The fate of a device is what is left without it."""
    left = [set(stage.devices) - {lost} for stage in plan.stages]
    runs = [set(stage.runners) - {lost} for stage in plan.stages]
    assert (then == "replica") == all(runs)
    assert not all(left) or then in ("replica", "standby")
    if then in ("replica", "standby"):
        assert all(left), "each stage has a device that has it loaded"
        return
    held = {one.name: one.held for one in settled_in(plan, fleet) if one.name != lost}
    if then in ("replan", "move"):
        after = plan_of_survivors(plan, lost, fleet)
        assert lost not in {name for stage in after.stages for name in stage.devices}
        assert (sum(bytes_to_move(after, fleet.workload, held).values()) == 0) == (then == "replan")


def test_losses_are_what_the_coordinator_then_decides() -> None:
    fleet = fleet_of(*(device(f"pi-{n}", *EVEN) for n in range(1, 5)))
    plan = planned(fleet)
    now = settled_in(plan, fleet)
    for loss in plan.losses:
        assert loss.then == "replan"
        here = [one for one in now if one.name != loss.device]
        found = decide(plan, WORK, Situation(devices=here), Aim(objective="throughput", constraints=ALONE))
        assert found.broken
        assert found.plan is not None
        assert found.moved_bytes == 0, "the survivors hold all that they need"
        assert found.plan.losses, "and what the next loss means is said anew"


def test_where_nothing_answers_devices_swap_rather_than_wait_for_memory() -> None:
    work = workload(5, 5)
    fleet = fleet_of(*(device(f"pi-{n}", 0.1, 0.1, memory=11) for n in (1, 2)), work=work)
    plan = planned(fleet)
    assert fates(plan) == {"pi-1": "replan", "pi-2": "replan"}
    left = [one for one in settled_in(plan, fleet) if one.name == "pi-2"]
    found = decide(plan, work, Situation(devices=left), Aim(objective="throughput", constraints=ALONE))
    assert found.plan is not None
    assert [stage.swaps for stage in found.plan.stages] == [("pi-2",)]
    assert found.plan.pause_seconds > 0


# -------------------------------------------------------------------------------------------------------- standbys
def test_each_stage_has_a_standby_that_is_not_its_own_device() -> None:
    fleet = fleet_of(*(device(f"pi-{n}", *EVEN) for n in (1, 2)), constraints=Constraints(most_replicas=1, standbys=1))
    plan = planned(fleet)
    assert [(stage.device, stage.standbys) for stage in plan.stages] == [("pi-1", ("pi-2",)), ("pi-2", ("pi-1",))]
    assert fates(plan) == {"pi-1": "standby", "pi-2": "standby"}


def test_a_device_that_runs_nothing_stands_by_first_and_the_load_is_spread() -> None:
    devices = [
        device("pi-1", *EVEN),
        device("pi-2", *EVEN),
        device("spare-1", *[9.0] * 4),
        device("spare-2", *[9.0] * 4),
    ]
    plan = plan_pipeline(WORK, devices, constraints=ALONE)
    found = with_standbys(plan, WORK, devices, constraints=Constraints(standbys=1))
    assert sorted(name for stage in found.stages for name in stage.standbys) == ["spare-1", "spare-2"]


def test_who_held_a_stage_before_stands_by_for_it_again() -> None:
    devices = [device("pi-1", *EVEN), device("pi-2", *EVEN), device("a", *[9.0] * 4)]
    devices.append(replace(device("b", *[9.0] * 4), held=frozenset({"w0", "w1"})))
    plan = plan_pipeline(WORK, devices, constraints=ALONE)
    assert with_standbys(plan, WORK, devices, constraints=Constraints(standbys=1)).stages[0].standbys == ("b",)


def test_a_standby_that_dies_is_replaced_and_one_that_nobody_can_replace_changes_nothing() -> None:
    limits = Constraints(most_replicas=1, standbys=1)
    devices = [device("pi-1", *EVEN), device("pi-2", *EVEN), device("a", *[9.0] * 4), device("b", *[9.0] * 4)]
    fleet = fleet_of(*devices, constraints=limits)
    plan = planned(fleet)
    dead = plan.stages[0].standbys[0]
    here = [one for one in settled_in(plan, fleet) if one.name != dead]
    aim = Aim(objective="throughput", constraints=limits)
    found = decide(plan, WORK, Situation(devices=here), aim)
    assert found.plan is not None
    assert found.reason.startswith("a standby of stage 0 is away")
    assert all(stage.standbys for stage in found.plan.stages)
    full = [replace(one, memory_bytes=2 * MB + 20_000) for one in here]
    assert decide(plan, WORK, Situation(devices=full), aim).plan is None


def test_a_stage_for_which_nobody_has_memory_has_no_standby() -> None:
    work = workload(10, 2)
    devices = [device("big", 0.1, 9.0, memory=12), device("small", 9.0, 0.1, memory=4)]
    plan = plan_pipeline(work, devices, window=1, constraints=ALONE)
    found = with_standbys(plan, work, devices, constraints=Constraints(standbys=1))
    assert [stage.standbys for stage in found.stages] == [(), ()]


# --------------------------------------------------------------------------------------------------------- keepers
def test_every_stage_is_on_two_disks_where_there_are_two() -> None:
    for count in (2, 3, 6):
        plan = planned(fleet_of(*(device(f"pi-{n}", *EVEN) for n in range(count))))
        assert all(len({*stage.devices, *stage.keepers}) > 1 for stage in plan.stages)


def test_a_large_fleet_keeps_each_stage_once_more_and_says_nothing_of_losses_that_it_did_not_work_out() -> None:
    work = workload(*[1] * 30)
    fleet = fleet_of(*(device(f"pi-{n:02}", *[0.1] * 30) for n in range(30)), work=work)
    plan = planned(fleet)
    assert all(len(stage.keepers) == 1 for stage in plan.stages)
    kept = [name for stage in plan.stages for name in stage.keepers]
    assert len(kept) == len(set(kept)), "spread evenly"
    assert plan.losses == ()


def test_without_disk_for_a_copy_a_loss_stops_it() -> None:
    devices = [device(name, *EVEN, disk=2) for name in ("pi-1", "pi-2")]
    plan = planned(fleet_of(*devices))
    assert not any(stage.keepers for stage in plan.stages)
    assert fates(plan) == {"pi-1": "stops", "pi-2": "stops"}


def test_the_loss_of_a_device_with_a_pinned_layer_stops_it() -> None:
    constraints = Constraints(most_replicas=1, standbys=1, pins=(Pin(layer=0, device="cam"),))
    plan = planned(
        fleet_of(device("cam", *EVEN), device("pi-1", *EVEN), device("pi-2", *EVEN), constraints=constraints)
    )
    lost = {loss.device: loss for loss in plan.losses}
    assert (lost["cam"].then, lost["cam"].reason) == ("stops", "layers are pinned to it")
    assert plan.stages[0].device == "cam"
    assert not plan.stages[0].standbys


# ---------------------------------------------------------------------------------------------------------- copies
def test_who_alone_holds_a_shard_is_named() -> None:
    plan = plan_pipeline(WORK, [device("pi-1", *EVEN), device("pi-2", *EVEN)], constraints=ALONE)
    everybody = {"pi-1", "pi-2", "host"}
    assert at_risk(plan, (), everybody) == ("pi-1", "pi-2")
    kept = Holding(node="pi-2", first_shard=0, stop_shard=2)
    assert at_risk(plan, (kept,), everybody) == ("pi-2",)
    whole = Holding(node="host", first_shard=0, stop_shard=4)
    assert at_risk(plan, (kept, whole), everybody) == ()
    assert at_risk(plan, (kept, whole), {"pi-1", "pi-2"}) == ("pi-2",)
    assert at_risk(plan, (whole,), {"host"}) == ("host",)


# ----------------------------------------------------------------------------------------------------------- swaps
def test_a_device_without_room_for_both_swaps_and_the_pause_is_told() -> None:
    work = workload(5, 5)
    full = [device("pi-1", 0.1, 9.0, memory=8), device("pi-2", 9.0, 0.1, memory=20)]

    def plan_on(devices: object) -> Plan:
        return plan_pipeline(work, devices, window=1, constraints=ALONE)  # type: ignore[arg-type]  # as they are given

    serving = plan_with_swaps(plan_on, full, serving=None)
    assert not any(stage.swaps for stage in serving.stages)
    taken = loaded_memory(serving.stages)
    beside = [replace(one, memory_bytes=one.memory_bytes - taken[one.name]) for one in full]
    tight = [replace(one, memory_bytes=min(one.memory_bytes, 3 * MB)) for one in beside]
    found = plan_with_swaps(plan_on, tight, serving=serving)
    assert [stage.swaps for stage in found.stages] == [("pi-1",), ("pi-2",)]
    assert found.pause_seconds == pytest.approx(0.6 + found.latency_seconds, abs=0.02)
    slow = plan_with_swaps(plan_on, tight, serving=serving, load_rates={"pi-1": 1e6})
    assert slow.pause_seconds > 5
    room = plan_with_swaps(plan_on, beside, serving=serving)
    assert [name for stage in room.stages for name in stage.runners] == ["pi-2"]
    assert not room.pause_seconds, "a plan without a pause comes first"
    with pytest.raises(PlanError):
        plan_with_swaps(plan_on, tight, serving=None)
