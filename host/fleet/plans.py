"""From what is asked for and who is here to a plan to roll out: with swaps where there is no room, and made safe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from edge.formats.bundle import Manifest
from edge.formats.message import About, Speed
from edge.formats.plan import Codec, Deployment, Plan
from host.errors import PlanError
from host.fleet.codec_choice import plan_any_codec
from host.fleet.survey import PlanOrder, fleet_costs
from host.planning.costs import DeviceCost
from host.planning.safeguards import safeguarded
from host.planning.settle import held_with
from host.planning.survivors import Fleet, loaded_memory
from host.planning.swaps import with_swaps
from host.planning.workload import shard_constraints, workload_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """What plans of one deployment stand on.

    Attributes:
        manifest: of the bundle.
        devices: descriptions of those that may take part.
        speeds: what devices measured of themselves, by name.
        serving: what serves under the name, of any bundle; None when nothing does.
        staying: whether a coordinator stays, which holds all blobs and plans again.
    """

    manifest: Manifest
    devices: Sequence[About]
    speeds: Mapping[str, Speed]
    serving: Deployment | None
    staying: bool


def new_plan(ground: Ground, order: PlanOrder, *, codec: Codec | Literal["auto"]) -> tuple[Plan, Codec]:
    """Plan with what is free beside what serves; only where that fails, with what is free once devices close it.

    The plan has its standbys and keepers, and says what each loss means.

    Args:
        ground: what the plan stands on.
        order: what is asked for.
        codec: how tensors travel, `auto` for what gives the better plan.

    Raises:
        PlanError: nothing fits either way; it says so for the devices as they are then.
    """
    manifest, devices, serving = ground.manifest, ground.devices, ground.serving
    try:
        plan, found = plan_any_codec(manifest, devices, order, codec=codec, speeds=ground.speeds)
        return _safe(plan, ground, order, found), found
    except PlanError:
        given = loaded_memory(serving.plan.stages) if serving is not None and serving.plan is not None else {}
        if not any(about.node in given for about in devices):
            raise
    freed = [
        msgspec.structs.replace(about, free_memory_bytes=about.free_memory_bytes + given.get(about.node, 0))
        for about in devices
    ]
    plan, found = plan_any_codec(manifest, freed, order, codec=codec, speeds=ground.speeds)
    return _safe(with_swaps(plan, _costs(ground, order)), ground, order, found), found


def _safe(plan: Plan, ground: Ground, order: PlanOrder, codec: Codec) -> Plan:
    workload = workload_of(ground.manifest, codec=codec)
    costs = _costs(ground, order)
    serving = ground.serving
    current = serving.plan if serving is not None else None
    if current is not None and serving is not None and _is_of(serving, order):
        held = held_with(current, workload)
        costs = tuple(replace(cost, held=cost.held | held.get(cost.name, frozenset())) for cost in costs)
    fleet = Fleet(
        workload=workload,
        devices=costs,
        window=order.window,
        constraints=shard_constraints(ground.manifest, order.constraints),
        serving=current,
    )
    return safeguarded(plan, fleet, staying=ground.staying)


def _costs(ground: Ground, order: PlanOrder) -> tuple[DeviceCost, ...]:
    return fleet_costs(ground.manifest, ground.devices, mode=order.mode, digest=order.digest, speeds=ground.speeds)


def _is_of(serving: Deployment, order: PlanOrder) -> bool:
    return serving.manifest is not None and serving.manifest.digest == order.digest
