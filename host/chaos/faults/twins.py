"""Two agents have one name."""

from __future__ import annotations

import time

from host.chaos.local import LocalFleet
from host.chaos.scene import Scene
from host.errors import FleetError

_TWIN_SECONDS = 60.0


def twin(scene: Scene) -> None:
    """Start a second agent with the name of one; it must end itself, and the first must stay."""
    fleet = _local(scene)
    scene.steady(scene.fault.steady)
    device = scene.target()
    scene.mark()
    fleet.start_twin(device)
    deadline = time.monotonic() + _TWIN_SECONDS
    while fleet.twin_runs(device) and fleet.running(device) and time.monotonic() < deadline:
        scene.steady(0.25)
    if not fleet.running(device):
        scene.complain(f"{device} ended, and its twin stayed")
    elif fleet.twin_runs(device):
        scene.complain(f"the twin of {device} still ran after {_TWIN_SECONDS:.0f} s")
    scene.over()
    scene.recovered()
    scene.steady(scene.fault.steady)


def _local(scene: Scene) -> LocalFleet:
    if not isinstance(scene.fleet, LocalFleet):
        raise FleetError(f"{scene.fault.kind} is for a fleet on this machine")
    return scene.fleet
