"""A fleet in memory with a clock of its own: fake devices that follow the protocol, or break it on purpose."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edge.errors import FormatError
from edge.formats.frame import FrameError, FrameHeader, decode_frame, encode_frame
from edge.formats.message import (
    Abandon,
    About,
    CommandOutcome,
    DeployRequest,
    Dropped,
    Failed,
    Heartbeat,
    Hello,
    Progress,
    Ready,
    RuntimeOffer,
    Session,
    State,
    decode_message,
    encode_message,
)
from edge.formats.packet import Reassembler, split
from edge.formats.plan import Constraints, Deployment, Stage, decode_deployment, parse_epoch
from edge.formats.speed import StageLoad
from edge.formats.topics import Topics
from edge.transport import Channel, Connected, MemoryBroker, MemoryTransport, Publication, Received, TransportEvent
from host.fleet.coordinator import Coordinator
from host.fleet.effects import CoordinatorEffect, Request, Subscribe, Told
from host.fleet.identity import Caller
from host.fleet.lease import LeaseKeeper
from tests.fake_bundle import FakeBundle

TOPICS = Topics(fleet="test")
STEP_SECONDS = 0.25


Behaviour = Callable[["FakeDevice", Deployment], bool]
"""Asked before a device prepares an epoch; False when it has dealt with it itself."""


@dataclass
class FakeDevice:
    """A device that takes every stage at once and passes frames on unchanged; the last stage doubles them."""

    name: str
    fleet: FakeFleet
    profile: str = "rpi4"
    free_memory_bytes: int = 1 << 30
    factor: float = 2.0
    runtime_version: str = "1.32.0"
    behaviour: Behaviour = lambda device, deployment: True
    epochs: dict[str, Deployment] = field(default_factory=dict)
    serving: dict[str, Deployment] = field(default_factory=dict)
    alive: bool = True
    heard_abandon: list[str] = field(default_factory=list)
    session: Session = field(default_factory=lambda: Session(boot=1, connect=1))
    run_seconds: Callable[[Stage], float] | None = None

    def __post_init__(self) -> None:
        self._events: deque[TransportEvent] = deque()
        self._frames = Reassembler()
        self._sequence = 0
        self.transport = MemoryTransport(
            self.fleet.broker, on_event=self._events.append, will=lambda _: self._state(False)
        )
        self.transport.connect(Channel.CONTROL)
        self.transport.connect(Channel.DATA)

    def kill(self) -> None:
        """Die: the broker publishes the last will."""
        self.alive = False
        self.transport.cut(Channel.CONTROL)
        self.transport.cut(Channel.DATA)

    def revive(self) -> None:
        """Come back with a new session."""
        self.alive, self.session = True, Session(boot=self.session.boot + 1, connect=1)
        self.transport.connect(Channel.CONTROL)
        self.transport.connect(Channel.DATA)

    def send(self, message: Progress | Ready | Failed | Dropped) -> None:
        """Publish an event."""
        self._publish(TOPICS.event(self.name), encode_message(message), qos=1)

    def turn(self) -> None:
        """Take every event that waits, and beat."""
        while self._events:
            event = self._events.popleft()
            if isinstance(event, Connected) and event.channel is Channel.CONTROL:
                for topic in (TOPICS.hello(), TOPICS.command(self.name), TOPICS.any_deployment("desired")):
                    self.transport.subscribe(Channel.CONTROL, topic)
                self.transport.subscribe(Channel.CONTROL, TOPICS.any_deployment("serving"))
                self.announce()
            elif isinstance(event, Connected):
                self.transport.subscribe(Channel.DATA, TOPICS.any_run(self.name))
            elif isinstance(event, Received):
                with contextlib.suppress(FormatError):
                    self._received(event)
        if self.alive:
            beat = Heartbeat(
                node=self.name,
                session=self.session,
                frames_done=0,
                oldest_queued_seconds=0.0,
                data_up=True,
                stages=self._loads(),
            )
            self._publish(TOPICS.heartbeat(self.name), encode_message(beat))

    def _loads(self) -> tuple[StageLoad, ...]:
        """What a device that ran a hundred frames of each of its stages would tell."""
        if self.run_seconds is None:
            return ()
        return tuple(
            StageLoad(
                deployment=value.name,
                epoch=value.epoch,
                stage=stage.index,
                frames=100,
                run_seconds=self.run_seconds(stage),
                queued_seconds=0.0,
            )
            for _, value in sorted(self.serving.items())
            if value.plan is not None
            for stage in value.plan.stages
            if self.name in stage.devices
        )

    def announce(self) -> None:
        """Publish state and description."""
        about = About(
            node=self.name,
            session=self.session,
            profile=self.profile,
            runtimes=(
                RuntimeOffer(name="onnxruntime", version=self.runtime_version, providers=("CPUExecutionProvider",)),
            ),
            memory_bytes=self.free_memory_bytes,
            free_memory_bytes=self.free_memory_bytes,
            free_disk_bytes=1 << 30,
            cores=4,
            held_bytes=0,
            agent_version="0.1.0",
        )
        self.fleet.broker.route(self._state(True))
        self._publish(TOPICS.about(self.name), encode_message(about), qos=1, retain=True)

    def _state(self, online: bool) -> Publication:
        state = State(node=self.name, role="agent", online=online, session=self.session)
        topic = TOPICS.state(self.name)
        return Publication(channel=Channel.CONTROL, topic=topic, payload=encode_message(state), qos=1, retain=True)

    def _publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        channel = Channel.DATA if topic.split("/")[2] in ("run", "result") else Channel.CONTROL
        self.transport.publish(Publication(channel=channel, topic=topic, payload=payload, qos=qos, retain=retain))

    def _received(self, event: Received) -> None:
        levels = TOPICS.parse(event.topic) or ()
        if levels == ("fleet", "hello"):
            if decode_message(event.payload, Hello).node != self.name:
                self.announce()
        elif levels[0] == "device":
            command = decode_message(event.payload, Abandon)
            self.heard_abandon.append(command.reason)
            if self.epochs.pop(command.epoch, None) is not None:
                self.send(Dropped(deployment=command.deployment, epoch=command.epoch))
        elif levels[0] == "run":
            self._run(event.payload, int(levels[-1]))
        elif event.payload:
            self._deployment(decode_deployment(event.payload), levels[2])

    def _deployment(self, value: Deployment, kind: str) -> None:
        if kind == "serving":
            if value.removed and value.name in self.serving:
                del self.serving[value.name]
                self.send(Dropped(deployment=value.name, epoch=value.epoch))
            elif not value.removed:
                self.serving[value.name] = value
            return
        if value.plan is None or value.epoch in self.epochs:
            return
        mine = [stage for stage in value.plan.stages if self.name in stage.devices]
        if mine and self.behaviour(self, value):
            self.epochs[value.epoch] = value
            for stage in mine:
                ready = Ready(
                    deployment=value.name,
                    epoch=value.epoch,
                    stage=stage.index,
                    fetched_bytes=10,
                    load_seconds=0.1,
                    rss_bytes=1,
                )
                self.send(ready)

    def _run(self, payload: bytes, stage: int) -> None:
        data = self._frames.add(payload, self.fleet.now)
        if data is None:
            return
        frame = decode_frame(data)
        plan = self.epochs[frame.header.epoch].plan
        assert plan is not None
        if stage + 1 < len(plan.stages):
            topic = TOPICS.run(plan.stages[stage + 1].device, frame.header.deployment, frame.header.epoch, stage + 1)
            self.forward(frame.header, topic, frame.tensors["x"], kind="tensor")
        else:
            self.forward(frame.header, frame.header.reply_to, frame.tensors["x"] * np.float32(self.factor))

    def forward(
        self,
        header: FrameHeader,
        topic: str,
        value: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
        *,
        kind: str = "result",
        error: FrameError | None = None,
    ) -> None:
        """Send one frame on."""
        self._sequence += 1
        fields = {"kind": kind, "error": error, "sender": self.name}
        made = FrameHeader(**{name: getattr(header, name) for name in header.__struct_fields__} | fields)
        for packet in split(
            encode_frame(made, {"x": value}), sender=self.name, session=self.session, sequence=self._sequence
        ):
            self._publish(topic, packet)


@dataclass
class FakeCoordinator:
    """A coordinator on the memory broker."""

    core: Coordinator
    fleet: FakeFleet
    outcomes: dict[str, Told] = field(default_factory=dict)
    phases: list[str] = field(default_factory=list)

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
) -> DeployRequest:
    return DeployRequest(
        request_id=request_id,
        name=name,
        manifest=bundle.manifest_blob,
        holders=(),
        constraints=Constraints(devices=devices, use_all=use_all, most_replicas=most_replicas),
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
