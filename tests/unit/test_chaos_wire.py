"""The wire of the fault runs, on real sockets: it carries, cuts silently, heals, slows, and forgets lost power."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from host.chaos.wire import PERFECT, Condition, Wire, Wires, client_id, stall_seconds


def connect_packet(name: str, *, version: int = 4) -> bytes:
    properties = b"\x05\x27\x00\x00\x10\x00" if version == 5 else b""
    encoded = name.encode()
    rest = b"\x00\x04MQTT" + bytes([version, 2, 0, 10]) + properties + len(encoded).to_bytes(2, "big") + encoded
    return bytes([0x10, len(rest)]) + rest


@pytest.mark.parametrize("version", [4, 5])
def test_the_client_id_is_found_in_a_connect(version: int) -> None:
    packet = connect_packet("shardwire.chaos.pi-1.data", version=version)
    assert client_id(packet) == "shardwire.chaos.pi-1.data"
    assert client_id(packet + b"more") == "shardwire.chaos.pi-1.data"
    assert all(client_id(packet[:end]) is None for end in range(len(packet)))
    assert client_id(b"\x30\x05hello") is None


def test_losses_cost_a_retransmission() -> None:
    lossy = Condition(delay_seconds=0.08, loss=0.01)
    assert stall_seconds(1000, PERFECT, lambda: 0.0) == 0.0
    assert stall_seconds(1000, lossy, lambda: 0.5) == 0.0
    assert stall_seconds(1000, lossy, lambda: 0.0) == 0.32
    assert stall_seconds(1000, Condition(loss=0.01), lambda: 0.0) == 0.2


class EchoServer:
    """Sends back what it is sent, and counts connections and their ends."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        self.ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._socket.accept()
                threading.Thread(target=self._echo, args=(link,), daemon=True).start()

    def _echo(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError), link:
            while data := link.recv(65536):
                link.sendall(data)
        self.ended.set()


@pytest.fixture
def server() -> Iterator[EchoServer]:
    running = EchoServer()
    yield running
    running.close()


@pytest.fixture
def wire(server: EchoServer) -> Iterator[Wire]:
    with Wires(seed=1) as wires:
        yield wires.add("pi-1", server.address)


def dial(wire: Wire, name: str = "shardwire.chaos.pi-1") -> socket.socket:
    link = socket.create_connection(("127.0.0.1", wire.port), timeout=5.0)
    link.sendall(connect_packet(name))
    return link


def hear(link: socket.socket, size: int, timeout_seconds: float = 5.0) -> bytes:
    """Return what came within a time, at most `size` bytes."""
    link.settimeout(timeout_seconds)
    data = b""
    with contextlib.suppress(TimeoutError):
        while len(data) < size and (more := link.recv(size - len(data))):
            data += more
    return data


HELLO = connect_packet("shardwire.chaos.pi-1")


def test_what_is_sent_arrives_whole(wire: Wire) -> None:
    with dial(wire) as link:
        assert hear(link, len(HELLO)) == HELLO
        big = bytes(range(256)) * 4096
        threading.Thread(target=link.sendall, args=(big,), daemon=True).start()
        assert hear(link, len(big)) == big


def test_a_cut_is_silent_and_what_was_sent_comes_after_it(wire: Wire, server: EchoServer) -> None:
    with dial(wire) as link, dial(wire) as other:
        hear(link, len(HELLO))
        hear(other, len(HELLO))
        wire.cut()
        link.sendall(b"late")
        other.close()
        assert hear(link, 4, 0.2) == b""
        assert not server.ended.is_set()
        wire.heal()
        assert hear(link, 4) == b"late"
        assert server.ended.wait(5.0)


def test_a_new_connection_through_a_cut_is_taken_and_never_answered(wire: Wire) -> None:
    wire.cut()
    with dial(wire) as link:
        assert hear(link, 1, 0.2) == b""
        wire.heal()
        assert hear(link, len(HELLO)) == HELLO


@pytest.mark.parametrize("kind", ["control", "data"])
def test_one_link_alone_is_cut(wire: Wire, kind: str) -> None:
    names = {"control": "shardwire.chaos.pi-1", "data": "shardwire.chaos.pi-1.data"}
    with dial(wire, names["control"]) as control, dial(wire, names["data"]) as data:
        links = {"control": control, "data": data}
        for name, link in links.items():
            hear(link, len(connect_packet(names[name])))
        wire.cut("control" if kind == "control" else "data")
        for link in links.values():
            link.sendall(b"ping")
        assert hear(links.pop(kind), 4, 0.2) == b""
        assert hear(links.popitem()[1], 4) == b"ping"


def test_a_device_without_power_leaves_a_connection_that_never_ends(wire: Wire, server: EchoServer) -> None:
    link = dial(wire)
    hear(link, len(HELLO))
    wire.cut()
    wire.abandon()
    link.close()
    wire.heal()
    with dial(wire) as again:
        assert hear(again, len(HELLO)) == HELLO
    assert server.ended.wait(5.0)
    server.ended.clear()
    assert not server.ended.wait(0.2)


def test_a_slow_wire_delays_both_ways(wire: Wire) -> None:
    with dial(wire) as link:
        hear(link, len(HELLO))
        wire.set_condition(Condition(delay_seconds=0.1))
        began = time.monotonic()
        link.sendall(b"ping")
        assert hear(link, 4) == b"ping"
        assert time.monotonic() - began >= 0.2


def test_a_broker_that_is_gone_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address: tuple[str, int] = nobody.getsockname()
    with Wires(seed=1) as wires, dial(wires.add("pi-1", address)) as link, contextlib.suppress(ConnectionResetError):
        assert hear(link, 1) == b""
