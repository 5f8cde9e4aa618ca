"""Devices that hold a stage loaded and idle, so that senders go over to them when those that run it are gone. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from edge.formats.plan import Constraints, Plan, Stage
from edge.protocol.builds import planned_format
from host.planning.costs import DeviceCost, Workload
from host.planning.forms import with_runtimes
from host.planning.search.kinds import available
from host.planning.settle import blobs_of
from host.planning.survivors import loaded_memory, pinned_to


def with_standbys(
    plan: Plan, workload: Workload, devices: Sequence[DeviceCost], *, constraints: Constraints | None = None
) -> Plan:
    """Give each stage up to `constraints.standbys` devices that stand by for it, and take away those that it had.

    A standby is any device that may take part and has memory and disk for it beside all else that the plan gives it;
    one that runs nothing is preferred, then one that stands by for little, holds the blobs, and is idle and fast. The
    stage with the fewest devices to choose from chooses first. Fewer than asked for where there is no room.

    No standby has a stage with a pinned shard, which runs on its device alone, nor one of the two that a device runs
    around a divided section.

    Args:
        plan: with all that runs.
        workload: one request.
        devices: all that may take part; their `memory_bytes` is beside what they serve now, and `held` counts as there.
        constraints: what the plan keeps to; pins are of shards.
    """
    limits = constraints or Constraints()
    bare = msgspec.structs.replace(
        plan, stages=tuple(msgspec.structs.replace(stage, standbys=()) for stage in plan.stages)
    )
    wanted = {
        stage.index: limits.standbys for stage in bare.stages if limits.standbys and may_stand_by(stage, bare, limits)
    }
    if not wanted:
        return bare
    seats = _Seats(bare, workload, available(devices, limits), limits)
    for _ in range(limits.standbys):
        choices = {index: seats.candidates(bare.stages[index]) for index in sorted(wanted)}
        while choices:
            index = min(choices, key=lambda one: (len(choices[one]), -bare.stages[one].memory_bytes, one))
            stage, free = bare.stages[index], choices.pop(index)
            if free:
                name = min(free, key=seats.preference(stage))
                seats.take(stage, name)
                # Only who was taken has less room than before.
                for other, names in choices.items():
                    if name in names and not seats.fits(bare.stages[other], name):
                        names.remove(name)
    stages = tuple(msgspec.structs.replace(stage, standbys=tuple(seats.chosen[stage.index])) for stage in bare.stages)
    return with_runtimes(msgspec.structs.replace(bare, stages=stages), devices)


def may_stand_by(stage: Stage, plan: Plan, constraints: Constraints) -> bool:
    """Tell whether a stage can have a standby at all.

    Args:
        stage: of the plan.
        plan: with all that runs.
        constraints: pins are of shards.
    """
    if any(stage.first_shard <= pin.layer < stage.stop_shard for pin in constraints.pins):
        return False
    places = Counter(name for other in plan.stages for name in other.runners)
    return all(places[name] == 1 for name in stage.runners)


class _Seats:
    """What room devices have while standbys are given out."""

    def __init__(self, plan: Plan, workload: Workload, devices: Sequence[DeviceCost], constraints: Constraints) -> None:
        self.chosen: defaultdict[int, list[str]] = defaultdict(list)
        self._plan, self._workload = plan, workload
        self._devices = {device.name: device for device in devices}
        self._forbidden = {(pin.device, pin.layer) for pin in constraints.forbidden}
        taken = loaded_memory(plan.stages)
        self._memory = {name: device.memory_bytes - taken.get(name, 0) for name, device in self._devices.items()}
        self._has = {name: set(device.held) for name, device in self._devices.items()}
        self._disk = {name: device.flash_bytes for name, device in self._devices.items()}
        self._busy: dict[str, float] = defaultdict(float)
        self._idle: Counter[str] = Counter()
        for stage in plan.stages:
            for name in stage.runners:
                self._busy[name] += stage.predicted_seconds / len(stage.runners)
                if name in self._devices:
                    self._store(stage, name)

    def candidates(self, stage: Stage) -> list[str]:
        taken = {*stage.runners, *self.chosen[stage.index]}
        return [name for name in sorted(self._devices) if name not in taken and self.fits(stage, name)]

    def preference(self, stage: Stage) -> Callable[[str], tuple[bool, int, int, float, str]]:
        def key(name: str) -> tuple[bool, int, int, float, str]:
            seconds = sum(self._devices[name].shard_seconds[stage.first_shard : stage.stop_shard])
            return (
                name in self._busy,
                self._idle[name],
                self._lacking(stage, name),
                self._busy.get(name, 0.0) + seconds,
                name,
            )

        return key

    def take(self, stage: Stage, name: str) -> None:
        self.chosen[stage.index].append(name)
        self._memory[name] -= self._memory_of(stage, name)
        self._idle[name] += 1
        self._store(stage, name)

    def _store(self, stage: Stage, name: str) -> None:
        self._disk[name] -= self._lacking(stage, name)
        self._has[name] |= blobs_of(stage, self._workload, self._devices[name].shard_format).keys()

    def _lacking(self, stage: Stage, name: str) -> int:
        has, form = self._has[name], self._devices[name].shard_format
        return sum(size for digest, size in blobs_of(stage, self._workload, form).items() if digest not in has)

    def _memory_of(self, stage: Stage, name: str) -> int:
        """What a stage takes here: what its runner's takes, or more where the build of this device is larger."""
        forms = [planned_format(self._plan, stage.device), self._devices[name].shard_format]
        run, own = (sum(blobs_of(stage, self._workload, form).values()) for form in forms)
        return stage.memory_bytes + max(0, own - run)

    def fits(self, stage: Stage, name: str) -> bool:
        if any((name, shard) in self._forbidden for shard in range(stage.first_shard, stage.stop_shard)):
            return False
        return self._memory_of(stage, name) <= self._memory[name] and self._lacking(stage, name) <= self._disk[name]


def covered_by(plan: Plan, lost: str) -> Literal["replica", "standby"] | None:
    """Say who goes on with the stages of a device when it is lost; None when one of them has nobody.

    Args:
        plan: with its standbys.
        lost: name of the device.
    """
    found: Literal["replica", "standby"] = "replica"
    for stage in plan.stages:
        if lost in stage.runners and not set(stage.runners) - {lost}:
            if not set(stage.standbys) - {lost}:
                return None
            found = "standby"
    return found


def needs_another_plan(plan: Plan, constraints: Constraints) -> tuple[str, ...]:
    """Return the devices whose loss only another plan makes good, sorted; what is pinned, none does.

    Args:
        plan: with its standbys.
        constraints: pins are of shards.
    """
    runners = sorted({name for stage in plan.stages for name in stage.runners})
    return tuple(name for name in runners if covered_by(plan, name) is None and not pinned_to(name, constraints))
