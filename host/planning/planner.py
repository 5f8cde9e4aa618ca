"""The planner: which device runs which consecutive shards. Pure; no IO.

What a plan costs is defined in `price`; here the best one is searched for. Objectives:

- `throughput`: the time between two results is least, the largest of all loads or, where the window holds it up, the
  latency divided by the window; among those plans the latency, then the number of devices;
- `latency`: what one request alone takes;
- `energy`: the joules of one request, then its latency;
- `memory`: the used part of the fullest device's memory, then the largest load, then latency.

Devices are used in any order, those that do not help stay unused. Where it helps throughput, a stage is shared by
several devices of equal cost, and for any objective the branches of a section run side by side. The only case in which
a device runs two stages is a *bend*: the stage before a divided section and the one after it, neither of them shared.

All are exact as long as the devices make no more than `MAX_STATES` sets of equal ones (any twelve; more where devices
are alike). Where hops share several things whose capacity binds, and beyond that number, a plan says how far from the
best it may be (`Plan.gap`). What is not proven: a section is divided in at most so many ways as `search.cuts` admits,
a device bends around as many as `search.bends` admits and not where it has links of its own to others, and neither is
done in large fleets; and where shared capacity binds in an instance that is not small, the latency among equal rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import msgspec

from edge.formats.plan import Constraints, Objective, Plan, Stage
from host.errors import PlanError
from host.planning.costs import DeviceCost, Network, Workload
from host.planning.lacking import nothing_found, why_nothing_fits
from host.planning.left_out import effective_period, left_out, value_of
from host.planning.price import price_plan
from host.planning.search.assignment import ROUNDING, Assignment
from host.planning.search.kinds import Kinds, available, check_pins, kinds_of
from host.planning.search.large import best_of_large
from host.planning.search.objectives import Found, best_of
from host.planning.search.tables import Tables, tables_of

MAX_STATES = 4096
"""Sets of used devices that the exact search may visit."""

MAX_WORK = 4_000_000_000
"""The same times kinds of devices and pairs of cuts: about ten seconds of the exact search."""

WORTH = 0.01
"""Part by which a further device must raise the rate of a plan that is made for a user: less is within what the speeds
of devices vary, and it is one more device to fail."""

SECONDS = 8.0
"""Processor time for a fleet that is too large to plan exactly."""


def plan_pipeline(  # noqa: PLR0913 - all that a caller may ask for, by name
    workload: Workload,
    devices: Sequence[DeviceCost],
    *,
    objective: Objective = "throughput",
    window: int = 8,
    network: Network | None = None,
    constraints: Constraints | None = None,
    must_use: Collection[str] = (),
    seconds: float = SECONDS,
    worth: float = 0.0,
) -> Plan:
    """Place consecutive shards on devices so that the objective is least.

    Args:
        workload: one request.
        devices: in any order; those that do not help stay unused.
        objective: what is least.
        window: requests in flight, which every queue has room for.
        network: between the devices; every link to one broker when left out.
        constraints: what the plan keeps to; its pins are on shards.
        must_use: names of devices that take part even where they do not help.
        seconds: processor time for a fleet that is too large to plan exactly; with less than `SECONDS` more are.
        worth: for throughput, devices are left out where the rate is within this part of the best without them: of the
            plans that are, one of the fewest devices is taken, then of the least latency.

    Raises:
        PlanError: nothing fits; the text says what binds and by how much.
    """
    network, constraints = network or Network(), constraints or Constraints()
    usable = available(devices, constraints)
    most_replicas = max(1, constraints.most_replicas) if objective == "throughput" else 1
    most = len(workload.shards) * most_replicas
    _check(workload, usable, constraints, must_use, most)
    kinds = kinds_of(workload, usable, network, constraints, most=most, must_use=must_use)

    def priced(assignment: Assignment) -> Plan:
        stages = _stages(assignment, kinds)
        return price_plan(workload, usable, stages, objective=objective, window=window, network=network)

    exact = _is_exact(kinds, workload, seconds)
    divide = exact and constraints.side_by_side
    tables = tables_of(workload.roomiest(), kinds, network, window=window, side_by_side=divide)
    found = _found(objective, tables, priced, exact=exact, most_replicas=most_replicas, seconds=seconds, worth=worth)
    if found is None and not exact and _is_exact(kinds, workload):
        return plan_pipeline(
            workload, devices, objective=objective, window=window, network=network, constraints=constraints, worth=worth
        )
    if found is None:
        all_kinds = replace(kinds, limits=(most,) * len(kinds.limits))
        raise PlanError(_why_none(workload, all_kinds, network, window=window, side_by_side=divide))
    plan = priced(found.assignment)
    gap = _gap(value_of(plan, tables) if found.reached is None else found.reached, found.bound)
    plan = msgspec.structs.replace(plan, gap=gap)
    return msgspec.structs.replace(plan, left_out=left_out(plan, found, tables, constraints.pins, worth=worth))


def plan_worthwhile(
    workload: Workload,
    devices: Sequence[DeviceCost],
    *,
    objective: Objective = "throughput",
    window: int = 8,
    network: Network | None = None,
    constraints: Constraints | None = None,
) -> Plan:
    """Plan as `plan_pipeline` does for a user: without devices that raise the rate by less than `WORTH`.

    Args:
        workload: one request.
        devices: in any order.
        objective: what is least.
        window: requests in flight.
        network: between the devices.
        constraints: what the plan keeps to.

    Raises:
        PlanError: nothing fits.
    """
    return plan_pipeline(
        workload,
        devices,
        objective=objective,
        window=window,
        network=network,
        constraints=constraints,
        worth=WORTH,
    )


def predicted_rps(plan: Plan, window: int) -> float:
    """Return the results in a second that a plan promises with so many requests in flight."""
    seconds = effective_period(plan, window)
    return 1 / seconds if seconds > 0 else math.inf


def wanted_window(plan: Plan) -> int:
    """Return the requests in flight from which on the window does not limit a plan's throughput."""
    if plan.bottleneck_seconds <= 0:
        return 1
    return max(1, math.ceil(plan.latency_seconds / plan.bottleneck_seconds * (1 - 1e-9)))


def _found(
    objective: Objective,
    tables: Tables,
    priced: Callable[[Assignment], Plan],
    *,
    exact: bool,
    most_replicas: int,
    seconds: float,
    worth: float,
) -> Found | None:
    """Search in the way that suits the instance."""
    kinds = tables.kinds

    def period_of(assignment: Assignment) -> float:
        plan = priced(assignment)
        return effective_period(plan, tables.window) if objective == "throughput" else plan.bottleneck_seconds

    if exact:
        return best_of(
            objective, tables, most_replicas=most_replicas, least=kinds.least, period_of=period_of, worth=worth
        )
    if any(kinds.least):
        there = sum(map(len, kinds.names))
        raise PlanError(f"{there} different devices are too many to say which must take part: name fewer")
    return best_of_large(
        objective,
        tables,
        most_replicas=most_replicas,
        seconds=seconds,
        period_of=period_of,
        latency_of=lambda assignment: priced(assignment).latency_seconds,
        worth=worth,
    )


def _is_exact(kinds: Kinds, workload: Workload, seconds: float = SECONDS) -> bool:
    """Whether the exact search can hold an instance, in the time where it has a choice."""
    most = MAX_WORK if any(kinds.least) else MAX_WORK * min(1.0, seconds / SECONDS)
    return kinds.states <= MAX_STATES and kinds.states * len(kinds.devices) * len(workload.shards) ** 2 <= most


def _why_none(workload: Workload, kinds: Kinds, network: Network, *, window: int, side_by_side: bool) -> str:
    if not _is_exact(kinds, workload):
        return nothing_found(workload)
    return why_nothing_fits(
        workload, tables_of(workload.roomiest(), kinds, network, window=window, side_by_side=side_by_side)
    )


def _gap(value: float, bound: float) -> float:
    """How much worse than the best a plan may be, as a part of it; what is less than rounding is nothing."""
    if value <= bound * (1 + 10 * ROUNDING):
        return 0.0
    return value / bound - 1 if bound > 0 else math.inf


def _check(
    workload: Workload,
    devices: Sequence[DeviceCost],
    constraints: Constraints,
    must_use: Collection[str],
    most: int,
) -> None:
    names = [device.name for device in devices]
    if not workload.shards or not devices:
        raise PlanError(f"no plan for {len(workload.shards)} shards on {len(devices)} devices: both need at least one")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PlanError(f"device {twice[0]!r} is given twice")
    for device in devices:
        if len(device.shard_seconds) != len(workload.shards):
            raise PlanError(
                f"{device.name} has times for {len(device.shard_seconds)} shards of {len(workload.shards)}: "
                "take those of this bundle"
            )
    if missing := sorted(set(must_use) - set(names)):
        raise PlanError(f"device {missing[0]!r} must take part and is not there")
    if constraints.use_all and len(devices) > most:
        raise PlanError(
            f"{len(devices)} devices shall all take part, and at most {most} can: the bundle has "
            f"{len(workload.shards)} shards, and a stage takes {most // len(workload.shards)} at most (--replicas); "
            "name fewer devices, or allow more replicas"
        )
    check_pins(len(workload.shards), names, constraints)


def _before(stages: Sequence[Stage]) -> str:
    """The device of the stage before the last ones, which run side by side."""
    parts = next(count for count, stage in enumerate(reversed(stages), start=1) if not stage.beside)
    return stages[-parts - 1].device


def _stages(assignment: Assignment, kinds: Kinds) -> tuple[Stage, ...]:
    free = [list(names) for names in kinds.names]
    stages: list[Stage] = []
    for index, run in enumerate(assignment.runs):
        if run.again:
            device, replicas = _before(stages), list[str]()
        else:
            device, *replicas = (free[run.type].pop(0) for _ in range(run.count))
        stages.append(
            Stage(
                index=index,
                device=device,
                first_shard=run.first,
                stop_shard=run.stop,
                replicas=tuple(replicas),
                beside=run.beside,
            )
        )
    return tuple(stages)
