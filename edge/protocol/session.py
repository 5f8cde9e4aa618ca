"""The agent's protocol: (event, now) → effects. No IO, no clock, no threads.

The same code runs on a device (`edge.agent`) and in a simulated fleet: whoever drives it carries out the effects
and hands back the events that follow. Its parts, beside it: `presence` (who is here), `epochs` (what is prepared and
served), `blobs` (what is on its way), `intake` (frames) and `measure` (how fast this device is).
"""

from collections.abc import Callable, Iterable
from typing import Any

from edge.errors import FormatError, ShardwireError
from edge.formats.message import (
    Abandon,
    BenchRequest,
    Cordon,
    Done,
    Hello,
    Session,
    Speed,
    State,
    Swap,
    Taken,
    decode_message,
)
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
    StageClosed,
    StageLoaded,
    StageRefused,
    Subscribe,
    Tick,
)
from edge.protocol.epochs import Epochs
from edge.protocol.intake import Intake
from edge.protocol.keeping import Keeping
from edge.protocol.live import LiveBlobs
from edge.protocol.measure import Measure
from edge.protocol.memory import Memory
from edge.protocol.needs import Capacity
from edge.protocol.neighbours import Neighbours
from edge.protocol.on_disk import OnDisk
from edge.protocol.pace import Pace
from edge.protocol.preparing import Announce, EpochAction, Need
from edge.protocol.presence import AgentIdentity, Presence, control
from edge.protocol.readings import Readings
from edge.protocol.relay import Relay
from edge.protocol.retained import Retained
from edge.protocol.vitals import Vitals
from edge.transport import Channel, Connected, Disconnected, Received, Subscribed


class AgentSession:
    """One agent: feed it every event, carry out every effect, in order."""

    def __init__(
        self,
        identity: AgentIdentity,
        disk: OnDisk,
        *,
        readings: Readings | None = None,
        fetch_bytes_per_second: float | None = None,
    ) -> None:
        """Start with what the disk has.

        Args:
            identity: of the agent.
            disk: what it found there.
            readings: of deployments; its own when left out. A simulation has one for all its agents.
            fetch_bytes_per_second: most bytes of blobs while it serves; None for a part of its link.
        """
        self._name = identity.name
        self._topics = Topics(fleet=identity.fleet)
        self._disk = disk
        self._data_up = False
        self._memory = Memory(disk.marks, disk.deaths)
        self._presence = Presence(
            identity=identity,
            topics=self._topics,
            held_bytes=disk.held_bytes,
            free_disk_bytes=disk.free_disk_bytes,
            cordoned=disk.marks.cordoned,
        )
        capacity = Capacity(memory_bytes=identity.memory_bytes, runtimes=identity.runtimes)
        live = LiveBlobs(disk.held)
        self._epochs = Epochs(node=self._name, capacity=capacity, live=live, memory=self._memory)
        self._keeping = Keeping(node=self._name, live=live, find=self._epochs.find, collect=self._epochs.collect)
        self._measure = Measure(
            topics=self._topics, identity=identity, budget_bytes=self._epochs.budget_bytes, speed=disk.speed
        )
        live.also += [self._measure.keeps, self._keeping.keeps]
        self._blobs = self._make_blobs(disk, Pace(bytes_per_second=fetch_bytes_per_second))
        self._blobs.make_room = self._epochs.make_room
        self._live = live
        self._link_known(disk.speed)
        self.relay = Relay(topics=self._topics, node=self._name, session=Session(boot=identity.boot, connect=0))
        self._intake = Intake(
            topics=self._topics,
            node=self._name,
            relay=self.relay,
            epochs=self._epochs,
            poisoned=disk.poisoned,
            queue_limit_bytes=identity.memory_bytes // 4,
        )
        self._vitals = Vitals(topics=self._topics, presence=self._presence, intake=self._intake, epochs=self._epochs)
        self._retained = self._make_retained(readings or Readings(), seed=f"{self._name} {identity.instance}")
        self._neighbours = Neighbours(self._topics)
        self._steps = self._all_steps()
        self._control_readers, self._data_readers = self._control_topics(), self._data_topics()

    def _make_blobs(self, disk: OnDisk, pace: Pace) -> Blobs:
        return Blobs(
            topics=self._topics,
            node=self._name,
            presence=self._presence,
            users=(self._epochs, self._measure, self._keeping),
            carry=self._carry,
            spoiled=lambda digest: self._gone((digest,)),
            pace=pace,
            partial=disk.partial,
        )

    def _make_retained(self, readings: Readings, *, seed: str) -> Retained:
        return Retained(
            topics=self._topics,
            node=self._name,
            epochs=self._epochs,
            keeping=self._keeping,
            memory=self._memory,
            readings=readings,
            seed=seed,
        )

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
            StageClosed: lambda event, now: self._carry(self._epochs.stage_closed(event), now),
            FrameDone: self._frame_done,
            BenchEnded: self._bench_ended,
        }

    def _control_topics(self) -> dict[str, Callable[[Received, str, float], list[Effect]]]:
        return {
            "state": self._state,
            "command": self._command,
            "hello": self._hello,
            "lease": lambda event, _, now: self._carry(self._retained.lease(event, now), now),
            "desired": lambda event, name, now: self._carry(self._retained.desired(event, name, now), now),
            "serving": lambda event, name, now: self._carry(self._retained.serving(event, name, now), now),
            "canary": lambda event, name, now: self._carry(self._retained.canary(event, name, now), now),
        }

    def _data_topics(self) -> dict[str, Callable[[bytes, float], list[Effect]]]:
        return {
            "fetch": self._blobs.fetch_request,
            "blocks": self._blobs.block,
            "ack": self._ack,
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
            effects += self._carry(self._retained.serves(deployment, now, from_disk=True), now)
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
            subscribed = [Subscribe(channel=Channel.DATA, filter=filter) for filter in data]
            return [*subscribed, *self._vitals.again(now, data_up=True)]
        filters = (topics.state(name), topics.command(name), topics.hello())
        self._neighbours.connected()
        # Subscribed before it is announced: who sees us may send a command at once.
        return [
            *(Subscribe(channel=Channel.CONTROL, filter=filter) for filter in filters),
            *self._retained.connected(),
            *self._neighbours.fit(self._watched()),
            *self._measure.announce(),
            *self._presence.connected(event.connect, self._epochs.budget_bytes(), now, born=self._epochs.can_serve),
            *self._standing(now),  # what came about while the connection was down, nobody heard
        ]

    def _disconnected(self, event: Disconnected, now: float) -> list[Effect]:
        if event.channel is Channel.DATA:
            self._data_up = self._epochs.can_serve = False
            self._blobs.paused()
            return [*self._vitals.again(now, data_up=False)]
        self._presence.online = False
        return []

    def _subscribed(self, event: Subscribed, now: float) -> list[Effect]:
        if event.channel is Channel.CONTROL:
            self._retained.subscribed(event.filter, now)
            return []
        if event.filter == self._topics.blocks(self._name):
            return self._blobs.resumed(now)
        if event.filter != self._topics.any_run(self._name):
            return []
        self._epochs.can_serve = True
        return [*self._presence.born(self._epochs.budget_bytes(), now), *self._carry(self._epochs.events(), now)]

    def _watched(self) -> frozenset[str]:
        return (self._epochs.next_devices() | self._blobs.holders) - {self._name}

    def _announce(self, now: float) -> list[Effect]:
        return self._presence.announce(self._epochs.budget_bytes(), now)

    # ---------------------------------------------------------------------------------------------------- messages
    def _received(self, event: Received, now: float) -> list[Effect]:
        levels = self._topics.parse(event.topic)
        if levels is None:
            return []
        if event.channel is Channel.DATA:
            if levels[:2] == ("run", self._name) and len(levels) == 5:
                if self._epochs.runs(*levels[2:]):  # what is only turned away does not slow down blobs
                    self._blobs.pace.frame(now)
                return self._intake.packet(levels, event.payload, now)
            if levels == ("device", self._name, "echo"):
                return self._measure.echo(event.payload, now)
            read = self._data_readers.get(levels[0]) if levels[1:] == (self._name,) else None
            return read(event.payload, now) if read is not None else []
        subject = levels[1]
        asked = levels in (
            ("device", subject, "state"),
            ("device", self._name, "command"),
            ("fleet", "hello"),
            ("coordinator", "lease"),
            *(("deployment", subject, kind) for kind in ("desired", "serving", "canary")),
        )
        return self._control_readers[levels[-1]](event, subject, now) if asked else []

    def _state(self, event: Received, device: str, now: float) -> list[Effect]:
        if device == self._name:
            return self._presence.own_state(event, self._epochs.budget_bytes(), now)
        if not self._neighbours.watches(device) or not event.payload:
            return []  # an empty one: the device was forgotten, which says nothing about its life
        state = decode_message(event.payload, State)
        if state.node != device:
            raise FormatError(f"state of {state.node[:64]!r} on the topic of {device}")
        self.relay.state(state)
        return self._blobs.state(state, now)

    def _hello(self, event: Received, _subject: str, now: float) -> list[Effect]:
        hello = decode_message(event.payload, Hello)
        if hello.node != self._name and hello.role != "agent":
            self._presence.asked(now)
        return []

    def _answer_hello(self, now: float) -> list[Effect]:
        return [*self._measure.announce(), *self._announce(now), *self._standing(now)]

    def _standing(self, now: float) -> list[Effect]:
        return self._carry([*self._epochs.events(), *self._keeping.events()], now)

    def _command(self, event: Received, _subject: str, now: float) -> list[Effect]:
        command = decode_message(event.payload, object)
        if isinstance(command, BenchRequest):
            return self._carry(self._measure.command(command), now)
        if isinstance(command, Cordon):
            self._presence.cordoned, self._presence.due = command.cordoned, True
            return [*self._carry(self._memory.cordon(command.cordoned), now), *self._announce(now)]
        if not isinstance(command, Abandon | Swap):
            raise FormatError(f"{type(command).__name__} is no command to a device")
        check_name(command.deployment, what="deployment name")
        carry_out = self._epochs.abandon if isinstance(command, Abandon) else self._epochs.swap
        return self._carry(carry_out(command.deployment, command.epoch), now)

    # ------------------------------------------------------------------------------------------------------- blobs
    def _blobs_dropped(self, event: BlobsDropped, now: float) -> list[Effect]:
        self._presence.held_bytes, self._presence.free_disk_bytes = event.held_bytes, event.free_disk_bytes
        self._gone(event.digests)
        return self._announce(now)

    def _gone(self, digests: tuple[str, ...]) -> None:
        self._live.held.difference_update(digests)
        self._keeping.dropped(digests)
        self._blobs.dropped(digests)

    def _manifest_read(self, event: ManifestRead, now: float) -> list[Effect]:
        self._keeping.manifest_read(event.digest, event.manifest)
        read = self._epochs.manifest_read(event.digest, event.manifest, now)
        return self._carry([*read, *self._measure.manifest_read(event.digest, event.manifest)], now)

    # ---------------------------------------------------------------------------------------------- stages, frames
    def _stage_loaded(self, event: StageLoaded, now: float) -> list[Effect]:
        self._presence.due = True
        effects = self._carry(self._epochs.stage_loaded(event, now), now)
        local = self._epochs.find(event.key.deployment, event.key.epoch)
        return effects + (self._measure.stage_loaded(local, event.key.stage, now) if local is not None else [])

    def _stage_refused(self, event: StageRefused, now: float) -> list[Effect]:
        return self._carry(self._epochs.stage_refused(event.key, event.code, event.reason, now), now)

    def _frame_done(self, event: FrameDone, now: float) -> list[Effect]:
        self._vitals.frame_done(event, now)
        self._measure.ran(now)
        return self._intake.frame_done(event)

    def _bench_ended(self, event: BenchEnded, now: float) -> list[Effect]:
        effects = self._carry(self._measure.ended(event), now)
        self._link_known(self._measure.speed)
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
        heartbeat = self._vitals.heartbeat(event, now, data_up=self._data_up)
        metrics = self._vitals.metrics(event, now, blobs=self._blobs.counters(), transfers=self._blobs.transfers)
        return [heartbeat, *metrics]

    def _tick(self, _event: Tick, now: float) -> list[Effect]:
        effects = self._intake.tick(now)
        if self._data_up:
            # While the connection is down nobody can answer, and no holder is to blame.
            effects += self._blobs.tick(now)
        effects += self._carry(self._epochs.tick(self._blobs.missing_bytes(), now), now)
        effects += self._carry(self._keeping.tick(now), now)
        if self._presence.online:
            effects += self._retained.tick(now)
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
        if self._presence.online:
            effects += self._neighbours.fit(self._watched())
        return effects

    def _link_known(self, speed: Speed | None) -> None:
        if speed is not None and speed.link is not None:
            self._blobs.pace.measured(speed.link.bytes_per_second)
