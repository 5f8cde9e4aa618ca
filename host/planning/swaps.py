"""A plan for devices that cannot hold what they serve and what they shall serve at once. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec

from edge.formats.plan import Plan
from host.errors import PlanError
from host.planning.costs import DeviceCost
from host.planning.survivors import loaded_memory

LOAD_BYTES_PER_SECOND = 50e6
"""At which a stage is verified, read and made into a session; a small board with an SD card."""

PROBE_SECONDS = 0.5
"""What stopping a stage, the self-test, the probe and the commit take beside loading and one request."""


def plan_with_swaps(
    plan_on: Callable[[Sequence[DeviceCost]], Plan],
    devices: Sequence[DeviceCost],
    *,
    serving: Plan | None,
    load_rates: Mapping[str, float] | None = None,
) -> Plan:
    """Plan with what is free beside what is served; only where that fails, with what is free once it is closed.

    Args:
        plan_on: makes the plan, standbys too, and raises `PlanError` when nothing fits.
        devices: their `memory_bytes` is beside what they serve.
        serving: what the deployment serves now, of any bundle; None for nothing, when there is nothing to swap.
        load_rates: bytes of memory in a second at which devices were measured to load, where they were.

    Returns:
        The plan; its stages name in `swaps` the devices that must close what they serve first, and `pause_seconds`
        how long nothing answers while they do.

    Raises:
        PlanError: nothing fits either way; it says so for the devices as they are then.
    """
    given = loaded_memory(serving.stages) if serving is not None else {}
    freed = [replace(device, memory_bytes=device.memory_bytes + given.get(device.name, 0)) for device in devices]
    try:
        return plan_on(devices)
    except PlanError:
        if not any(name in given for name in (device.name for device in devices)):
            raise
        return with_swaps(plan_on(freed), devices, load_rates=load_rates)


def with_swaps(plan: Plan, devices: Sequence[DeviceCost], *, load_rates: Mapping[str, float] | None = None) -> Plan:
    """Name the devices of a plan without room for it beside what they serve.

    Args:
        plan: with all that its devices load.
        devices: their `memory_bytes` is beside what they serve.
        load_rates: see `plan_with_swaps`.
    """
    needed, room = loaded_memory(plan.stages), {device.name: device.memory_bytes for device in devices}
    swapping = {name for name, size in needed.items() if name in room and size > room[name]}
    rates = load_rates or {}
    loading = max((needed[name] / (rates.get(name) or LOAD_BYTES_PER_SECOND) for name in swapping), default=0.0)
    return msgspec.structs.replace(
        plan,
        stages=tuple(
            msgspec.structs.replace(stage, swaps=tuple(name for name in stage.devices if name in swapping))
            for stage in plan.stages
        ),
        pause_seconds=loading + PROBE_SECONDS + plan.latency_seconds if swapping else 0.0,
    )
