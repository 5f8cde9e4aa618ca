"""The values that a change of a deployment publishes, and what they are made from. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edge.formats.bundle import Blob
from edge.formats.message import DeployRequest
from edge.formats.plan import Before, Deployment, Holding, Plan
from host.errors import PlanError
from host.fleet.holdings import merged, planned_holdings


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """Why a deployment is changed, when it is not by a person's `deploy`.

    Attributes:
        why: one line for the history.
        replans: whether the coordinator itself decided it; a person's command goes before it.
        plan: that was decided on already; None to plan now.
        without: device that the plan leaves out.
        rolls_back: whether the bundle may be older than what serves.
    """

    why: str = ""
    replans: bool = True
    plan: Plan | None = None
    without: str = ""
    rolls_back: bool = False


def request_of(value: Deployment, request_id: str) -> DeployRequest:
    """Return what a person would ask for to have what serves once more.

    Args:
        value: that serves.
        request_id: of the request.

    Raises:
        PlanError: it is removed.
    """
    if value.manifest is None or value.plan is None:
        raise PlanError(f"{value.name} is removed")
    return DeployRequest(
        request_id=request_id,
        name=value.name,
        manifest=value.manifest,
        holders=value.holders,
        constraints=value.constraints,
        objective=value.plan.objective,
        mode=value.mode,
        window=value.window,
        codec=value.codec,
        reply_to="",
    )


def served_value(
    desired: Deployment, own: Sequence[Holding], known: Sequence[Holding], *, staying: bool, node: str
) -> Deployment:
    """Return the value of `serving` that follows a `desired`: its devices hold the bundle then too.

    Args:
        desired: that is prepared; it has a plan.
        own: what the coordinator holds, when it stays.
        known: who held the bundle before; they keep it as that of the epoch before.
        staying: whether the coordinator does.
        node: its name.
    """
    # One that leaves is asked last, by those who keep what only it has: it waits for them.
    others = tuple(name for name in desired.holders if name != node)
    holders = desired.holders if staying else (*others, node)
    planned = planned_holdings(desired.plan) if desired.plan is not None else ()
    holdings = merged([*own, *planned, *(held for held in known if held.node != node)])
    return msgspec.structs.replace(desired, holders=holders, holdings=tuple(holdings))


def what_served_before(serving: Deployment | None, manifest: Blob) -> Before | None:
    """Return what another bundle served last: what serves now, or what served before all plans of the same bundle.

    Args:
        serving: the newest value, None when there is none.
        manifest: of the bundle that is to serve.
    """
    if serving is None or serving.manifest is None or serving.plan is None:
        return None
    if serving.manifest == manifest:
        return serving.before
    return Before(
        epoch=serving.epoch,
        manifest=serving.manifest,
        objective=serving.plan.objective,
        mode=serving.mode,
        window=serving.window,
        codec=serving.codec,
        constraints=serving.constraints,
    )
