"""A fake device on a broker in memory: it follows the protocol, or breaks it on purpose."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edge.errors import FormatError
from edge.formats.frame import FrameError, FrameHeader, decode_frame, encode_frame
from edge.formats.message import (
    Abandon,
    About,
    Cordon,
    Dropped,
    Failed,
    Fetched,
    Heartbeat,
    Hello,
    Kept,
    Progress,
    Ready,
    RuntimeOffer,
    Session,
    State,
    Swap,
    decode_message,
    encode_message,
)
from edge.formats.packet import Reassembler, split
from edge.formats.plan import Deployment, Stage, decode_deployment
from edge.formats.speed import StageLoad
from edge.formats.topics import Topics
from edge.transport import Channel, Connected, MemoryBroker, MemoryTransport, Publication, Received, TransportEvent

TOPICS = Topics(fleet="test")


class Surroundings(Protocol):
    """The fleet that a device is part of."""

    broker: MemoryBroker
    now: float


Behaviour = Callable[["FakeDevice", Deployment], bool]
"""Asked before a device prepares an epoch; False when it has dealt with it itself."""


@dataclass
class FakeDevice:
    """A device that takes every stage at once and passes frames on unchanged; the last stage doubles them."""

    name: str
    fleet: Surroundings
    profile: str = "rpi4"
    free_memory_bytes: int = 1 << 30
    factor: float = 2.0
    runtime_version: str = "1.32.0"
    behaviour: Behaviour = lambda device, deployment: True
    epochs: dict[str, Deployment] = field(default_factory=dict)
    serving: dict[str, Deployment] = field(default_factory=dict)
    canaries: dict[str, Deployment] = field(default_factory=dict)
    alive: bool = True
    heard_abandon: list[str] = field(default_factory=list)
    session: Session = field(default_factory=lambda: Session(boot=1, connect=1))
    run_seconds: Callable[[Stage], float] | None = None
    failed: Callable[[Deployment], int] = lambda deployment: 0
    cordoned: bool = False
    keeps: bool = True
    heard_swap: list[str] = field(default_factory=list)

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

    def send(self, message: Progress | Fetched | Ready | Kept | Failed | Dropped) -> None:
        """Publish an event."""
        self._publish(TOPICS.event(self.name), encode_message(message), qos=1)

    def turn(self) -> None:
        """Take every event that waits, and beat."""
        while self._events:
            event = self._events.popleft()
            if isinstance(event, Connected) and event.channel is Channel.CONTROL:
                for topic in (TOPICS.hello(), TOPICS.command(self.name), TOPICS.any_deployment("desired")):
                    self.transport.subscribe(Channel.CONTROL, topic)
                for kind in ("serving", "canary"):
                    self.transport.subscribe(Channel.CONTROL, TOPICS.any_deployment(kind))
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
                failed=self.failed(value),
            )
            for value in self._at_work()
            if value.plan is not None
            for stage in value.plan.stages
            if self.name in stage.devices
        )

    def _at_work(self) -> list[Deployment]:
        """What it serves, and what is tried."""
        tried = [value for _, value in sorted(self.canaries.items()) if value.epoch in self.epochs]
        return [*(value for _, value in sorted(self.serving.items())), *tried]

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
            cordoned=self.cordoned,
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
            self._commanded(decode_message(event.payload, object))
        elif levels[0] == "run":
            self._run(event.payload, int(levels[-1]))
        elif event.payload:
            self._deployment(decode_deployment(event.payload), levels[2])
        elif levels[2] == "canary":
            self.canaries.pop(levels[1], None)

    def _commanded(self, command: object) -> None:
        match command:
            case Abandon():
                self.heard_abandon.append(command.reason)
                if self.epochs.pop(command.epoch, None) is not None:
                    self.send(Dropped(deployment=command.deployment, epoch=command.epoch))
            case Cordon(cordoned=cordoned):
                self.cordoned = cordoned
                self.announce()
            case Swap(epoch=epoch):
                self.heard_swap.append(epoch)
                self.ready(self.epochs[epoch])

    def _deployment(self, value: Deployment, kind: str) -> None:
        if kind == "serving":
            if value.removed and value.name in self.serving:
                del self.serving[value.name]
                self.send(Dropped(deployment=value.name, epoch=value.epoch))
            elif not value.removed:
                self.serving[value.name] = value
                self._keep(value)
            return
        if kind == "canary":
            self.canaries[value.name] = value
            return
        if value.plan is None or value.epoch in self.epochs:
            return
        mine = [stage for stage in value.plan.stages if self.name in stage.devices]
        if mine and self.behaviour(self, value):
            self.epochs[value.epoch] = value
            if any(self.name in stage.swaps for stage in mine):
                self.send(Fetched(deployment=value.name, epoch=value.epoch))
            else:
                self.ready(value)

    def _keep(self, value: Deployment) -> None:
        """Say that it holds the golden inputs, and what it keeps for others."""
        stages = value.plan.stages if value.plan is not None else ()
        kept = tuple(stage.index for stage in stages if self.name in (*stage.devices, *stage.keepers))
        if kept and self.keeps:
            self.send(Kept(deployment=value.name, epoch=value.epoch, stages=kept, golden=0 in kept))

    def ready(self, value: Deployment) -> None:
        """Say that its stages of an epoch can run."""
        for stage in value.plan.stages if value.plan is not None else ():
            if self.name in stage.devices:
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
