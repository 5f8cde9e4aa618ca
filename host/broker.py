"""A broker of one's own on this machine: mosquitto if there is one, else amqtt, each in a process of its own.

It lets anybody in, so it is for a first run, a simulation and the tests, and listens on the loopback address unless it
is given another one of this machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from host.errors import FleetError
from host.processes import start_child, stop_child

BrokerKind = Literal["auto", "mosquitto", "amqtt"]

MOSQUITTO_VARIABLE = "SHARDWIRE_MOSQUITTO"
"""Environment variable that names a mosquitto to use instead of the one on PATH."""

_LOOPBACK = "127.0.0.1"
_START_SECONDS = 30.0
_POLL_SECONDS = 0.02
_PORT_TRIES = 5
# A CONNECT of MQTT 3.1.1 (clean session, keep-alive 10 s, client id "probe"), a DISCONNECT, and the CONNACK in between.
_CONNECT = bytes.fromhex("1011 0004 4d515454 04 02 000a 0005") + b"probe"
_DISCONNECT = bytes.fromhex("e000")
_CONNACK_ACCEPTED = bytes.fromhex("20020000")

# Debian installs it where an ordinary user's PATH does not look.
_MORE_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningBroker:
    """A broker that accepts connections.

    Attributes:
        url: Where it listens, as `mqtt://ADDRESS:PORT`.
        kind: Which broker it is.
        address: Its IPv4 address.
        port: Its TCP port.
        process: Its process. Fault tests kill it; `start_broker` tidies up in any case.
        log: The file it writes its messages to.
    """

    url: str
    kind: Literal["mosquitto", "amqtt"]
    address: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path


def find_mosquitto() -> str | None:
    """Return the path of the mosquitto to use, or None if there is none.

    Raises:
        FleetError: If the environment names one that is not there.
    """
    named = os.environ.get(MOSQUITTO_VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            raise FleetError(f"{MOSQUITTO_VARIABLE} is {named!r}, which is not a program: correct it or unset it")
        return found
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(_MORE_FOLDERS))


def choose_broker(kind: BrokerKind = "auto") -> Literal["mosquitto", "amqtt"]:
    """Return which broker `start_broker` would start.

    Args:
        kind: A broker, or `auto` for mosquitto if there is one and amqtt if not.

    Returns:
        The name of a broker that is installed.

    Raises:
        FleetError: If it is not installed.
    """
    if kind in ("auto", "mosquitto") and find_mosquitto() is not None:
        return "mosquitto"
    if kind == "mosquitto":
        raise FleetError("mosquitto is not on PATH: install it (apt-get install mosquitto) or use --broker auto")
    if importlib.util.find_spec("amqtt") is None:
        wanted = "no broker found" if kind == "auto" else "amqtt is not installed"
        raise FleetError(f"{wanted}: install mosquitto, or run pip install 'shardwire[broker]', or give --broker URL")
    return "amqtt"


@contextlib.contextmanager
def start_broker(
    kind: BrokerKind = "auto",
    *,
    folder: Path,
    address: str = _LOOPBACK,
    port: int = 0,
    persistence: bool = False,
) -> Iterator[RunningBroker]:
    """Run a broker for the length of a `with` block.

    Args:
        kind: Which broker; `auto` takes mosquitto if there is one, else amqtt.
        folder: Where its configuration, log and database go; made if it does not exist.
        address: IPv4 address of this machine; amqtt takes the loopback address only.
        port: TCP port; 0 for any free one.
        persistence: Keep retained messages and sessions in `folder` over a restart. amqtt cannot.

    Yields:
        The broker, once it has accepted an MQTT connection.

    Raises:
        FleetError: If the broker is not installed, or does not accept connections within 30 s.
    """
    chosen = choose_broker(kind)
    if chosen == "amqtt" and address != _LOOPBACK:
        raise FleetError(f"amqtt listens on {_LOOPBACK} only, not on {address}: install mosquitto")
    folder.mkdir(parents=True, exist_ok=True)
    broker = _start(chosen, folder=folder.resolve(), address=address, port=port, persistence=persistence)
    try:
        yield broker
    finally:
        stop_child(broker.process)


def _start(
    kind: Literal["mosquitto", "amqtt"], *, folder: Path, address: str, port: int, persistence: bool
) -> RunningBroker:
    # Another process can take a free port between our look and the broker's bind: then look again.
    tries = 1 if port else _PORT_TRIES
    for attempt in range(1, tries + 1):
        chosen_port = port or _free_port(address)
        log = folder / f"{kind}.log"
        log.write_bytes(b"")
        command = (
            _mosquitto_command(folder, address=address, port=chosen_port, persistence=persistence)
            if kind == "mosquitto"
            # -P: a file called amqtt.py in the folder that we happen to be in is not the broker.
            else [sys.executable, "-P", "-m", "host.amqtt", str(chosen_port)]
        )
        process = start_child(command, log=log)
        url = f"mqtt://{address}:{chosen_port}"
        broker = RunningBroker(url=url, kind=kind, address=address, port=chosen_port, process=process, log=log)
        try:
            _await_connack(broker)
        except FleetError:
            stop_child(process)
            if attempt == tries:
                raise
        except BaseException:
            stop_child(process)
            raise
        else:
            return broker
    raise AssertionError("unreachable: the last try returns or raises")


def _mosquitto_command(folder: Path, *, address: str, port: int, persistence: bool) -> list[str]:
    lines = [
        f"listener {port} {address}",
        "allow_anonymous true",
        # Without it a small message waits for the acknowledgement of the last one: 44 ms instead of 1 ms.
        "set_tcp_nodelay true",
        "max_queued_bytes 67108864",
        "max_queued_messages 10000",
        "log_dest stdout",
        "log_type error",
        "log_type warning",
        f"persistence {'true' if persistence else 'false'}",
    ]
    if persistence:
        lines += ["autosave_interval 30", f"persistence_location {folder}/"]
    if os.geteuid() == 0:
        # By default root becomes the user `mosquitto`, who cannot write here; and a process that changes its user
        # no longer dies with its parent.
        lines.append("user root")
    configuration = folder / "mosquitto.conf"
    configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [find_mosquitto() or "mosquitto", "-c", str(configuration)]


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def _await_connack(broker: RunningBroker) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        # Asked before the process is looked at: somebody else's broker on our port must not be taken for ours.
        accepted = _accepts(broker.address, broker.port)
        with contextlib.suppress(subprocess.TimeoutExpired):
            broker.process.wait(timeout=_POLL_SECONDS)
        if broker.process.poll() is not None:
            raise FleetError(
                f"{broker.kind} could not start on {broker.address}:{broker.port}: {_last_line(broker.log)}"
            )
        if accepted:
            return
        if time.monotonic() > deadline:
            raise FleetError(
                f"{broker.kind} on {broker.address}:{broker.port} accepted no connection within "
                f"{_START_SECONDS:.0f} s: {_last_line(broker.log)}"
            )


def _accepts(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1.0) as link:
        link.sendall(_CONNECT)
        answer = b""
        while len(answer) < len(_CONNACK_ACCEPTED) and (more := link.recv(len(_CONNACK_ACCEPTED) - len(answer))):
            answer += more
        if answer == _CONNACK_ACCEPTED:
            link.sendall(_DISCONNECT)
            return True
    return False


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip() and "should not be run as root" not in line]
    return said[-1] if said else f"it said nothing ({log})"
