"""Fake fleets whose coordinator plans again by itself, and what a test asks of them."""

from __future__ import annotations

from collections.abc import Callable

from edge.formats.plan import Plan, Stage, decode_deployment
from edge.transport import Channel, MemoryTransport, Received, TransportEvent
from tests.fake_bundle import FakeBundle
from tests.fake_fleet import TOPICS, FakeCoordinator, FakeDevice, FakeFleet, deploy_request, outcome

SERVING = TOPICS.serving("net")


def watched(fleet: FakeFleet, bundle: FakeBundle, *devices: str) -> FakeCoordinator:
    """A coordinator that watches `net`, which it has just deployed."""
    coordinator = fleet.coordinator(bundle, horizon_seconds=600.0)
    coordinator.ask(deploy_request(bundle, *devices, use_all=False))
    fleet.pass_seconds(5)
    assert outcome(coordinator).ok, outcome(coordinator)
    return coordinator


def plan_of(fleet: FakeFleet) -> Plan:
    plan = decode_deployment(fleet.retained(SERVING)).plan
    assert plan is not None
    return plan


def users(fleet: FakeFleet) -> set[str]:
    return {name for stage in plan_of(fleet).stages for name in stage.devices}


def named(fleet: FakeFleet, name: str) -> FakeDevice:
    return next(device for device in fleet.devices if device.name == name)


def slow(factor: float) -> Callable[[Stage], float]:
    return lambda stage: factor * stage.predicted_seconds


def heard(fleet: FakeFleet, topic: str) -> list[bytes]:
    """Everything that is published on a topic from now on."""
    found: list[bytes] = []

    def note(event: TransportEvent) -> None:
        if isinstance(event, Received):
            found.append(event.payload)

    spy = MemoryTransport(fleet.broker, on_event=note)
    spy.connect(Channel.CONTROL)
    spy.subscribe(Channel.CONTROL, topic)
    found.clear()
    return found
