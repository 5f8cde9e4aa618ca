"""Holders of blobs that give only so much, and an ear for all requests of a fleet."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edge.formats.message import FetchRequest, Session, State, decode_message, encode_message
from edge.formats.topics import Topics
from edge.mqtt import MqttTransport
from edge.protocol.fetch import answer_fetch
from edge.transport import Channel, Connected, Publication, Received, Subscribed, TransportEvent
from tests.tiny_bundle import TinyBundle

TOPICS = Topics(fleet="default")
PATIENCE_SECONDS = 30.0


class Ear:
    """Hears every request for a block, whoever asks whom."""

    def __init__(self, url: str) -> None:
        self.heard: list[tuple[str, FetchRequest]] = []
        self.changed = threading.Condition()
        self._listens = threading.Event()
        self._transport = MqttTransport(url, fleet="default", node="ear", on_event=self._on_event)

    def start(self) -> None:
        """Connect, and wait until nothing is missed any more."""
        self._transport.start()
        assert self._listens.wait(10.0)

    def close(self) -> None:
        """Leave."""
        self._transport.close()

    def asked(self, *, holder: str = "", by: str = "") -> Counter[tuple[str, int]]:
        """Return how often each block was asked for, of a holder or any, by a node or any."""
        with self.changed:
            return Counter(
                (request.digest, request.block)
                for asked, request in self.heard
                if holder in ("", asked) and (not by or request.reply_to == TOPICS.blocks(by))
            )

    def repeats(self, *, by: str = "") -> int:
        """Return how many requests were for a block that had been asked for before."""
        counts = self.asked(by=by)
        return sum(counts.values()) - len(counts)

    def _on_event(self, event: TransportEvent) -> None:
        if isinstance(event, Connected) and event.channel is Channel.DATA:
            self._transport.subscribe(Channel.DATA, TOPICS.fetch("+"))
        elif isinstance(event, Subscribed):
            self._listens.set()
        elif isinstance(event, Received):
            with self.changed:
                self.heard.append((event.topic.rsplit("/", 1)[1], decode_message(event.payload, FetchRequest)))
                self.changed.notify_all()


@contextmanager
def listening(url: str) -> Iterator[Ear]:
    """Run an ear for the length of a `with` block."""
    ear = Ear(url)
    ear.start()
    try:
        yield ear
    finally:
        ear.close()


class Holder:
    """Gives blocks of a bundle, as many different ones as it may; what it may not give yet waits."""

    def __init__(self, url: str, bundle: TinyBundle, name: str) -> None:
        self.given: set[tuple[str, int]] = set()
        self._may_give = 1 << 30
        self._waiting: dict[tuple[str, int], FetchRequest] = {}
        self.changed = threading.Condition()
        self._name = name
        self._bundle = bundle
        self._listens = threading.Event()
        self._transport = MqttTransport(
            url,
            fleet="default",
            node=name,
            on_event=self._on_event,
            will=lambda connect: self._state(connect, online=False),
        )

    def start(self) -> None:
        """Connect, and wait until it can be asked."""
        self._transport.start()
        assert self._listens.wait(10.0)

    def close(self) -> None:
        """Leave, and say so."""
        self._transport.close()

    def allow(self, count: int) -> None:
        """Let it give so many different blocks in all."""
        with self.changed:
            self._may_give = count
            waiting = tuple(self._waiting.values())
            self._waiting.clear()
        for request in waiting:
            self._answer(request)

    def await_given(self, count: int) -> None:
        """Wait until it gave so many different blocks."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.given) >= count, PATIENCE_SECONDS), len(self.given)

    def _state(self, connect: int, *, online: bool) -> Publication:
        state = State(node=self._name, role="agent", online=online, session=Session(boot=1, connect=connect))
        return Publication(
            channel=Channel.CONTROL,
            topic=TOPICS.state(self._name),
            payload=encode_message(state),
            qos=1,
            retain=True,
        )

    def _on_event(self, event: TransportEvent) -> None:
        if isinstance(event, Connected) and event.channel is Channel.DATA:
            self._transport.subscribe(Channel.DATA, TOPICS.fetch(self._name))
        elif isinstance(event, Connected):
            self._transport.publish(self._state(event.connect, online=True))
        elif isinstance(event, Subscribed):
            self._listens.set()
        elif isinstance(event, Received):
            self._answer(decode_message(event.payload, FetchRequest))

    def _answer(self, request: FetchRequest) -> None:
        key = (request.digest, request.block)
        with self.changed:
            if key not in self.given and len(self.given) >= self._may_give:
                self._waiting[key] = request
                return
            self.given.add(key)
            self.changed.notify_all()
        payload = encode_message(answer_fetch(request, self._bundle.read_block))
        self._transport.publish(Publication(channel=Channel.DATA, topic=request.reply_to, payload=payload))


@contextmanager
def holding(url: str, bundle: TinyBundle, name: str) -> Iterator[Holder]:
    """Run a holder for the length of a `with` block."""
    holder = Holder(url, bundle, name)
    holder.start()
    try:
        yield holder
    finally:
        holder.close()


def await_true(condition: Callable[[], bool], what: str) -> None:
    """Wait until something holds; fail loudly when it never does."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_SECONDS / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError(f"never: {what}")
