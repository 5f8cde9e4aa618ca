"""A device of a simulated fleet: the agent's own session, and a processor, a disk and a link that take their time.

Modelled: the processor is one server that takes messages and runs in the order in which they came, at the times of
the device's `DeviceCost` (as the planner counts them: a frame costs `message_seconds` and its bytes, received and sent,
and what else arrives costs nothing); blobs are written and stages loaded at
fixed rates beside what runs. Not modelled: several cores, caches, memory that runs full of frames (they are tiny here).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from edge.errors import Gone, RequestError
from edge.formats.message import RuntimeOffer
from edge.protocol.builds import blobs_in, format_by
from edge.protocol.effects import (
    AgentEvent,
    AnswerFetch,
    Beat,
    BeginBlob,
    BenchEnded,
    CloseStage,
    CollectBlobs,
    Echoed,
    Effect,
    FrameDone,
    LoadStage,
    Log,
    ReadManifest,
    RunBench,
    RunFrame,
    SaveServing,
    SaveSpeed,
    StageClosed,
    StageKey,
    StageLoaded,
    Stop,
    Subscribe,
    Tick,
    Unsubscribe,
)
from edge.protocol.fetch import KeepBlock
from edge.protocol.marks import ForgetDeaths, SaveMarks
from edge.protocol.on_disk import OnDisk
from edge.protocol.presence import AgentIdentity, state_publication
from edge.protocol.relay import remaining_ms
from edge.protocol.session import AgentSession
from edge.transport import Channel, Publication, Received, TransportEvent
from host.planning.costs import DeviceCost
from host.simulate.bundle import SimulatedBundle
from host.simulate.clock import Action
from host.simulate.disk import SimulatedDisk
from host.simulate.measured import measured
from host.simulate.network import SimulatedTransport
from host.simulate.processor import Processor
from host.simulate.surroundings import Surroundings

BEAT_SECONDS = 1.0
TICK_SECONDS = 0.25
_RESTLESS_SECONDS = 7.0
"""How long after news of a deployment a device is ticked often: an epoch drains for five seconds."""

_STIRRED_SECONDS = 1.5
"""The same after other events of the control plane: a description that is due is published within a second."""

_IDLE_TICK_SECONDS = 4.0
"""How often otherwise, so that admission slots of requests whose time is up are freed."""


class SimulatedDevice:
    """One device, from one life to the next.

    Attributes:
        cost: what it offers; the truth, whatever it is said to be.
        cpu: its processor.
        frames: that it ran, in all its lives.
        alive: whether it has power.
    """

    def __init__(
        self, cost: DeviceCost, around: Surroundings, *, disk: OnDisk | None = None, phase: float = 0.0
    ) -> None:
        """Prepare; `start` gives it power.

        Args:
            cost: what it offers.
            around: where it is.
            disk: what it finds on its disk.
            phase: part of a second by which its heartbeats are later than those of others.
        """
        self.cost = cost
        self.frames = 0
        self.alive = False
        self._clock = around.clock
        self._broker = around.broker
        self._bundles = around.bundles
        self._topics = around.topics
        self._readings = around.readings
        self._habits = around.habits
        self._log = around.log
        self._phase = phase
        self._run_topics = around.topics.any_run(cost.name).removesuffix("#")
        self.cpu = Processor(cost, clock=around.clock, later=self._later)
        self._disk = SimulatedDisk(
            disk or OnDisk(),
            clock=self._clock,
            bundles=self._bundles,
            room_bytes=cost.flash_bytes,
            bytes_per_second=self._habits.disk_bytes_per_second,
            later=lambda at, event: self._later(at, partial(self._handle, event)),
        )
        self._life = 0
        self._paused = False
        self._waiting: list[Action] = []
        self._stages: dict[StageKey, LoadStage] = {}
        self._told: dict[str, bytes] = {}
        self._restless_until = 0.0
        self._tick_at = math.inf
        self._ticks = 0
        self._quiet = False
        self._session: AgentSession
        self._transport: SimulatedTransport
        self._carriers = self._make_carriers()

    @property
    def name(self) -> str:
        """Name in the fleet."""
        return self.cost.name

    @property
    def effects(self) -> frozenset[type[Any]]:
        """What it carries out."""
        return frozenset(self._carriers)

    def _make_carriers(self) -> dict[type[Any], Callable[[Any], object]]:
        """Return what carries out each effect of the session."""
        return {
            Publication: self._publish,
            Subscribe: lambda effect: self._transport.subscribe(effect.channel, effect.filter),
            Unsubscribe: lambda effect: self._transport.unsubscribe(effect.channel, effect.filter),
            SaveServing: self._disk.save,
            SaveSpeed: self._disk.save,
            SaveMarks: self._disk.save,
            ForgetDeaths: lambda _: None,
            BeginBlob: self._disk.begin,
            KeepBlock: self._disk.keep,
            ReadManifest: self._disk.read_manifest,
            CollectBlobs: self._disk.collect,
            AnswerFetch: self._answer,
            RunBench: self._bench,
            Echoed: lambda _: None,
            LoadStage: self._load,
            CloseStage: self._close,
            RunFrame: self._run,
            Log: lambda effect: self._log(self.name, effect.text),
            Stop: lambda effect: self._log(self.name, f"stops: {effect.reason}"),
        }

    # ------------------------------------------------------------------------------------------------------- its life
    def start(self, *, quiet: bool = False) -> None:
        """Give it power.

        Args:
            quiet: it has been there for long: it does not greet, and what it serves is loaded.
        """
        if self.alive:
            return
        self.alive = True
        self._quiet = quiet
        self._life += 1
        self._stages.clear()
        self._told.clear()
        self._waiting.clear()
        self._paused = False
        now = self._clock.now
        self.cpu.reset()
        me = self._identity(now)
        self._session = AgentSession(me, self._disk.at_start(), readings=self._readings)
        life = self._life
        self._transport = SimulatedTransport(
            self._broker,
            self.name,
            self.cost.link,
            on_event=lambda event: self._hear(life, event),
            will=lambda connect: state_publication(self._topics, me, connect=connect, online=False, now=me.started),
        )
        self._carry(self._session.start(now))
        self._later(now if quiet else now + self._habits.start_seconds, self._transport.connect)
        self._later(now + self._phase * BEAT_SECONDS, self._beat)
        self._tick_at = math.inf
        self._rouse(_RESTLESS_SECONDS)

    def kill(self) -> None:
        """Take its power away: it says nothing more, and its memory is gone."""
        if self.alive:
            self.alive = False
            self._life += 1
            self.cpu.reset()
            self._transport.lose(reason="killed")

    def crash(self) -> None:
        """End its process: the system closes its connections, and its last will is published at once."""
        if self.alive:
            self._transport.close()
            self.kill()

    def pause(self) -> None:
        """Stop its process; connections stand, and what comes waits."""
        self._paused = True

    def resume(self) -> None:
        """Let its process go on."""
        if self._paused:
            self._paused = False
            waiting, self._waiting = self._waiting, []
            for action in waiting:
                action()

    def cut(self) -> None:
        """Take its link away."""
        if self.alive:
            self._transport.lose(reason="cut")

    def mend(self) -> None:
        """Give its link back."""
        if self.alive:
            self._transport.connect()

    def _identity(self, now: float) -> AgentIdentity:
        all_needs = (need for bundle in self._bundles.values() for need in bundle.manifest.needs)
        needs = {need.name: need for need in all_needs if self.cost.runtime in ("", need.name)}
        return AgentIdentity(
            name=self.name,
            fleet=self._topics.fleet,
            boot=self._life,
            instance=f"{self.name}-{self._life}",
            started=now,
            profile=self._habits.profile,
            runtimes=tuple(
                RuntimeOffer(name=need.name, version=need.least_version, providers=()) for need in needs.values()
            ),
            memory_bytes=self.cost.memory_bytes,
            cores=1,
            agent_version="simulated",
        )

    # ----------------------------------------------------------------------------------------------------- what happens
    def _later(self, seconds: float, action: Action) -> None:
        self._clock.at(seconds, partial(self._fire, self._life, action))

    def _fire(self, life: int, action: Action) -> None:
        if life != self._life:
            return
        if self._paused:
            self._waiting.append(action)
        else:
            action()

    def _hear(self, life: int, event: TransportEvent) -> None:
        if life != self._life:
            return
        if isinstance(event, Received) and event.channel is Channel.DATA:
            if event.topic.startswith(self._run_topics):
                size_bytes, frames = self._broker.wire_size(event.topic, event.payload)
                self.cpu.spend(self.cpu.message_seconds(size_bytes, frames), partial(self._handle, event))
                return
        else:
            self._rouse(self._excitement(event))
        self._fire(life, partial(self._handle, event))

    def _excitement(self, event: TransportEvent) -> float:
        """Return for how long an event may have something follow it: what it was told before has nothing."""
        if not isinstance(event, Received) or "/deployment/" not in event.topic:
            return _STIRRED_SECONDS
        known = self._told.get(event.topic) == event.payload
        self._told[event.topic] = event.payload
        return 0.0 if known else _RESTLESS_SECONDS

    def _handle(self, event: AgentEvent) -> None:
        self._carry(self._session.handle(event, self._clock.now))

    def _carry(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._carriers[type(effect)](effect)

    def _publish(self, publication: Publication) -> None:
        if self._quiet and publication.topic == self._topics.hello():
            self._quiet = False
            return
        self._transport.publish(publication)

    def _beat(self) -> None:
        self._later(self._clock.now + BEAT_SECONDS, self._beat)
        self._handle(Beat(frames_done=self.frames, free_memory_bytes=self.cost.memory_bytes))

    def _rouse(self, seconds: float) -> None:
        self._restless_until = max(self._restless_until, self._clock.now + seconds)
        if seconds and self._tick_at > self._clock.now + TICK_SECONDS:
            self._tick_after(TICK_SECONDS)

    def _tick_after(self, seconds: float) -> None:
        self._ticks += 1
        self._tick_at = self._clock.now + seconds
        self._later(self._tick_at, partial(self._tick, self._ticks))

    def _tick(self, number: int) -> None:
        if number == self._ticks:
            self._tick_after(TICK_SECONDS if self._clock.now < self._restless_until else _IDLE_TICK_SECONDS)
            self._handle(Tick())

    # ------------------------------------------------------------------------------------------------------ its stages
    def _load(self, effect: LoadStage) -> None:
        form = format_by(effect.runtime)
        blobs = blobs_in(effect.manifest, (form,), effect.first_shard, effect.stop_shard)
        size = sum(blob.size_bytes for blob in blobs)
        seconds = self._habits.load_seconds + size / self._habits.load_bytes_per_second
        if self._quiet:
            seconds = 0.0
        loaded = StageLoaded(key=effect.key, load_seconds=seconds, rss_bytes=size)
        self._later(self._clock.now + seconds * self.cpu.factor, partial(self._loaded, effect, loaded))

    def _loaded(self, effect: LoadStage, event: StageLoaded) -> None:
        self._stages[effect.key] = effect
        if effect.arrives is not None:
            self._bundle_of(effect).takes[effect.key] = effect.arrives
        self._handle(event)

    def _close(self, effect: CloseStage) -> None:
        self._stages.pop(effect.key, None)
        self._later(self._clock.now, partial(self._handle, StageClosed(key=effect.key)))

    def _run(self, job: RunFrame) -> None:
        """Run a frame and send what follows: its time passes first."""
        started = self.cpu.next_start
        stage = self._stages.get(job.key)
        if stage is None or remaining_ms(job, started) == 0:
            self.cpu.spend(0.0, partial(self._ran, job, stage, started, started))
            return
        cost = self.cost
        seconds = cost.session_seconds + sum(cost.shard_seconds[stage.first_shard : stage.stop_shard])
        stopped = started + seconds * self.cpu.factor
        bundle = self._bundle_of(stage)
        sizes = bundle.wire_bytes(job.codec, stage.leaves)
        leaving = [name for hand in stage.route.hands for name in hand.names] or stage.route.sent
        sending = self.cpu.message_seconds(sum(sizes[name] for name in leaving), 1.0)
        if job.codec == "deflate":
            came, left = (bundle.wire_bytes("raw", form) for form in (stage.arrives, stage.leaves))
            sending += cost.deflate_seconds_per_byte * sum(left[name] for name in leaving)
            sending += cost.inflate_seconds_per_byte * sum(came[name] for name in job.frame.tensors)
        self.cpu.spend(seconds + sending, partial(self._ran, job, stage, started, stopped))

    def _ran(self, job: RunFrame, stage: LoadStage | None, started: float, stopped: float) -> None:
        relay, ended = self._session.relay, True
        publications: list[Publication] = []
        if stage is None:
            publications = relay.after_error(job, Gone(f"stage {job.key.stage} was closed"))
        elif stopped > started:
            try:
                made = self._bundle_of(stage).run(stage.first_shard, stage.stop_shard, job.frame.tensors)
                outputs = {name: made[name] for name in stage.route.sent}
                publications = relay.after_run(job, outputs, started=started, stopped=stopped)
                ended = not job.onward
                self.frames += 1
            except RequestError as error:
                publications = relay.after_error(job, error)
        for publication in publications:
            self._transport.publish(publication)
        self._handle(
            FrameDone(
                key=job.key,
                request_id=job.frame.header.request_id,
                run_seconds=stopped - started,
                queued_seconds=started - job.arrived,
                ended=ended,
            )
        )

    def _answer(self, effect: AnswerFetch) -> None:
        payload = self._disk.answer(effect.request)
        self._publish(Publication(channel=Channel.DATA, topic=effect.request.reply_to, payload=payload))

    def _bench(self, job: RunBench) -> None:
        """Measure: the truth comes out, beside what runs and without holding it up."""
        bundle = self._bundles.get(job.digest)
        found = None if bundle is None else measured(self.cost, bundle, self._habits.profile, factor=self.cpu.factor)
        ended = BenchEnded(job=job, seconds=job.most_seconds, found=found)
        self._later(self._clock.now + job.most_seconds, partial(self._handle, ended))

    def _bundle_of(self, stage: LoadStage) -> SimulatedBundle:
        for bundle in self._bundles.values():
            if bundle.manifest is stage.manifest:
                return bundle
        raise Gone(f"stage {stage.key.stage} is of no bundle of the simulation")
