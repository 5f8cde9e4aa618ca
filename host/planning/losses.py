"""What the death of each device means for a plan, said before it happens. Pure."""

from __future__ import annotations

from collections.abc import Collection

from edge.formats.plan import Loss, Plan
from host.errors import PlanError
from host.planning.settle import bytes_to_move, held_with
from host.planning.standbys import covered_by, needs_another_plan
from host.planning.survivors import Fleet, can_be_asked, pinned_to, plan_of_survivors, settled_in


def losses(plan: Plan, fleet: Fleet, *, staying: bool) -> tuple[Loss, ...]:
    """Return what the loss of each device that runs a stage means, by name.

    What takes too long to work out is left out.

    Args:
        plan: with its standbys and keepers.
        fleet: that it was made for.
        staying: whether a coordinator stays, which holds all blobs and plans again.
    """
    asked = needs_another_plan(plan, fleet.constraints)
    askable = can_be_asked(fleet, len(asked))
    found: list[Loss] = []
    for name in sorted({name for stage in plan.stages for name in stage.runners}):
        if pinned_to(name, fleet.constraints):
            found.append(Loss(device=name, then="stops", reason="layers are pinned to it"))
        elif (then := covered_by(plan, name)) is not None:
            found.append(Loss(device=name, then=then))
        elif askable:
            found.append(_after(plan, name, fleet, staying=staying))
    return tuple(found)


def _after(plan: Plan, lost: str, fleet: Fleet, *, staying: bool) -> Loss:
    """What the loss of a device means that only another plan makes good."""
    now = settled_in(plan, fleet)
    try:
        after = plan_of_survivors(plan, lost, fleet, devices=now)
    except PlanError as error:
        return Loss(device=lost, then="stops", reason=str(error))
    held = {device.name: device.held for device in now if device.name != lost}
    if not any(bytes_to_move(after, fleet.workload, held).values()):
        return Loss(device=lost, then="replan")
    gone = _held_by_none(after, fleet, held.values())
    if gone and not staying:
        return Loss(device=lost, then="stops", reason="it alone holds some of the model")
    return Loss(device=lost, then="move")


def _held_by_none(after: Plan, fleet: Fleet, held: Collection[frozenset[str]]) -> bool:
    """Whether a plan, which has all shards, needs them of a build of which some are held by none that is left."""
    needed = frozenset[str]().union(*held_with(after, fleet.workload).values())
    return not needed <= frozenset[str]().union(*held)
