"""A process dies: killed alone, or with the power of its device."""

from __future__ import annotations

from edge.errors import Poison
from host.chaos.local import LocalFleet
from host.chaos.scene import Scene
from host.errors import FleetError


def kill(scene: Scene) -> None:
    """Kill an agent; it comes back `lasting` seconds after the fleet has recovered."""
    # What ran at that moment is never run again on that device, for all that it knows it was the input.
    scene.allow(Poison.code)
    for _ in range(scene.fault.times):
        scene.steady(scene.fault.steady)
        device = scene.target()
        scene.mark()
        scene.fleet.kill(device)
        scene.recovered()
        scene.steady(scene.fault.lasting)
        scene.fleet.start(device)
        scene.steady(scene.fault.steady)


def power(scene: Scene) -> None:
    """Cut a device off and kill it, so that nobody hears of its end; it comes back later."""
    if not isinstance(scene.fleet, LocalFleet):
        raise FleetError("power is for a fleet on this machine")
    scene.allow(Poison.code)
    scene.steady(scene.fault.steady)
    device = scene.target()
    scene.mark()
    scene.fleet.power_loss(device)
    scene.recovered()
    scene.steady(scene.fault.lasting)
    scene.fleet.heal(device)
    scene.fleet.start(device)
    scene.steady(scene.fault.steady)
