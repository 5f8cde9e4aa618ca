"""From the roster to the planner: which devices may take part, and what they can do."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edge.errors import ProfileError
from edge.formats.bundle import Manifest
from edge.formats.message import About, Speed
from edge.formats.plan import Codec, Constraints, Objective, Plan
from edge.formats.profile import DeviceProfile, load_profile, profile_ids
from host.errors import PlanError
from host.fleet.roster import Roster
from host.planning.codecs import deflating
from host.planning.costs import DeviceCost, Network
from host.planning.devices import alike, device_cost, missing_runtime
from host.planning.planner import SECONDS, WORTH
from host.planning.settle import best_plan
from host.planning.workload import shard_constraints, workload_of


def choose_devices(
    roster: Roster, names: Sequence[str], manifest: Manifest, *, now: float, fleet: str
) -> tuple[About, ...]:
    """Return the descriptions of the devices to plan with.

    Args:
        roster: who is there.
        names: devices that were asked for; empty for all that are online and can run the bundle.
        manifest: of the bundle.
        now: monotonic seconds.
        fleet: name of the fleet, for messages.

    Raises:
        PlanError: nobody is online, or one that was asked for is unknown, offline or lacks a runtime.
    """
    online = {node.name: node.about for node in roster.agents_online(now) if node.about is not None}
    here = {name: about for name, about in online.items() if not about.cordoned}
    if names:
        if cordoned := [name for name in names if name in online and name not in here]:
            raise PlanError(f"device {cordoned[0]!r} is cordoned: `shardwire uncordon {cordoned[0]}` lets plans use it")
        for name in names:
            _check_named(roster, name, here)
        chosen = [here[name] for name in dict.fromkeys(names)]
        if faults := [fault for about in chosen if (fault := missing_runtime(about, manifest))]:
            raise PlanError("; ".join(faults))
        return tuple(chosen)
    if not here and online:
        raise PlanError(f"every device that is online in fleet {fleet!r} is cordoned: {', '.join(sorted(online))}")
    if not here:
        raise PlanError(f"no devices are online in fleet {fleet!r}: start shardwire-agent on them")
    able = [about for about in here.values() if missing_runtime(about, manifest) is None]
    if not able:
        raise PlanError("; ".join(fault for about in here.values() if (fault := missing_runtime(about, manifest))))
    return tuple(able)


def _check_named(roster: Roster, name: str, here: dict[str, About]) -> None:
    if name in here:
        return
    online = f"online are: {', '.join(sorted(here))}" if here else "none is online"
    node = roster.get(name)
    if not node.is_agent:
        raise PlanError(f"no device called {name!r}; {online}")
    if node.state is None or not node.state.online:
        raise PlanError(f"device {name!r} is offline; {online}")
    raise PlanError(f"device {name!r} does not answer; {online}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOrder:
    """What a plan is asked to be.

    Attributes:
        digest: of the manifest's blob.
        objective: what the plan is good at.
        window: requests in flight in the whole pipeline.
        constraints: what it keeps to, layers of the manifest.
        mode: how the stages will be run.
        codec: how tensors travel.
        current: the plan of this bundle that serves now; of plans that are as good, the one that moves least from it
            is taken.
        seconds: processor time that planning may take, about.
    """

    digest: str
    objective: Objective = "throughput"
    window: int = 8
    constraints: Constraints = field(default_factory=Constraints)
    mode: Literal["default", "exact"] = "default"
    codec: Codec = "raw"
    current: Plan | None = None
    seconds: float = SECONDS


def plan_for(
    manifest: Manifest,
    devices: Sequence[About],
    order: PlanOrder,
    *,
    speeds: Mapping[str, Speed],
    network: Network | None = None,
) -> Plan:
    """Plan a bundle on devices that described themselves.

    Args:
        manifest: of the bundle.
        devices: descriptions of those that may take part.
        order: what is asked for.
        speeds: what devices measured of themselves, by name.
        network: what lies between the devices, None for links to the broker alone.

    Raises:
        PlanError: nothing fits, or a device has a profile that this release does not know.
    """
    costs = fleet_costs(manifest, devices, mode=order.mode, digest=order.digest, speeds=speeds)
    if order.codec == "deflate":
        costs = deflating(costs)
    equal = alike(costs, profiles={about.node: about.profile for about in devices})
    workload, constraints = workload_of(manifest, codec=order.codec), shard_constraints(manifest, order.constraints)
    _check_pins(manifest, order.constraints, [about.node for about in devices])

    def plan(chosen: Sequence[DeviceCost]) -> Plan:
        return best_plan(
            workload,
            chosen,
            objective=order.objective,
            window=order.window,
            network=network,
            constraints=constraints,
            current=order.current,
            seconds=order.seconds if equal == costs else order.seconds / 2,
            worth=WORTH,
        )

    try:
        return plan(equal)
    except PlanError:
        if equal == costs:
            raise
        # A kind has the least room of its devices, and the last byte may be needed.
        return plan(costs)


def _check_pins(manifest: Manifest, constraints: Constraints, names: Sequence[str]) -> None:
    """Name a pin in the words of who gave it: the planner knows shards, not layers."""
    for pin in constraints.pins:
        if pin.device not in names:
            shown = ", ".join(sorted(names)[:20]) + (", …" if len(names) > 20 else "")
            raise PlanError(
                f"layer {pin.layer} ({manifest.layers[pin.layer].name}) is pinned to {pin.device!r}, "
                f"which cannot take part; these can: {shown or 'none'}"
            )


def fleet_costs(
    manifest: Manifest, devices: Sequence[About], *, mode: str, digest: str, speeds: Mapping[str, Speed]
) -> tuple[DeviceCost, ...]:
    """Return what each device offers for a bundle, as it measured itself, else as others of its profile did.

    Args:
        manifest: of the bundle.
        devices: descriptions.
        mode: how the stages will be run.
        digest: of the manifest's blob.
        speeds: what devices measured of themselves, by name, also those that take no part.

    Raises:
        PlanError: a device has a profile that this release does not know.
    """
    kin = [speed for _, speed in sorted(speeds.items())]
    return tuple(
        device_cost(
            about, known_profile(about), manifest, digest=digest, mode=mode, speed=speeds.get(about.node), kin=kin
        )
        for about in devices
    )


def known_profile(about: About) -> DeviceProfile:
    """Return the profile that a device names.

    Raises:
        PlanError: this release does not know it.
    """
    # Only an id: a name from the network never becomes a path.
    known = _known_ids()
    if about.profile not in known:
        raise PlanError(f"{about.node} has profile {about.profile[:64]!r}; known are: {', '.join(known)}")
    try:
        return _profile(about.profile)
    except ProfileError as error:
        raise PlanError(f"{about.node}: {error}") from error


# Read once: a large fleet has thousands of devices of a few profiles.
_known_ids = functools.cache(profile_ids)
_profile = functools.cache(load_profile)
