"""The thread of `edge.client`: carries out what `edge.protocol.requests` and `edge.protocol.catalogue` decide."""

import itertools
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.door import DoorLine
from edge.errors import Cancelled, RequestError, ShardwireError
from edge.formats.frame import decode_frame, encode_frame
from edge.formats.message import Block, Hello, Session, Taken, decode_message, encode_message
from edge.formats.packet import Reassembler, split
from edge.formats.plan import decode_deployment
from edge.formats.tensor import Array
from edge.formats.topics import Topics
from edge.inbox import Inbox
from edge.protocol.catalogue import Catalogue, CatalogueAction, Removed
from edge.protocol.fetch import AskBlock
from edge.protocol.needs import frame_limit_bytes
from edge.protocol.requests import InferenceResult, RequestAction, Requests, Route, SendRequest
from edge.transport import Channel, Connected, Publication, Received, Subscribed, Transport

_TICK_SECONDS = 0.25
_IDLE_SECONDS = 60.0
_LEAST_FRAME_LIMIT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Submit:
    """A request to send."""

    request_id: str
    name: str
    inputs: dict[str, Array]
    deadline_seconds: float
    observe: bool
    future: "Future[InferenceResult]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancel:
    """A request to forget."""

    request_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Want:
    """A deployment whose route is wanted."""

    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Close:
    """The end."""


ClientEvent = Submit | Cancel | Want | Close


class ClientLoop:
    """Owns the requests of one client; everything happens in its thread.

    Attributes:
        events: what it is told; the network threads and the callers put here.
        changed: notified when `routes` or `faults` change.
        routes: where the requests of each deployment that was asked for go now.
        faults: why a deployment that was asked for cannot be used.
        catalogue: read it only while `changed` is held.
    """

    def __init__(self, *, fleet: str, name: str, doors: Mapping[str, Path]) -> None:
        self.events: Inbox[ClientEvent] = Inbox()
        self.changed = threading.Condition()
        self.routes: dict[str, Route] = {}
        self.faults: dict[str, ShardwireError] = {}
        self._name = name
        self._topics = Topics(fleet=fleet)
        self.catalogue = Catalogue(reply_to=self._topics.blocks(name))
        self._requests = Requests(topics=self._topics, client=name, draw=random.random)
        self._reassembler = Reassembler(limit_bytes=_LEAST_FRAME_LIMIT_BYTES)
        self._session = Session(boot=secrets.randbits(31), connect=1)
        self._sequence = itertools.count()
        self._futures: dict[str, Future[InferenceResult]] = {}
        self._can_receive = False
        self._transport: Transport | None = None
        self._doors = {device: DoorLine(path) for device, path in doors.items()}
        self._thread = threading.Thread(target=self._run, name="shardwire-client", daemon=True)
        self._steps: dict[type[Any], Callable[[Any, float], None]] = {
            Connected: self._connected,
            Subscribed: self._subscribed,
            Received: self._received,
            Submit: self._submit,
            Cancel: self._cancel,
            Want: self._want,
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
        self._publish(Channel.CONTROL, self._topics.hello(), encode_message(Hello(node=self._name)), qos=1)

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            wake = min(self._requests.next_wake(), now + _IDLE_SECONDS)
            if self.catalogue.fetching:
                wake = min(wake, now + _TICK_SECONDS)
            event = self.events.get(max(0.0, wake - now))
            if isinstance(event, Close):
                break
            now = time.monotonic()
            step = self._steps.get(type(event))
            if step is not None:
                step(event, now)
            if now >= self._requests.next_wake():
                self._act(self._requests.tick(now))
            if self.catalogue.fetching:
                self._follow(self.catalogue.tick(now), now)
        for request_id in tuple(self._futures):
            self._settle(request_id, Cancelled("the client was closed"))

    # -------------------------------------------------------------------------------------------------------- steps
    def _connected(self, event: Connected, _now: float) -> None:
        if event.channel is Channel.DATA:
            self._can_receive = False
            topics = self._topics
            for filter in (topics.ack(self._name), topics.blocks(self._name), topics.result(self._name)):
                self._subscribe(Channel.DATA, filter)
        else:
            # Also those without a route: they were removed and may come back, or were asked for while this was down.
            for name in self.catalogue.wanted:
                self._subscribe(Channel.CONTROL, self._topics.serving(name))

    def _subscribed(self, event: Subscribed, now: float) -> None:
        # The last of the three: before it nothing is sent, as the answer would be lost.
        if event.filter == self._topics.result(self._name):
            self._can_receive = True
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
                self._follow(self.catalogue.block(decode_message(event.payload, Block), now), now)
            elif levels[0] == "deployment" and levels[2:] == ("serving",):
                self._serving(levels[1], event.payload, now)
        except ShardwireError:
            # Malformed: whoever sent it, the request it may have been for is sent again in time.
            return

    def _serving(self, name: str, payload: bytes, now: float) -> None:
        deployment = decode_deployment(payload)
        if deployment.name == name:
            with self.changed:
                actions = self.catalogue.seen(deployment, now)
            self._follow(actions, now)

    def _submit(self, event: Submit, now: float) -> None:
        self._futures[event.request_id] = event.future
        actions = self._requests.submit(
            event.request_id,
            event.name,
            event.inputs,
            deadline_seconds=event.deadline_seconds,
            observe=event.observe,
            now=now,
        )
        self._act(actions)

    def _cancel(self, event: Cancel, now: float) -> None:
        self._futures.pop(event.request_id, None)
        self._act(self._requests.cancel(event.request_id, now))

    def _want(self, event: Want, now: float) -> None:
        self._subscribe(Channel.CONTROL, self._topics.serving(event.name))
        self._follow(self.catalogue.want(event.name, now), now)

    # -------------------------------------------------------------------------------------------------- carrying out
    def _act(self, actions: Iterable[RequestAction]) -> None:
        for action in actions:
            if isinstance(action, SendRequest):
                self._send(action)
            else:
                self._settle(action.request_id, action.outcome)

    def _send(self, action: SendRequest) -> None:
        if self._can_receive:
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
        future = self._futures.pop(request_id, None)
        if future is None or not future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, InferenceResult):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)

    def _follow(self, actions: Iterable[CatalogueAction], now: float) -> None:
        for action in actions:
            if isinstance(action, AskBlock):
                self._publish(Channel.DATA, self._topics.fetch(action.holder), encode_message(action.request))
                continue
            if isinstance(action, Route):
                limit = frame_limit_bytes(action.manifest, action.manifest.cut_before(len(action.manifest.shards)))
                self._reassembler.limit_bytes = max(self._reassembler.limit_bytes, limit)
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

    def _publish(self, channel: Channel, topic: str, payload: bytes, *, qos: int = 0) -> None:
        if self._transport is not None:
            self._transport.publish(Publication(channel=channel, topic=topic, payload=payload, qos=qos))

    def _subscribe(self, channel: Channel, filter: str) -> None:
        if self._transport is not None:
            self._transport.subscribe(channel, filter)
