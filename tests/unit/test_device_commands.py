"""Cordon, uncordon, drain and forget: what a device is told, what is planned anew, and when the command ends."""

from __future__ import annotations

from typing import Literal

import pytest

from edge.formats.canary import Canary
from edge.formats.message import DeviceRequest
from edge.formats.plan import Deployment, decode_deployment
from host.fleet.jobs import named_devices
from tests.fake_bundle import fake_bundle, joined
from tests.fake_device import FakeDevice
from tests.fake_fleet import TOPICS, FakeCoordinator, FakeFleet, deploy_request, deployed, outcome

BUNDLE = fake_bundle()
Action = Literal["cordon", "uncordon", "drain", "forget"]


@pytest.fixture
def fleet() -> FakeFleet:
    found = FakeFleet()
    for name in ("pi-1", "pi-2", "pi-3"):
        found.device(name)
    return found


def give(fleet: FakeFleet, coordinator: FakeCoordinator, action: Action, device: str, *, seconds: float = 6) -> str:
    request_id = f"{action}-{device}"
    coordinator.ask(DeviceRequest(request_id=request_id, device=device, action=action, reply_to=""))
    fleet.pass_seconds(seconds)
    told = outcome(coordinator, request_id)
    return told.reason if not told.ok else ("done" if told.done else "goes on")


def named(fleet: FakeFleet) -> frozenset[str]:
    return named_devices(decode_deployment(fleet.retained(TOPICS.serving("net"))).plan)


def test_a_cordoned_device_is_left_out_of_new_plans_and_goes_on_with_what_it_runs(fleet: FakeFleet) -> None:
    coordinator = deployed(fleet, BUNDLE)
    assert give(fleet, coordinator, "cordon", "pi-2") == "done"
    assert fleet.devices[1].cordoned
    assert "pi-2" in named(fleet)
    coordinator.ask(deploy_request(BUNDLE, request_id="r2"))
    fleet.pass_seconds(4)
    assert named(fleet) == {"pi-1", "pi-3"}
    assert [(event.what, event.device) for event in coordinator.history if event.device] == [("cordoned", "pi-2")]


def test_uncordon_lets_plans_use_it_again(fleet: FakeFleet) -> None:
    coordinator = deployed(fleet, BUNDLE)
    give(fleet, coordinator, "cordon", "pi-2")
    assert give(fleet, coordinator, "uncordon", "pi-2") == "done"
    coordinator.ask(deploy_request(BUNDLE, request_id="r2"))
    fleet.pass_seconds(4)
    assert named(fleet) == {"pi-1", "pi-2", "pi-3"}


@pytest.mark.parametrize("action", ["cordon", "uncordon", "drain"])
def test_a_device_that_is_offline_or_unknown_is_not_told(fleet: FakeFleet, action: Action) -> None:
    coordinator = deployed(fleet, BUNDLE)
    fleet.devices[2].kill()
    fleet.pass_seconds(1)
    assert give(fleet, coordinator, action, "pi-3") == (
        "pi-3 is offline: it is cordoned when it is here; `shardwire forget pi-3` if it never will be"
    )
    assert give(fleet, coordinator, action, "pi-9") == "no device called 'pi-9'; there are: pi-1, pi-2, pi-3"


def test_drain_gives_its_stages_to_others_before_it_ends(fleet: FakeFleet) -> None:
    coordinator = fleet.coordinator(BUNDLE)
    for number in range(2):
        coordinator.ask(deploy_request(BUNDLE, name=f"net-{number}", request_id=f"r{number}"))
    fleet.pass_seconds(5)
    assert give(fleet, coordinator, "drain", "pi-2") == "done"
    for number in range(2):
        value = decode_deployment(fleet.retained(TOPICS.serving(f"net-{number}")))
        assert "pi-2" not in named_devices(value.plan)
        assert value.constraints.without == (), "uncordoned, it may be used again"
    assert coordinator.history[-1].what == "drained"


def test_a_device_that_is_needed_is_not_drained_and_the_reason_is_told(fleet: FakeFleet) -> None:
    coordinator = fleet.coordinator(BUNDLE)
    coordinator.ask(deploy_request(BUNDLE, "pi-2"))
    fleet.pass_seconds(4)
    assert give(fleet, coordinator, "drain", "pi-2") == (
        "pi-2 is cordoned, and cannot be drained: net: of the devices that net may use, none is left"
    )
    assert named(fleet) == {"pi-2"}


def test_a_device_that_is_gone_for_good_is_forgotten_by_broker_coordinator_and_plans(fleet: FakeFleet) -> None:
    coordinator = deployed(fleet, BUNDLE)
    assert give(fleet, coordinator, "forget", "pi-2") == "pi-2 is online: stop its agent first, or cordon it"
    fleet.devices[1].kill()
    fleet.pass_seconds(1)
    coordinator.ask(DeviceRequest(request_id="again", device="pi-2", action="forget", reply_to=""))
    fleet.pass_seconds(6)
    assert outcome(coordinator, "again").ok, outcome(coordinator, "again")
    assert fleet.retained(TOPICS.state("pi-2")) == fleet.retained(TOPICS.about("pi-2")) == b""
    assert named(fleet) == {"pi-1"}
    assert [node.name for node in coordinator.core.roster.agents()] == ["pi-1", "pi-3"]


def test_a_drain_during_an_update_waits_for_it_and_moves_the_new_bundle(fleet: FakeFleet) -> None:
    new = fake_bundle(version="1.1.0", weight_bytes=1001)
    coordinator = deployed(fleet, joined(BUNDLE, new))
    held: list[Deployment] = []

    def slow(_device: FakeDevice, deployment: Deployment) -> bool:
        held.append(deployment)
        return False

    fleet.devices[1].behaviour = slow
    coordinator.ask(deploy_request(new, request_id="r2"))
    fleet.pass_seconds(1)
    assert give(fleet, coordinator, "drain", "pi-2") == "goes on"
    fleet.devices[1].behaviour = lambda _device, _deployment: True
    fleet.devices[1].epochs[held[0].epoch] = held[0]
    fleet.devices[1].ready(held[0])
    fleet.pass_seconds(6)
    assert outcome(coordinator, "r2").ok
    assert outcome(coordinator, "drain-pi-2").ok
    assert decode_deployment(fleet.retained(TOPICS.serving("net"))).manifest == new.manifest_blob
    assert named(fleet) == {"pi-1", "pi-3"}


def test_a_device_that_a_canary_is_tried_on_is_not_drained(fleet: FakeFleet) -> None:
    new = fake_bundle(version="1.1.0", weight_bytes=1001)
    coordinator = deployed(fleet, joined(BUNDLE, new))
    trial = Canary(share=0.1, seconds=600.0)
    coordinator.ask(deploy_request(new, "pi-2", "pi-3", request_id="r2", canary=trial))
    fleet.pass_seconds(4)
    for device in ("pi-2", "pi-3"):
        assert give(fleet, coordinator, "drain", device) == (
            f"{device} is cordoned, and cannot be drained: net: a canary is tried; `shardwire rollback net` ends it"
        )


def test_who_coordinates_for_one_command_drains_what_it_does_not_know_of_at_first(fleet: FakeFleet) -> None:
    deployed(fleet, BUNDLE).leave()
    fleet.coordinators.clear()
    fleet.devices[1].cordoned = True
    fleet.pass_seconds(2)
    coordinator = fleet.coordinator(BUNDLE, name="other", staying=False)
    assert give(fleet, coordinator, "drain", "pi-2") == "done"
    assert "pi-2" not in named(fleet)


def test_a_device_that_was_cordoned_before_is_not_told_of_again(fleet: FakeFleet) -> None:
    coordinator = deployed(fleet, BUNDLE)
    assert [give(fleet, coordinator, "cordon", "pi-2"), give(fleet, coordinator, "drain", "pi-2")] == ["done", "done"]
    assert [event.what for event in coordinator.history if event.device] == ["cordoned", "drained"]
