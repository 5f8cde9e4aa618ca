"""A fleet in memory with a clock of its own: fake devices that follow the protocol, or break it on purpose."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from edge.formats.canary import Canary
from edge.formats.message import (
    CommandOutcome,
    DeployRequest,
    Session,
)
from edge.formats.plan import Constraints, decode_deployment, parse_epoch
from edge.transport import Channel, MemoryBroker, MemoryTransport, Publication, TransportEvent
from host.fleet.coordinator import Coordinator
from host.fleet.effects import CoordinatorEffect, Happened, Request, Subscribe, Told
from host.fleet.identity import Caller
from host.fleet.lease import LeaseKeeper
from tests.fake_bundle import FakeBundle
from tests.fake_device import TOPICS, FakeDevice

__all__ = [
    "STEP_SECONDS",
    "TOPICS",
    "FakeCoordinator",
    "FakeDevice",
    "FakeFleet",
    "deploy_request",
    "deployed",
    "outcome",
]

STEP_SECONDS = 0.25


@dataclass
class FakeCoordinator:
    """A coordinator on the memory broker."""

    core: Coordinator
    fleet: FakeFleet
    outcomes: dict[str, Told] = field(default_factory=dict)
    phases: list[str] = field(default_factory=list)
    history: list[Happened] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._events: deque[TransportEvent] = deque()
        self.transport = MemoryTransport(self.fleet.broker, on_event=self._events.append, will=self.core.will)
        self.transport.connect(Channel.CONTROL)
        self.transport.connect(Channel.DATA)

    def ask(self, request: Request) -> None:
        """Give it a command from its own process."""
        self._perform(self.core.ask(request, self.fleet.now))

    def turn(self) -> None:
        """Take every event that waits, and let time pass."""
        while self._events:
            self._perform(self.core.handle(self._events.popleft(), self.fleet.now))
        self._perform(self.core.tick(self.fleet.now))

    def leave(self) -> None:
        """Give the lease back and disconnect."""
        self._perform(self.core.leave())
        self.transport.close()

    def _perform(self, effects: list[CoordinatorEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Publication):
                self.transport.publish(effect)
            elif isinstance(effect, Subscribe):
                self.transport.subscribe(effect.channel, effect.filter)
            elif isinstance(effect, Happened):
                self.history.append(effect)
            elif isinstance(effect, Told):
                self.outcomes[effect.outcome.request_id] = effect
                if not effect.outcome.done:
                    self.phases.append(effect.outcome.reason)


class FakeFleet:
    """Broker, devices and coordinators, driven by one virtual clock."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.now = 100.0
        self.devices: list[FakeDevice] = []
        self.coordinators: list[FakeCoordinator] = []

    def device(self, name: str, *, profile: str = "rpi4", free_memory_bytes: int = 1 << 30) -> FakeDevice:
        """Add a device."""
        made = FakeDevice(name=name, fleet=self, profile=profile, free_memory_bytes=free_memory_bytes)
        self.devices.append(made)
        return made

    def coordinator(
        self,
        bundle: FakeBundle,
        *,
        name: str = "coordinator-aaaa",
        staying: bool = True,
        horizon_seconds: float | None = None,
        utc: str = "2026-03-01T12:00:00Z",
    ) -> FakeCoordinator:
        """Add a coordinator that holds a bundle; it plans again by itself when it has a horizon."""
        session = Session(boot=1, connect=1)
        core = Coordinator(
            Caller(node=name, session=session, topics=TOPICS),
            blobs=bundle.blobs,
            collector=None,
            keeper=LeaseKeeper(node=name, session=session, now=self.now),
            staying=staying,
            horizon_seconds=horizon_seconds,
            utc=lambda: utc,
        )
        made = FakeCoordinator(core=core, fleet=self)
        self.coordinators.append(made)
        return made

    def pass_seconds(self, seconds: float) -> None:
        """Let time pass; everybody gets a turn several times a second."""
        end = self.now + seconds
        while self.now < end:
            self.turn()
            self.now += STEP_SECONDS

    def turn(self) -> None:
        """Give everybody turns until messages have settled."""
        for _ in range(6):
            for coordinator in self.coordinators:
                coordinator.turn()
            for device in self.devices:
                device.turn()

    def retained(self, topic: str) -> bytes:
        """Return what the broker keeps."""
        return self.broker.retained.get(topic, b"")

    def epoch_of(self, topic: str) -> str:
        """Return the epoch of a retained deployment value."""
        value = decode_deployment(self.retained(topic))
        parse_epoch(value.epoch)
        return value.epoch


def deploy_request(
    bundle: FakeBundle,
    *devices: str,
    request_id: str = "r1",
    use_all: bool = True,
    name: str = "net",
    most_replicas: int = 1,
    canary: Canary | None = None,
    allow_older: bool = False,
) -> DeployRequest:
    return DeployRequest(
        request_id=request_id,
        name=name,
        manifest=bundle.manifest_blob,
        holders=(),
        constraints=Constraints(devices=devices, use_all=use_all, most_replicas=most_replicas),
        canary=canary,
        allow_older=allow_older,
        reply_to="",
    )


def outcome(coordinator: FakeCoordinator, request_id: str = "r1") -> CommandOutcome:
    return coordinator.outcomes[request_id].outcome


def deployed(fleet: FakeFleet, bundle: FakeBundle) -> FakeCoordinator:
    """A fleet that serves `net` on two devices."""
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-2"))
    fleet.pass_seconds(4)
    assert outcome(coordinator).ok, outcome(coordinator)
    assert outcome(coordinator).done
    return coordinator
