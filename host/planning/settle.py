"""Of plans that are as good, the one that moves fewest bytes: names within a kind, cuts that are there. Pure."""

from __future__ import annotations

import bisect
import contextlib
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import msgspec
import numpy as np

from edge.formats.plan import Constraints, Objective, Pin, Plan, Stage, Takes
from edge.protocol.builds import planned_format
from host.errors import PlanError
from host.planning.costs import DeviceCost, Network, ShardCost, Workload
from host.planning.planner import SECONDS, plan_pipeline
from host.planning.price import price_plan
from host.planning.search.few_kinds import MOST_KINDS, kind_count, plan_by_few_kinds
from host.planning.search.matching import least_assignment
from host.planning.standing import standing_of

AS_GOOD = 0.01
"""A plan whose objective is worse by no more than this part of the best counts as equal to it."""

LATENCY_AS_GOOD = 0.1
"""And one whose latency is worse by no more than this, where latency is not the objective."""

MOST_DEVICES = 32
"""Among more devices only their names are dealt out: each further plan to compare with takes its time."""

_NO_ROOM = 2.0**50

Held = Mapping[str, frozenset[str]]
"""Digests of the blobs that devices have, by name."""


def held_with(plan: Plan, workload: Workload) -> dict[str, frozenset[str]]:
    """Return what each device of a plan holds for it, keepers too."""
    held: dict[str, frozenset[str]] = {}
    for stage in plan.stages:
        blobs: dict[Takes, frozenset[str]] = {}
        for name in (*stage.devices, *stage.keepers):
            form = planned_format(plan, name)
            if form not in blobs:
                blobs[form] = frozenset(blobs_of(stage, workload, form))
            held[name] = held.get(name, frozenset()) | blobs[form]
    return held


def new_bytes(wanted: Held, workload: Workload, held: Held) -> dict[str, int]:
    """Return how many bytes devices lack of the blobs that they shall have, by name."""
    builds = (workload, *workload.builds.values())
    sizes = {digest: size for build in builds for shard in build.shards for digest, size in shard.blobs.items()}
    return {
        name: sum(sizes[digest] for digest in digests - held.get(name, frozenset())) for name, digests in wanted.items()
    }


def bytes_to_move(plan: Plan, workload: Workload, held: Held) -> dict[str, int]:
    """Return how many bytes each device of a plan must get before it serves; keepers get theirs afterwards."""
    needed: dict[str, dict[str, int]] = {}
    for stage in plan.stages:
        for name in stage.devices:
            needed.setdefault(name, {}).update(blobs_of(stage, workload, planned_format(plan, name)))
    return {
        name: sum(size for digest, size in blobs.items() if digest not in held.get(name, frozenset()))
        for name, blobs in needed.items()
    }


def best_plan(  # noqa: PLR0913 - all that a caller may ask for, by name
    workload: Workload,
    devices: Sequence[DeviceCost],
    *,
    objective: Objective,
    window: int,
    network: Network | None = None,
    constraints: Constraints | None = None,
    current: Plan | None = None,
    seconds: float = SECONDS,
    worth: float = 0.0,
) -> Plan:
    """Return a best plan, and of those that are as good one that moves little.

    The best plan is compared with the best one whose stages are around the same shards on the same devices as now, and
    with the best one that keeps the current cuts; the names of devices that are alike are dealt out so that the fewest
    bytes move.

    Args:
        workload: one request.
        devices: their `held` counts as there.
        objective: what is least.
        window: requests in flight.
        network: between the devices.
        constraints: what the plan keeps to.
        current: a plan of this workload that is served now.
        seconds: about the processor time of all; less than the planner's own makes it settle for a good plan where the
            best one takes longer (see `Plan.gap`).
        worth: as of the planner.

    Raises:
        PlanError: nothing fits.
    """
    held = {device.name: device.held for device in devices}
    if current is not None:
        for name, blobs in held_with(current, workload).items():
            held[name] = held.get(name, frozenset()) | blobs
    choice = _Choice(
        workload=workload,
        devices=devices,
        objective=objective,
        window=window,
        network=network,
        limits=constraints or Constraints(),
        held=held,
        seconds=seconds,
        worth=worth,
    )
    best = least = choice.settled(choice.best())
    bounds = _bounds(current, workload)
    if current is None or bounds is None or not best[0] or len(devices) > MOST_DEVICES or choice.many_kinds:
        return best[1]
    for other in (choice.anchored, choice.with_cuts):
        with contextlib.suppress(PlanError):
            found = choice.settled(other(current, bounds))
            if found[0] < least[0] and choice.is_as_good(found[1], best[1]):
                least = found
    return least[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    """What is planned for; its plans are compared by the bytes that they move."""

    workload: Workload
    devices: Sequence[DeviceCost]
    objective: Objective
    window: int
    network: Network | None
    limits: Constraints
    held: Held
    seconds: float
    worth: float

    @property
    def hurried(self) -> bool:
        """Whether there is less time than the planner would take."""
        return self.seconds < SECONDS

    @property
    def many_kinds(self) -> bool:
        """Whether there are more different devices than can be told apart in the time."""
        return self.hurried and kind_count(self.devices) > MOST_KINDS

    def planned(self, work: Workload, on: Sequence[DeviceCost], within: Constraints, *, part: float = 0.2) -> Plan:
        return plan_pipeline(
            work,
            on,
            objective=self.objective,
            window=self.window,
            network=self.network,
            constraints=within,
            seconds=self.seconds * part if self.hurried else SECONDS,
            worth=self.worth,
        )

    def best(self) -> Plan:
        if not self.many_kinds:
            return self.planned(self.workload, self.devices, self.limits, part=0.6)
        with contextlib.suppress(PlanError):  # the least room of a group may be too little: then it takes its time
            return self.by_few_kinds()
        return self.planned(self.workload, self.devices, self.limits, part=0.6)

    def by_few_kinds(self) -> Plan:
        return plan_by_few_kinds(
            self.devices,
            planned=lambda on: self.planned(self.workload, on, self.limits, part=0.3),
            priced=lambda plan: price_plan(
                self.workload,
                self.devices,
                plan.stages,
                objective=self.objective,
                window=self.window,
                network=self.network,
                left_out=plan.left_out,
            ),
            value=self.value,
        )

    def value(self, plan: Plan, on: Sequence[DeviceCost]) -> float:
        costs = {device.name: device for device in on}
        standing = standing_of(plan, self.workload, costs, window=self.window, network=self.network)
        return standing.of(self.objective) if standing is not None else math.inf

    def anchored(self, current: Plan, _bounds: Sequence[int]) -> Plan:
        here = {device.name for device in self.devices}
        return self.planned(self.workload, self.devices, _anchored(self.limits, current, here))

    def with_cuts(self, _current: Plan, bounds: Sequence[int]) -> Plan:
        units = [_coarse_device(device, bounds) for device in self.devices]
        return _refined(
            self.planned(_coarse(self.workload, bounds), units, _coarse_limits(self.limits, bounds)), bounds
        )

    def settled(self, plan: Plan) -> tuple[int, Plan]:
        """Return a plan with its names dealt out, and the bytes that it moves."""
        found = settle(plan, self.workload, self.devices, held=self.held, network=self.network, constraints=self.limits)
        return sum(bytes_to_move(found, self.workload, self.held).values()), found

    def is_as_good(self, plan: Plan, best: Plan) -> bool:
        costs = {device.name: device for device in self.devices}
        found, goal = (
            standing_of(one, self.workload, costs, window=self.window, network=self.network) for one in (plan, best)
        )
        if found is None or goal is None or found.of(self.objective) > goal.of(self.objective) * (1 + AS_GOOD):
            return False
        return found.latency_seconds <= goal.latency_seconds * (1 + LATENCY_AS_GOOD)


def settle(
    plan: Plan,
    workload: Workload,
    devices: Sequence[DeviceCost],
    *,
    held: Held,
    network: Network | None = None,
    constraints: Constraints | None = None,
) -> Plan:
    """Deal the places of a plan out to devices that are alike so that the fewest bytes move.

    The plan costs the same as before: only devices that nothing but their names tells apart take each other's places.

    Args:
        plan: of this workload.
        workload: one request.
        devices: all that may take part, used or not.
        held: what they have.
        network: devices that it names are like no other.
        constraints: as the network.
    """
    between = network or Network()
    own = _told_apart(plan, between, constraints or Constraints())
    kinds: dict[object, list[str]] = defaultdict(list)
    by_name = {device.name: device for device in devices}
    for device in sorted(devices, key=lambda found: found.name):
        kinds[_kind(device, between, own, plan.objective)].append(device.name)
    swaps: dict[str, str] = {}
    # A device may have the stage before and the stage after a section, and who takes its place has both.
    stages: dict[str, list[Stage]] = defaultdict(list)
    for stage in plan.stages:
        for name in stage.runners:
            stages[name].append(stage)
    for names in kinds.values():
        before = [name for name in stages if name in names]
        cost = np.array(
            [[_lacking(stages[place], by_name[name], workload, held) for name in names] for place in before], np.float64
        )
        dealt = [names[column] for column in least_assignment(cost)] if before else []
        swaps |= zip(before, dealt, strict=True)
        # Who comes in for another leaves its own place free, or its word among those left out.
        swaps |= zip(sorted(set(dealt) - set(before)), sorted(set(before) - set(dealt)), strict=True)
    return _renamed(plan, swaps)


def blobs_of(stage: Stage, workload: Workload, form: Takes = "") -> dict[str, int]:
    """Return the size of each blob of a stage by digest, in the build of one shard format; empty for the own."""
    blobs: dict[str, int] = {}
    for shard in workload.of(form).shards[stage.first_shard : stage.stop_shard]:
        blobs.update(shard.blobs)
    return blobs


def _lacking(stages: Sequence[Stage], device: DeviceCost, workload: Workload, held: Held) -> float:
    """Bytes to move, or more than anything has where the stages do not fit."""
    found = (blobs_of(stage, workload, device.shard_format) for stage in stages)
    blobs = {digest: size for one in found for digest, size in one.items()}
    has = held.get(device.name, frozenset())
    if sum(stage.memory_bytes for stage in stages) > device.memory_bytes or sum(blobs.values()) > device.flash_bytes:
        return _NO_ROOM
    return float(sum(size for digest, size in blobs.items() if digest not in has))


def _told_apart(plan: Plan, network: Network, constraints: Constraints) -> frozenset[str]:
    """Return the devices whose names mean something."""
    return frozenset(
        [name for pair in network.pairs for name in pair]
        + [pin.device for pin in (*constraints.pins, *constraints.forbidden)]
        + [name for stage in plan.stages for name in stage.standbys]
    )


def _kind(device: DeviceCost, network: Network, own: Collection[str], objective: Objective) -> object:
    media = tuple(index for index, medium in enumerate(network.media) if device.name in medium.nodes)
    bare = replace(device, name=device.name if device.name in own else "", held=frozenset(), others=())
    # How much room there is costs nothing, as long as there is enough.
    return (bare if objective == "memory" else replace(bare, memory_bytes=0, flash_bytes=0)), media


def _renamed(plan: Plan, swaps: Mapping[str, str]) -> Plan:
    def name(before: str) -> str:
        return swaps.get(before, before)

    def text(before: str) -> str:
        return re.sub(r"[a-z0-9][a-z0-9-]*", lambda word: name(word[0]), before)

    stages = tuple(
        msgspec.structs.replace(
            stage, device=name(stage.device), replicas=tuple(sorted(name(replica) for replica in stage.replicas))
        )
        for stage in plan.stages
    )
    left_out = sorted(
        (msgspec.structs.replace(left, device=name(left.device), reason=text(left.reason)) for left in plan.left_out),
        key=lambda left: left.device,
    )
    return msgspec.structs.replace(
        plan,
        stages=stages,
        binds=text(plan.binds),
        left_out=tuple(left_out),
        runtimes={name(device): runtime for device, runtime in plan.runtimes.items()},
    )


def _bounds(current: Plan | None, workload: Workload) -> tuple[int, ...] | None:
    """Return the cuts of a plan; None when there is nothing to keep of them."""
    if current is None or any(stage.beside for stage in current.stages):
        return None
    bounds = (0, *(stage.stop_shard for stage in current.stages))
    return bounds if bounds[-1] == len(workload.shards) else None


def _anchored(constraints: Constraints, current: Plan, here: Collection[str]) -> Constraints:
    """Keep one shard of each stage where it is: the outermost of the first and last stage, of others the middle one."""
    pinned = {pin.layer for pin in constraints.pins}
    last = len(current.stages) - 1
    pins = []
    for stage in current.stages:
        middle = (stage.first_shard + stage.stop_shard) // 2
        shard = 0 if stage.index == 0 else stage.stop_shard - 1 if stage.index == last else middle
        # Who stands by for a stage whose device is gone has it loaded.
        runs = next((name for name in (stage.device, *stage.standbys) if name in here), None)
        if not stage.replicas and runs is not None and shard not in pinned:
            pins.append(Pin(layer=shard, device=runs))
    return msgspec.structs.replace(constraints, pins=(*constraints.pins, *pins))


def _coarse(workload: Workload, bounds: Sequence[int]) -> Workload:
    """Join the shards between two cuts into one, so that a plan can cut nowhere else."""
    return Workload(
        shards=tuple(_joined(workload.shards[first:stop]) for first, stop in pairwise(bounds)),
        builds={form: _coarse(build, bounds) for form, build in workload.builds.items()},
        cuts=tuple(workload.cuts[bound] for bound in bounds) if workload.cuts else (),
    )


def _joined(shards: Sequence[ShardCost]) -> ShardCost:
    return ShardCost(
        blobs={digest: size for shard in shards for digest, size in shard.blobs.items()},
        extra_bytes=sum(shard.extra_bytes for shard in shards),
        peak_activation_bytes=max(shard.peak_activation_bytes for shard in shards),
        received_bytes=shards[0].received_bytes,
        sent_bytes=shards[-1].sent_bytes,
        received_raw_bytes=shards[0].received_raw_bytes,
        sent_raw_bytes=shards[-1].sent_raw_bytes,
    )


def _coarse_device(device: DeviceCost, bounds: Sequence[int]) -> DeviceCost:
    return replace(
        device, shard_seconds=tuple(sum(device.shard_seconds[first:stop]) for first, stop in pairwise(bounds))
    )


def _coarse_limits(constraints: Constraints, bounds: Sequence[int]) -> Constraints:
    def moved(pins: Sequence[Pin]) -> tuple[Pin, ...]:
        return tuple(Pin(layer=bisect.bisect_right(bounds, pin.layer) - 1, device=pin.device) for pin in pins)

    return msgspec.structs.replace(constraints, pins=moved(constraints.pins), forbidden=moved(constraints.forbidden))


def _refined(plan: Plan, bounds: Sequence[int]) -> Plan:
    stages = tuple(
        msgspec.structs.replace(stage, first_shard=bounds[stage.first_shard], stop_shard=bounds[stage.stop_shard])
        for stage in plan.stages
    )
    return msgspec.structs.replace(plan, stages=stages)
