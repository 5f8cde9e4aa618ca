"""Stage loads: smoothed, bounded, and from the compute thread to whoever looks at the fleet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge.formats.message import Heartbeat, Session
from edge.formats.speed import StageLoad
from edge.protocol.effects import FrameDone, StageKey
from edge.protocol.loads import LARGEST_WEIGHT, MAX_STAGE_LOADS, SMOOTHING_SECONDS, Loads
from edge.transport import MemoryBroker
from host.cli.status import condition
from host.fleet.observe import FleetView
from host.fleet.roster import Node
from tests.tiny_bundle import make_deployment, make_tiny_bundle
from tests.virtual_agent import Ear, VirtualAgent

KEY = StageKey("net", "1-a-1", 0)


def done(key: StageKey = KEY, *, run: float = 0.1, queued: float = 0.01) -> FrameDone:
    return FrameDone(key=key, request_id="r", run_seconds=run, queued_seconds=queued, ended=True)


def only(loads: Loads) -> StageLoad:
    (load,) = loads.report(lambda _: True)
    return load


def test_the_first_frames_are_averaged() -> None:
    loads = Loads()
    for run in (0.1, 0.2, 0.3):
        loads.done(done(run=run, queued=run / 10), 1.0)
    load = only(loads)
    assert (load.deployment, load.epoch, load.stage, load.frames) == ("net", "1-a-1", 0, 3)
    assert load.run_seconds == pytest.approx(0.2)
    assert load.queued_seconds == pytest.approx(0.02)


def test_a_stage_that_slows_is_seen_within_the_time_constant() -> None:
    loads, now = Loads(), 0.0
    for _ in range(2000):
        now += 0.01
        loads.done(done(run=0.1), now)
    since = now
    while now < since + SMOOTHING_SECONDS:
        now += 0.01
        loads.done(done(run=0.2), now)
    assert only(loads).run_seconds == pytest.approx(0.1 + 0.1 * (1 - 1 / 2.718281828), rel=0.01)


def test_one_slow_frame_alone_says_little_however_rare_frames_are() -> None:
    loads = Loads()
    for second in range(100):
        loads.done(done(run=0.1), float(60 * second))
    loads.done(done(run=1.1), 6000.0)
    assert only(loads).run_seconds == pytest.approx(0.1 + LARGEST_WEIGHT * 1.0)


def test_a_frame_that_never_ran_counts_for_nothing() -> None:
    loads = Loads()
    loads.done(done(run=0.0), 1.0)
    assert loads.report(lambda _: True) == ()


def test_what_is_told_is_bounded_and_only_of_stages_that_are_loaded() -> None:
    loads = Loads()
    keys = [StageKey("net", f"1-a-{index}", 0) for index in range(MAX_STAGE_LOADS + 6)]
    for key in keys:
        loads.done(done(key), 1.0)
    loads.done(done(keys[0]), 2.0)
    told = loads.report(lambda _: True)
    assert len(told) == MAX_STAGE_LOADS
    assert keys[0].epoch in {load.epoch for load in told}, "it ran last"
    assert keys[1].epoch not in {load.epoch for load in told}
    assert [load.epoch for load in loads.report(lambda key: key == keys[9])] == [keys[9].epoch]
    assert len(loads.report(lambda _: True)) == 1, "the others are forgotten"


def test_a_heartbeat_tells_how_the_stages_do_that_are_loaded() -> None:
    bundle, broker = make_tiny_bundle(), MemoryBroker()
    ear, agent = Ear(broker, bundle), VirtualAgent(broker)
    agent.start()
    value = make_deployment(bundle, ("pi-1",))
    ear.desire(value)
    agent.pump()
    ear.serve(value)
    agent.pump()
    agent.feed(done(StageKey(value.name, value.epoch, 0), run=0.1))
    agent.feed(done(StageKey("other", "1-a-1", 0), run=0.1))
    agent.beat()
    (load,) = ear.messages(Heartbeat)[-1].stages
    assert (load.deployment, load.epoch, load.stage, load.frames) == (value.name, value.epoch, 0, 1)
    assert load.run_seconds == pytest.approx(0.1)


def test_whoever_looks_sees_what_a_stage_measured_and_why_nothing_is_mended() -> None:
    load = StageLoad(deployment="tiny", epoch="1-a-1", stage=1, frames=3, run_seconds=0.1, queued_seconds=0.0)
    beat = Heartbeat(
        node="pi-1",
        session=Session(boot=1, connect=1),
        frames_done=3,
        oldest_queued_seconds=0.0,
        data_up=True,
        stages=(load,),
    )
    node = Node(name="pi-1", heartbeat=beat)
    assert node.load("tiny", "1-a-1", 1) == load
    assert node.load("tiny", "1-a-1", 0) is None
    assert Node(name="pi-2").load("tiny", "1-a-1", 1) is None
    value = make_deployment(make_tiny_bundle(), ("pi-2", "pi-1"))
    failures = {("coordinator", "tiny", "1-a-1"): "nothing fits", ("pi-1", "tiny", "1-a-1"): "no room"}
    view = FleetView(devices=[], deployments=[value], coordinator="coordinator", failures=failures)
    assert view.trouble(value) == "nothing fits"
    assert replace(view, coordinator=None).trouble(value) is None
    assert condition(value, view).endswith("; it cannot be mended: nothing fits")
