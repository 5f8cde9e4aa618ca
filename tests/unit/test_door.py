"""The door of an agent: packets from a client on the same machine, past no broker."""

import os
import queue
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.door import MAX_CALLERS, MAX_PATH_BYTES, Door, DoorLine
from edge.errors import TransportError
from edge.formats.topics import Topics
from edge.transport import Channel, Received, TransportEvent

TOPICS = Topics(fleet="default")
RUN = TOPICS.run("cam-1", "net", "1-a-1", 0)


class Hall:
    """Keeps what comes through a door."""

    def __init__(self, path: Path) -> None:
        self.events: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()
        self.door = Door(path, topics=TOPICS, node="cam-1", on_event=self.events.put)

    def next(self) -> Received:
        event = self.events.get(timeout=10)
        assert isinstance(event, Received)
        return event


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    return Path("door")


@pytest.fixture
def hall(path: Path) -> Iterator[Hall]:
    hall = Hall(path)
    hall.door.open()
    yield hall
    hall.door.close()


def test_packets_come_through_in_order_and_as_they_were(hall: Hall, path: Path) -> None:
    line = DoorLine(path)
    payloads = [b"", b"x", bytes(range(256)) * 512]
    assert all(line.send(RUN, payload) for payload in payloads)
    assert [hall.next() for _ in payloads] == [
        Received(channel=Channel.DATA, topic=RUN, payload=payload) for payload in payloads
    ]
    line.close()


def test_only_its_own_stages_are_reached(hall: Hall, path: Path) -> None:
    line = DoorLine(path)
    for topic in (TOPICS.run("pi-2", "net", "1-a-1", 0), TOPICS.command("cam-1"), "elsewhere/run/cam-1/net/1/0"):
        assert line.send(topic, b"no")
    assert line.send(RUN, b"yes")
    assert hall.next().payload == b"yes"
    line.close()


def test_only_its_owner_may_open_it(hall: Hall, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_shut_door_takes_nothing_and_an_opened_one_is_found_again(path: Path) -> None:
    line = DoorLine(path)
    assert not line.send(RUN, b"lost")
    for _ in range(2):
        hall = Hall(path)
        hall.door.open()
        assert line.send(RUN, b"kept")
        assert hall.next().payload == b"kept"
        hall.door.close()
        assert not path.exists()
    line.close()


@pytest.mark.parametrize(
    "record",
    [
        struct.pack(">HI", 0, 1) + b"x",
        struct.pack(">HI", 600, 1),
        struct.pack(">HI", 5, 1 << 31),
        b"\0\3\0\0\0\1\xff\xff\xffx",
    ],
)
def test_who_sends_nonsense_is_hung_up_on_and_others_go_on(hall: Hall, path: Path, record: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(10)
        caller.connect(str(path))
        caller.sendall(record)
        assert caller.recv(1) == b""
    line = DoorLine(path)
    assert line.send(RUN, b"fine")
    assert hall.next().payload == b"fine"
    line.close()


def test_no_more_than_a_few_clients_are_let_in(hall: Hall, path: Path) -> None:
    lines = [DoorLine(path) for _ in range(MAX_CALLERS)]
    for line in lines:
        assert line.send(RUN, b"in")
        hall.next()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(10)
        caller.connect(str(path))
        assert caller.recv(1) == b""
    for line in lines:
        line.close()


def test_a_door_that_is_left_over_is_replaced_and_one_in_use_is_not(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    hall = Hall(path)
    hall.door.open()
    with pytest.raises(TransportError, match="in use by another agent"):
        Hall(path).door.open()
    hall.door.close()
    hall.door.close()


@pytest.mark.parametrize("name", ["no/folder/door", "d" * (MAX_PATH_BYTES + 1)])
def test_a_path_that_cannot_be_a_door_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(TransportError, match=r"^door "):
        Hall(Path(os.fspath(tmp_path), name)).door.open()
