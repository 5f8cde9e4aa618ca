"""The MQTT transport on real brokers: it connects, says why not, survives, bounds what waits, and mixes nothing up."""

import hashlib
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from edge.errors import FormatError, TransportError
from edge.mqtt import MAX_QUEUED_MESSAGES, MqttTransport
from edge.transport import Channel, Connected, Disconnected, Publication, Received, Subscribed, TransportEvent
from host.broker import RunningBroker, start_broker

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
