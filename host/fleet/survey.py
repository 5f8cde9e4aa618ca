"""From the roster to the planner: which devices may take part, and what they can do."""

from __future__ import annotations

from collections.abc import Sequence

from edge.errors import ProfileError
from edge.formats.bundle import Manifest
from edge.formats.message import About
from edge.formats.plan import Plan
from edge.formats.profile import DeviceProfile, load_profile, profile_ids
from host.errors import PlanError
from host.fleet.roster import Roster
from host.partition.devices import device_cost, missing_runtime, shard_costs, work_dtype
from host.partition.planner import Objective, plan_pipeline


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
    here = {node.name: node.about for node in roster.agents_online(now) if node.about is not None}
    if names:
        for name in names:
            _check_named(roster, name, here)
        chosen = [here[name] for name in dict.fromkeys(names)]
        if faults := [fault for about in chosen if (fault := missing_runtime(about, manifest))]:
            raise PlanError("; ".join(faults))
        return tuple(chosen)
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


def plan_for(manifest: Manifest, devices: Sequence[About], *, objective: Objective, window: int, use_all: bool) -> Plan:
    """Plan a bundle on devices that described themselves.

    Raises:
        PlanError: nothing fits, or a device has a profile that this release does not know.
    """
    dtype = work_dtype(manifest)
    costs = [device_cost(about, known_profile(about), dtype=dtype) for about in devices]
    return plan_pipeline(shard_costs(manifest), costs, objective=objective, window=window, use_all=use_all)


def known_profile(about: About) -> DeviceProfile:
    """Return the profile that a device names.

    Raises:
        PlanError: this release does not know it.
    """
    # Only an id: a name from the network never becomes a path.
    if about.profile not in profile_ids():
        raise PlanError(f"{about.node} has profile {about.profile[:64]!r}; known are: {', '.join(profile_ids())}")
    try:
        return load_profile(about.profile)
    except ProfileError as error:
        raise PlanError(f"{about.node}: {error}") from error
