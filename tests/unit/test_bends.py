"""One device before and after branches side by side, and the links that these share there."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from edge.formats.bundle import Blob
from edge.formats.plan import Constraints, Deployment, Objective, Pin, Plan, decode_deployment, encode_deployment
from host.planning.costs import DeviceCost, Network, PairLink, Section, Workload
from host.planning.explain import figures_of
from host.planning.planner import plan_pipeline
from host.planning.price import memory_of, plan_loads, price_plan
from host.planning.schedule import Resource, in_order, loads_of, timetable
from host.planning.search import bends
from host.planning.settle import bytes_to_move, settle
from host.planning.standing import standing_of
from tests.plans import MBIT, device, link, workload

MANIFEST = Blob(digest="sha256:" + "0" * 64, size_bytes=1)
NETWORK = Network(client=link(latency=0.001))
ALONE = Constraints(most_replicas=1)
TABLE = ((0, 2000, 3000), (0, 0, 1000), (0, 0, 0))
SECTION = Section(bounds=(1, 2, 3), received=TABLE, sent=TABLE)


def forked(*, weight_bytes: int = 1000, section: Section = SECTION) -> Workload:
    """Shards 1 and 2 may run side by side."""
    return replace(workload(4000, 3000, 3000, 3000, 500, weight_bytes=weight_bytes), sections=(section,))


def fleet(count: int, **other: float) -> list[DeviceCost]:
    """Devices for which the branches are nearly all of the work."""
    made = [device(f"d{index}", 0.01, 0.1, 0.1, 0.02, latency=0.001) for index in range(count)]
    return [replace(on, **{name: type(getattr(on, name))(value) for name, value in other.items()}) for on in made]


def planned(devices: list[DeviceCost], objective: Objective = "latency", **other: Constraints | Network) -> Plan:
    constraints, network = other.get("constraints", ALONE), other.get("network", NETWORK)
    assert isinstance(constraints, Constraints)
    assert isinstance(network, Network)
    return plan_pipeline(forked(), devices, objective=objective, window=2, network=network, constraints=constraints)


def is_bent(plan: Plan) -> bool:
    return [stage.beside for stage in plan.stages] == [False, False, True, False] and (
        plan.stages[0].device == plan.stages[3].device
    )


def test_a_plan_of_one_two_and_one_stages_needs_three_devices() -> None:
    plan = planned(fleet(3))
    assert is_bent(plan)
    assert [stage.index for stage in plan.stages] == [0, 1, 2, 3]
    assert [stage.predicted_seconds for stage in plan.stages] == [0.01, 0.1, 0.1, 0.02]
    assert len({stage.device for stage in plan.stages}) == 3
    # Weights, two requests in, one out.
    assert [stage.memory_bytes for stage in plan.stages] == [12000, 7000, 4000, 7500]


def test_a_deployment_may_say_so() -> None:
    value = Deployment(name="m", epoch="1-a-1", manifest=MANIFEST, plan=planned(fleet(3)))
    assert decode_deployment(encode_deployment(value)) == value


def test_without_branches_side_by_side_there_is_none() -> None:
    plan = planned(fleet(3), constraints=Constraints(side_by_side=False, most_replicas=1))
    assert len({stage.device for stage in plan.stages}) == len(plan.stages)


def test_its_device_computes_sends_and_receives_for_both_stages() -> None:
    devices = fleet(3, busy_watts=5.0)
    plan = planned(devices)
    loads = {load.what: load.seconds for load in plan_loads(plan, forked(), devices, NETWORK)}
    both = plan.stages[0].device
    rate = devices[0].link.up_bytes_per_second
    assert loads[f"compute of {both}"] == pytest.approx(0.03)
    assert loads[f"uplink of {both}"] == pytest.approx((3000 + 500) / rate)
    assert loads[f"downlink of {both}"] == pytest.approx((4000 + 3000) / rate)
    assert plan.energy_joules == pytest.approx(5 * 0.23)
    assert memory_of(plan.stages)[both] == 12000 + 7500


def test_its_device_has_room_for_both_stages() -> None:
    assert is_bent(planned(fleet(3, memory_bytes=19500)))
    assert not is_bent(planned(fleet(4, memory_bytes=19499)))
    assert is_bent(planned(fleet(3, memory_bytes=19500 + 2 * 50, session_bytes=50)))
    assert not is_bent(planned(fleet(4, memory_bytes=19500 + 2 * 50 - 1, session_bytes=50)))


def test_a_blob_of_both_stages_is_on_its_disk_once() -> None:
    shared = forked()
    shards = [replace(shard, blobs={"tied": 1000}) for shard in (shared.shards[0], shared.shards[3])]
    shared = replace(shared, shards=(shards[0], *shared.shards[1:3], shards[1]))
    for work, flash, bent in ((shared, 1000, True), (forked(), 2000, True), (forked(), 1999, False)):
        plan = plan_pipeline(
            work, fleet(4, flash_bytes=flash), objective="latency", window=2, network=NETWORK, constraints=ALONE
        )
        assert (len({stage.device for stage in plan.stages}) < len(plan.stages)) == bent


def test_a_pin_and_what_is_forbidden_hold_for_both_stages() -> None:
    pinned = Constraints(pins=(Pin(layer=3, device="d1"),), most_replicas=1)
    assert {planned(fleet(3), constraints=pinned).stages[place].device for place in (0, 3)} == {"d1"}
    apart = Constraints(pins=(Pin(layer=0, device="d0"), Pin(layer=3, device="d1")), most_replicas=1)
    assert not is_bent(planned(fleet(4), constraints=apart))
    for layer in (0, 3):
        barred = tuple(Pin(layer=layer, device=f"d{index}") for index in range(1, 3))
        assert planned(fleet(3), constraints=Constraints(forbidden=barred)).stages[0].device == "d0"


def test_neither_of_its_stages_is_shared() -> None:
    plan = planned(fleet(6), "throughput", constraints=Constraints(most_replicas=4))
    twice = [stage for stage in plan.stages if sum(stage.device == other.device for other in plan.stages) > 1]
    assert all(not stage.replicas for stage in twice)


def test_a_device_with_a_link_of_its_own_does_not_bend() -> None:
    pairs = {("d0", "d1"): PairLink(bytes_per_second=100 * MBIT, latency_seconds=0.001)}
    between = Network(client=NETWORK.client, pairs=pairs)
    assert planned(fleet(3), network=between).stages[0].device == "d2"


def test_where_bends_would_be_too_many_none_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bends, "MAX_BENT_WORK", 0)
    plan = planned(fleet(4))
    assert [stage.beside for stage in plan.stages] == [False, False, True, False]
    assert not is_bent(plan)


def test_who_takes_the_place_of_its_device_has_both_stages() -> None:
    plan = planned(fleet(4))
    first = plan.stages[0].device
    spare = next(name for name in ("d0", "d1", "d2", "d3") if name not in memory_of(plan.stages))
    held = {spare: frozenset({"shard 0", "shard 3"})}
    moved = settle(plan, forked(), fleet(4), held=held)
    assert {moved.stages[place].device for place in (0, 3)} == {spare}
    assert first != spare
    assert bytes_to_move(moved, forked(), held)[spare] == 0
    assert bytes_to_move(moved, forked(), {})[spare] == 2000


def test_what_is_said_of_a_plan_counts_its_device_once_and_all_of_its_memory() -> None:
    devices = fleet(3, memory_bytes=39000)
    plan, by_name = planned(devices), {on.name: on for on in devices}
    assert figures_of(plan, by_name, 8).devices == 3
    assert figures_of(plan, by_name, 8).memory_share == pytest.approx(0.5)
    standing = standing_of(plan, forked(), by_name, window=2, network=NETWORK)
    assert standing is not None
    assert standing.memory_share == pytest.approx(0.5)
    fullest = price_plan(forked(), devices, plan.stages, objective="memory", window=2, network=NETWORK)
    assert fullest.binds == f"memory of {plan.stages[0].device}"


def test_a_timetable_has_both_of_its_stages_on_one_processor() -> None:
    devices = fleet(3)
    plan, by_name = planned(devices), {on.name: on for on in devices}
    loads = loads_of(plan, by_name, NETWORK)
    assert max(loads.values()) == pytest.approx(plan.bottleneck_seconds)
    processor = Resource(kind="compute", name=plan.stages[0].device)
    assert loads[processor] == pytest.approx(0.03)
    assert in_order(plan, loads)[1:3] == (Resource(kind="downlink", name=processor.name), processor)
    table = timetable(plan, by_name, NETWORK, requests=3, window=1)
    assert [bar.stage for bar in table.bars if bar.resource == processor] == [0, 3] * 3
    assert table.answered[0] <= plan.latency_seconds * (1 + 1e-9)


def test_hops_to_branches_share_the_uplink_before_and_the_downlink_after_them() -> None:
    devices = [replace(on, name=name) for on, name in zip(fleet(4), "abcd", strict=True)]
    slow = replace(devices[1], link=replace(link(latency=0.001), down_bytes_per_second=1e4, up_bytes_per_second=2e4))
    devices[1] = slow
    rate = devices[0].link.up_bytes_per_second
    stages = planned(fleet(3)).stages
    stages = tuple(msgspec.structs.replace(on, device=name) for on, name in zip(stages, "abca", strict=True))
    plan = price_plan(forked(), devices, stages, window=2, network=NETWORK)
    into = 0.002 + max(3000 / rate, 2000 / 1e4) + 2000 / rate
    out = 0.002 + max(2000 / 2e4, 3000 / rate) + 2000 / rate
    ends = 0.004 + 2 * (4000 + 500) / rate
    assert plan.latency_seconds == pytest.approx(ends + 0.03 + into + 0.1 + out)
    # With equal links the largest branch waits for all bytes that go out, and for all that come in.
    devices[1] = replace(slow, link=devices[0].link)
    plan = price_plan(forked(), devices, stages, window=2, network=NETWORK)
    assert plan.latency_seconds == pytest.approx(ends + 0.13 + 0.004 + 2 * (3000 + 2000) / rate)


def test_compressed_branches_are_in_memory_as_they_were() -> None:
    raw = ((0, 20_000, 30_000), (0, 0, 10_000), (0, 0, 0))
    packed = forked(section=replace(SECTION, received_raw=raw, sent_raw=raw))
    devices = fleet(3, deflate_seconds_per_byte=1e-6, inflate_seconds_per_byte=1e-7)
    plan = plan_pipeline(packed, devices, objective="latency", window=2, network=NETWORK, constraints=ALONE)
    assert is_bent(plan)
    assert [stage.sent_bytes for stage in plan.stages] == [3000, 2000, 1000, 500]
    assert [stage.memory_bytes for stage in plan.stages] == [39_000, 61_000, 31_000, 61_500]
    assert plan.stages[0].predicted_seconds == pytest.approx(0.01 + 4000e-7 + 30_000e-6)
    assert plan.stages[2].predicted_seconds == pytest.approx(0.1 + 10_000e-7 + 10_000e-6)
