"""Giving a command to the fleet: through the coordinator that is there, or else by being one for a while."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from edge.errors import ShardwireError
from edge.formats.message import (
    CancelRequest,
    CommandOutcome,
    DeployRequest,
    DeviceRequest,
    Hello,
    Lease,
    Progress,
    Ready,
    Session,
    decode_message,
    encode_message,
)
from edge.formats.plan import Plan, decode_deployment
from edge.formats.topics import Topics
from edge.store import BlobStore
from edge.transport import Channel, Publication, Received, TransportEvent
from host.errors import FleetError
from host.fleet.blobs import BlobSource, MemoryBlobs, answer_requests
from host.fleet.collect import Collector
from host.fleet.coordinator import Coordinator
from host.fleet.daemon import CoordinatorLoop, single_bundle, utc_now
from host.fleet.effects import Request
from host.fleet.identity import Caller, fresh_name
from host.fleet.lease import LeaseKeeper
from host.fleet.link import CONNECT_SECONDS, FleetLink
from host.fleet.roster import SILENT_SECONDS, Roster

_REPEAT_SECONDS = 2.0
_COORDINATOR_SECONDS = 15.0
"""How long a coordinator may be silent about a command before we give up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shipping:
    """How far one device is with its stages."""

    stages: tuple[int, ...]
    done_bytes: int = 0
    total_bytes: int = 0
    phase: str = "waiting"
    lacks: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """What is known of a running command.

    Attributes:
        name: of the deployment.
        coordinator: who works on it; this process when none was there.
        alone: whether that is this process, so that nobody coordinates afterwards.
        phase: what is going on, for a person.
        epoch, plan: of the plan being prepared.
        devices: how far each is.
        told: what a person may want to know of how it ended.
    """

    name: str
    coordinator: str = ""
    alone: bool = False
    phase: str = "looking for a coordinator"
    epoch: str = ""
    plan: Plan | None = None
    devices: Mapping[str, Shipping] = field(default_factory=dict)
    told: str = ""


OnChange = Callable[[Course], None]


def run_command(
    url: str, request: Request, *, fleet: str, blobs: BlobSource | None, on_change: OnChange
) -> CommandOutcome:
    """Carry out one command and return its good outcome.

    Args:
        url: of the broker.
        request: with neither `reply_to` nor, for a bundle, `holders` filled in: that is done here.
        fleet: name of the fleet.
        blobs: of the bundle to deploy; None when nothing is shipped.
        on_change: called in this thread whenever something happened.

    Raises:
        FleetError: the command failed; nothing of it is left behind.
        TransportError: there is no broker, or it refuses us.
    """
    caller = Caller(node=fresh_name("host"), session=Session(boot=1, connect=1), topics=Topics(fleet=fleet))
    about = request.device if isinstance(request, DeviceRequest) else request.name
    progress = _Progress(Course(name=about), caller.topics, on_change)
    source = blobs or MemoryBlobs()
    with FleetLink(url, caller, connect_seconds=CONNECT_SECONDS) as link:
        keeper = LeaseKeeper(node=caller.node, session=caller.session, now=time.monotonic())
        coordinator = _find_coordinator(link, keeper, progress)
        if coordinator is None and blobs is None:
            with tempfile.TemporaryDirectory(prefix="shardwire-") as folder:
                outcome = _here(link, _fetching(link.caller, keeper, Path(folder)), request, progress)
        elif coordinator is None:
            outcome = _here(link, single_bundle(link.caller, source, keeper), request, progress)
        else:
            outcome = _there(link, coordinator, request, source, progress)
    if not outcome.ok:
        raise FleetError(outcome.reason)
    return outcome


class _Progress:
    """Turns messages into a `Course`."""

    def __init__(self, course: Course, topics: Topics, on_change: OnChange) -> None:
        self.course = course
        self._topics = topics
        self._on_change = on_change

    def phase(self, phase: str, *, coordinator: str = "", alone: bool = False) -> None:
        alone, coordinator = alone or self.course.alone, coordinator or self.course.coordinator
        self._change(replace(self.course, phase=phase, coordinator=coordinator, alone=alone))

    def watch(self, event: TransportEvent) -> None:
        if isinstance(event, Received) and event.payload and not event.retained:
            with contextlib.suppress(ShardwireError):
                self._take(event)

    def _change(self, course: Course) -> None:
        if course != self.course:
            self.course = course
            self._on_change(course)

    def _take(self, event: Received) -> None:
        levels = self._topics.parse(event.topic)
        if levels is None or len(levels) != 3:
            return
        if levels == ("deployment", self.course.name, "desired"):
            deployment = decode_deployment(event.payload)
            if deployment.plan is not None and deployment.epoch != self.course.epoch:
                devices = _waiting(deployment.plan)
                self._change(replace(self.course, epoch=deployment.epoch, plan=deployment.plan, devices=devices))
        elif levels[0] == "device" and levels[2] == "event" and levels[1] in self.course.devices:
            self._device(levels[1], decode_message(event.payload, object))

    def _device(self, device: str, message: object) -> None:
        if not isinstance(message, Progress | Ready) or message.epoch != self.course.epoch:
            return
        before = self.course.devices[device]
        if isinstance(message, Ready):
            size, lacks = max(before.total_bytes, message.fetched_bytes), before.lacks - {message.stage}
            phase = before.phase if lacks else "ready"
            after = replace(before, phase=phase, done_bytes=size, total_bytes=size, lacks=lacks)
        elif before.phase != "ready":
            done, total = message.done_bytes, message.total_bytes
            after = replace(before, phase=message.phase, done_bytes=done, total_bytes=total)
        else:
            return
        self._change(replace(self.course, devices={**self.course.devices, device: after}))


def _waiting(plan: Plan) -> dict[str, Shipping]:
    """Return every device of a plan that has heard nothing yet, in the order of the stages."""
    stages: dict[str, list[int]] = {}
    for stage in plan.stages:
        for name in stage.devices:
            stages.setdefault(name, []).append(stage.index)
    return {name: Shipping(stages=tuple(found), lacks=frozenset(found)) for name, found in stages.items()}


def _find_coordinator(link: FleetLink, keeper: LeaseKeeper, progress: _Progress) -> str | None:
    """Return the coordinator that is alive, or None once it is our turn to be one."""
    topics = link.caller.topics
    roster = Roster(topics)
    for filter in (*roster.filters, topics.lease()):
        link.subscribe(Channel.CONTROL, filter)
    hello = encode_message(Hello(node=link.caller.node))
    link.publish(Publication(channel=Channel.CONTROL, topic=topics.hello(), payload=hello, qos=1))
    progress.phase("looking for a coordinator")
    deadline = time.monotonic() + 2 * SILENT_SECONDS
    while time.monotonic() < deadline:
        event = link.take(0.05)
        now = time.monotonic()
        if isinstance(event, Received) and event.payload:
            with contextlib.suppress(ShardwireError):
                _note(event, keeper, roster, topics, now)
        if keeper.other is not None:
            return keeper.other
        if keeper.due(now):
            return None
    return None


def _note(event: Received, keeper: LeaseKeeper, roster: Roster, topics: Topics, now: float) -> None:
    if event.topic == topics.lease():
        keeper.saw(decode_message(event.payload, Lease), now)
        return
    node = roster.receive(event.topic, event.payload, retained=event.retained, now=now)
    if node is None or node.state is None:
        return
    if not node.state.online:
        keeper.left(node.name)
    elif not event.retained:
        keeper.heard(node.name, now)


def _fetching(caller: Caller, keeper: LeaseKeeper, folder: Path) -> Coordinator:
    """Return a coordinator for one command that needs blobs which only the fleet has: golden inputs, to probe with."""
    store = BlobStore(folder)
    collector = Collector(store, caller)
    return Coordinator(caller, blobs=store, collector=collector, keeper=keeper, staying=False, utc=utc_now)


def _here(link: FleetLink, coordinator: Coordinator, request: Request, progress: _Progress) -> CommandOutcome:
    """Be the coordinator for one command."""
    loop = CoordinatorLoop(coordinator, link, watch=progress.watch)
    for event in link.first_connections():
        loop.feed(event)
    loop.ask(request)
    try:
        while True:
            loop.step(0.05)
            outcome = loop.outcomes[request.request_id]
            if outcome.done:
                return outcome
            progress.phase(outcome.reason, coordinator=link.caller.node, alone=True)
    finally:
        loop.leave("interrupted")


def _there(
    link: FleetLink, coordinator: str, request: Request, source: BlobSource, progress: _Progress
) -> CommandOutcome:
    """Ask the coordinator, holding the bundle for it, until it says what became of the command."""
    caller, topics = link.caller, link.caller.topics
    for channel, filter in (
        (Channel.CONTROL, topics.any_device("event")),
        (Channel.CONTROL, topics.event(caller.node)),
        (Channel.DATA, topics.fetch(caller.node)),
    ):
        link.subscribe(channel, filter)
    if not isinstance(request, DeviceRequest):
        link.subscribe(Channel.CONTROL, topics.desired(request.name))
    request = msgspec.structs.replace(request, reply_to=topics.event(caller.node))
    if isinstance(request, DeployRequest):
        request = msgspec.structs.replace(request, holders=(caller.node,))
    command = Publication(
        channel=Channel.CONTROL, topic=topics.command(coordinator), payload=encode_message(request), qos=1
    )
    progress.phase("asking", coordinator=coordinator)
    try:
        return _await_outcome(link, command, request.request_id, source, progress)
    except BaseException:
        # Whoever asked goes away, and the bundle with him: the coordinator drops what is not committed.
        link.publish(replace(command, payload=encode_message(CancelRequest(request_id=request.request_id))))
        raise


def _await_outcome(
    link: FleetLink, command: Publication, request_id: str, source: BlobSource, progress: _Progress
) -> CommandOutcome:
    caller, topics = link.caller, link.caller.topics
    asked_at, heard_at = float("-inf"), time.monotonic()
    while True:
        now = time.monotonic()
        if now - heard_at > _COORDINATOR_SECONDS:
            raise FleetError("the coordinator does not answer; see `shardwire status`")
        if now - asked_at > _REPEAT_SECONDS:
            link.publish(command)
            asked_at = now
        event = link.take(0.05)
        if not isinstance(event, Received):
            continue
        if event.topic == topics.fetch(caller.node):
            with contextlib.suppress(ShardwireError):
                for answer in answer_requests(event.payload, source, topics):
                    link.publish(answer)
        outcome = _outcome_in(event, topics.event(caller.node), request_id)
        if outcome is not None:
            heard_at = now
            if outcome.done:
                return outcome
            progress.phase(outcome.reason)
        progress.watch(event)


def _outcome_in(event: Received, topic: str, request_id: str) -> CommandOutcome | None:
    if event.topic != topic:
        return None
    with contextlib.suppress(ShardwireError):
        outcome = decode_message(event.payload, CommandOutcome)
        return outcome if outcome.request_id == request_id else None
    return None
