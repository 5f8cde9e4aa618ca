"""Order among coordinators, commands and epochs; and what a coordinator does not listen to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from edge.formats.bundle import Manifest
from edge.formats.message import (
    About,
    CancelRequest,
    Lease,
    Ready,
    Session,
    decode_message,
    encode_message,
)
from edge.formats.plan import Codec, Plan, decode_deployment
from edge.transport import Channel, MemoryTransport, Publication, Received
from host.fleet.codec_choice import plan_any_codec
from host.fleet.effects import CoordinatorEffect
from host.fleet.jobs import PLAN_SECONDS
from host.fleet.survey import PlanOrder
from tests.fake_bundle import FakeBundle, fake_bundle
from tests.fake_fleet import TOPICS, FakeDevice, FakeFleet, deploy_request, deployed, outcome

_DESIRED, _SERVING = TOPICS.desired("net"), TOPICS.serving("net")


@pytest.fixture
def bundle() -> FakeBundle:
    return fake_bundle()


@pytest.fixture
def fleet() -> FakeFleet:
    found = FakeFleet()
    for name in ("pi-1", "pi-2", "pi-3"):
        found.device(name)
    return found


@pytest.mark.parametrize("topic", [_SERVING, _DESIRED])
def test_an_older_plan_that_the_broker_shows_is_replaced_by_the_newest(
    fleet: FakeFleet, bundle: FakeBundle, topic: str
) -> None:
    coordinator = deployed(fleet, bundle)
    old = fleet.retained(topic)
    coordinator.ask(deploy_request(bundle, "pi-2", "pi-3", request_id="r2"))
    fleet.pass_seconds(4)
    fleet.broker.route(Publication(channel=Channel.CONTROL, topic=topic, payload=old, qos=1, retain=True))
    fleet.pass_seconds(3)
    assert fleet.epoch_of(topic) == "1-aaaa-2"


@pytest.mark.parametrize("reply_to", ["shardwire/test/device/pi-1/command", "shardwire/test/coordinator/lease", "x"])
def test_an_outcome_goes_to_an_event_topic_and_nowhere_else(
    fleet: FakeFleet, bundle: FakeBundle, reply_to: str
) -> None:
    coordinator = fleet.coordinator(bundle)
    fleet.pass_seconds(2)
    before = fleet.retained(reply_to)
    request = msgspec.structs.replace(deploy_request(bundle, "pi-9"), reply_to=reply_to)
    heard: list[bytes] = []
    spy = MemoryTransport(
        fleet.broker, on_event=lambda event: heard.append(event.payload) if isinstance(event, Received) else None
    )
    spy.connect(Channel.CONTROL)
    spy.subscribe(Channel.CONTROL, reply_to)
    heard.clear()
    coordinator.ask(request)
    fleet.pass_seconds(5)
    assert outcome(coordinator).done
    assert not any(b"outcome" in payload for payload in heard)
    assert fleet.retained(reply_to) == before


def test_a_command_is_taken_back_by_whoever_knows_its_id(fleet: FakeFleet, bundle: FakeBundle) -> None:
    fleet.devices[1].behaviour = lambda device, deployment: False
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-2"))
    fleet.pass_seconds(4)
    for request_id, done in (("r7", False), ("r1", True)):
        command = encode_message(CancelRequest(request_id=request_id))
        topic = TOPICS.command("coordinator-aaaa")
        fleet.broker.route(Publication(channel=Channel.CONTROL, topic=topic, payload=command, qos=1))
        fleet.pass_seconds(7)
        assert outcome(coordinator).done is done
    assert outcome(coordinator).reason == "interrupted"


def test_two_commands_for_one_deployment_are_not_mixed(fleet: FakeFleet, bundle: FakeBundle) -> None:
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-2"))
    coordinator.ask(deploy_request(bundle, "pi-2", "pi-3", request_id="r2"))
    assert outcome(coordinator, "r2").reason == "net is being changed by another command; try again when it is done"
    fleet.pass_seconds(4)
    assert outcome(coordinator).ok


def test_a_second_coordinator_stands_by_and_says_whom_to_ask(fleet: FakeFleet, bundle: FakeBundle) -> None:
    deployed(fleet, bundle)
    second = fleet.coordinator(bundle, name="coordinator-bbbb")
    fleet.pass_seconds(3)
    second.ask(deploy_request(bundle, "pi-1", request_id="r2"))
    assert outcome(second, "r2").reason == "coordinator coordinator-aaaa holds the lease, ask it"


def test_the_second_coordinator_takes_over_with_a_higher_term_when_the_first_dies(
    fleet: FakeFleet, bundle: FakeBundle
) -> None:
    first = deployed(fleet, bundle)
    second = fleet.coordinator(bundle, name="coordinator-bbbb")
    fleet.pass_seconds(3)
    first.transport.cut(Channel.CONTROL)
    first.transport.cut(Channel.DATA)
    fleet.coordinators.remove(first)
    fleet.pass_seconds(3)
    lease = decode_message(fleet.retained(TOPICS.lease()), Lease)
    assert (lease.coordinator, lease.term) == ("coordinator-bbbb", 2)
    second.ask(deploy_request(bundle, "pi-2", "pi-3", request_id="r2"))
    fleet.pass_seconds(4)
    assert outcome(second, "r2").epoch == "2-bbbb-1"


def test_a_broker_that_forgot_everything_is_told_again(fleet: FakeFleet, bundle: FakeBundle) -> None:
    deployed(fleet, bundle)
    fleet.broker.retained.clear()
    for coordinator in fleet.coordinators:
        coordinator.transport.cut(Channel.CONTROL)
        coordinator.transport.connect(Channel.CONTROL)
    fleet.pass_seconds(3)
    assert fleet.epoch_of(_SERVING) == "1-aaaa-1"
    assert decode_message(fleet.retained(TOPICS.lease()), Lease).coordinator == "coordinator-aaaa"


def test_an_epoch_is_never_issued_below_one_that_was_seen(fleet: FakeFleet, bundle: FakeBundle) -> None:
    deployed(fleet, bundle)
    fleet.broker.retained.pop(TOPICS.lease())
    fleet.coordinators.clear()
    fresh = fleet.coordinator(bundle, name="coordinator-0001")
    fresh.ask(deploy_request(bundle, "pi-1", "pi-2", request_id="r2"))
    fleet.pass_seconds(6)
    assert outcome(fresh, "r2").epoch == "2-0001-1"
    assert fleet.epoch_of(_SERVING) == "2-0001-1"


_LEASE = encode_message(Lease(coordinator="x", term=1, session=Session(boot=1, connect=1)))


@pytest.mark.parametrize("payload", [b"", b"\xff" * 40, _LEASE[:-1], _LEASE], ids=["empty", "noise", "cut", "other"])
@pytest.mark.parametrize(
    "topic",
    [
        TOPICS.lease(),
        TOPICS.hello(),
        TOPICS.command("coordinator-aaaa"),
        TOPICS.fetch("coordinator-aaaa"),
        TOPICS.blocks("coordinator-aaaa"),
        TOPICS.result("coordinator-aaaa"),
        TOPICS.state("pi-1"),
        TOPICS.event("pi-1"),
        _DESIRED,
        _SERVING,
    ],
)
def test_malformed_messages_change_nothing(fleet: FakeFleet, bundle: FakeBundle, topic: str, payload: bytes) -> None:
    coordinator = fleet.coordinator(bundle)
    fleet.pass_seconds(1)
    if topic == TOPICS.lease() and payload == _LEASE:
        return  # that one is well-formed
    for channel in Channel:
        fleet.broker.route(Publication(channel=channel, topic=topic, payload=payload))
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-2"))
    fleet.pass_seconds(5)
    assert outcome(coordinator).ok, outcome(coordinator)


@pytest.mark.parametrize(("epoch", "stage"), [("9-ffff-9", 1), ("1-aaaa-1", 7)])
def test_a_ready_of_another_epoch_or_stage_does_not_count(
    fleet: FakeFleet, bundle: FakeBundle, epoch: str, stage: int
) -> None:
    def lie(device: FakeDevice, deployment: object) -> bool:
        device.send(Ready(deployment="net", epoch=epoch, stage=stage, fetched_bytes=0, load_seconds=0.0, rss_bytes=0))
        return False

    fleet.devices[1].behaviour = lie
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-2"))
    fleet.pass_seconds(6)
    assert coordinator.phases[-1] == "preparing"


def test_one_plan_is_made_between_two_heartbeats_and_the_next_command_waits_its_turn(
    fleet: FakeFleet, bundle: FakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, float]] = []
    coordinator = fleet.coordinator(bundle)
    ticks: list[float] = []
    tick = coordinator.core.tick

    def counted(now: float) -> list[CoordinatorEffect]:
        ticks.append(now)
        return tick(now)

    def noted(manifest: Manifest, devices: Sequence[About], order: PlanOrder, **rest: Any) -> tuple[Plan, Codec]:
        asked.append((len(ticks), order.seconds))
        return plan_any_codec(manifest, devices, order, **rest)

    monkeypatch.setattr(coordinator.core, "tick", counted)
    monkeypatch.setattr("host.fleet.plans.plan_any_codec", noted)
    for number in range(3):
        coordinator.ask(deploy_request(bundle, request_id=f"r{number}", name=f"net-{number}"))
    fleet.pass_seconds(5)
    assert len({number for number, _ in asked}) == len(asked) == 3
    assert {seconds for _, seconds in asked} == {PLAN_SECONDS}


def test_a_rollout_waits_for_a_broker_that_is_gone_for_a_while(fleet: FakeFleet, bundle: FakeBundle) -> None:
    slow = fleet.devices[1]
    slow.behaviour = lambda _device, _deployment: False
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-2"))
    fleet.pass_seconds(3)
    for channel in Channel:
        coordinator.transport.cut(channel)
    fleet.pass_seconds(20)
    assert not outcome(coordinator).done, "nobody left: it was the broker"
    for channel in Channel:
        coordinator.transport.connect(channel)
    fleet.pass_seconds(1)
    desired = decode_deployment(fleet.retained(TOPICS.desired("net")))
    slow.epochs[desired.epoch] = desired
    slow.ready(desired)
    fleet.pass_seconds(8)
    assert outcome(coordinator).ok
    assert outcome(coordinator).done
    assert [event.what for event in coordinator.history].count("lease") == 1, "it coordinated all the time"


def test_a_broker_that_stays_away_ends_what_was_not_committed(fleet: FakeFleet, bundle: FakeBundle) -> None:
    fleet.devices[1].behaviour = lambda _device, _deployment: False
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-2"))
    fleet.pass_seconds(3)
    for channel in Channel:
        coordinator.transport.cut(channel)
    fleet.pass_seconds(70)
    assert outcome(coordinator).reason == "the broker was gone for 60 s"
