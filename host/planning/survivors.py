"""Which plan the survivors of a loss would get, found before it happens. Pure.

It is asked for every device of a plan, so that keepers are where that plan needs them (`keepers`), and that a person
hears what a loss would mean (`losses`). What is asked is bounded by work, not by a clock: the same plan says the same.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from edge.formats.plan import Constraints, Pin, Plan, Stage
from host.errors import PlanError
from host.planning.costs import DeviceCost, Network, Workload
from host.planning.planner import MAX_STATES, MAX_WORK, SECONDS, WORTH
from host.planning.search.kinds import available
from host.planning.settle import best_plan, held_with, new_bytes

ASK_SECONDS = 1.0
"""Processor time, about, that asking for every device of a plan may take."""

_LEAST_SECONDS = 0.008
"""What a question takes for each device even where there is little to search, on a PC."""

_PLANS = 4
"""Searches that one question takes at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """What a plan was made for, to ask what would be without some of it.

    Attributes:
        workload: one request.
        devices: all that may take part, as they are now; `memory_bytes` is beside what they serve, `held` what they
            have on disk beside what the plan gives them.
        window: requests in flight.
        constraints: what plans keep to; pins are of shards.
        network: between the devices.
        serving: what the deployment serves now, of any bundle, which a new plan will replace.
        seconds: processor time, about, that all questions may take together.
    """

    workload: Workload
    devices: Sequence[DeviceCost]
    window: int = 8
    constraints: Constraints = field(default_factory=Constraints)
    network: Network | None = None
    serving: Plan | None = None
    seconds: float = ASK_SECONDS


def loaded_memory(stages: Iterable[Stage]) -> dict[str, int]:
    """Return the bytes of memory that each device needs for the stages that it runs or stands by for, by name."""
    needed = defaultdict[str, int](int)
    for stage in stages:
        for name in stage.devices:
            needed[name] += stage.memory_bytes
    return dict(needed)


def settled_in(plan: Plan, fleet: Fleet) -> tuple[DeviceCost, ...]:
    """Return the devices as they are once a plan serves and the one before it is closed.

    Args:
        plan: with all who hold something of it.
        fleet: that it was made for.
    """
    taken, given = loaded_memory(plan.stages), loaded_memory(fleet.serving.stages if fleet.serving else ())
    holds = held_with(plan, fleet.workload)
    fetched = new_bytes(holds, fleet.workload, {device.name: device.held for device in fleet.devices})
    return tuple(
        replace(
            device,
            memory_bytes=max(0, device.memory_bytes + given.get(device.name, 0) - taken.get(device.name, 0)),
            flash_bytes=max(0, device.flash_bytes - fetched.get(device.name, 0)),
            held=device.held | holds.get(device.name, frozenset()),
        )
        for device in fleet.devices
    )


def can_be_asked(fleet: Fleet, questions: int) -> bool:
    """Tell whether so many losses can be thought through in the time.

    Args:
        fleet: of a plan.
        questions: devices whose loss is asked about.
    """
    count, shards = len(available(fleet.devices, fleet.constraints)), len(fleet.workload.shards)
    # What devices hold tells them apart: each may be a kind of its own.
    states = 1 << min(count, 64)
    work = questions * _PLANS * states * count * shards**2
    quick = questions * count * _LEAST_SECONDS <= fleet.seconds
    return quick and states <= MAX_STATES and work <= MAX_WORK * fleet.seconds / SECONDS


def plan_of_survivors(
    plan: Plan, lost: str, fleet: Fleet, *, devices: Sequence[DeviceCost] | None = None, moving: bool = False
) -> Plan:
    """Return the plan that replaces one when a device is lost: of what the survivors hold, where that can be.

    Args:
        plan: that serves.
        lost: name of the device.
        fleet: that the plan was made for.
        devices: as they are while it serves; worked out when left out.
        moving: do not look for one of what they hold first.

    Raises:
        PlanError: nothing fits on those that are left.
    """
    here = [device for device in devices or settled_in(plan, fleet) if device.name != lost]
    if not here:
        raise PlanError("there is no other device")
    room = loaded_memory(plan.stages)
    freed = [replace(device, memory_bytes=device.memory_bytes + room.get(device.name, 0)) for device in here]
    for chosen in () if moving else (here, freed):
        with contextlib.suppress(PlanError):
            return _planned(plan, chosen, fleet, limited=True)
    with contextlib.suppress(PlanError):
        return _planned(plan, here, fleet, limited=False)
    return _planned(plan, freed, fleet, limited=False)


def _planned(plan: Plan, devices: Sequence[DeviceCost], fleet: Fleet, *, limited: bool) -> Plan:
    constraints = fleet.constraints
    if limited:
        constraints = only_held(fleet.workload, constraints, devices)
    return best_plan(
        fleet.workload,
        devices,
        objective=plan.objective,
        window=fleet.window,
        network=fleet.network,
        constraints=constraints,
        current=None if limited else plan,  # all that are within the limits move as little: nothing
        worth=WORTH,
    )


def only_held(workload: Workload, constraints: Constraints, devices: Sequence[DeviceCost]) -> Constraints:
    """Return constraints by which devices run what they hold for their runtimes, and nothing else.

    Args:
        workload: one request.
        constraints: to add to; pins are of shards.
        devices: with what they hold.
    """
    lacking = [
        Pin(layer=index, device=device.name)
        for device in sorted(devices, key=lambda device: device.name)
        for index, shard in enumerate(workload.of(device.shard_format).shards)
        if not shard.blobs.keys() <= device.held
    ]
    forbidden = dict.fromkeys((*constraints.forbidden, *lacking))
    return msgspec.structs.replace(constraints, forbidden=tuple(forbidden), use_all=False)


def pinned_to(name: str, constraints: Constraints) -> bool:
    """Tell whether some shard runs on a device and nowhere else."""
    return any(pin.device == name for pin in constraints.pins)
