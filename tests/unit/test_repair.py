"""What a broker lost or shows too old is published again, by one of those who know better, and not by all of them."""

from __future__ import annotations

from edge.formats.message import Lease, decode_message
from edge.formats.plan import Deployment, encode_deployment
from edge.transport import Channel, Publication
from host.fleet.repair import Repairs
from tests.fake_bundle import fake_bundle
from tests.fake_fleet import TOPICS, FakeFleet, deploy_request, deployed, outcome

BUNDLE = fake_bundle()
SERVING = TOPICS.serving("net")


def half() -> float:
    return 0.5


def test_what_is_not_shown_is_repaired_a_second_after_the_subscription_and_a_random_while() -> None:
    repairs = Repairs(half)
    repairs.connected(0.0)
    repairs.acknowledged(0.5)
    assert [repairs.due(["a"], now) for now in (1.4, 1.5, 2.4, 2.5, 9.0)] == [[], [], [], ["a"], []]


def test_what_is_shown_older_is_repaired_unless_somebody_else_does_it_first() -> None:
    repairs = Repairs(half)
    repairs.connected(0.0)
    for topic in ("a", "b"):
        repairs.shown(topic, 0.2, older=True)
    repairs.shown("b", 0.7, older=False)
    assert repairs.due(["a", "b"], 1.2) == ["a"]
    assert repairs.due(["a", "b"], 9.0) == []


def test_a_value_that_comes_late_is_not_missed() -> None:
    repairs = Repairs(half)
    repairs.connected(0.0)
    repairs.due(["a"], 1.0)
    repairs.shown("a", 1.5, older=False)
    assert repairs.due(["a"], 9.0) == []


def test_a_coordinator_without_the_lease_repairs_lease_and_plans_when_nobody_else_does() -> None:
    fleet = FakeFleet()
    for name in ("pi-1", "pi-2"):
        fleet.device(name)
    deployed(fleet, BUNDLE)
    second = fleet.coordinator(BUNDLE, name="coordinator-bbbb")
    fleet.pass_seconds(3)
    lease = fleet.retained(TOPICS.lease())
    del fleet.coordinators[0]
    fleet.broker.retained.clear()
    second.transport.cut(Channel.CONTROL)
    second.transport.connect(Channel.CONTROL)
    fleet.pass_seconds(0.75)
    assert fleet.retained(SERVING) == b""
    fleet.pass_seconds(3)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"
    assert decode_message(lease, Lease).term <= decode_message(fleet.retained(TOPICS.lease()), Lease).term


def test_tombstones_are_repaired_too() -> None:
    fleet = FakeFleet()
    for name in ("pi-1", "pi-2"):
        fleet.device(name)
    coordinator = deployed(fleet, BUNDLE)
    old = fleet.retained(SERVING)
    tombstone = Deployment(name="net", epoch="1-aaaa-7", manifest=None, plan=None)
    for payload in (encode_deployment(tombstone), old):
        fleet.broker.route(Publication(channel=Channel.CONTROL, topic=SERVING, payload=payload, qos=1, retain=True))
        fleet.pass_seconds(1)
    fleet.pass_seconds(2)
    assert fleet.epoch_of(SERVING) == "1-aaaa-7"
    coordinator.ask(deploy_request(BUNDLE, "pi-1", "pi-2", request_id="r2"))
    fleet.pass_seconds(6)
    assert outcome(coordinator, "r2").ok
