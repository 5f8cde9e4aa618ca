"""Whether a plan that serves should be replaced now, by what, and why not. Pure; no clock.

What devices measure of their stages overrides what was predicted; a plan is replaced when the time that it saves over a
horizon exceeds the time that moving to it takes, and by enough that noise alone cannot do it.

Measured is the time of a stage inside its runtime, and nothing else: a device that misses it by a factor is taken to
miss the time of its messages by the same, as a throttled or shared processor does. A plan whose messages alone cost
more than predicted is not seen to be slow: how long frames wait does not tell it from one whose successor is busy.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edge.formats.plan import Constraints, Objective, Plan, Stage
from edge.formats.speed import MOST_SECONDS, StageLoad
from host.errors import PlanError
from host.planning.costs import DeviceCost, Network, Workload
from host.planning.planner import SECONDS, WORTH
from host.planning.price import memory_of
from host.planning.safeguards import safeguarded
from host.planning.settle import AS_GOOD, best_plan, bytes_to_move, held_with
from host.planning.standing import Standing, run_seconds, slowed, standing_of
from host.planning.survivors import ASK_SECONDS, Fleet, can_be_asked, loaded_memory, only_held
from host.planning.swaps import LOAD_BYTES_PER_SECOND, plan_with_swaps

LEAST_GAIN = 0.15
"""Part of the objective that a new plan must save: smaller gains are within what predictions are wrong by."""

BAND = 1.25
"""A factor between measured and predicted times is believed anew only when it changes by more than this factor."""

LEAST_FRAMES = 20
"""Frames after which a measured stage time counts."""

HORIZON_SECONDS = 600.0
"""Time at full load over which a gain must pay for the move, where nobody says otherwise."""

CHANGE_SECONDS = 3.0
"""What a change takes beside moving and loading: preparing, probing and committing."""

HURRIED_SECONDS = 0.3
"""Processor time for keepers and what losses mean, while nothing answers."""

_MOST_SLOWNESS = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """What is there now.

    Attributes:
        devices: those that are here, as predicted; `held` is what they have beside what the current plan gave them.
        slowness: measured time by predicted time of devices, where they differ.
        barred: devices that run their stage and may not take a new one.
        network: between the devices; every link to one broker when left out.
    """

    devices: Sequence[DeviceCost]
    slowness: Mapping[str, float] = field(default_factory=dict)
    barred: Collection[str] = ()
    network: Network | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Aim:
    """What a plan is for.

    Attributes:
        objective: what is least.
        window: requests in flight.
        constraints: what a plan keeps to; pins are of shards.
        horizon_seconds: at full load, over which a gain must pay.
        seconds: processor time that planning may take, about.
    """

    objective: Objective
    window: int = 8
    constraints: Constraints | None = None
    horizon_seconds: float = HORIZON_SECONDS
    seconds: float = SECONDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What to do about a plan.

    Attributes:
        plan: that replaces the current one, None to leave it.
        reason: one line: what is gained and what moves, or why nothing is done.
        gain: part of the objective that is saved; 1 when the current plan cannot answer.
        moved_bytes: that devices must get.
        seconds_to_move: until the new plan would serve.
        broken: a stage of the current plan has no device.
    """

    plan: Plan | None
    reason: str
    gain: float = 0.0
    moved_bytes: int = 0
    seconds_to_move: float = 0.0
    broken: bool = False


def decide(current: Plan, workload: Workload, situation: Situation, aim: Aim) -> Decision:
    """Decide whether to replace a plan.

    Args:
        current: the plan that serves.
        workload: one request.
        situation: the devices as they are now.
        aim: what a plan is for.
    """
    now = [slowed(device, situation.slowness.get(device.name, 1.0)) for device in situation.devices]
    network = situation.network
    in_use = loaded_memory(current.stages)
    costs = {device.name: device for device in now}
    # What it costs is told of the runtimes that run it, which may not be the fastest of their devices any more.
    running = {name: device.running(current.runtimes.get(name, "")) for name, device in costs.items()}
    standing = standing_of(current, workload, running, window=aim.window, network=network, in_use=in_use)
    able = [device for device in now if device.name not in situation.barred]
    try:
        if not able:
            raise PlanError("no device is here that can take part")
        plan = _replacement(current, workload, able, aim, network=network, broken=standing is None)
    except PlanError as error:
        return Decision(plan=None, reason=str(error), broken=standing is None)
    held = held_with(current, workload)
    held |= {device.name: held.get(device.name, frozenset()) | device.held for device in now}
    moved = bytes_to_move(plan, workload, held)
    seconds = seconds_to_move(plan, moved, costs, network=network)
    after = standing_of(plan, workload, costs, window=aim.window, network=network, in_use=in_use)
    if after is None:
        raise PlanError("the planner uses a device that is not here")
    runners = {name for stage in current.stages for name in stage.runners}
    wanted = {device.name for device in able} - runners if aim.constraints and aim.constraints.use_all else set()
    weighed = _Weighed(
        plan=plan,
        moved_bytes=sum(moved.values()),
        seconds=seconds,
        after=after,
        away=not runners <= costs.keys(),
        wanted=", ".join(sorted(wanted)),
        bare=", ".join(str(index) for index in _bare(current, costs, plan)),
    )
    return _weigh(current, standing, weighed, aim)


def _replacement(
    current: Plan, workload: Workload, able: Sequence[DeviceCost], aim: Aim, *, network: Network | None, broken: bool
) -> Plan:
    """Return the plan that might replace the current one, with its standbys and keepers.

    Where nothing answers, one for which nothing has to move comes first, and is made better afterwards; and a pause
    while devices swap costs nothing.
    """
    constraints = aim.constraints or Constraints()
    there = held_with(current, workload)
    able = [replace(device, held=device.held | there.get(device.name, frozenset())) for device in able]
    fleet = Fleet(
        workload=workload,
        devices=able,
        window=aim.window,
        constraints=constraints,
        network=network,
        serving=current,
        seconds=HURRIED_SECONDS if broken else ASK_SECONDS,
    )

    def best(devices: Sequence[DeviceCost], limits: Constraints = constraints, *, near: Plan | None = current) -> Plan:
        return best_plan(
            workload,
            devices,
            objective=aim.objective,
            window=aim.window,
            network=network,
            constraints=limits,
            current=near,
            seconds=aim.seconds,
            worth=WORTH,
        )

    if not broken:
        return safeguarded(best(able), fleet, staying=True)
    if can_be_asked(fleet, 1):
        unmoved = only_held(workload, constraints, able)
        with contextlib.suppress(PlanError):
            found = plan_with_swaps(lambda devices: best(devices, unmoved, near=None), able, serving=current)
            return safeguarded(found, fleet, staying=True)
    return safeguarded(plan_with_swaps(best, able, serving=current), fleet, staying=True)


def measured_slowness(stages: Sequence[tuple[Stage, StageLoad]], device: DeviceCost) -> float | None:
    """Return the measured by the predicted time of what a device runs; None when it says nothing yet, or nothing sane.

    Args:
        stages: that it runs, mostly one, each with what it measured; those that say nothing are passed over.
        device: as predicted.
    """
    telling = [
        (run_seconds(stage, device), load.run_seconds)
        for stage, load in stages
        if load.frames >= LEAST_FRAMES and 0 < load.run_seconds <= MOST_SECONDS
    ]
    predicted, measured = (sum(times) for times in zip(*telling, strict=True)) if telling else (0.0, 0.0)
    if predicted <= 0:
        return None
    return min(_MOST_SLOWNESS, max(1 / _MOST_SLOWNESS, measured / predicted))


def believed(before: float, measured: float) -> float:
    """Return the factor to go on with: the one before, unless the measured one is clearly another."""
    return before if 1 / BAND <= measured / before <= BAND else measured


def shared_slowness(devices: Sequence[DeviceCost], known: Mapping[str, float]) -> dict[str, float]:
    """Return the factors of all devices: also of those that were not measured.

    A device of which nothing is known has the least factor of those that were predicted to be like it, if there are at
    least two: one that misses its prediction is slow, two say that the prediction is wrong.

    Args:
        devices: as predicted.
        known: believed factors of some of them.
    """
    alike: dict[tuple[float, ...], list[float]] = {}
    for device in devices:
        if device.name in known:
            alike.setdefault(device.shard_seconds, []).append(known[device.name])
    found = dict(known)
    for device in devices:
        factors = alike.get(device.shard_seconds, [])
        if device.name not in known and len(factors) > 1:
            found[device.name] = min(factors)
    return found


def seconds_to_move(
    plan: Plan, moved: Mapping[str, int], devices: Mapping[str, DeviceCost], *, network: Network | None = None
) -> float:
    """Return how long it takes until a plan serves: blobs over the links, stages loaded, the change itself.

    All blobs come from one holder at a time, with the fastest link that there is; devices load at once.

    Args:
        plan: to be prepared.
        moved: bytes that devices must get, by name.
        devices: at least those of the plan, by name.
        network: as far as it limits the transfer.
    """
    between = network or Network()
    source = max(between.client.up_bytes_per_second, *(device.link.up_bytes_per_second for device in devices.values()))
    total = sum(moved.values())
    transfer = max(
        total / source,
        total / between.broker_bytes_per_second,
        *(size / devices[name].link.down_bytes_per_second for name, size in moved.items() if name in devices),
    )
    load = max(memory_of(plan.stages).values()) / LOAD_BYTES_PER_SECOND
    return CHANGE_SECONDS + transfer + load


@dataclass(frozen=True, kw_only=True, slots=True)
class _Weighed:
    """A plan that might replace the current one.

    That one is lame when a runner is `away`, and not what was asked for while devices that must have a stage have none:
    `wanted` names them. `bare` names stages that lost a standby which the plan gives back.
    """

    plan: Plan
    moved_bytes: int
    seconds: float
    after: Standing
    away: bool
    wanted: str
    bare: str


def _weigh(current: Plan, before: Standing | None, new: _Weighed, aim: Aim) -> Decision:
    objective, horizon_seconds = aim.objective, aim.horizon_seconds
    moves = f"{new.moved_bytes / 2**20:.1f} MiB move in {new.seconds:.1f} s"
    found = new.after.of(objective)
    if before is None:
        reason = f"a stage has no device; {_figure(objective, found)} without it; {moves}"
        return _decided(new, reason, gain=1.0, broken=True)
    had = before.of(objective)
    gain = 1 - found / had if had > 0 and math.isfinite(had) else 0.0
    change = f"{_figure(objective, found)} instead of {_figure(objective, had)}"
    if new.bare and found <= had * (1 + AS_GOOD):
        return _decided(new, f"a standby of stage {new.bare} is away; {change}; {moves}", gain=gain, broken=False)
    if _places(new.plan) == _places(current):
        return Decision(plan=None, reason=f"the plan is still the best, {_figure(objective, had)}")
    if new.wanted:
        reason = f"every device must have a stage, and {new.wanted} has none; {change}; {moves}"
        return _decided(new, reason, gain=gain, broken=False)
    if new.away and found <= had * (1 + AS_GOOD):
        # It answers, and yet each request that goes that way waits until it is sent again.
        return _decided(new, f"a replica is away; {change}; {moves}", gain=gain, broken=False)
    if gain <= 0:
        return Decision(plan=None, reason=f"no other plan is better: {change}", gain=gain)
    if gain < LEAST_GAIN:
        return Decision(plan=None, reason=f"the best plan gains too little: {change}", gain=gain)
    if gain * horizon_seconds <= new.seconds:
        saves = f"and saves {gain * horizon_seconds:.1f} s of {horizon_seconds:.0f} s"
        return Decision(plan=None, reason=f"another plan does not pay: {change}; {moves}, {saves}", gain=gain)
    return _decided(new, f"{change}; {moves}", gain=gain, broken=False)


def _decided(new: _Weighed, reason: str, *, gain: float, broken: bool) -> Decision:
    return Decision(
        plan=new.plan,
        reason=reason,
        gain=gain,
        moved_bytes=new.moved_bytes,
        seconds_to_move=new.seconds,
        broken=broken,
    )


def _bare(current: Plan, here: Collection[str], plan: Plan) -> list[int]:
    """Return the stages with a standby that is away, where a plan has more in all than are left."""
    left = sum(name in here for stage in current.stages for name in stage.standbys)
    if sum(len(stage.standbys) for stage in plan.stages) <= left:
        return []
    return [stage.index for stage in current.stages if not set(stage.standbys) <= set(here)]


def _places(plan: Plan) -> list[tuple[frozenset[tuple[str, str]], int, int]]:
    """Who runs what with which runtime."""

    def run(stage: Stage) -> frozenset[tuple[str, str]]:
        return frozenset((name, plan.runtimes.get(name, "")) for name in stage.runners)

    return [(run(stage), stage.first_shard, stage.stop_shard) for stage in plan.stages]


def _figure(objective: Objective, value: float) -> str:
    match objective:
        case "throughput":
            return f"{1 / value:.1f} requests/s" if value > 0 else "no limit"
        case "latency":
            return f"{value * 1e3:.1f} ms"
        case "energy":
            return f"{value:.3f} J"
        case "memory":
            return f"{value * 100:.0f} % of the fullest memory"
