"""Devices without room for two stages stop the old one only when everybody else is ready for the new one."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edge.formats.message import Abandon, Dropped, Fetched, Message, Ready, Session, Swap, decode_message
from edge.formats.plan import Plan
from edge.formats.topics import Topics
from edge.transport import Publication
from host.fleet.identity import Caller
from host.fleet.probe import GoldenCase
from host.fleet.rollout import REPEAT_SECONDS, STALL_SECONDS, Phase, Rollout
from tests.fake_bundle import fake_bundle
from tests.fake_fleet import FakeFleet, deploy_request, outcome
from tests.tiny_bundle import make_deployment, make_input, make_tiny_bundle

BUNDLE = make_tiny_bundle()
_BOTH = make_deployment(BUNDLE, ("pi-0", "pi-1"))
TOPICS = Topics(fleet="default")


def with_swap(plan: Plan | None) -> Plan:
    assert plan is not None
    first, second = plan.stages
    return msgspec.structs.replace(plan, stages=(first, msgspec.structs.replace(second, swaps=("pi-1",))))


DEPLOYMENT = msgspec.structs.replace(_BOTH, plan=with_swap(_BOTH.plan))


@pytest.fixture
def rollout() -> Rollout:
    caller = Caller(node="boss", session=Session(boot=1, connect=1), topics=TOPICS)
    case = GoldenCase(inputs={"x": make_input(0)}, whole={"y": np.zeros_like(make_input(0))})
    return Rollout(DEPLOYMENT, BUNDLE.manifest, [case], caller, now=0.0)


def ready(stage: int) -> Ready:
    return Ready(
        deployment=DEPLOYMENT.name, epoch=DEPLOYMENT.epoch, stage=stage, fetched_bytes=0, load_seconds=0.0, rss_bytes=0
    )


FETCHED = Fetched(deployment=DEPLOYMENT.name, epoch=DEPLOYMENT.epoch)


def commands(publications: list[Publication]) -> list[tuple[str, Message]]:
    return [
        (sent.topic.split("/")[3], decode_message(sent.payload, object))  # type: ignore[misc] # of any class
        for sent in publications
        if sent.topic.endswith("/command")
    ]


def tick(rollout: Rollout, now: float) -> list[tuple[str, Message]]:
    return commands(rollout.tick(now, lambda _device: True))


def test_it_waits_for_the_others_and_then_tells_who_swaps_until_it_is_ready(rollout: Rollout) -> None:
    rollout.receive("pi-1", FETCHED, 1.0)
    assert tick(rollout, 1.0) == []
    rollout.receive("pi-0", ready(0), 2.0)
    swap = Swap(deployment=DEPLOYMENT.name, epoch=DEPLOYMENT.epoch)
    assert tick(rollout, 2.0) == [("pi-1", swap)]
    phases = [rollout.phase]
    assert tick(rollout, 2.0 + REPEAT_SECONDS) == [("pi-1", swap)]
    rollout.receive("pi-1", ready(1), 5.0)
    tick(rollout, 5.0)
    assert [*phases, rollout.phase] == [Phase.SWAPPING, Phase.PROBING]


def test_one_that_fetched_waits_as_long_as_the_others_take(rollout: Rollout) -> None:
    rollout.receive("pi-1", FETCHED, 0.0)
    rollout.receive("pi-0", ready(0), STALL_SECONDS + 1)
    rollout.tick(STALL_SECONDS + 1, lambda _device: True)
    assert rollout.phase is Phase.SWAPPING
    rollout.tick(2 * STALL_SECONDS + 3, lambda _device: True)
    assert rollout.reason == "pi-1 made no progress for 120 s"


def test_when_it_fails_after_the_swap_everybody_is_told_to_take_the_old_epoch_back(rollout: Rollout) -> None:
    rollout.receive("pi-1", FETCHED, 0.0)
    rollout.receive("pi-0", ready(0), 0.0)
    rollout.tick(0.0, lambda _device: True)
    rollout.abandon("interrupted", 1.0)
    told = tick(rollout, 1.0)
    assert [(device, type(message)) for device, message in told] == [("pi-0", Abandon), ("pi-1", Abandon)]
    for device in ("pi-0", "pi-1"):
        rollout.receive(device, Dropped(deployment=DEPLOYMENT.name, epoch=DEPLOYMENT.epoch), 1.5)
    rollout.tick(1.5, lambda _device: True)
    assert rollout.phase is Phase.ABANDONED


def test_devices_swap_where_no_other_plan_fits_and_the_outcome_says_how_long_nothing_answered() -> None:
    fleet = FakeFleet()
    bundle = fake_bundle()
    device = fleet.device("pi-1")
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, "pi-1"))
    fleet.pass_seconds(4)
    assert outcome(coordinator).ok
    device.free_memory_bytes = 1 << 20  # the rest is taken by what serves
    device.announce()
    coordinator.ask(deploy_request(bundle, "pi-1", request_id="r2"))
    fleet.pass_seconds(4)
    told = outcome(coordinator, "r2")
    assert told.ok, told
    assert device.heard_swap == [told.epoch]
    assert told.reason.startswith("nothing answered for ")
    assert "swapping" in coordinator.phases


def test_a_device_that_serves_nothing_cannot_make_room() -> None:
    fleet = FakeFleet()
    fleet.device("pi-1", free_memory_bytes=1 << 20)
    bundle = fake_bundle()
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, "pi-1"))
    fleet.pass_seconds(4)
    assert not outcome(coordinator).ok
    assert "pi-1" in outcome(coordinator).reason
