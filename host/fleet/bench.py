"""Asking devices to measure themselves, one after another, and holding the bundle for them meanwhile."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from edge.errors import ShardwireError
from edge.formats.bundle import Blob
from edge.formats.message import (
    About,
    Benched,
    BenchRequest,
    Hello,
    Session,
    Speed,
    decode_message,
    encode_message,
)
from edge.formats.topics import Topics
from edge.transport import Channel, Publication, Received
from host.errors import FleetError
from host.fleet.blobs import BlobSource, answer_requests
from host.fleet.identity import Caller, fresh_name
from host.fleet.link import FleetLink
from host.fleet.observe import LOOK_SECONDS
from host.fleet.roster import Roster

_REPEAT_SECONDS = 2.0
_SILENT_SECONDS = 15.0
_FETCH_SECONDS = 600.0
"""How long a device may take beside the timing itself, to fetch the bundle above all."""
_SPEED_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOrder:
    """What devices shall measure.

    Attributes:
        manifest: blob of the manifest whose shards are timed.
        fits: whether operator speeds are fitted to them.
        mode: how the shards are run.
        most_seconds: how long a device may time shards.
    """

    manifest: Blob
    fits: bool
    mode: Literal["default", "exact"] = "default"
    most_seconds: float = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchResult:
    """What became of one device.

    Attributes:
        about: how it describes itself.
        seconds: how long the bench took there; 0 when it failed.
        reason: one line when it failed, else empty.
        speed: what it knows of itself now.
    """

    about: About
    seconds: float
    reason: str
    speed: Speed | None


OnBench = Callable[[str, str], None]
"""Called with the name of a device and what it does."""


def run_bench(
    url: str, order: BenchOrder, blobs: BlobSource, *, fleet: str, names: Sequence[str], on_change: OnBench
) -> tuple[BenchResult, ...]:
    """Let devices measure themselves, one after another, as some may share a machine, a cell or a switch.

    Args:
        url: of the broker.
        order: what to measure.
        blobs: of the bundle.
        fleet: name of the fleet.
        names: devices that are asked; empty for all that are online.
        on_change: called whenever a device begins to do something else.

    Raises:
        FleetError: nobody is online, or one that was named is not.
        TransportError: there is no broker, or it refuses us.
    """
    caller = Caller(node=fresh_name("host"), session=Session(boot=1, connect=1), topics=Topics(fleet=fleet))
    with FleetLink(url, caller) as link:
        desk = _Desk(link, blobs)
        abouts = desk.gather(names)
        return tuple(desk.bench(about, order, on_change) for about in abouts)


class _Desk:
    """Listens to the fleet, answers who fetches, and asks one device at a time."""

    def __init__(self, link: FleetLink, blobs: BlobSource) -> None:
        self._link = link
        self._blobs = blobs
        self._topics = link.caller.topics
        self._node = link.caller.node
        self._roster = Roster(self._topics)
        self._answers: dict[str, Benched | None] = {}

    def gather(self, names: Sequence[str]) -> tuple[About, ...]:
        """Return the descriptions of the devices to ask."""
        topics = self._topics
        for filter in (*self._roster.filters, topics.any_device("event")):
            self._link.subscribe(Channel.CONTROL, filter)
        self._link.subscribe(Channel.DATA, topics.fetch(self._node))
        hello = encode_message(Hello(node=self._node))
        self._link.publish(Publication(channel=Channel.CONTROL, topic=topics.hello(), payload=hello, qos=1))
        end = time.monotonic() + LOOK_SECONDS
        while time.monotonic() < end and not (names and all(map(self._known, names))):
            self._step()
        here = {
            node.name: node.about
            for node in self._roster.agents()
            if node.about is not None and node.beats(time.monotonic())
        }
        if not here:
            raise FleetError(f"no devices are online in fleet {topics.fleet!r}: start shardwire-agent on them")
        if missing := [name for name in names if name not in here]:
            raise FleetError(f"{', '.join(missing)}: not online; online are: {', '.join(sorted(here))}")
        return tuple(here[name] for name in dict.fromkeys(names or sorted(here)))

    def bench(self, about: About, order: BenchOrder, on_change: OnBench) -> BenchResult:
        """Let one device measure itself."""
        request = BenchRequest(
            request_id=secrets.token_hex(8),
            manifest=order.manifest,
            fits=order.fits,
            holders=(self._node,),
            mode=order.mode,
            most_seconds=order.most_seconds,
            # Its own topic: where topics are guarded, it may write no other.
            reply_to=self._topics.event(about.node),
        )
        self._link.subscribe(Channel.CONTROL, self._topics.speed(about.node))
        on_change(about.node, "fetching")
        answer, reason = self._await(about.node, request, on_change)
        if answer is None or not answer.ok:
            reason = reason if answer is None else answer.reason
            return BenchResult(
                about=about, seconds=0.0, reason=reason or "it failed", speed=self._roster.get(about.node).speed
            )
        end = time.monotonic() + _SPEED_SECONDS
        while not self._measured(about.node, order) and time.monotonic() < end:
            self._step()
        return BenchResult(about=about, seconds=answer.seconds, reason="", speed=self._roster.get(about.node).speed)

    def _await(self, device: str, request: BenchRequest, on_change: OnBench) -> tuple[Benched | None, str]:
        """Ask until the device answers; return its answer, or why there is none."""
        command = Publication(
            channel=Channel.CONTROL, topic=self._topics.command(device), payload=encode_message(request), qos=1
        )
        asked_at, begun = float("-inf"), time.monotonic()
        self._answers = {request.request_id: None}
        while (answer := self._answers[request.request_id]) is None:
            now = time.monotonic()
            node = self._roster.get(device)
            if node.heard is None or now - max(node.heard, begun) > _SILENT_SECONDS:
                return None, "it does not answer"
            if now - begun > request.most_seconds + _FETCH_SECONDS:
                return None, f"it was not ready within {request.most_seconds + _FETCH_SECONDS:.0f} s"
            if now - asked_at > _REPEAT_SECONDS:
                self._link.publish(command)
                asked_at = now
            if not self._step() and now - begun > _REPEAT_SECONDS:
                on_change(device, "measuring")
        return answer, ""

    def _known(self, name: str) -> bool:
        node = self._roster.get(name)
        return node.about is not None and node.beats(time.monotonic())

    def _measured(self, device: str, order: BenchOrder) -> bool:
        speed = self._roster.get(device).speed
        wanted = (order.manifest.digest, order.mode)
        return speed is not None and any((model.manifest, model.mode) == wanted for model in speed.models)

    def _step(self) -> bool:
        """Take one event; tell whether a block was asked for."""
        event = self._link.take(0.05)
        if not isinstance(event, Received) or not event.payload:
            return False
        with contextlib.suppress(ShardwireError):
            if event.topic == self._topics.fetch(self._node):
                for answer in answer_requests(event.payload, self._blobs, self._topics):
                    self._link.publish(answer)
                return True
            if event.topic.endswith("/event"):
                benched = decode_message(event.payload, Benched)
                if benched.request_id in self._answers:
                    self._answers[benched.request_id] = benched
            else:
                self._roster.receive(event.topic, event.payload, retained=event.retained, now=time.monotonic())
        return False
