"""The thread of `edge.client`: carries out what `edge.protocol.requests` and `edge.protocol.catalogue` decide."""

import itertools
import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.buckets import Cut, cut_back
from edge.door import DoorLine
from edge.errors import Cancelled, RequestError, ShardwireError
from edge.formats.bundle import Blob
from edge.formats.frame import decode_frame, encode_frame
from edge.formats.message import Block, Hello, Session, State, Taken, decode_message, encode_message
from edge.formats.packet import Reassembler, split
from edge.formats.plan import Deployment, decode_deployment
from edge.formats.tensor import Array
from edge.formats.topics import Topics
from edge.inbox import Inbox
from edge.protocol.catalogue import Catalogue, CatalogueAction, Removed, TrialEnded, Tried, Unusable
from edge.protocol.fetch import AskBlock
from edge.protocol.files import Files, holders_of_files
from edge.protocol.needs import frame_limit_bytes
from edge.protocol.pending import Place
from edge.protocol.requests import InferenceResult, RequestAction, Requests, Route, SendRequest, Settle
from edge.transport import (
    Channel,
    Connected,
    Disconnected,
    Publication,
    Received,
    Subscribed,
    Transport,
    TransportEvent,
)

_log = logging.getLogger(__name__)

_TICK_SECONDS = 0.25
_IDLE_SECONDS = 60.0
_LEAST_FRAME_LIMIT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Submit:
    """A request to send.

    Attributes:
        inputs: as the model takes them.
        cuts: what is taken off its answer.
        place: in a stream whose state devices keep.
    """

    request_id: str
    name: str
    inputs: dict[str, Array]
    deadline_seconds: float
    observe: bool
    future: "Future[InferenceResult]"
    cuts: tuple[Cut, ...] = ()
    place: Place | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancel:
    """A request to forget."""

    request_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Want:
    """A deployment whose route is wanted."""

    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WantFile:
    """A file of the bundle of a deployment whose route is known."""

    name: str
    blob: Blob


@dataclass(frozen=True, kw_only=True, slots=True)
class Close:
    """The end."""


ClientEvent = Submit | Cancel | Want | WantFile | Close


class ClientLoop:
    """Owns the requests of one client; everything happens in its thread.

    Attributes:
        events: what it is told; the network threads and the callers put here.
        changed: notified when `routes`, `faults` or `files` change.
        routes: where the requests of each deployment that was asked for go now.
        faults: why a deployment that was asked for cannot be used.
        catalogue, files: read them only while `changed` is held.
    """

    def __init__(self, *, fleet: str, name: str, doors: Mapping[str, Path]) -> None:
        self.events: Inbox[ClientEvent] = Inbox()
        self.changed = threading.Condition()
        self.routes: dict[str, Route] = {}
        self.faults: dict[str, ShardwireError] = {}
        self._name = name
        self._topics = Topics(fleet=fleet)
        self.catalogue = Catalogue(reply_to=self._topics.blocks(name))
        self.files = Files(reply_to=self._topics.blocks(name))
        self._requests = Requests(topics=self._topics, client=name, draw=random.random, connected=False)
        self._reassembler = Reassembler(limit_bytes=_LEAST_FRAME_LIMIT_BYTES)
        self._session = Session(boot=secrets.randbits(31), connect=1)
        self._sequence = itertools.count()
        self._futures: dict[str, Future[InferenceResult]] = {}
        self._cuts: dict[str, tuple[Cut, ...]] = {}
        self._watched: frozenset[str] = frozenset()
        self._transport: Transport | None = None
        self._doors = {device: DoorLine(path) for device, path in doors.items()}
        self._thread = threading.Thread(target=self._run, name="shardwire-client", daemon=True)
        self._steps: dict[type[Any], Callable[[Any, float], None]] = {
            Connected: self._connected,
            Disconnected: self._disconnected,
            Subscribed: self._subscribed,
            Received: self._received,
            Submit: self._submit,
            Cancel: self._cancel,
            Want: self._want,
            WantFile: self._want_file,
        }

    def start(self, transport: Transport) -> None:
        """Start the thread."""
        self._transport = transport
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """End the thread; requests without an outcome end with `Cancelled`."""
        self.events.put(Close())
        self._thread.join(timeout_seconds)
        for line in self._doors.values():
            line.close()

    def say_hello(self) -> None:
        """Ask every node to say again what it knows."""
        hello = Hello(node=self._name, role="client")
        self._publish(Channel.CONTROL, self._topics.hello(), encode_message(hello), qos=1)

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            wake = min(self._requests.next_wake(), now + _IDLE_SECONDS)
            if self.catalogue.fetching or self.files.fetching:
                wake = min(wake, now + _TICK_SECONDS)
            event = self.events.get(max(0.0, wake - now))
            if isinstance(event, Close):
                break
            try:
                self._take(event, time.monotonic())
            except Exception:  # noqa: BLE001 - without this thread no request would ever have an outcome
                _log.exception("dropped: %s", type(event).__name__)
        for request_id in tuple(self._futures):
            self._settle(request_id, Cancelled("the client was closed"))

    def _take(self, event: ClientEvent | TransportEvent | None, now: float) -> None:
        step = self._steps.get(type(event))
        if step is not None:
            step(event, now)
        if now >= self._requests.next_wake():
            self._act(self._requests.tick(now))
        if self.catalogue.fetching:
            self._follow(self.catalogue.tick(now), now)
        if self.files.fetching:
            self._follow_files(lambda: self.files.tick(now))

    # -------------------------------------------------------------------------------------------------------- steps
    def _connected(self, event: Connected, now: float) -> None:
        if event.channel is Channel.DATA:
            self._requests.disconnected()
            topics = self._topics
            for filter in (topics.ack(self._name), topics.blocks(self._name), topics.result(self._name)):
                self._subscribe(Channel.DATA, filter)
        else:
            # Also those without a route: they were removed and may come back, or were asked for while this was down.
            for name in self.catalogue.wanted:
                # A trial that ended meanwhile leaves nothing behind that would say so.
                self._try_out(name, None, now)
                self._follow_deployment(name)
            self._watched = frozenset()
            self._watch()

    def _disconnected(self, event: Disconnected, _now: float) -> None:
        if event.channel is Channel.DATA:
            self._requests.disconnected()
            self.catalogue.paused()
            self.files.paused()

    def _subscribed(self, event: Subscribed, now: float) -> None:
        # The last of the three: before it nothing is sent, as the answer would be lost.
        if event.filter == self._topics.result(self._name):
            self._follow(self.catalogue.resumed(now), now)
            self._follow_files(lambda: self.files.resumed(now))
            self._act(self._requests.reconnected(now))

    def _received(self, event: Received, now: float) -> None:
        levels = self._topics.parse(event.topic)
        if levels is None:
            return
        try:
            if levels == ("result", self._name):
                data = self._reassembler.add(event.payload, now)
                if data is not None:
                    frame = decode_frame(data, limit_bytes=self._reassembler.limit_bytes)
                    self._act(self._requests.frame(frame, now))
            elif levels == ("ack", self._name):
                self._requests.taken(decode_message(event.payload, Taken), now)
            elif levels == ("blocks", self._name):
                block = decode_message(event.payload, Block)
                self._follow(self.catalogue.block(block, now), now)
                self._follow_files(lambda: self.files.block(block, now))
            elif levels[0] == "deployment" and levels[2:] == ("serving",):
                self._serving(levels[1], event.payload, now)
            elif levels[0] == "deployment" and levels[2:] == ("canary",):
                self._canary(levels[1], event.payload, now)
            elif levels[0] == "device" and levels[2:] == ("state",) and levels[1] in self._watched:
                self._state(levels[1], event.payload, now)
        except ShardwireError:
            # Malformed: whoever sent it, the request it may have been for is sent again in time.
            return

    def _serving(self, name: str, payload: bytes, now: float) -> None:
        deployment = decode_deployment(payload)
        if deployment.name == name:
            with self.changed:
                actions = self.catalogue.seen(deployment, now)
            self._follow(actions, now)

    def _canary(self, name: str, payload: bytes, now: float) -> None:
        canary = decode_deployment(payload) if payload else None
        if canary is None or canary.name == name:
            self._try_out(name, canary, now)

    def _try_out(self, name: str, canary: Deployment | None, now: float) -> None:
        with self.changed:
            actions = self.catalogue.tried(name, canary, now)
        self._follow(actions, now)

    def _state(self, device: str, payload: bytes, now: float) -> None:
        # An empty value is of a device that is to be forgotten: it says nothing of whether it is there.
        state = decode_message(payload, State) if payload else None
        if state is not None and state.node == device:
            self._act(self._requests.state(state, now))

    def _submit(self, event: Submit, now: float) -> None:
        self._futures[event.request_id] = event.future
        if event.cuts:
            self._cuts[event.request_id] = event.cuts
        actions = self._requests.submit(
            event.request_id,
            event.name,
            event.inputs,
            deadline_seconds=event.deadline_seconds,
            observe=event.observe,
            now=now,
            place=event.place,
        )
        self._act(actions)

    def _cancel(self, event: Cancel, now: float) -> None:
        self._futures.pop(event.request_id, None)
        self._cuts.pop(event.request_id, None)
        self._act(self._requests.cancel(event.request_id, now))

    def _want(self, event: Want, now: float) -> None:
        self._follow_deployment(event.name)
        self._follow(self.catalogue.want(event.name, now), now)

    def _want_file(self, event: WantFile, now: float) -> None:
        route = self.routes.get(event.name)
        holders = holders_of_files(route.deployment) if route is not None else ()
        self._follow_files(lambda: self.files.want(event.blob, holders, now))

    def _follow_files(self, step: Callable[[], list[AskBlock]]) -> None:
        with self.changed:
            asks = step()
            self.changed.notify_all()
        for ask in asks:
            self._publish(Channel.DATA, self._topics.fetch(ask.holder), encode_message(ask.request))

    def _follow_deployment(self, name: str) -> None:
        for topic in (self._topics.serving(name), self._topics.canary(name)):
            self._subscribe(Channel.CONTROL, topic)

    def _watch(self) -> None:
        """Hear the states of those devices that requests go through, and of no other."""
        wanted = self._requests.watching()
        for device in sorted(wanted - self._watched):
            self._subscribe(Channel.CONTROL, self._topics.state(device))
        for device in sorted(self._watched - wanted):
            if self._transport is not None:
                self._transport.unsubscribe(Channel.CONTROL, self._topics.state(device))
        self._watched = wanted

    # -------------------------------------------------------------------------------------------------- carrying out
    def _act(self, actions: Iterable[RequestAction]) -> None:
        for action in actions:
            if isinstance(action, SendRequest):
                self._send(action)
            elif isinstance(action, Settle):
                self._settle(action.request_id, action.outcome)
            else:
                # A new subscription brings the retained value again.
                self._subscribe(Channel.CONTROL, self._topics.serving(action.name))

    def _send(self, action: SendRequest) -> None:
        frame = encode_frame(action.header, action.tensors)
        for packet in split(frame, sender=self._name, session=self._session, sequence=next(self._sequence)):
            if not self._doors:
                self._publish(Channel.DATA, action.topic, packet)
            elif not self._through_door(action.topic, packet):
                break

    def _through_door(self, topic: str, packet: bytes) -> bool:
        """Hand a packet to the agent on this machine; whoever has doors sends no input through the broker."""
        levels = self._topics.parse(topic)
        line = self._doors.get(levels[1]) if levels is not None else None
        return line is not None and line.send(topic, packet)

    def _settle(self, request_id: str, outcome: InferenceResult | RequestError) -> None:
        future, cuts = self._futures.pop(request_id, None), self._cuts.pop(request_id, ())
        if future is None or not future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, InferenceResult):
            future.set_result(replace(outcome, outputs=cut_back(outcome.outputs, cuts)) if cuts else outcome)
        else:
            future.set_exception(outcome)

    def _follow(self, actions: Iterable[CatalogueAction], now: float) -> None:
        for action in actions:
            if isinstance(action, AskBlock):
                self._publish(Channel.DATA, self._topics.fetch(action.holder), encode_message(action.request))
                continue
            if isinstance(action, Tried):
                self._fit_limit(action.route)
                self._act(self._requests.set_canary(action.route, now))
            elif isinstance(action, TrialEnded):
                self._act(self._requests.end_canary(action.name, now))
            else:
                self._route_changed(action, now)
        self._watch()

    def _route_changed(self, action: Route | Removed | Unusable, now: float) -> None:
        if isinstance(action, Route):
            self._fit_limit(action)
            self._act(self._requests.set_route(action, now))
        with self.changed:
            if isinstance(action, Route):
                self.routes[action.deployment.name] = action
            elif isinstance(action, Removed):
                self._requests.remove_route(action.name)
                self.routes.pop(action.name, None)
            else:
                self.faults[action.name] = action.error
            self.changed.notify_all()

    def _fit_limit(self, route: Route) -> None:
        limit = frame_limit_bytes(route.manifest, route.manifest.cut_before(len(route.manifest.shards)))
        self._reassembler.limit_bytes = max(self._reassembler.limit_bytes, limit)

    def _publish(self, channel: Channel, topic: str, payload: bytes, *, qos: int = 0) -> None:
        if self._transport is not None:
            self._transport.publish(Publication(channel=channel, topic=topic, payload=payload, qos=qos))

    def _subscribe(self, channel: Channel, filter: str) -> None:
        if self._transport is not None:
            self._transport.subscribe(channel, filter)
