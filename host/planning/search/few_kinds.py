"""A plan in little time for many devices that all differ: as if there were a few kinds of them. Pure.

The search takes longer the more kinds there are, and with dozens it finds no plan at all in a second. Devices are put
in order of speed and divided into a few groups of equal size; each counts as having the worst of its group in all. What
is planned so fits the devices as they are, and is priced with them. The best of each group in all gives a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from edge.formats.plan import Plan
from host.planning.costs import DeviceCost, LinkCost
from host.planning.search.kinds import cost_key

MOST_KINDS = 24
"""With more kinds than these a plan in a second or two is made as if there were `FEW_KINDS`."""

FEW_KINDS = 6

Planner = Callable[[Sequence[DeviceCost]], Plan]


def kind_count(devices: Sequence[DeviceCost]) -> int:
    """Return how many different devices there are, whatever they are called."""
    return len({cost_key(device) for device in devices})


def plan_by_few_kinds(
    devices: Sequence[DeviceCost],
    *,
    planned: Planner,
    priced: Callable[[Plan], Plan],
    value: Callable[[Plan, Sequence[DeviceCost]], float],
) -> Plan:
    """Return a plan for devices as they are, with its gap.

    Args:
        devices: all that may take part.
        planned: plans for devices that are given, in half the time that there is.
        priced: prices the stages of a plan with the devices as they are.
        value: of a plan on devices, what is least.

    Raises:
        PlanError: nothing fits devices that have the least room of their group.
    """
    plan = priced(planned(grouped(devices, FEW_KINDS, worst=True)))
    ideal = grouped(devices, FEW_KINDS, worst=False)
    best = planned(ideal)
    bound = value(best, ideal) / (1 + best.gap)
    return msgspec.structs.replace(plan, gap=max(0.0, value(plan, devices) / bound - 1) if bound > 0 else 0.0)


def grouped(devices: Sequence[DeviceCost], kinds: int, *, worst: bool) -> list[DeviceCost]:
    """Return devices that are of a few kinds, in the order given.

    Args:
        devices: any.
        kinds: at most.
        worst: whether each is as bad as the worst of its group in all, else as good as the best.
    """
    ordered = sorted(devices, key=lambda device: (math.fsum(device.shard_seconds), repr(cost_key(device)), device.name))
    size = -(-len(ordered) // kinds)
    made: dict[str, DeviceCost] = {}
    for start in range(0, len(ordered), size):
        group = ordered[start : start + size]
        like = _extreme(group, worst=worst)
        made |= {
            device.name: replace(like, name=device.name, held=device.held, runtime=device.runtime) for device in group
        }
    return [made[device.name] for device in devices]


def _extreme(group: Sequence[DeviceCost], *, worst: bool) -> DeviceCost:
    dear, scarce = (max, min) if worst else (min, max)
    links = [device.link for device in group]
    return replace(
        group[0],
        shard_seconds=tuple(dear(column) for column in zip(*(device.shard_seconds for device in group), strict=True)),
        link=LinkCost(
            up_bytes_per_second=scarce(link.up_bytes_per_second for link in links),
            down_bytes_per_second=scarce(link.down_bytes_per_second for link in links),
            latency_seconds=dear(link.latency_seconds for link in links),
        ),
        memory_bytes=scarce(device.memory_bytes for device in group),
        flash_bytes=scarce(device.flash_bytes for device in group),
        session_bytes=dear(device.session_bytes for device in group),
        session_seconds=dear(device.session_seconds for device in group),
        message_seconds=dear(device.message_seconds for device in group),
        message_seconds_per_byte=dear(device.message_seconds_per_byte for device in group),
        deflate_seconds_per_byte=dear(device.deflate_seconds_per_byte for device in group),
        inflate_seconds_per_byte=dear(device.inflate_seconds_per_byte for device in group),
        busy_watts=dear(device.busy_watts for device in group),
    )
