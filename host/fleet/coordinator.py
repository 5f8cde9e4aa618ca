"""The coordinator's protocol: (event, now) to effects. No clock and no threads; IO only through its blob sources."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from edge.errors import FormatError, ShardwireError
from edge.formats.message import (
    CancelRequest,
    CommandOutcome,
    DeployRequest,
    DeviceRequest,
    Dropped,
    Failed,
    Fetched,
    Hello,
    Kept,
    Lease,
    Progress,
    Ready,
    RollbackRequest,
    Session,
    UndeployRequest,
    decode_message,
    encode_message,
)
from edge.formats.plan import Deployment, encode_deployment
from edge.transport import Channel, Connected, Disconnected, Publication, Received, Subscribed, TransportEvent
from host.fleet.blobs import BlobSource, answer_requests
from host.fleet.collect import Collector
from host.fleet.deploy_job import DeployJob
from host.fleet.desired import Cause
from host.fleet.desk import CoordinatorDesk, no_clock
from host.fleet.effects import CoordinatorEffect, Happened, Keep, KeepLease, Request, Subscribe
from host.fleet.identity import Caller, birth, heartbeat, retained
from host.fleet.jobs import Job
from host.fleet.lease import LeaseKeeper, outranks
from host.fleet.ledger import News
from host.fleet.repair import Repairs
from host.fleet.roster import HEARTBEAT_SECONDS
from host.fleet.strays import Strays
from host.fleet.watch import Replan, Watch, trouble_event

_log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 1.0
"""Least time between two announcements of everything that is retained."""

OUTAGE_SECONDS = 60.0
"""Commands wait for so long for a broker that is gone."""


class Coordinator(CoordinatorDesk):
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
        utc: Callable[[], str] = no_clock,
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
            utc: returns the UTC time, `YYYY-MM-DDTHH:MM:SSZ`; devices and bundles' dates are judged by it.
        """
        super().__init__(
            caller,
            blobs=blobs,
            collector=collector,
            keeper=keeper,
            staying=staying,
            known=known,
            utc=utc,
            ended=self._ended,
        )
        self._watch = None if horizon_seconds is None else Watch(self, horizon_seconds=horizon_seconds)
        self._strays = Strays(self, self.ledger)
        # Drawn from the name, so that two coordinators do not speak at once and one always does the same.
        self._repairs = Repairs(random.Random(f"{caller.node} {caller.session.boot}").random)  # noqa: S311 - not a secret
        self._kept_lease: Lease | None = None
        self._held = False
        self._up: set[Channel] = set()
        self._told_lease: Lease | None = None
        self._down_since: float | None = None
        self._announce_at: float | None = None
        self._announced_at = float("-inf")
        topics = caller.topics
        self._routes: Mapping[str, Callable[[Received, float], list[CoordinatorEffect]]] = {
            topics.lease(): self._lease,
            topics.hello(): self._hello,
            topics.command(caller.node): self._command,
            topics.fetch(caller.node): self._fetch,
            topics.blocks(caller.node): self._block,
            topics.result(caller.node): self._result,
        }

    # ------------------------------------------------------------------------------------------------- from outside
    @property
    def busy(self) -> bool:
        """Whether a command is being worked on."""
        return self.work.busy

    def handle(self, event: TransportEvent, now: float) -> list[CoordinatorEffect]:
        """Take an event of the transport; a malformed message is logged and dropped."""
        try:
            match event:
                case Connected(channel=channel, connect=connect):
                    self._up.add(channel)
                    if channel is Channel.CONTROL:
                        self._down_since = None
                        session = Session(boot=self.caller.session.boot, connect=connect)
                        self.caller = replace(self.caller, session=session)
                        self.keeper.reconnected(now)
                    return self._connected(channel, now)
                case Disconnected(channel=channel):
                    self._up.discard(channel)
                    if channel is Channel.CONTROL:
                        self.hello_at = None
                        self._down_since = now if self._down_since is None else self._down_since
                case Received():
                    return self._received(event, now)
                case Subscribed(filter=filter):
                    if filter in (self.caller.topics.any_deployment("serving"), self.caller.topics.lease()):
                        self._repairs.acknowledged(now)
        except ShardwireError as error:
            _log.warning("message on %s dropped: %s", getattr(event, "topic", "?"), error)
        return []

    def ask(self, request: Request, now: float) -> list[CoordinatorEffect]:
        """Take a command, from this process or from the wire; one that was asked before is answered again."""
        effects = self.work.ask(request, now)
        if isinstance(request, DeviceRequest):
            return effects
        # Not every broker gives retained values to a wildcard subscription.
        topics, name = self.caller.topics, request.name
        exact = (topics.serving(name), topics.desired(name), topics.canary(name))
        return [*(Subscribe(channel=Channel.CONTROL, filter=topic) for topic in exact), *effects]

    def cancel(self, reason: str, now: float) -> None:
        """Stop every command; epochs that are not committed are abandoned."""
        self.work.cancel(reason, now)

    def leave(self) -> list[CoordinatorEffect]:
        """Give the lease back and sign off."""
        lease = self.keeper.give_back()
        return [] if lease is None else [retained(self.caller.topics.lease(), encode_message(lease))]

    def will(self, connect: int) -> Publication:
        """Return the last will of the control connection `connect`."""
        return birth(self.caller, connect=connect, online=False, retain=self.staying)

    def tick(self, now: float) -> list[CoordinatorEffect]:
        """Do what is due; call it several times a second."""
        effects: list[CoordinatorEffect] = []
        self.planned = False
        lease = self.keeper.claim(now) if Channel.CONTROL in self._up else None
        if lease is not None:
            _log.info("claims the lease with term %d", lease.term)
            effects.append(retained(self.caller.topics.lease(), encode_message(lease)))
        effects += self._lease_news(now)
        beats = now >= self.beat_at
        if beats:
            self.beat_at = now + HEARTBEAT_SECONDS
            effects.append(heartbeat(self.caller, data_up=Channel.DATA in self._up))
        if self._announce_at is not None and now >= self._announce_at:
            effects += self._announce(now)
        effects += self._repair(now)
        if self.collector is not None:
            effects += self.collector.tick(now)
        if self.staying and self.keeper.holds(now):
            effects += self._strays.tick(now)
        effects += [*self._replan(now), *self._work(now)]
        if beats:
            self.beaten_at = now  # by now it is on its way, and no plan of this turn came before it
        return effects

    def _work(self, now: float) -> list[CoordinatorEffect]:
        """Let commands go on; while the broker is gone they wait for it, but not for ever."""
        if self._down_since is not None:
            if now - self._down_since < OUTAGE_SECONDS:
                return []
            self.cancel(f"the broker was gone for {OUTAGE_SECONDS:.0f} s", now)
        return self.work.tick(now)

    def _lease_news(self, now: float) -> list[CoordinatorEffect]:
        """Remember the largest lease over a restart, and tell when it became ours."""
        effects: list[CoordinatorEffect] = []
        lease = self.keeper.lease
        if lease is not None and lease != self._kept_lease:
            self._kept_lease = lease
            effects.append(KeepLease(lease=lease))
        holds = self.keeper.holds(now)
        if holds and not self._held and lease is not None:
            self._announce_at = now  # at once, when it is ours to say
            # A connection that comes and goes makes no new coordinator.
            if self.staying and lease != self._told_lease:
                self._told_lease = lease
                effects.append(Happened(what="lease", why=f"{self.caller.node} coordinates, term {lease.term}"))
        self._held = holds
        return effects

    def _replan(self, now: float) -> list[CoordinatorEffect]:
        """Look after what is served, and begin to replace the plans that should be."""
        if self._watch is None or Channel.CONTROL not in self._up:
            return []
        effects: list[CoordinatorEffect] = []
        busy = self.work.names(trying=False)
        tried, acting = self.work.names() - busy, self.keeper.holds(now)
        for step in self._watch.tick(self.ledger.values(), busy, now, acting=acting, tried=tried):
            if not isinstance(step, Replan):
                effects.append(step)
                continue
            for other in self.work.running(step.request.name):  # nothing but canaries: the rest is busy
                other.cancel("the plan that serves had to be replaced", now)
            cause = Cause(why=step.why, plan=step.plan)
            self.work.start(DeployJob(step.request, self, now=now, cause=cause), now)
        return effects

    def _ended(self, job: Job, outcome: CommandOutcome, now: float) -> None:
        serving = self.ledger.serving(job.name)
        if job.epoch and not job.tries and (serving is None or serving.epoch != job.epoch):
            self._strays.gave_up(job.epoch)
        if self._watch is not None and job.replans:
            self._watch.ended(job.name, outcome, now)

    def _repair(self, now: float) -> list[CoordinatorEffect]:
        """Publish again what the broker lost, when whose task it is does not: the lease's holder does so at once."""
        topics = self.caller.topics
        values: dict[str, Deployment | Lease] = {topics.serving(value.name): value for value in self.ledger.values()}
        if self.keeper.lease is not None:
            values[topics.lease()] = self.keeper.lease
        due = [(topic, values[topic]) for topic in self._repairs.due(values, now)]
        return [
            retained(topic, encode_message(value) if isinstance(value, Lease) else encode_deployment(value))
            for topic, value in (due if Channel.CONTROL in self._up else ())
        ]

    # --------------------------------------------------------------------------------------------------- messages
    def _connected(self, channel: Channel, now: float) -> list[CoordinatorEffect]:
        topics, node = self.caller.topics, self.caller.node
        if channel is Channel.DATA:
            filters = [topics.fetch(node), topics.blocks(node), topics.result(node)]
            return [Subscribe(channel=channel, filter=filter) for filter in filters]
        self.hello_at = now
        self.connects += 1
        self._announce_at = now
        self._repairs.connected(now)
        filters = [
            *self.roster.filters,
            topics.any_device("event"),
            topics.any_deployment("desired"),
            topics.any_deployment("serving"),
            topics.any_deployment("canary"),
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
        if levels[0] == "deployment" and levels[2] in ("desired", "serving", "canary"):
            return self._deployment(event, levels[1], levels[2], now)
        if levels[0] == "device" and levels[2] == "event":
            return self._device_event(event, levels[1], now)
        if levels[0] == "device":
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
            self.keeper.left(node.name)
        elif not event.retained:
            self.keeper.heard(node.name, now)
        if node.heartbeat is not None and event.topic == self.caller.topics.heartbeat(node.name):
            self.work.beat(node.name, node.heartbeat, now)

    def _device_event(self, event: Received, device: str, now: float) -> list[CoordinatorEffect]:
        message = decode_message(event.payload, object)
        if self._watch is not None and isinstance(message, Failed | Ready) and device != self.caller.node:
            self._watch.receive(device, message, now)
        if isinstance(message, Ready | Kept | Dropped):
            self.holders.hear(device, message)
        if isinstance(message, Progress | Fetched | Ready | Kept | Failed | Dropped):
            self.work.receive(device, message, now)
        if isinstance(message, Ready) and self.staying and self.keeper.holds(now):
            return list(self._strays.ready(device, message, now))
        return []

    def _deployment(self, event: Received, name: str, kind: str, now: float) -> list[CoordinatorEffect]:
        found = self.ledger.receive(name, kind, event.payload)
        serving = self.ledger.serving(name)
        if kind == "desired" and serving and self.keeper.holds(now) and self.ledger.is_outdated(name, event.payload):
            # Two brokers were parted, or one went back to an older state: a commit publishes both values.
            return [retained(event.topic, encode_deployment(serving))]
        if found is None:
            return []
        value, news = found
        older = news is News.OLDER
        if older and self.keeper.holds(now):
            self._announce_at = min(self._announce_at or now + ANNOUNCE_SECONDS, self._announced_at + ANNOUNCE_SECONDS)
        else:
            self._repairs.shown(event.topic, now, older=older)
        if older:
            return []
        self.work.saw_serving(value, now)
        return [Keep(deployment=value)] if news is News.NEWER else []

    def _lease(self, event: Received, now: float) -> list[CoordinatorEffect]:
        if not event.payload:
            return []
        lease, known = decode_message(event.payload, Lease), self.keeper.lease
        if self.keeper.saw(lease, now):
            self._announce_at = now + ANNOUNCE_SECONDS
        elif known is None or not self.keeper.holds(now):
            self._repairs.shown(event.topic, now, older=known is not None and outranks(known, lease))
        return self._lease_news(now)

    def _hello(self, event: Received, now: float) -> list[CoordinatorEffect]:
        if decode_message(event.payload, Hello).node != self.caller.node:
            self._announce_at = max(now, self._announced_at + ANNOUNCE_SECONDS)
        return []

    def _command(self, event: Received, now: float) -> list[CoordinatorEffect]:
        message = decode_message(event.payload, object)
        if isinstance(message, CancelRequest):
            if message.request_id:
                self.work.cancel("interrupted", now, request_id=message.request_id)
            return []
        if not isinstance(message, DeployRequest | UndeployRequest | RollbackRequest | DeviceRequest):
            raise FormatError(f"a coordinator takes no {type(message).__name__}")
        return self.ask(message, now)

    def _fetch(self, event: Received, now: float) -> list[CoordinatorEffect]:
        del now
        return list(answer_requests(event.payload, self.blobs, self.caller.topics))

    def _block(self, event: Received, now: float) -> list[CoordinatorEffect]:
        return [] if self.collector is None else list(self.collector.receive(event.payload, now))

    def _result(self, event: Received, now: float) -> list[CoordinatorEffect]:
        self.work.result(event.payload, now)
        return []

    # ----------------------------------------------------------------------------------------------- announcements
    def _announce(self, now: float) -> list[CoordinatorEffect]:
        self._announce_at, self._announced_at = None, now
        connect = self.caller.session.connect
        effects: list[CoordinatorEffect] = [birth(self.caller, connect=connect, online=True, retain=self.staying)]
        lease = self.keeper.lease
        if lease is None or not self.keeper.holds(now):
            return effects
        topics = self.caller.topics
        effects.append(retained(topics.lease(), encode_message(lease)))
        effects += [retained(topics.serving(value.name), encode_deployment(value)) for value in self.ledger.values()]
        if self._watch is not None:
            effects += [trouble_event(self.caller, trouble) for trouble in self._watch.troubles()]
        return effects
