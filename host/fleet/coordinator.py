"""The coordinator's protocol: (event, now) to effects. No clock and no threads; IO only through its blob sources."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from edge.errors import FormatError, ShardwireError
from edge.formats.bundle import decode_manifest
from edge.formats.message import (
    CancelRequest,
    CommandOutcome,
    DeployRequest,
    Dropped,
    Failed,
    Hello,
    Lease,
    Progress,
    Ready,
    Session,
    UndeployRequest,
    decode_message,
    encode_message,
)
from edge.formats.plan import Deployment, Epoch, encode_deployment
from edge.transport import Channel, Connected, Disconnected, Publication, Received, Subscribed, TransportEvent
from host.bundle import fleet_blobs
from host.fleet.blobs import BlobSource, answer_requests
from host.fleet.collect import Collector
from host.fleet.effects import CoordinatorEffect, Keep, Request, Subscribe, Told
from host.fleet.identity import Caller, birth, epoch_id, heartbeat, retained
from host.fleet.jobs import DeployJob, Desk, Job, UndeployJob
from host.fleet.lease import LeaseKeeper
from host.fleet.ledger import Ledger, News
from host.fleet.outcomes import outcome_of, replies, request_fault
from host.fleet.roster import HEARTBEAT_SECONDS, Roster
from host.fleet.watch import Replan, Watch, trouble_event

_log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 1.0
"""Least time between two announcements of everything that is retained."""

MAX_JOBS = 64
MAX_OUTCOMES = 256


class Coordinator(Desk):
    """Plans, ships, probes, commits and watches, as long as it holds the lease."""

    def __init__(
        self,
        caller: Caller,
        *,
        blobs: BlobSource,
        collector: Collector | None,
        keeper: LeaseKeeper,
        staying: bool,
        known: Iterable[Deployment] = (),
        horizon_seconds: float | None = None,
    ) -> None:
        """Start with nobody known.

        Args:
            caller: name, session and topics of this node.
            blobs: what it holds for others.
            collector: gets blobs that it lacks; None for a coordinator that serves one bundle.
            keeper: of the lease.
            staying: whether it stays after its commands, so that others may fetch from it later.
            known: serving values of an earlier life.
            horizon_seconds: over which a better plan must pay for its change; None never to plan again by itself.
        """
        self.caller = caller
        self.roster = Roster(caller.topics)
        self.blobs = blobs
        self.collector = collector
        self.staying = staying
        self._keeper = keeper
        self._watch = None if horizon_seconds is None else Watch(self, horizon_seconds=horizon_seconds)
        self._ledger = Ledger(known)
        self._jobs: dict[str, Job] = {}
        self._told: dict[str, str] = {}
        self._outcomes: dict[str, CommandOutcome] = {}
        self._sequence = 0
        self._up: set[Channel] = set()
        self._hello_at: float | None = None
        self._beat_at = 0.0
        self._announce_at: float | None = None
        self._announced_at = float("-inf")
        self._planned = False
        topics = caller.topics
        self._routes: Mapping[str, Callable[[Received, float], list[CoordinatorEffect]]] = {
            topics.lease(): self._lease,
            topics.hello(): self._hello,
            topics.command(caller.node): self._command,
            topics.fetch(caller.node): self._fetch,
            topics.blocks(caller.node): self._block,
            topics.result(caller.node): self._result,
        }

    # ------------------------------------------------------------------------------------------ what jobs may ask
    def since_hello(self, now: float) -> float:
        """See `Desk.since_hello`."""
        return -1.0 if self._hello_at is None else now - self._hello_at

    def next_epoch(self, name: str, now: float) -> str | None:
        """See `Desk.next_epoch`."""
        lease = self._keeper.lease
        if lease is None or not self._keeper.holds(now):
            return None
        epoch = Epoch(term=lease.term, coordinator=epoch_id(self.caller.node), sequence=self._sequence + 1)
        known = self._ledger.newest(name)
        if known is not None and epoch <= known:
            # Someone issued an epoch under a lease that we never saw: go past it.
            self._keeper.need_term(known.term + 1)
            return None
        self._sequence += 1
        return str(epoch)

    def serving(self, name: str) -> Deployment | None:
        """See `Desk.serving`."""
        return self._ledger.serving(name)

    def names(self) -> Sequence[str]:
        """See `Desk.names`."""
        return self._ledger.names()

    def may_plan(self) -> bool:
        """See `Desk.may_plan`."""
        may, self._planned = not self._planned, True
        return may

    # ------------------------------------------------------------------------------------------------- from outside
    @property
    def busy(self) -> bool:
        """Whether a command is being worked on."""
        return bool(self._jobs)

    def handle(self, event: TransportEvent, now: float) -> list[CoordinatorEffect]:
        """Take an event of the transport; a malformed message is logged and dropped."""
        try:
            match event:
                case Connected(channel=channel, connect=connect):
                    self._up.add(channel)
                    if channel is Channel.CONTROL:
                        session = Session(boot=self.caller.session.boot, connect=connect)
                        self.caller = replace(self.caller, session=session)
                    return self._connected(channel, now)
                case Disconnected(channel=channel):
                    self._up.discard(channel)
                case Received():
                    return self._received(event, now)
                case Subscribed():
                    pass
        except ShardwireError as error:
            _log.warning("message on %s dropped: %s", getattr(event, "topic", "?"), error)
        return []

    def ask(self, request: Request, now: float) -> list[CoordinatorEffect]:
        """Take a command, from this process or from the wire; one that was asked before is answered again."""
        request_id = request.request_id
        if request_id in self._outcomes:
            return self._news(request.reply_to, self._outcomes[request_id])
        if request_id in self._jobs:
            return self._progress(self._jobs[request_id])
        if fault := self._fault(request):
            return self._news(request.reply_to, self._remember(outcome_of(request_id, reason=fault)))
        for other in self._jobs.values():
            if other.name == request.name:
                other.cancel("another command came", now)  # one of its own, which goes before no person's
        job: Job = (
            DeployJob(request, self, now=now)
            if isinstance(request, DeployRequest)
            else UndeployJob(request, self, now=now)
        )
        self._jobs[request_id] = job
        # Not every broker gives retained values to a wildcard subscription.
        topics = self.caller.topics
        exact = (topics.serving(request.name), topics.desired(request.name))
        return [*(Subscribe(channel=Channel.CONTROL, filter=topic) for topic in exact), *self._progress(job)]

    def cancel(self, reason: str, now: float) -> None:
        """Stop every command; epochs that are not committed are abandoned."""
        for job in self._jobs.values():
            job.cancel(reason, now)

    def leave(self) -> list[CoordinatorEffect]:
        """Give the lease back and sign off."""
        lease = self._keeper.give_back()
        return [] if lease is None else [retained(self.caller.topics.lease(), encode_message(lease))]

    def wanted(self) -> set[str] | None:
        """Return the digests of all blobs that what is served needs, None when that cannot be told now."""
        manifests = [value.manifest for value in self._ledger.values() if value.manifest is not None]
        if self._jobs or not all(self.blobs.has(manifest.digest) for manifest in manifests):
            return None
        wanted = {manifest.digest for manifest in manifests}
        for digest in tuple(wanted):
            manifest = decode_manifest(self.blobs.read(digest), where=f"bundle {digest[7:19]}")
            wanted |= {blob.digest for blob in fleet_blobs(manifest)}
        return wanted

    def will(self, connect: int) -> Publication:
        """Return the last will of the control connection `connect`."""
        return birth(self.caller, connect=connect, online=False, retain=self.staying)

    def tick(self, now: float) -> list[CoordinatorEffect]:
        """Do what is due; call it several times a second."""
        effects: list[CoordinatorEffect] = []
        self._planned = False
        lease = self._keeper.claim(now) if Channel.CONTROL in self._up else None
        if lease is not None:
            _log.info("claims the lease with term %d", lease.term)
            effects.append(retained(self.caller.topics.lease(), encode_message(lease)))
        if now >= self._beat_at:
            self._beat_at = now + HEARTBEAT_SECONDS
            effects.append(heartbeat(self.caller, data_up=Channel.DATA in self._up))
        if self._announce_at is not None and now >= self._announce_at:
            effects += self._announce(now)
        if self.collector is not None:
            effects += self.collector.tick(now)
        for job in tuple(self._jobs.values()):
            if next(other for other in self._jobs.values() if other.name == job.name) is job:
                effects += self._step(job, now)
        return effects + self._replan(now)

    def _replan(self, now: float) -> list[CoordinatorEffect]:
        """Look after what is served, and begin to replace the plans that should be."""
        if self._watch is None or Channel.CONTROL not in self._up:
            return []
        effects: list[CoordinatorEffect] = []
        busy = {job.name for job in self._jobs.values()}
        for step in self._watch.tick(self._ledger.values(), busy, now, acting=self._keeper.holds(now)):
            if isinstance(step, Replan):
                self._jobs[step.request.request_id] = DeployJob(step.request, self, now=now, plan=step.plan)
            else:
                effects.append(step)
        return effects

    # ------------------------------------------------------------------------------------------------------- jobs
    def _step(self, job: Job, now: float) -> list[CoordinatorEffect]:
        effects: list[CoordinatorEffect] = []
        if self._keeper.other is not None:
            job.cancel(f"coordinator {self._keeper.other} took over", now)
        for effect in job.tick(now):
            if isinstance(effect, Keep):
                self._ledger.keep(effect.deployment)
            effects.append(effect)
        if job.outcome is not None:
            del self._jobs[job.request_id]
            if self._watch is not None and job.replans:
                self._watch.ended(job.name, job.outcome, now)
            effects += self._news(job.reply_to, self._remember(job.outcome))
        elif self._told.get(job.request_id) != job.phase():
            effects += self._progress(job)
        return effects

    def _fault(self, request: Request) -> str | None:
        if fault := request_fault(request):
            return fault
        if self._keeper.other is not None:
            return f"coordinator {self._keeper.other} holds the lease, ask it"
        if any(job.name == request.name and not job.replans for job in self._jobs.values()):
            return f"{request.name} is being changed by another command; try again when it is done"
        if len(self._jobs) >= MAX_JOBS:
            return f"more than {MAX_JOBS} commands at once"
        return None

    def _remember(self, outcome: CommandOutcome) -> CommandOutcome:
        self._told.pop(outcome.request_id, None)
        self._outcomes[outcome.request_id] = outcome
        while len(self._outcomes) > MAX_OUTCOMES:
            del self._outcomes[next(iter(self._outcomes))]
        return outcome

    def _progress(self, job: Job) -> list[CoordinatorEffect]:
        self._told[job.request_id] = job.phase()
        outcome = CommandOutcome(request_id=job.request_id, done=False, ok=True, reason=job.phase())
        return self._news(job.reply_to, outcome)

    def _news(self, reply_to: str, outcome: CommandOutcome) -> list[CoordinatorEffect]:
        return [Told(outcome=outcome), *replies(self.caller.topics, reply_to, outcome)]

    # --------------------------------------------------------------------------------------------------- messages
    def _connected(self, channel: Channel, now: float) -> list[CoordinatorEffect]:
        topics, node = self.caller.topics, self.caller.node
        if channel is Channel.DATA:
            filters = [topics.fetch(node), topics.blocks(node), topics.result(node)]
            return [Subscribe(channel=channel, filter=filter) for filter in filters]
        self._hello_at = now
        self._announce_at = now
        filters = [
            *self.roster.filters,
            topics.any_device("event"),
            topics.any_deployment("desired"),
            topics.any_deployment("serving"),
            topics.lease(),
            topics.hello(),
            topics.command(node),
        ]
        return [
            *(Subscribe(channel=channel, filter=filter) for filter in filters),
            Publication(channel=channel, topic=topics.hello(), payload=encode_message(Hello(node=node)), qos=1),
        ]

    def _received(self, event: Received, now: float) -> list[CoordinatorEffect]:
        route = self._routes.get(event.topic)
        if route is not None:
            return route(event, now)
        levels = self.caller.topics.parse(event.topic)
        if levels is None or len(levels) != 3:
            return []
        if levels[0] == "deployment" and levels[2] in ("desired", "serving"):
            return self._deployment(event, levels[1], levels[2], now)
        if levels[0] == "device" and levels[2] == "event":
            self._device_event(event, levels[1], now)
        elif levels[0] == "device":
            self._node(event, now)
        return []

    def _node(self, event: Received, now: float) -> None:
        node = self.roster.receive(event.topic, event.payload, retained=event.retained, now=now)
        if node is None:
            return
        if node.name == self.caller.node:
            if node.state is not None and not node.state.online:
                self._announce_at = now  # the last will of an earlier connection came late
            return
        if node.state is not None and not node.state.online:
            self._keeper.left(node.name)
        elif not event.retained:
            self._keeper.heard(node.name, now)

    def _device_event(self, event: Received, device: str, now: float) -> None:
        message = decode_message(event.payload, object)
        if self._watch is not None and isinstance(message, Failed | Ready) and device != self.caller.node:
            self._watch.receive(device, message, now)
        if isinstance(message, Progress | Ready | Failed | Dropped):
            for job in self._jobs.values():
                job.receive(device, message, now)

    def _deployment(self, event: Received, name: str, kind: str, now: float) -> list[CoordinatorEffect]:
        found = self._ledger.receive(name, kind, event.payload)
        if found is None:
            return []
        value, news = found
        if news is News.OLDER:
            self._announce_at = now + ANNOUNCE_SECONDS  # the broker lost the newest
            return []
        for job in self._jobs.values():
            if job.name == name:
                job.saw_serving(value)
        return [Keep(deployment=value)] if news is News.NEWER else []

    def _lease(self, event: Received, now: float) -> list[CoordinatorEffect]:
        if event.payload and self._keeper.saw(decode_message(event.payload, Lease), now):
            self._announce_at = now + ANNOUNCE_SECONDS
        return []

    def _hello(self, event: Received, now: float) -> list[CoordinatorEffect]:
        if decode_message(event.payload, Hello).node != self.caller.node:
            self._announce_at = max(now, self._announced_at + ANNOUNCE_SECONDS)
        return []

    def _command(self, event: Received, now: float) -> list[CoordinatorEffect]:
        message = decode_message(event.payload, object)
        if isinstance(message, CancelRequest):
            if message.request_id in self._jobs:
                self._jobs[message.request_id].cancel("interrupted", now)
            return []
        if not isinstance(message, DeployRequest | UndeployRequest):
            raise FormatError(f"a coordinator takes no {type(message).__name__}")
        return self.ask(message, now)

    def _fetch(self, event: Received, now: float) -> list[CoordinatorEffect]:
        del now
        return list(answer_requests(event.payload, self.blobs, self.caller.topics))

    def _block(self, event: Received, now: float) -> list[CoordinatorEffect]:
        return [] if self.collector is None else list(self.collector.receive(event.payload, now))

    def _result(self, event: Received, now: float) -> list[CoordinatorEffect]:
        for job in self._jobs.values():
            job.result(event.payload, now)
        return []

    # ----------------------------------------------------------------------------------------------- announcements
    def _announce(self, now: float) -> list[CoordinatorEffect]:
        self._announce_at, self._announced_at = None, now
        connect = self.caller.session.connect
        effects: list[CoordinatorEffect] = [birth(self.caller, connect=connect, online=True, retain=self.staying)]
        lease = self._keeper.lease
        if lease is not None and self._keeper.holds(now):
            effects.append(retained(self.caller.topics.lease(), encode_message(lease)))
        topics = self.caller.topics
        effects += [retained(topics.serving(value.name), encode_deployment(value)) for value in self._ledger.values()]
        if self._watch is not None and self._keeper.holds(now):
            effects += [trouble_event(self.caller, trouble) for trouble in self._watch.troubles()]
        return effects
