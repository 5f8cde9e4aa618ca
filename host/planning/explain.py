"""What would be otherwise: without a device, with one more of a kind, for another objective, with another window. Pure.

Each answer is a plan made anew, so there are only so many of them: devices that are alike are asked about once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

import msgspec

from edge.formats.plan import Constraints, Objective, Plan
from host.errors import PlanError
from host.planning.costs import DeviceCost, Network, Workload
from host.planning.planner import predicted_rps, wanted_window
from host.planning.price import memory_of

MAX_PLANS = 48
"""How many plans one explanation makes."""

WINDOW = "window of "
"""How what binds begins where it is the number of requests in flight."""

_ROUNDING = 1e-9


class Planner(Protocol):
    """Makes a plan; `host.planning.planner.plan_pipeline` does."""

    def __call__(
        self,
        workload: Workload,
        devices: Sequence[DeviceCost],
        *,
        objective: Objective,
        window: int,
        network: Network,
        constraints: Constraints,
    ) -> Plan:
        """Return the best plan, or raise `PlanError`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a plan was asked for.

    Attributes:
        workload: one request.
        devices: in any order.
        network: between them.
        constraints: with pins on shards, as the planner takes them.
        objective: what was least.
        window: requests in flight.
    """

    workload: Workload
    devices: tuple[DeviceCost, ...]
    network: Network
    constraints: Constraints
    objective: Objective
    window: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What a plan is worth.

    Attributes:
        requests_per_second: at full load, with the window.
        latency_seconds: of one request alone.
        energy_joules: of one request.
        memory_share: largest used part of the memory of a device.
        devices: how many work.
        binds: what the bottleneck is.
    """

    requests_per_second: float
    latency_seconds: float
    energy_joules: float
    memory_share: float
    devices: int
    binds: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What one device less or more would bring.

    Attributes:
        devices: each of them alone would; they are alike. Of one more: those that it would be like.
        figures: of the new plan, None when there is none.
        reason: why there is none.
    """

    devices: tuple[str, ...]
    figures: Figures | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What a plan for one objective is worth; as in `Change`."""

    objective: Objective
    figures: Figures | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """What would be otherwise.

    Attributes:
        figures: of the plan itself.
        objectives: all four, the plan's own among them.
        without: one of the devices that work taken away.
        more: one device more, like one that is there.
        window_rate: requests a second that the window lets through, at most what the bottleneck does.
        window_needed: the least window that reaches the bottleneck's rate.
        untried: questions that were left out, as they would be more than `MAX_PLANS`.
    """

    figures: Figures
    objectives: tuple[Choice, ...]
    without: tuple[Change, ...]
    more: tuple[Change, ...]
    window_rate: float
    window_needed: int
    untried: int


def explain(question: Question, plan: Plan, planner: Planner, *, most_plans: int = MAX_PLANS) -> Explanation:
    """Answer what would be otherwise.

    Args:
        question: what the plan was asked for.
        plan: the answer to it.
        planner: makes the other plans.
        most_plans: how many of them, at most; objectives come first, then fewer devices, then more.
    """
    own = figures_of(plan, _by_name(question.devices), question.window)
    tries = _Tries(planner, most_plans)
    objectives = tuple(_choices(question, own, tries))
    groups = alike(question)
    working = {name for stage in plan.stages for name in stage.runners}
    without = tuple(
        Change(devices=names, figures=figures, reason=reason)
        for group in groups
        if (names := tuple(name for name in group if name in working))
        for figures, reason in tries.one(_less(question, names[0]))
    )
    more = tuple(
        Change(devices=group, figures=figures, reason=reason)
        for group in groups
        for figures, reason in tries.one(_one_more(question, group[0]))
    )
    rate, needed = window_of(plan, question.window)
    return Explanation(
        figures=own,
        objectives=objectives,
        without=without,
        more=more,
        window_rate=rate,
        window_needed=needed,
        untried=tries.refused,
    )


def figures_of(plan: Plan, devices: Mapping[str, DeviceCost], window: int) -> Figures:
    """Return what a plan is worth on these devices, with so many requests in flight."""
    memory = memory_of(plan.stages)
    return Figures(
        requests_per_second=predicted_rps(plan, window),
        latency_seconds=plan.latency_seconds,
        energy_joules=plan.energy_joules,
        memory_share=max(needed / max(1, devices[name].memory_bytes) for name, needed in memory.items()),
        devices=len(memory),
        binds=what_binds(plan, window),
    )


def window_of(plan: Plan, window: int) -> tuple[float, int]:
    """Return the requests a second that a window lets through, and the least window that holds nothing up.

    Little's law: a window of W requests that take `latency` each gives W / latency at most.
    """
    return predicted_rps(plan, window), wanted_window(plan)


def period_of(plan: Plan, window: int) -> float:
    """Return the seconds between two results at full load, with so many requests in flight."""
    return 1 / predicted_rps(plan, window)


def what_binds(plan: Plan, window: int) -> str:
    """Return what limits a plan, in the words of `Plan.binds`; `window of 8` where requests in flight are too few."""
    # For another objective than time, what binds is no matter of how busy things are.
    if plan.objective == "memory" or period_of(plan, window) <= plan.bottleneck_seconds * (1 + _ROUNDING):
        return plan.binds
    return f"{WINDOW}{window}"


def alike(question: Question) -> tuple[tuple[str, ...], ...]:
    """Return the devices in groups in which they may take each other's place, sorted."""
    groups: dict[object, list[str]] = {}
    network, constraints = question.network, question.constraints
    alone = {name for pair in network.pairs for name in pair}
    alone |= {pin.device for pin in (*constraints.pins, *constraints.forbidden)}
    for device in sorted(question.devices, key=lambda device: device.name):
        if device.name in constraints.without or not _may_take_part(device.name, constraints):
            continue
        cells = tuple(medium.name for medium in network.media if device.name in medium.nodes)
        kind = dataclasses.replace(device, name=device.name if device.name in alone else "", held=frozenset())
        groups.setdefault((kind, cells), []).append(device.name)
    return tuple(sorted(map(tuple, groups.values())))


class _Tries:
    """Plans, as many as there may be."""

    def __init__(self, planner: Planner, most: int) -> None:
        self.refused = 0
        self._planner, self._left = planner, most

    def one(self, question: Question) -> Iterator[tuple[Figures | None, str]]:
        """Yield what one more plan is worth or why there is none; nothing when it would be one too many."""
        if self._left < 1:
            self.refused += 1
            return
        self._left -= 1
        try:
            plan = self._planner(
                question.workload,
                question.devices,
                objective=question.objective,
                window=question.window,
                network=question.network,
                constraints=question.constraints,
            )
        except PlanError as error:
            yield None, str(error)
        else:
            yield figures_of(plan, _by_name(question.devices), question.window), ""


def _choices(question: Question, own: Figures, tries: _Tries) -> Iterator[Choice]:
    objective: Objective
    for objective in get_args(Objective):
        if objective == question.objective:
            yield Choice(objective=objective, figures=own)
            continue
        for figures, reason in tries.one(dataclasses.replace(question, objective=objective)):
            yield Choice(objective=objective, figures=figures, reason=reason)


def _less(question: Question, name: str) -> Question:
    return dataclasses.replace(question, devices=tuple(each for each in question.devices if each.name != name))


def _one_more(question: Question, name: str) -> Question:
    """The same with a twin of a device; it shares the twin's medium, and has no links between two of its own."""
    original = _by_name(question.devices)[name]
    taken = {device.name for device in question.devices}
    twin = next(new for number in range(len(taken) + 1) if (new := f"{name}-more-{number}") not in taken)
    media = tuple(
        dataclasses.replace(medium, nodes=medium.nodes | {twin}) if name in medium.nodes else medium
        for medium in question.network.media
    )
    constraints = question.constraints
    if constraints.devices:
        constraints = msgspec.structs.replace(constraints, devices=(*constraints.devices, twin))
    return dataclasses.replace(
        question,
        devices=(*question.devices, dataclasses.replace(original, name=twin, held=frozenset())),
        network=dataclasses.replace(question.network, media=media),
        constraints=constraints,
    )


def _may_take_part(name: str, constraints: Constraints) -> bool:
    return not constraints.devices or name in constraints.devices


def _by_name(devices: Sequence[DeviceCost]) -> dict[str, DeviceCost]:
    return {device.name: device for device in devices}
