"""A broker of one's own on this machine: mosquitto if there is one, else amqtt; or RabbitMQ; each a process of its own.

It lets anybody in, so it is for a first run, a simulation and the tests, and listens on the loopback address unless it
is given another one of this machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from host import mosquitto, rabbitmq
from host.errors import FleetError
from host.launch import Bridge, BrokerSite, Launch, free_port
from host.mosquitto import MOSQUITTO_VARIABLE, find_mosquitto, launch_mosquitto
from host.processes import running_child, start_child, stop_child
from host.rabbitmq import find_rabbitmq, launch_rabbitmq

__all__ = [
    "MOSQUITTO_VARIABLE",
    "Bridge",
    "BrokerKind",
    "RunningBroker",
    "StartedKind",
    "choose_broker",
    "find_mosquitto",
    "start_broker",
]

StartedKind = Literal["mosquitto", "amqtt", "rabbitmq"]
BrokerKind = Literal["auto", "mosquitto", "amqtt", "rabbitmq"]

_LOOPBACK = "127.0.0.1"
_START_SECONDS: dict[StartedKind, float] = {"mosquitto": 30.0, "amqtt": 30.0, "rabbitmq": 90.0}
_STOP_SECONDS = 5.0
# It closes its database.
_GRACE_SECONDS: dict[StartedKind, float] = {"rabbitmq": 20.0}
_POLL_SECONDS = 0.02
_PORT_TRIES = 5
# A CONNECT of MQTT 3.1.1 (clean session, keep-alive 10 s, client id "probe"), a DISCONNECT, and the CONNACK in between.
_CONNECT = bytes.fromhex("1011 0004 4d515454 04 02 000a 0005") + b"probe"
_DISCONNECT = bytes.fromhex("e000")
_CONNACK_ACCEPTED = bytes.fromhex("20020000")


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
    kind: StartedKind
    address: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path


def _launch_amqtt(site: BrokerSite) -> Launch:
    # -P: a file called amqtt.py in the folder that we happen to be in is not the broker.
    return Launch(command=(sys.executable, "-P", "-m", "host.amqtt", str(site.port)))


_LAUNCH: dict[StartedKind, Callable[[BrokerSite], Launch]] = {
    "mosquitto": launch_mosquitto,
    "amqtt": _launch_amqtt,
    "rabbitmq": launch_rabbitmq,
}


def choose_broker(kind: BrokerKind = "auto") -> StartedKind:
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
        raise FleetError(mosquitto.MISSING)
    if kind == "rabbitmq":
        if find_rabbitmq() is None:
            raise FleetError(rabbitmq.MISSING)
        return "rabbitmq"
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
    bridge: Bridge | None = None,
) -> Iterator[RunningBroker]:
    """Run a broker for the length of a `with` block.

    Args:
        kind: Which broker; `auto` takes mosquitto if there is one, else amqtt.
        folder: Where its configuration, log and database go; made if it does not exist.
        address: IPv4 address of this machine; amqtt takes the loopback address only.
        port: TCP port; 0 for any free one.
        persistence: Keep retained messages and sessions in `folder` over a restart. amqtt cannot.
        bridge: Joins it to another broker. mosquitto only.

    Yields:
        The broker, once it has accepted an MQTT connection.

    Raises:
        FleetError: If the broker is not installed, or does not accept connections within 30 s
            (RabbitMQ: 90 s), or cannot be what is asked for.
    """
    chosen = choose_broker(kind)
    if bridge is not None and chosen != "mosquitto":
        raise FleetError(f"{chosen} builds no bridges: install mosquitto (apt-get install mosquitto)")
    if chosen == "amqtt" and address != _LOOPBACK:
        raise FleetError(f"amqtt listens on {_LOOPBACK} only, not on {address}: install mosquitto")
    folder.mkdir(parents=True, exist_ok=True)
    site = BrokerSite(folder=folder.resolve(), address=address, port=port, persistence=persistence, bridge=bridge)
    with _start(chosen, site) as broker:
        yield broker


@contextlib.contextmanager
def _start(kind: StartedKind, site: BrokerSite) -> Iterator[RunningBroker]:
    # Another process can take a free port between our look and the broker's bind: then look again.
    tries = 1 if site.port else _PORT_TRIES
    for attempt in range(1, tries + 1):
        with ExitStack() as stack:
            try:
                broker = _attempt(kind, replace(site, port=site.port or free_port(site.address)), stack)
            except FleetError:
                if attempt == tries:
                    raise
                continue
            yield broker
            return


def _attempt(kind: StartedKind, site: BrokerSite, stack: ExitStack) -> RunningBroker:
    log = site.folder / f"{kind}.log"
    log.write_bytes(b"")
    launch = _LAUNCH[kind](site)
    for command in launch.beside:
        stack.enter_context(running_child(command, log=log, env=launch.env))
    process = start_child(launch.command, log=log, env=launch.env)
    stack.callback(stop_child, process, grace_seconds=_GRACE_SECONDS.get(kind, _STOP_SECONDS))
    url = f"mqtt://{site.address}:{site.port}"
    broker = RunningBroker(url=url, kind=kind, address=site.address, port=site.port, process=process, log=log)
    _await_connack(broker, _START_SECONDS[kind])
    return broker


def _await_connack(broker: RunningBroker, patience_seconds: float) -> None:
    deadline = time.monotonic() + patience_seconds
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
                f"{patience_seconds:.0f} s: {_last_line(broker.log)}"
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
