"""`shardwire fleet`."""

from __future__ import annotations

from typing import Any

import msgspec

from edge.errors import ProfileError
from edge.formats.message import About, Metrics, Speed
from edge.formats.profile import load_profile, profile_ids
from host.cli.console import err, fitted, out, print_json, size_text
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet, Json, quiet_transport
from host.fleet.observe import FleetView, Sighting, look


def command(broker: Broker = DEFAULT_BROKER, fleet: Fleet = DEFAULT_FLEET, json: Json = False) -> None:
    """List the devices of a fleet."""
    quiet_transport()
    view = look(broker, fleet=fleet)
    if json:
        print_json([_record(seen) for seen in view.devices])
        return
    if not view.devices:
        err.print(f"no devices are known in fleet {fleet!r}; start shardwire-agent on them")
        return
    columns: tuple[str, ...] = (
        "device",
        "profile",
        "state",
        "runtimes",
        ">memory free",
        ">of",
        ">int8 MAC/s",
        ">fp32 MAC/s",
        ">blobs",
        "fetching",
        "measured",
    )
    rows = [_row(seen) for seen in view.devices]
    if not any(row[columns.index("fetching")] for row in rows):
        place = columns.index("fetching")
        columns, rows = (*columns[:place], *columns[place + 1 :]), [[*row[:place], *row[place + 1 :]] for row in rows]
    out.print(fitted(columns, rows, without=(">blobs", ">of", ">fp32 MAC/s", "runtimes", "profile")))
    err.print(_coordinator(view))


def _coordinator(view: FleetView) -> str:
    return f"coordinator: {view.coordinator}" if view.coordinator else "coordinator: none (deploy runs one for itself)"


def _row(seen: Sighting) -> list[str]:
    about = seen.node.about
    state = "online" if seen.online else "offline"
    state += ", cordoned" if about is not None and about.cordoned else ""
    if about is None:
        return [seen.node.name, "?", state, "", "", "", "", "", "", "", ""]
    runtimes = ", ".join(f"{offer.name} {offer.version}" for offer in about.runtimes) or "none"
    speeds = [f"{speed / 1e9:.1f} G" if speed else "?" for speed in (_speed(about, "int8"), _speed(about, "float32"))]
    memory = [size_text(about.free_memory_bytes), size_text(about.memory_bytes)]
    held = size_text(about.held_bytes)
    measured = measured_text(seen.node.speed)
    return [about.node, about.profile, state, runtimes, *memory, *speeds, held, fetching_text(seen.metrics), measured]


def fetching_text(metrics: Metrics | None) -> str:
    """Say how far the blobs on their way to a device are; nothing when none is."""
    transfers = metrics.transfers if metrics is not None else ()
    total = sum(transfer.total_bytes for transfer in transfers)
    if not transfers or total <= 0:
        return ""
    done = sum(transfer.done_bytes for transfer in transfers)
    holders = sorted({transfer.holder for transfer in transfers if transfer.holder})
    return f"{done / total:.0%} of {size_text(total)}" + (f" from {', '.join(holders)}" if holders else "")


def measured_text(speed: Speed | None) -> str:
    """Say in a few words what a device measured of itself: models, what a message costs, its link."""
    if speed is None:
        return "nothing"
    models = f"{len(speed.models)} model{'' if len(speed.models) == 1 else 's'}"
    said = [models] if speed.models else []
    said += ["operators"] if speed.operators else []
    said += [f"{speed.message_seconds * 1e3:.1f} ms a message"] if speed.message_seconds >= 0 else []
    said += [f"{size_text(speed.link.bytes_per_second)}/s"] if speed.link is not None else []
    return ", ".join(said) or "nothing"


def _speed(about: About, dtype: str) -> float | None:
    """Multiply-accumulates a second: measured, else of the profile, else None."""
    if about.macs_per_second.get(dtype):
        return about.macs_per_second[dtype]
    if about.profile not in profile_ids():
        return None
    try:
        return load_profile(about.profile).macs_per_second.of(dtype)
    except ProfileError:
        return None


def _record(seen: Sighting) -> dict[str, Any]:
    about = seen.node.about
    record: dict[str, Any] = {"name": seen.node.name, "online": seen.online}
    record["speed"] = _speed_record(seen.node.speed)
    if about is None:
        return record
    return record | {
        "profile": about.profile,
        "runtimes": {offer.name: offer.version for offer in about.runtimes},
        "memory_bytes": about.memory_bytes,
        "free_memory_bytes": about.free_memory_bytes,
        "free_disk_bytes": about.free_disk_bytes,
        "held_bytes": about.held_bytes,
        "macs_per_second": {dtype: _speed(about, dtype) for dtype in ("int8", "float32")},
        "agent_version": about.agent_version,
        "cordoned": about.cordoned,
        "metrics": None if seen.metrics is None else msgspec.to_builtins(seen.metrics),
    }


def _speed_record(speed: Speed | None) -> dict[str, Any] | None:
    """What a device measured of itself, by the names of `Speed`; None for what it did not."""
    if speed is None:
        return None
    costs = (speed.message_seconds, speed.message_seconds_per_byte)
    return {
        "operators": [msgspec.to_builtins(operator) for operator in speed.operators],
        "message_seconds": costs[0] if costs[0] >= 0 else None,
        "message_seconds_per_byte": costs[1] if costs[1] >= 0 else None,
        "link": msgspec.to_builtins(speed.link),
        "models": [msgspec.to_builtins(model) for model in speed.models],
    }
