"""mosquitto: where it is, its configuration, and the bridge that joins two of them."""

from __future__ import annotations

import os
import shutil

from host.errors import FleetError
from host.launch import Bridge, BrokerSite, Launch

MOSQUITTO_VARIABLE = "SHARDWIRE_MOSQUITTO"
"""Environment variable that names a mosquitto to use instead of the one on PATH."""

MISSING = "mosquitto is not on PATH: install it (apt-get install mosquitto) or use --broker auto"

# Debian installs it where an ordinary user's PATH does not look.
_MORE_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


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


def bridge_lines(bridge: Bridge) -> list[str]:
    """Return the lines of `mosquitto.conf` that join this broker to another.

    One side of a link has them, never both; sites form a star or a tree, as a message runs for ever in a ring. The
    link is a clean session: what was sent while it was down is not sent later (frames of then help nobody), and what
    is retained crosses again whenever it comes up, from either side. A last will is published by the broker that the
    device was connected to, and crosses like any message.
    """
    roots = [f"shardwire/{fleet}" for fleet in bridge.fleets] or ["shardwire"]
    return [
        f"connection {bridge.name}",
        f"address {bridge.address}:{bridge.port}",
        "bridge_protocol_version mqttv50",
        *(f"topic {root}/# both 1" for root in roots),
        "cleansession true",
        # Its own state under $SYS is nobody's business, and would be retained at the other side.
        "notifications false",
        "keepalive_interval 5",
        "restart_timeout 1 5",
    ]


def launch_mosquitto(site: BrokerSite) -> Launch:
    """Write its configuration and return what starts it."""
    lines = [
        f"listener {site.port} {site.address}",
        "allow_anonymous true",
        # Without it a small message waits for the acknowledgement of the last one: 44 ms instead of 1 ms.
        "set_tcp_nodelay true",
        "max_queued_bytes 67108864",
        "max_queued_messages 10000",
        "log_dest stdout",
        "log_type error",
        "log_type warning",
        f"persistence {'true' if site.persistence else 'false'}",
    ]
    if site.persistence:
        lines += ["autosave_interval 30", f"persistence_location {site.folder}/"]
    if os.geteuid() == 0:
        # By default root becomes the user `mosquitto`, who cannot write here; and a process that changes its user
        # no longer dies with its parent.
        lines.append("user root")
    if site.bridge is not None:
        lines += bridge_lines(site.bridge)
    configuration = site.folder / "mosquitto.conf"
    configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Launch(command=(find_mosquitto() or "mosquitto", "-c", str(configuration)))
