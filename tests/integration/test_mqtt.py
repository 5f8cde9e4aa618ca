"""The MQTT transport on real brokers: it connects, says why not, survives, bounds what waits, and mixes nothing up."""

import hashlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from edge.dial import MAX_QUEUED_MESSAGES
from edge.errors import FormatError, TransportError
from edge.formats.message import Heartbeat, Session, encode_message
from edge.formats.topics import Topics
from edge.mqtt import MqttTransport
from edge.transport import Channel, Connected, Disconnected, Publication, Received, Subscribed, TransportEvent
from host.broker import RunningBroker, start_broker
from tests.tcp_relay import TcpRelay, relay_to

_T = TypeVar("_T")


class Node:
    """A transport and what it told."""

    def __init__(self, url: str, name: str, *, will: bool = False) -> None:
        self.events: queue.Queue[TransportEvent] = queue.Queue()
        self.transport = MqttTransport(
            url, fleet="default", node=name, on_event=self.events.put, will=self.last_will if will else None
        )

    @staticmethod
    def last_will(connect: int) -> Publication:
        return Publication(channel=Channel.CONTROL, topic="t/will", payload=b"%d" % connect, qos=1, retain=True)

    def start(self) -> "Node":
        self.transport.start()
        self.transport.wait_connected(10)
        return self

    def listen(self, channel: Channel, filter: str) -> None:
        self.transport.subscribe(channel, filter)
        self.await_event(Subscribed, filter=filter)

    def say(self, channel: Channel, topic: str, payload: bytes, *, qos: int = 0) -> bool:
        return self.transport.publish(Publication(channel=channel, topic=topic, payload=payload, qos=qos))

    def await_event(self, kind: type[_T], **fields: Any) -> _T:
        while True:
            event = self.events.get(timeout=15)
            if isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items()):
                return event

    def told(self, kind: type[_T], doing: Callable[[], object], **fields: Any) -> _T:
        """Do something again and again until an event comes."""
        end = time.monotonic() + 15
        while time.monotonic() < end:
            doing()
            with suppress(queue.Empty):
                event = self.events.get(timeout=0.05)
                if isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items()):
                    return event
        raise AssertionError(f"no {kind.__name__} with {fields}")


@contextmanager
def nodes(url: str, *names: str) -> Iterator[tuple[Node, ...]]:
    made = tuple(Node(url, name, will=True) for name in names)
    try:
        yield tuple(node.start() for node in made)
    finally:
        for node in made:
            node.transport.close()


@pytest.mark.parametrize("channel", list(Channel))
@pytest.mark.parametrize("size", [0, 1, 128 * 1024])
def test_a_message_arrives_as_it_was_sent(any_broker: RunningBroker, channel: Channel, size: int) -> None:
    payload = hashlib.shake_128(b"x").digest(size)
    with nodes(any_broker.url, "a", "b") as (a, b):
        b.listen(channel, "t/+")
        assert a.say(channel, "t/x", payload, qos=1)
        assert b.await_event(Received) == Received(channel=channel, topic="t/x", payload=payload)


def test_two_threads_that_publish_at_once_mix_nothing_up(broker: RunningBroker) -> None:
    with nodes(broker.url, "a", "b") as (a, b):
        b.listen(Channel.DATA, "t/+")

        def publish(thread: int) -> None:
            for index in range(100):
                body = hashlib.shake_128(b"%d %d" % (thread, index)).digest(60_000)
                assert a.say(Channel.DATA, f"t/{thread}", hashlib.sha256(body).digest() + body)

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        counts = {"t/0": 0, "t/1": 0, "t/2": 0}
        for _ in range(300):
            event = b.await_event(Received)
            assert hashlib.sha256(event.payload[32:]).digest() == event.payload[:32]
            counts[event.topic] += 1
        for thread in threads:
            thread.join()
        assert set(counts.values()) == {100}


def test_a_close_publishes_the_last_will_and_a_cut_too(broker: RunningBroker) -> None:
    with nodes(broker.url, "ear") as (ear,):
        ear.listen(Channel.CONTROL, "t/will")
        with nodes(broker.url, "a"):
            pass
        assert ear.await_event(Received).payload == b"1"


def test_a_node_that_takes_the_name_of_another_cuts_it_and_it_comes_back(broker: RunningBroker) -> None:
    with nodes(broker.url, "a") as (first,):
        first.await_event(Connected, channel=Channel.CONTROL, connect=1)
        second = Node(broker.url, "a").start()
        first.await_event(Disconnected, channel=Channel.CONTROL)
        second.transport.close()
        first.await_event(Connected, channel=Channel.CONTROL, connect=2)


def test_after_a_restart_of_the_broker_both_connections_come_back(broker_folder: Path) -> None:
    with start_broker("auto", folder=broker_folder) as first, nodes(first.url, "a") as (node,):
        first.process.kill()
        first.process.wait(timeout=10)
        node.await_event(Disconnected, channel=Channel.DATA)
        assert not node.transport.connected(Channel.DATA)
        assert not node.say(Channel.DATA, "t/x", b"lost")
        with start_broker("auto", folder=broker_folder, port=first.port):
            node.await_event(Connected, channel=Channel.DATA, connect=2)
            node.listen(Channel.DATA, "t/x")
            assert node.say(Channel.DATA, "t/x", b"here")
            assert node.await_event(Received).payload == b"here", "nothing that was refused comes later"


def test_what_waits_to_be_sent_is_bounded() -> None:
    with stalled_broker() as url, nodes(url, "a") as (node,):
        sent = sum(node.say(Channel.DATA, "t/x", bytes(10_000)) for _ in range(MAX_QUEUED_MESSAGES + 2000))
        assert sent < MAX_QUEUED_MESSAGES + 2000
        assert not node.say(Channel.DATA, "t/x", bytes(10_000))


def test_a_handler_that_fails_does_not_end_the_connection(broker: RunningBroker) -> None:
    received: queue.Queue[bytes] = queue.Queue()

    def fail_once(event: TransportEvent) -> None:
        if isinstance(event, Received):
            received.put(event.payload)
            if event.payload == b"1":
                raise ZeroDivisionError("ours")

    with nodes(broker.url, "a") as (a,):
        b = MqttTransport(broker.url, fleet="default", node="b", on_event=fail_once)
        b.start()
        b.wait_connected(10)
        try:
            b.subscribe(Channel.DATA, "t/x")
            a.listen(Channel.DATA, "t/x")
            while received.empty():
                a.say(Channel.DATA, "t/x", b"1")
                a.await_event(Received)
            a.say(Channel.DATA, "t/x", b"2")
            while received.get(timeout=10) != b"2":
                continue
        finally:
            b.close()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (
            "mqtt://127.0.0.1:1",
            "no broker at mqtt://127.0.0.1:1: connection refused; start one (mosquitto -p 1) or give --broker",
        ),
        (
            "mqtt://no.invalid",
            "no broker at mqtt://no.invalid:1883: host name not known; start one (mosquitto -p 1883) or give --broker",
        ),
    ],
)
def test_why_there_is_no_connection_is_one_line(url: str, text: str) -> None:
    node = Node(url, "a")
    node.transport.start()
    try:
        with pytest.raises(TransportError) as caught:
            node.transport.wait_connected(0.5)
        assert str(caught.value) == text
    finally:
        node.transport.close()


def test_a_broker_that_wants_a_password_refuses_in_one_line(tmp_path: Path) -> None:
    with refusing_broker() as url:
        node = Node(url.replace("mqtt://", "mqtt://me:secret@"), "a")
        node.transport.start()
        try:
            with pytest.raises(TransportError) as caught:
                node.transport.wait_connected(5.0)
            assert str(caught.value) == f"broker {url} refuses the connection: not authorized"
        finally:
            node.transport.close()


@pytest.mark.parametrize(("fleet", "node"), [("A", "a"), ("default", "a/b"), ("default", "")])
def test_names_that_are_not_allowed_never_reach_a_broker(fleet: str, node: str) -> None:
    with pytest.raises(FormatError, match="is not allowed"):
        MqttTransport("mqtt://h", fleet=fleet, node=node, on_event=lambda _event: None)


@pytest.fixture
def relays(broker_folder: Path) -> Iterator[list[TcpRelay]]:
    """Two brokers, each behind a relay that can fall silent."""
    with ExitStack() as stack:
        brokers = [stack.enter_context(start_broker("auto", folder=broker_folder / name)) for name in ("one", "two")]
        yield [stack.enter_context(relay_to(running.port)) for running in brokers]


def both(relays: list[TcpRelay]) -> str:
    return ",".join(relay.url for relay in relays)


@pytest.mark.slow
@pytest.mark.parametrize("channel", list(Channel))
def test_a_link_that_was_cut_without_a_word_is_found(relays: list[TcpRelay], channel: Channel) -> None:
    with nodes(relays[0].url, "a", "b") as (a, b):
        a.listen(channel, "t/x")
        relays[0].silence()
        gone = a.await_event(Disconnected, channel=channel)
        assert gone.reason == "no sign of life from the broker"
        relays[0].heal()
        a.await_event(Connected, channel=channel)
        b.await_event(Connected, channel=channel, connect=2)
        a.listen(channel, "t/x")
        assert b.say(channel, "t/x", b"here", qos=1)
        assert a.await_event(Received).payload == b"here"


@pytest.mark.slow
def test_when_only_one_link_falls_silent_only_that_one_is_made_again(broker: RunningBroker) -> None:
    with relay_to(broker.port) as relay:
        node = Node(relay.url, "a").start()
        try:
            relay.silence(0)
            first = node.await_event(Disconnected)
            node.await_event(Connected, channel=first.channel, connect=2)
            others = [channel for channel in Channel if channel is not first.channel]
            assert all(node.transport.connected(channel) for channel in others)
        finally:
            node.transport.close()


def test_a_broker_that_is_gone_is_left_for_the_next_by_both_connections(relays: list[TcpRelay]) -> None:
    with nodes(both(relays), "a") as (a,), nodes(relays[1].url, "b") as (b,):
        b.listen(Channel.DATA, "t/x")
        assert a.say(Channel.DATA, "t/x", b"lost")
        relays[0].close()
        a.await_event(Disconnected, channel=Channel.CONTROL)
        a.await_event(Connected, channel=Channel.DATA, connect=2)
        while not a.say(Channel.DATA, "t/x", b"here"):
            a.await_event(Connected)
        assert b.await_event(Received).payload == b"here"


def test_a_dead_first_broker_does_not_keep_a_node_from_the_second(broker: RunningBroker) -> None:
    with nodes(f"mqtt://127.0.0.1:1,{broker.url}", "a") as (a,):
        assert a.say(Channel.DATA, "t/x", b"here")


def beat(broker_place: int) -> bytes:
    session = Session(boot=1, connect=1)
    return encode_message(
        Heartbeat(
            node="hub",
            session=session,
            frames_done=0,
            oldest_queued_seconds=0.0,
            data_up=True,
            broker=broker_place,
        )
    )


_BEAT = Topics(fleet="default").coordinator_heartbeat()


def test_the_coordinator_names_the_broker_to_use(relays: list[TcpRelay]) -> None:
    with nodes(relays[0].url, "hub") as (hub,), nodes(both(relays), "a") as (a,):

        def name_the_other() -> None:
            for odd in (b"nonsense", beat(7), beat(-1)):
                hub.say(Channel.CONTROL, _BEAT, odd)
            hub.say(Channel.CONTROL, _BEAT, beat(1), qos=1)

        a.told(Disconnected, name_the_other, reason="another broker is to be used")
        a.await_event(Disconnected, reason="another broker is to be used")
        with nodes(relays[1].url, "b") as (b,):
            b.listen(Channel.DATA, "t/x")
            while not a.say(Channel.DATA, "t/x", b"here"):
                a.await_event(Connected)
            assert b.await_event(Received).payload == b"here"


def test_a_node_that_hears_no_coordinator_finds_it_at_another_broker(
    relays: list[TcpRelay], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.broker_choice.UNHEARD_SECONDS", 0.5)
    monkeypatch.setattr("edge.broker_list._SPREAD_SECONDS", 0.0)
    with nodes(relays[1].url, "hub") as (hub,), nodes(both(relays), "a") as (a,):
        a.told(Connected, lambda: hub.say(Channel.CONTROL, _BEAT, beat(1)), connect=2)
        a.await_event(Connected, connect=2)


def test_a_broker_that_takes_a_connection_and_never_answers_is_told_as_such() -> None:
    with played_broker(b"") as url:
        node = Node(url, "a")
        node.transport.start()
        try:
            with pytest.raises(TransportError, match=rf"^no broker at {url}: no answer"):
                node.transport.wait_connected(0.5)
        finally:
            node.transport.close()


@pytest.mark.slow
def test_a_broker_that_never_answers_is_left_for_the_next(broker: RunningBroker) -> None:
    with played_broker(b"") as url, nodes(f"{url},{broker.url}", "a") as (a,):
        assert a.say(Channel.DATA, "t/x", b"here")


@contextmanager
def played_broker(connack: bytes) -> Iterator[str]:
    """A broker that answers every CONNECT with these bytes, and reads nothing after it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        links: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                links.append(link)
                if link.recv(1024):
                    link.sendall(connack)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"mqtt://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for link in links:
                link.close()
            thread.join(timeout=5)


@contextmanager
def stalled_broker() -> Iterator[str]:
    with played_broker(bytes.fromhex("2003000000")) as url:
        yield url


@contextmanager
def refusing_broker() -> Iterator[str]:
    # Reason 0x87 of MQTT 5: not authorized.
    with played_broker(bytes.fromhex("2003008700")) as url:
        yield url
