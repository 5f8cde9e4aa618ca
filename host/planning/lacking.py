"""Why nothing fits, and how much more would do: the same search over shortfalls instead of costs."""

from __future__ import annotations

import math
from typing import Literal

from host.planning.costs import Workload
from host.planning.search.assignment import smallest_maximum
from host.planning.search.grid import shortfall_grid
from host.planning.search.tables import Tables


def why_nothing_fits(workload: Workload, tables: Tables) -> str:
    """Say in one line what binds, and the least that every device lacks.

    Args:
        workload: that has no plan.
        tables: of the devices.
    """
    kinds = tables.kinds
    devices = ", ".join(sorted(name for names in kinds.names for name in names))
    unique = {digest: size for shard in workload.shards for digest, size in shard.blobs.items()}
    lacks: tuple[Literal["memory", "flash"], ...] = ("memory", "flash")
    short = {what: _shortfall(tables, what) for what in lacks}
    if not all(map(math.isfinite, short.values())):
        return f"no plan of {len(workload.shards)} shards keeps to what is asked of {devices}: {_asked(tables)}"
    needed = f"no plan fits: the shards need {mib(sum(unique.values()))} of weights"
    if not any(short.values()):
        return f"{needed}, and devices {devices} lack memory where they have flash: add a device"
    what: Literal["memory", "flash"] = "memory" if short["memory"] else "flash"
    rooms = [
        (name, kind.memory_bytes if what == "memory" else kind.flash_bytes)
        for kind, names in zip(kinds.devices, kinds.names, strict=True)
        for name in names
    ]
    have = ", ".join(f"{name} {mib(room)}" for name, room in sorted(rooms))
    beside = " and room for activations and queues beside them" if what == "memory" else ""
    return (
        f"{needed}{beside}, devices have {what}: {have}; {mib(_tenths_up(short[what]))} more on each would do: "
        "add a device or free some, use a smaller window, or package for a smaller profile"
    )


def nothing_found(workload: Workload) -> str:
    """Say in one line that no plan was found, where the devices are too many to say how much more would do.

    Args:
        workload: that has no plan.
    """
    unique = {digest: size for shard in workload.shards for digest, size in shard.blobs.items()}
    return (
        f"no plan was found: the shards need {mib(sum(unique.values()))} of weights, and room for activations and "
        "queues beside them: name fewer devices to learn how much is lacking, or package for a smaller profile"
    )


def mib(size_bytes: float) -> str:
    """Return a size for a person."""
    return f"{size_bytes / 2**20:.1f} MiB"


def _tenths_up(size_bytes: float) -> float:
    """Round up to what `mib` shows, so that what is asked for is enough."""
    return math.ceil(size_bytes / 2**20 * 10) / 10 * 2**20


def _shortfall(tables: Tables, what: Literal["memory", "flash"]) -> float:
    found = smallest_maximum(shortfall_grid(tables, what), least=tables.kinds.least)
    return math.inf if found is None else math.ceil(found.cost)


def _asked(tables: Tables) -> str:
    kinds = tables.kinds
    if any(kinds.forbidden):
        return "loosen a pin, allow a device, or name more devices"
    return "ask for fewer devices to take part"
