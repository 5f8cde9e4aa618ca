"""Brokers of one's own: they serve, they say why they cannot, and they leave no process behind."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from host.amqtt import EXIT_CANNOT_LISTEN
from host.broker import (
    MOSQUITTO_VARIABLE,
    Bridge,
    RunningBroker,
    StartedKind,
    choose_broker,
    find_mosquitto,
    start_broker,
)
from host.errors import FleetError
from host.processes import start_child, stop_child

_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Peer:
    client: mqtt.Client
    subscribed: threading.Event = field(default_factory=threading.Event)
    messages: SimpleQueue[mqtt.MQTTMessage] = field(default_factory=SimpleQueue)

    def subscribe(self, *topics: str) -> None:
        self.subscribed.clear()
        self.client.subscribe([(topic, 1) for topic in topics])
        assert self.subscribed.wait(_PATIENCE_SECONDS)

    def next_message(self) -> mqtt.MQTTMessage:
        return self.messages.get(timeout=_PATIENCE_SECONDS)


@contextmanager
def _peer(broker: RunningBroker, name: str, *, will: str | None = None) -> Iterator[_Peer]:
    peer = _Peer(client=mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv311))
    client = peer.client
    client.on_message = lambda _client, _userdata, message: peer.messages.put(message)
    client.on_subscribe = lambda *_arguments: peer.subscribed.set()
    if will is not None:
        client.will_set(will, b"offline", qos=1, retain=True)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    try:
        yield peer
    finally:
        client.disconnect()
        client.loop_stop()


@pytest.mark.parametrize("size_bytes", [0, 1, 150_000, 1_000_000])
@pytest.mark.parametrize("qos", [0, 1])
def test_it_delivers_small_and_large_messages(any_broker: RunningBroker, size_bytes: int, qos: int) -> None:
    payload = os.urandom(size_bytes)
    with _peer(any_broker, "receiver") as receiver, _peer(any_broker, "sender") as sender:
        receiver.subscribe("run/#")
        sender.client.publish("run/a", payload, qos=qos)
        message = receiver.next_message()
    assert (message.topic, message.payload) == ("run/a", payload)


def test_it_keeps_retained_messages_for_those_who_come_later(any_broker: RunningBroker) -> None:
    with _peer(any_broker, "sender") as sender:
        sender.client.publish("state", b"online", qos=1, retain=True).wait_for_publish(_PATIENCE_SECONDS)
        with _peer(any_broker, "receiver") as receiver:
            receiver.subscribe("state")
            message = receiver.next_message()
    assert (message.topic, message.payload, message.retain) == ("state", b"online", True)


def test_it_publishes_the_last_will_of_a_peer_whose_link_breaks(any_broker: RunningBroker) -> None:
    with _peer(any_broker, "receiver") as receiver, _peer(any_broker, "victim", will="state") as victim:
        receiver.subscribe("state")
        link = victim.client.socket()
        assert isinstance(link, socket.socket)
        link.shutdown(socket.SHUT_RDWR)
        message = receiver.next_message()
    assert (message.topic, message.payload) == ("state", b"offline")


def test_its_process_is_gone_after_the_block(any_broker: RunningBroker, tmp_path: Path) -> None:
    with start_broker(any_broker.kind, folder=tmp_path / "second") as second:
        assert second.process.poll() is None
        assert second.port != any_broker.port
    assert second.process.poll() is not None
    assert _is_closed(second.port)


def test_its_process_is_gone_after_an_exception_in_the_block(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), start_broker("auto", folder=tmp_path) as running:
        raise KeyboardInterrupt
    assert running.process.poll() is not None


@pytest.mark.parametrize("kind", ["auto", "amqtt"])
def test_it_dies_with_a_parent_that_is_killed(kind: str, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from host.broker import start_broker\n"
        f"with start_broker({kind!r}, folder=Path({str(tmp_path)!r})) as broker:\n"
        "    print(broker.process.pid, flush=True); sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin is not None
    assert parent.stdout is not None
    with parent.stdin, parent.stdout:
        broker_process = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert _ends(broker_process)


@pytest.mark.parametrize("kind", ["auto", "amqtt"])
def test_a_port_that_is_taken_is_said_in_one_line(kind: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(
                FleetError, match=rf"^\w+ could not start on 127\.0\.0\.1:{port}: .*[Aa]ddress already in use"
            ),
            start_broker("amqtt" if kind == "amqtt" else "auto", folder=tmp_path, port=port),
        ):
            pytest.fail("it started")


def test_amqtt_says_by_its_exit_status_that_it_cannot_listen(any_broker: RunningBroker, tmp_path: Path) -> None:
    child = start_child([sys.executable, "-P", "-m", "host.amqtt", str(any_broker.port)], log=tmp_path / "log")
    assert child.wait(_PATIENCE_SECONDS) == EXIT_CANNOT_LISTEN


def test_mosquitto_is_the_first_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv(MOSQUITTO_VARIABLE, str(program))
    assert find_mosquitto() == str(program)
    assert choose_broker("auto") == "mosquitto"
    assert choose_broker("amqtt") == "amqtt"


def test_without_mosquitto_it_is_amqtt(no_mosquitto: None) -> None:
    assert choose_broker("auto") == "amqtt"


def test_a_mosquitto_that_was_asked_for_by_name_must_be_there(no_mosquitto: None) -> None:
    with pytest.raises(FleetError) as refused:
        choose_broker("mosquitto")
    assert str(refused.value) == (
        "mosquitto is not on PATH: install it (apt-get install mosquitto) or use --broker auto"
    )


def test_a_machine_without_rabbitmq_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.rabbitmq._SCRIPTS", ())
    with pytest.raises(FleetError) as refused:
        choose_broker("rabbitmq")
    assert str(refused.value) == (
        "rabbitmq-server is not installed: apt-get install --no-install-recommends rabbitmq-server"
    )


@pytest.mark.slow
def test_rabbitmq_runs_in_its_folder_and_leaves_no_process(tmp_path: Path) -> None:
    with start_broker("rabbitmq", folder=tmp_path) as running, _peer(running, "a") as peer:
        processes = [os.pidfd_open(pid) for pid in (running.process.pid, *_children(running.process.pid))]
        peer.subscribe("run/#")
        payload = os.urandom(1_000_000)
        peer.client.publish("run/a", payload)
        assert peer.next_message().payload == payload
        assert (tmp_path / "home" / ".erlang.cookie").is_file()
        mapper = _environment_of(running.process.pid)["ERL_EPMD_PORT"]
        assert not _is_closed(int(mapper))
    for process in processes:
        assert _ends(process)
    assert _is_closed(running.port)
    assert _is_closed(int(mapper)), "the port mapper is gone too"


@pytest.mark.parametrize("kind", ["amqtt", "rabbitmq"])
def test_only_mosquitto_builds_bridges(kind: StartedKind, tmp_path: Path) -> None:
    bridge = Bridge(address="127.0.0.1", port=1)
    with (
        pytest.raises(FleetError, match=rf"^{kind} builds no bridges: install mosquitto"),
        start_broker(kind, folder=tmp_path, bridge=bridge),
    ):
        pytest.fail("it started")


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MOSQUITTO_VARIABLE, "/nowhere/mosquitto")
    with pytest.raises(FleetError) as refused:
        choose_broker("auto")
    assert str(refused.value) == (
        "SHARDWIRE_MOSQUITTO is '/nowhere/mosquitto', which is not a program: correct it or unset it"
    )


def test_a_broker_that_ends_at_once_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho 'Error: no luck today'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv(MOSQUITTO_VARIABLE, str(program))
    with (
        pytest.raises(FleetError, match=r"^mosquitto could not start on 127\.0\.0\.1:\d+: Error: no luck today$"),
        start_broker("mosquitto", folder=tmp_path / "broker"),
    ):
        pytest.fail("it started")


def test_stopping_a_child_ends_its_children_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # The shell ignores SIGTERM, so that only the kill of the whole group ends it and its child.
    script = f"trap '' TERM; cat {_fifo(tmp_path)} & echo $! ; wait"
    child = start_child(["sh", "-c", script], log=log)
    grandchild = os.pidfd_open(int(_first_line(log, child)))
    assert stop_child(child, grace_seconds=0.1) == -signal.SIGKILL
    assert _ends(grandchild)


def test_a_child_whose_program_is_not_there_says_so(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert start_child(["/nowhere/program"], log=log).wait(_PATIENCE_SECONDS) == 1
    assert log.read_text() == "cannot start /nowhere/program: No such file or directory\n"


@pytest.fixture
def no_mosquitto(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(MOSQUITTO_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("host.mosquitto._MORE_FOLDERS", ())


def _is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _ends(process: int) -> bool:
    """Whether the process of a pidfd, which need not be our child, ends in time."""
    try:
        return bool(select.select([process], [], [], _PATIENCE_SECONDS)[0])
    finally:
        os.close(process)


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _environment_of(process: int) -> dict[str, str]:
    entries = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def _fifo(folder: Path) -> Path:
    path = folder / "fifo"
    os.mkfifo(path)
    return path


def _first_line(log: Path, child: subprocess.Popen[bytes]) -> str:
    while not (text := log.read_text()).endswith("\n"):
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.01)
    return text
