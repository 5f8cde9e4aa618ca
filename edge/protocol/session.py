"""The agent's protocol: (event, now) → effects. No IO, no clock, no threads.

The same code runs on a device (`edge.agent`) and in a simulated fleet: whoever drives it carries out the effects
and hands back the events that follow. Its parts, beside it: `presence` (who is here), `epochs` (what is prepared and
served), `blobs` (what is on its way), `intake` (frames) and `measure` (how fast this device is).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from edge.errors import FormatError, ShardwireError
from edge.formats.message import (
    Abandon,
    BenchRequest,
    Done,
    Heartbeat,
    Hello,
    Lease,
    Session,
    Speed,
    Taken,
    decode_message,
)
from edge.formats.plan import Deployment
from edge.formats.topics import Topics, check_name
from edge.protocol.blobs import Blobs
from edge.protocol.effects import (
    AgentEvent,
    Beat,
    BenchEnded,
    BlobsDropped,
    Effect,
    FrameDone,
    Log,
    ManifestRead,
    StageLoaded,
    StageRefused,
    Subscribe,
    Tick,
)
from edge.protocol.epochs import Announce, EpochAction, Epochs, Need
from edge.protocol.intake import Intake
from edge.protocol.loads import Loads
from edge.protocol.measure import Measure
from edge.protocol.needs import Capacity
from edge.protocol.presence import AgentIdentity, Presence, control
from edge.protocol.readings import Readings
from edge.protocol.relay import Relay
from edge.transport import Channel, Connected, Disconnected, Received, Subscribed


@dataclass(frozen=True, kw_only=True, slots=True)
class OnDisk:
    """What an agent finds on its disk when it starts.

    Attributes:
        serving: newest serving plan of each deployment.
        held: digests of the blobs.
        poisoned: requests that killed it.
        speed: what was measured of it, None when nothing was.
    """

    serving: tuple[Deployment, ...] = ()
    held: frozenset[str] = frozenset()
    held_bytes: int = 0
    free_disk_bytes: int = 0
    poisoned: frozenset[str] = frozenset()
    speed: Speed | None = None


class AgentSession:
    """One agent: feed it every event, carry out every effect, in order."""

    def __init__(self, identity: AgentIdentity, disk: OnDisk, *, readings: Readings | None = None) -> None:
        """Start with what the disk has.

        Args:
            identity: of the agent.
            disk: what it found there.
            readings: of deployments; its own when left out. A simulation has one for all its agents.
        """
        self._readings = readings or Readings()
        self._name = identity.name
        self._topics = Topics(fleet=identity.fleet)
        self._disk = disk
        self._data_up = False
        self._presence = Presence(
            identity=identity,
            topics=self._topics,
            held_bytes=disk.held_bytes,
            free_disk_bytes=disk.free_disk_bytes,
        )
        self._loads = Loads()
        capacity = Capacity(memory_bytes=identity.memory_bytes, runtimes=identity.runtimes)
        self._epochs = Epochs(node=self._name, capacity=capacity, held=disk.held)
        self._measure = Measure(
            topics=self._topics, identity=identity, budget_bytes=self._epochs.budget_bytes, speed=disk.speed
        )
        self._epochs.also_keeps = self._measure.keeps
        self._blobs = Blobs(
            topics=self._topics,
            node=self._name,
            presence=self._presence,
            users=(self._epochs, self._measure),
            carry=self._carry,
            spoiled=lambda digest: self._epochs.dropped((digest,)),
        )
        self.relay = Relay(topics=self._topics, node=self._name, session=Session(boot=identity.boot, connect=0))
        self._intake = Intake(
            topics=self._topics,
            node=self._name,
            relay=self.relay,
            epochs=self._epochs,
            poisoned=disk.poisoned,
            queue_limit_bytes=identity.memory_bytes // 4,
        )
        self._steps = self._all_steps()
        self._control_readers: dict[str, Callable[[Received, str, float], list[Effect]]] = {
            "state": self._own_state,
            "command": self._command,
            "hello": self._hello,
            "lease": self._lease,
            "desired": self._desired,
            "serving": self._serving,
        }
        self._data_readers: dict[str, Callable[[bytes, float], list[Effect]]] = {
            "fetch": self._blobs.fetch_request,
            "blocks": self._blobs.block,
            "ack": self._ack,
        }

    def _all_steps(self) -> dict[type[Any], Callable[[Any, float], list[Effect]]]:
        return {
            Connected: self._connected,
            Disconnected: self._disconnected,
            Subscribed: self._subscribed,
            Received: self._received,
            Tick: self._tick,
            Beat: self._beat,
            **self._blobs.steps,
            BlobsDropped: self._blobs_dropped,
            ManifestRead: self._manifest_read,
            StageLoaded: self._stage_loaded,
            StageRefused: self._stage_refused,
            FrameDone: self._frame_done,
            BenchEnded: self._bench_ended,
        }

    @property
    def session(self) -> Session:
        """The session of the control connection that stands, or stood last."""
        return self._presence.session

    def start(self, now: float) -> list[Effect]:
        """Serve again what was served before, from the disk and with nobody's help."""
        effects: list[Effect] = []
        # Tombstones last: they collect blobs, and what the live ones need must be known by then.
        for deployment in sorted(self._disk.serving, key=lambda found: found.removed):
            effects += self._carry(self._epochs.serving(deployment, now), now)
        return effects

    def handle(self, event: AgentEvent, now: float) -> list[Effect]:
        """Take one event.

        Args:
            event: what happened.
            now: monotonic seconds, never less than before.

        Returns:
            What must be done, in order. A malformed message gives a log line and nothing else.
        """
        try:
            return self._steps[type(event)](event, now)
        except ShardwireError as error:
            where = event.topic[:200] if isinstance(event, Received) else type(event).__name__
            return [Log(level="warning", text=f"{where}: dropped: {error}")]

    # ------------------------------------------------------------------------------------------------- connections
    def _connected(self, event: Connected, now: float) -> list[Effect]:
        name, topics = self._name, self._topics
        if event.channel is Channel.DATA:
            self._data_up = True
            data = (topics.any_run(name), topics.fetch(name), topics.blocks(name), topics.ack(name), topics.echo(name))
            return [Subscribe(channel=Channel.DATA, filter=filter) for filter in data]
        filters = (
            topics.state(name),
            topics.command(name),
            topics.hello(),
            topics.any_deployment("desired"),
            topics.any_deployment("serving"),
            topics.lease(),
        )
        # Subscribed before it is announced: who sees us may send a command at once.
        return [
            *(Subscribe(channel=Channel.CONTROL, filter=filter) for filter in filters),
            *self._measure.announce(),
            *self._presence.connected(event.connect, self._epochs.budget_bytes(), now),
        ]

    def _disconnected(self, event: Disconnected, _now: float) -> list[Effect]:
        if event.channel is Channel.DATA:
            self._data_up = self._epochs.can_serve = False
        else:
            self._presence.online = False
        return []

    def _subscribed(self, event: Subscribed, now: float) -> list[Effect]:
        if event.filter != self._topics.any_run(self._name):
            return []
        self._epochs.can_serve = True
        return self._carry(self._epochs.events(), now)

    def _announce(self, now: float) -> list[Effect]:
        return self._presence.announce(self._epochs.budget_bytes(), now)

    # ---------------------------------------------------------------------------------------------------- messages
    def _received(self, event: Received, now: float) -> list[Effect]:
        levels = self._topics.parse(event.topic)
        if levels is None:
            return []
        if event.channel is Channel.DATA:
            if levels[:2] == ("run", self._name) and len(levels) == 5:
                return self._intake.packet(levels, event.payload, now)
            if levels == ("device", self._name, "echo"):
                return self._measure.echo(event.payload, now)
            read = self._data_readers.get(levels[0]) if levels[1:] == (self._name,) else None
            return read(event.payload, now) if read is not None else []
        subject = levels[1]
        asked = levels in (
            ("device", self._name, "state"),
            ("device", self._name, "command"),
            ("fleet", "hello"),
            ("coordinator", "lease"),
            ("deployment", subject, "desired"),
            ("deployment", subject, "serving"),
        )
        return self._control_readers[levels[-1]](event, subject, now) if asked else []

    def _own_state(self, event: Received, _subject: str, now: float) -> list[Effect]:
        return self._presence.own_state(event, self._epochs.budget_bytes(), now)

    def _hello(self, event: Received, _subject: str, now: float) -> list[Effect]:
        if decode_message(event.payload, Hello).node == self._name:
            return []
        self._presence.asked(now)
        return []

    def _answer_hello(self, now: float) -> list[Effect]:
        return [*self._measure.announce(), *self._announce(now), *self._carry(self._epochs.events(), now)]

    def _lease(self, event: Received, _subject: str, _now: float) -> list[Effect]:
        decode_message(event.payload, Lease)
        return []

    def _desired(self, event: Received, subject: str, now: float) -> list[Effect]:
        if not event.payload:
            return []  # the coordinator took its retained value back; an `Abandon` says what to drop
        deployment = self._readings.read(event.topic, event.payload, name=subject)
        return self._carry(self._epochs.desired(deployment, now), now)

    def _serving(self, event: Received, subject: str, now: float) -> list[Effect]:
        deployment = self._readings.read(event.topic, event.payload, name=subject)
        return self._carry(self._epochs.serving(deployment, now), now)

    def _command(self, event: Received, _subject: str, now: float) -> list[Effect]:
        command = decode_message(event.payload, object)
        if isinstance(command, BenchRequest):
            return self._carry(self._measure.command(command), now)
        if not isinstance(command, Abandon):
            raise FormatError(f"{type(command).__name__} is no command to a device")
        check_name(command.deployment, what="deployment name")
        return self._carry(self._epochs.abandon(command.deployment, command.epoch), now)

    # ------------------------------------------------------------------------------------------------------- blobs
    def _blobs_dropped(self, event: BlobsDropped, now: float) -> list[Effect]:
        self._presence.held_bytes, self._presence.free_disk_bytes = event.held_bytes, event.free_disk_bytes
        self._epochs.dropped(event.digests)
        return self._announce(now)

    def _manifest_read(self, event: ManifestRead, now: float) -> list[Effect]:
        read = self._epochs.manifest_read(event.digest, event.manifest, now)
        return self._carry([*read, *self._measure.manifest_read(event.digest, event.manifest)], now)

    # ---------------------------------------------------------------------------------------------- stages, frames
    def _stage_loaded(self, event: StageLoaded, now: float) -> list[Effect]:
        self._presence.due = True
        effects = self._carry(self._epochs.stage_loaded(event), now)
        local = self._epochs.find(event.key.deployment, event.key.epoch)
        return effects + (self._measure.stage_loaded(local, event.key.stage) if local is not None else [])

    def _stage_refused(self, event: StageRefused, now: float) -> list[Effect]:
        return self._carry(self._epochs.stage_refused(event.key, event.code, event.reason, now), now)

    def _frame_done(self, event: FrameDone, now: float) -> list[Effect]:
        self._loads.done(event, now)
        return self._intake.frame_done(event)

    def _bench_ended(self, event: BenchEnded, now: float) -> list[Effect]:
        effects = self._carry(self._measure.ended(event), now)
        if event.job.request_id and self._presence.free_disk_bytes < self._presence.held_bytes:
            # What was fetched for a bench is kept for the deployment that may follow, not where disks are small.
            effects += self._carry(self._epochs.collect(), now)
        return effects

    def _ack(self, payload: bytes, _now: float) -> list[Effect]:
        ack = decode_message(payload, object)
        if isinstance(ack, Done):
            return self._intake.done(ack)
        if not isinstance(ack, Taken):
            raise FormatError(f"{type(ack).__name__} is no ack")
        self.relay.taken(ack)
        return []

    # -------------------------------------------------------------------------------------------------------- time
    def _beat(self, event: Beat, now: float) -> list[Effect]:
        self._epochs.free_memory_bytes = event.free_memory_bytes
        heartbeat = Heartbeat(
            node=self._name,
            session=self.session,
            frames_done=event.frames_done,
            oldest_queued_seconds=self._intake.oldest_seconds(now),
            data_up=self._data_up,
            stages=self._loads.report(lambda key: self._epochs.find(key.deployment, key.epoch) is not None),
        )
        return [control(self._topics.heartbeat(self._name), heartbeat, qos=0)]

    def _tick(self, _event: Tick, now: float) -> list[Effect]:
        effects = self._intake.tick(now)
        if self._data_up:
            # While the connection is down nobody can answer, and no holder is to blame.
            effects += self._blobs.tick(now)
        effects += self._carry(self._epochs.tick(self._blobs.missing_bytes(), now), now)
        if self._presence.must_answer(now):
            effects += self._answer_hello(now)
        return effects + (self._announce(now) if self._presence.due else [])

    # ----------------------------------------------------------------------------------------------------- carrying
    def _carry(self, actions: Iterable[EpochAction], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for action in actions:
            if isinstance(action, Announce):
                effects.append(control(self._topics.event(self._name), action.event, qos=1))
            elif isinstance(action, Need):
                effects += self._blobs.need(action, now)
            else:
                effects.append(action)
        self._blobs.forget_unwanted()
        self._intake.fit_limits()
        return effects
