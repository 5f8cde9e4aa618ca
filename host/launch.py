"""What it takes to start a broker: where it is to listen, and the processes that it is made of."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Bridge:
    """A link of one mosquitto to another that carries a fleet both ways.

    Attributes:
        address: Host name or IPv4 address of the other broker.
        port: Its TCP port.
        name: Of the link; it is the client id at the other broker, so each link to it needs another.
        fleets: Whose topics cross; all fleets when empty.
    """

    address: str
    port: int
    name: str = "site"
    fleets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerSite:
    """Where a broker lives.

    Attributes:
        folder: For its configuration, log and database; absolute, exists.
        address: IPv4 address it listens on.
        port: TCP port it listens on.
        persistence: Whether retained messages and sessions outlive it.
        bridge: To another broker; mosquitto only.
    """

    folder: Path
    address: str
    port: int
    persistence: bool = False
    bridge: Bridge | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """The processes of a broker.

    Attributes:
        command: The broker itself: a process that stays in the foreground.
        env: Its environment; this process's own when None.
        beside: Processes that it needs, started before it and stopped after it, in the same environment.
    """

    command: tuple[str, ...]
    env: Mapping[str, str] | None = None
    beside: tuple[tuple[str, ...], ...] = ()


def free_port(address: str) -> int:
    """Return a TCP port of an address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
