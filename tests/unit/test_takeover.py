"""A coordinator that dies or sleeps in the middle of a rollout: the next one leaves nothing half prepared."""

from __future__ import annotations

import pytest

from edge.formats.message import Lease, decode_message
from edge.formats.plan import decode_deployment
from edge.transport import Channel
from tests.fake_bundle import fake_bundle
from tests.fake_fleet import TOPICS, FakeCoordinator, FakeDevice, FakeFleet, deploy_request, deployed, outcome

BUNDLE = fake_bundle()
SERVING, DESIRED = TOPICS.serving("net"), TOPICS.desired("net")


@pytest.fixture
def fleet() -> FakeFleet:
    found = FakeFleet()
    for name in ("pi-1", "pi-2", "pi-3"):
        found.device(name)
    return found


def dies(fleet: FakeFleet, coordinator: FakeCoordinator) -> None:
    """Kill it: the broker publishes its last will."""
    fleet.coordinators.remove(coordinator)
    for channel in Channel:
        coordinator.transport.cut(channel)


def preparing(fleet: FakeFleet) -> FakeCoordinator:
    """A fleet that serves, where pi-3 never gets ready for the next epoch, and pi-2 is."""
    first = deployed(fleet, BUNDLE)
    fleet.devices[2].behaviour = lambda device, deployment: False
    first.ask(deploy_request(BUNDLE, "pi-2", "pi-3", request_id="r2"))
    fleet.pass_seconds(2)
    assert "1-aaaa-2" in fleet.devices[1].epochs
    return first


def test_what_was_only_prepared_is_abandoned_by_the_next_coordinator(fleet: FakeFleet) -> None:
    first = preparing(fleet)
    fleet.coordinator(BUNDLE, name="coordinator-bbbb")
    fleet.pass_seconds(2)
    dies(fleet, first)
    fleet.pass_seconds(8)
    assert fleet.retained(DESIRED) == b""
    assert not any("1-aaaa-2" in device.epochs for device in fleet.devices)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"
    assert set(fleet.devices[1].heard_abandon) == {"its coordinator went away before it was committed"}


def test_a_device_that_was_away_meanwhile_drops_it_when_it_says_that_it_is_ready(fleet: FakeFleet) -> None:
    first = preparing(fleet)
    kept = fleet.devices[1].epochs["1-aaaa-2"]
    fleet.devices[1].kill()
    fleet.coordinator(BUNDLE, name="coordinator-bbbb")
    dies(fleet, first)
    fleet.pass_seconds(12)
    assert fleet.retained(DESIRED) == b""
    fleet.devices[1].revive()
    fleet.pass_seconds(1)
    fleet.devices[1].ready(kept)
    fleet.pass_seconds(1)
    assert "1-aaaa-2" not in fleet.devices[1].epochs


def test_what_was_committed_stays_whoever_saw_it(fleet: FakeFleet) -> None:
    first = deployed(fleet, BUNDLE)
    second = fleet.coordinator(BUNDLE, name="coordinator-bbbb")
    fleet.pass_seconds(2)
    first.ask(deploy_request(BUNDLE, "pi-2", "pi-3", request_id="r2"))
    while fleet.epoch_of(SERVING) == "1-aaaa-1":
        fleet.pass_seconds(0.25)
    dies(fleet, first)
    fleet.pass_seconds(10)
    assert fleet.epoch_of(SERVING) == "1-aaaa-2"
    second.ask(deploy_request(BUNDLE, "pi-1", "pi-3", request_id="r3"))
    fleet.pass_seconds(5)
    assert outcome(second, "r3").epoch == "2-bbbb-1"


def test_one_that_wakes_in_the_middle_of_a_rollout_commits_nothing(fleet: FakeFleet) -> None:
    ready: list[FakeDevice] = []

    def later(device: FakeDevice, deployment: object) -> bool:
        ready.append(device)
        return False

    first = deployed(fleet, BUNDLE)
    fleet.devices[2].behaviour = later
    second = fleet.coordinator(BUNDLE, name="coordinator-bbbb")
    first.ask(deploy_request(BUNDLE, "pi-2", "pi-3", request_id="r2"))
    fleet.pass_seconds(2)
    value = decode_deployment(fleet.retained(DESIRED))
    fleet.coordinators.remove(first)  # stopped, with its connections open
    fleet.pass_seconds(10)
    ready[0].epochs[value.epoch] = value
    ready[0].ready(value)
    fleet.coordinators.append(first)
    fleet.pass_seconds(10)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"
    assert outcome(first, "r2").done
    assert not outcome(first, "r2").ok
    assert decode_message(fleet.retained(TOPICS.lease()), Lease).coordinator == "coordinator-bbbb"
    assert second.history[0].what == "lease"
