"""A time table keeps to the loads: what binds is never idle at full load, and one request alone takes the latency."""

from __future__ import annotations

import itertools
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.formats.plan import Constraints
from host.planning.costs import DeviceCost, Medium, Network, PairLink, Section
from host.planning.planner import plan_pipeline
from host.planning.schedule import CLIENT, MAX_REQUESTS, Bar, Resource, Schedule, hops_of, in_order, loads_of, timetable
from tests.plans import MBIT, device, link, plan, stage, workload

_FAST = Network(client=link(1e9))


def named(*devices: DeviceCost) -> dict[str, DeviceCost]:
    return {each.name: each for each in devices}


def at(schedule: Schedule, kind: str, name: str) -> list[Bar]:
    return [bar for bar in schedule.bars if (bar.resource.kind, bar.resource.name) == (kind, name)]


_CHAIN = plan(
    stage(0, "a", 0.010, received=1000, sent=2000),
    stage(1, "b", 0.030, received=2000, sent=500),
    period=0.030,
    latency=0.040,
)
_A, _B = device("a", 0.010, 0.010, mbit=1e9), device("b", 0.030, 0.030, mbit=1e9)


# --------------------------------------------------------------------------------------------------------------- loads


def test_a_request_goes_from_the_client_through_the_stages_and_back() -> None:
    assert [(hop.sender, hop.receiver, hop.size_bytes) for hop in hops_of(_CHAIN)] == [
        (None, 0, 1000),
        (0, 1, 2000),
        (1, None, 500),
    ]


def test_stages_side_by_side_have_a_hop_each_in_and_out() -> None:
    branches = plan(
        stage(0, "a", 0.01, received=10, sent=100),
        stage(1, "b", 0.01, received=100, sent=30),
        msgspec.structs.replace(stage(2, "c", 0.01, received=60, sent=40), beside=True),
        stage(3, "d", 0.01, received=70, sent=5),
        period=0.01,
        latency=0.03,
    )
    assert [(hop.sender, hop.receiver, hop.size_bytes) for hop in hops_of(branches)] == [
        (None, 0, 10),
        (0, 1, 100),
        (0, 2, 60),
        (1, 3, 30),
        (2, 3, 40),
        (3, None, 5),
    ]


def test_loads_are_seconds_of_one_request() -> None:
    loads = loads_of(_CHAIN, named(device("a", mbit=8), device("b", mbit=16)), Network(client=link(80)))
    assert {str(resource): seconds for resource, seconds in loads.items()} == pytest.approx(
        {
            "compute of a": 0.010,
            "compute of b": 0.030,
            "uplink of client": 1000 / 10e6,
            "downlink of a": 1000 / 1e6,
            "uplink of a": 2000 / 1e6,
            "downlink of b": 2000 / 2e6,
            "uplink of b": 500 / 2e6,
            "downlink of client": 500 / 10e6,
        }
    )


def test_replicas_share_the_load() -> None:
    pair = plan(stage(0, "a", 0.010, received=1000, sent=0, replicas=["b"]), period=0.005, latency=0.010)
    loads = loads_of(pair, named(device("a", mbit=8), device("b", mbit=8)), _FAST)
    assert loads[Resource(kind="compute", name="a")] == loads[Resource(kind="compute", name="b")] == 0.005
    assert loads[Resource(kind="downlink", name="b")] == pytest.approx(0.0005)


def test_a_link_between_two_takes_the_place_of_both_ends() -> None:
    network = Network(client=link(1e9), pairs={("a", "b"): PairLink(bytes_per_second=1e6, latency_seconds=0.001)})
    loads = loads_of(_CHAIN, named(_A, _B), network)
    assert loads[Resource(kind="link", name="a", other="b")] == pytest.approx(0.002)
    assert Resource(kind="uplink", name="a") not in loads


def test_a_medium_carries_a_hop_once_for_each_end_in_it_and_the_broker_every_hop() -> None:
    cell = Medium(name="hall", bytes_per_second=1e6, nodes=frozenset({"a", "b"}))
    loads = loads_of(_CHAIN, named(_A, _B), Network(client=link(1e9), media=(cell,), broker_bytes_per_second=1e6))
    assert loads[Resource(kind="medium", name="hall")] == pytest.approx((1000 + 2 * 2000 + 500) / 1e6)
    assert loads[Resource(kind="broker")] == pytest.approx((1000 + 2000 + 500) / 1e6)


def test_resources_come_in_the_order_of_the_way() -> None:
    loads = loads_of(_CHAIN, named(_A, _B), Network(client=link(1e9), broker_bytes_per_second=1e6))
    assert [str(resource) for resource in in_order(_CHAIN, loads)] == [
        "uplink of client",
        "downlink of a",
        "compute of a",
        "uplink of a",
        "downlink of b",
        "compute of b",
        "uplink of b",
        "downlink of client",
        "the broker",
    ]


# ---------------------------------------------------------------------------------------------------------- time table


def test_one_request_runs_through_the_stages_one_after_another() -> None:
    schedule = timetable(_CHAIN, named(_A, _B), _FAST, requests=1, window=8)
    (first,), (second,) = at(schedule, "compute", "a"), at(schedule, "compute", "b")
    assert first.end <= second.start
    assert schedule.answered[0] == pytest.approx(0.040, rel=1e-3)


def test_at_full_load_the_bottleneck_is_never_idle() -> None:
    schedule = timetable(_CHAIN, named(_A, _B), _FAST, requests=10, window=8)
    for one, other in itertools.pairwise(at(schedule, "compute", "b")):
        assert other.start == pytest.approx(one.end)
    for one_time, other_time in itertools.pairwise(schedule.answered):
        assert other_time - one_time == pytest.approx(0.030)


def test_nothing_serves_two_at_once() -> None:
    cell = Medium(name="hall", bytes_per_second=1e6, nodes=frozenset({"a", "b", CLIENT}))
    network = Network(client=link(8), media=(cell,), broker_bytes_per_second=2e6)
    schedule = timetable(_CHAIN, named(device("a", mbit=8), device("b", mbit=4)), network, requests=12, window=4)
    for resource in {bar.resource for bar in schedule.bars}:
        bars = sorted((bar for bar in schedule.bars if bar.resource == resource), key=lambda bar: bar.start)
        for one, other in itertools.pairwise(bars):
            assert other.start >= one.end - 1e-12


def test_a_window_of_one_waits_for_each_answer() -> None:
    schedule = timetable(_CHAIN, named(_A, _B), _FAST, requests=4, window=1)
    assert schedule.sent[1:] == schedule.answered[:-1]


def test_a_period_holds_requests_back() -> None:
    schedule = timetable(_CHAIN, named(_A, _B), _FAST, requests=4, window=8, period_seconds=0.1)
    assert schedule.sent == pytest.approx((0.0, 0.1, 0.2, 0.3))


def test_replicas_take_turns() -> None:
    pair = plan(stage(0, "a", 0.010, received=1, sent=1, replicas=["b"]), period=0.005, latency=0.010)
    schedule = timetable(pair, named(_A, _B), _FAST, requests=6, window=8)
    assert [bar.request for bar in at(schedule, "compute", "a")] == [0, 2, 4]
    assert [bar.request for bar in at(schedule, "compute", "b")] == [1, 3, 5]


def test_a_stage_that_joins_waits_for_the_slowest_branch() -> None:
    branches = plan(
        stage(0, "a", 0.01, received=1, sent=1),
        stage(1, "b", 0.05, received=1, sent=1),
        msgspec.structs.replace(stage(2, "c", 0.02, received=1, sent=1), beside=True),
        stage(3, "d", 0.01, received=2, sent=1),
        period=0.05,
        latency=0.07,
    )
    devices = named(*(device(name, mbit=1e9) for name in "abcd"))
    schedule = timetable(branches, devices, _FAST, requests=3, window=8)
    (joined, *_), (slow, *_) = at(schedule, "compute", "d"), at(schedule, "compute", "b")
    assert joined.start == pytest.approx(slow.end, abs=1e-6)
    assert schedule.answered[0] == pytest.approx(0.07, abs=1e-6)


def test_packets_of_a_frame_use_both_links_at_once() -> None:
    size = 8 << 20
    one = plan(stage(0, "a", 0.0, received=size, sent=0), period=1.0, latency=1.0)
    schedule = timetable(one, named(device("a", mbit=80)), Network(client=link(160)), requests=1, window=1)
    assert schedule.answered[0] == pytest.approx(size / (80 * MBIT) + (128 << 10) / (160 * MBIT))


def test_a_time_table_is_bounded() -> None:
    assert len(timetable(_CHAIN, named(_A, _B), _FAST, requests=10**6, window=8).answered) == MAX_REQUESTS


_times = st.floats(0.001, 0.1)
_sizes = st.integers(0, 400_000)


@given(
    cuts=st.lists(_sizes, min_size=3, max_size=5),
    speeds=st.lists(st.tuples(_times, st.floats(1, 1000), st.floats(0, 0.01)), min_size=1, max_size=3),
    client=st.floats(1, 1000),
)
def test_a_plan_keeps_what_it_promises(
    cuts: list[int], speeds: list[tuple[float, float, float]], client: float
) -> None:
    count = len(cuts) - 1
    devices = [
        device(f"d{index}", *[seconds] * count, mbit=mbit, latency=latency)
        for index, (seconds, mbit, latency) in enumerate(speeds)
    ]
    network = Network(client=link(client))
    found = plan_pipeline(workload(*cuts), devices, network=network)
    loads = loads_of(found, named(*devices), network)
    assert max(loads.values()) == pytest.approx(found.bottleneck_seconds)
    alone = timetable(found, named(*devices), network, requests=1, window=1)
    assert alone.answered[0] == pytest.approx(found.latency_seconds)
    full = timetable(found, named(*devices), network, requests=40, window=40)
    steady = (max(full.answered) - sorted(full.answered)[19]) / 20
    assert steady == pytest.approx(found.bottleneck_seconds, rel=0.1)


def test_branches_side_by_side_load_what_the_plan_says_and_share_the_link_that_feeds_them() -> None:
    section = Section(
        bounds=(1, 2, 3),
        received=((0, 500_000, 500_000), (0, 0, 400_000), (0, 0, 0)),
        sent=((0, 300_000, 200_000), (0, 0, 250_000), (0, 0, 0)),
    )
    forked = replace(workload(1000, 500_000, 900_000, 200_000, 10_000), sections=(section,))
    devices = [device(f"d{index}", 0.01, 0.05, 0.05, 0.01, mbit=200, latency=0.001) for index in range(4)]
    network = Network(client=link(100))
    found = plan_pipeline(forked, devices, network=network, constraints=Constraints(most_replicas=1))
    assert any(each.beside for each in found.stages)
    loads = loads_of(found, named(*devices), network)
    assert max(loads.values()) == pytest.approx(found.bottleneck_seconds)
    alone = timetable(found, named(*devices), network, requests=1, window=1)
    # The planner has each branch wait for all bytes on the links that they share; some have theirs before the others.
    latest = found.latency_seconds
    assert latest - (500_000 + 300_000) / (200 * MBIT) <= alone.answered[0] <= latest * (1 + 1e-9)
