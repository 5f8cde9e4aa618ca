"""Devices that hold the blobs of a stage on disk without loading it, so that no loss takes the only copy. Pure.

Keepers are where the plan that would follow a loss needs them, so that it moves nothing; where that is too much to work
out, each stage that has one device gets one keeper.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import msgspec

from edge.formats.plan import Plan, Stage
from edge.protocol.builds import planned_format
from host.errors import PlanError
from host.planning.costs import DeviceCost
from host.planning.forms import with_runtimes
from host.planning.search.kinds import available
from host.planning.settle import blobs_of, held_with
from host.planning.standbys import needs_another_plan
from host.planning.survivors import Fleet, can_be_asked, plan_of_survivors, settled_in


def with_keepers(plan: Plan, fleet: Fleet) -> Plan:
    """Choose who keeps the blobs of each stage, in place of those who did.

    For each device whose loss takes another plan, that plan is made, and who would run shards in it that it does not
    hold keeps the stages of them. Then every stage that only one device holds gets one keeper more: who holds most of
    it already, keeps least and comes next. A device without disk for a whole stage keeps none of it.

    Args:
        plan: with its standbys.
        fleet: that it was made for.
    """
    shelves = _Shelves(plan, fleet)
    asked = needs_another_plan(plan, fleet.constraints)
    if can_be_asked(fleet, len(asked)):
        now = settled_in(shelves.plan, fleet)
        for lost in asked:
            try:
                after = plan_of_survivors(shelves.plan, lost, fleet, devices=now, moving=True)
            except PlanError:
                continue
            for stage in after.stages:
                for name in stage.runners:
                    shelves.provide(name, stage)
    for stage in plan.stages:
        shelves.give_another(stage)
    return shelves.filled()


class _Shelves:
    """What room devices have on disk while keepers are chosen."""

    def __init__(self, plan: Plan, fleet: Fleet) -> None:
        bare = tuple(msgspec.structs.replace(stage, keepers=()) for stage in plan.stages)
        self.plan = msgspec.structs.replace(plan, stages=bare)
        self._workload, self._devices = fleet.workload, fleet.devices
        self._forms = {device.name: device.shard_format for device in fleet.devices}
        self._names = [device.name for device in sorted(available(fleet.devices, fleet.constraints), key=_name)]
        self._forbidden = {(pin.device, pin.layer) for pin in fleet.constraints.forbidden}
        self._disk = {device.name: device.flash_bytes for device in settled_in(self.plan, fleet)}
        self._held = held_with(self.plan, fleet.workload)
        for device in fleet.devices:
            self._held[device.name] = self._held.get(device.name, frozenset()) | device.held
        self._keeps: Counter[str] = Counter()
        self._keepers: defaultdict[int, list[str]] = defaultdict(list)

    def provide(self, name: str, wanted: Stage) -> None:
        """Have a device keep the stages that it lacks shards of, as far as it has room."""
        for stage in self.plan.stages:
            shards = range(max(stage.first_shard, wanted.first_shard), min(stage.stop_shard, wanted.stop_shard))
            has, build = self._held.get(name, frozenset()), self._workload.of(self._forms.get(name, ""))
            if any(not build.shards[shard].blobs.keys() <= has for shard in shards):
                self._keep(stage, name)

    def give_another(self, stage: Stage) -> None:
        """Have one more device keep a stage that has one, where one has room.

        Who has the build of another runtime has no copy of this one, unless it has the stage loaded. Where nobody else
        has this build, another one is better than none: its device can go on with the stage.
        """
        form = planned_format(self.plan, stage.device)
        alike = {name for name in self._keepers[stage.index] if self._forms.get(name, "") == form}
        if len({*stage.devices, *alike}) > 1:
            return
        at = self._names.index(stage.device) if stage.device in self._names else 0
        turned = (*self._names[at + 1 :], *self._names[:at])
        free = [name for name in turned if self._may_keep(stage, name)]
        free = [name for name in free if self._forms.get(name, "") == form] or (
            free if not self._keepers[stage.index] else []
        )
        if free:
            lacking = {name: self._lacking(stage, name) for name in free}
            self._keep(stage, min(free, key=lambda name: (lacking[name], self._keeps[name], turned.index(name))))

    def filled(self) -> Plan:
        """Return the plan with its keepers."""
        stages = (
            msgspec.structs.replace(stage, keepers=tuple(sorted(self._keepers[stage.index])))
            for stage in self.plan.stages
        )
        return with_runtimes(msgspec.structs.replace(self.plan, stages=tuple(stages)), self._devices)

    def _keep(self, stage: Stage, name: str) -> None:
        if self._may_keep(stage, name):
            lacking = self._lacking(stage, name)
            self._keepers[stage.index].append(name)
            self._keeps[name] += lacking
            self._disk[name] -= lacking
            self._held[name] = self._held[name] | blobs_of(stage, self._workload, self._forms[name]).keys()

    def _may_keep(self, stage: Stage, name: str) -> bool:
        if name not in self._names or name in stage.devices or name in self._keepers[stage.index]:
            return False
        if any((name, shard) in self._forbidden for shard in range(stage.first_shard, stage.stop_shard)):
            return False
        return self._lacking(stage, name) <= self._disk[name]

    def _lacking(self, stage: Stage, name: str) -> int:
        has, form = self._held.get(name, frozenset()), self._forms.get(name, "")
        return sum(size for digest, size in blobs_of(stage, self._workload, form).items() if digest not in has)


def _name(device: DeviceCost) -> str:
    return device.name
