"""A process stands still, as one that swaps or whose disk hangs, and goes on later."""

from __future__ import annotations

from host.chaos.scene import Scene


def pause(scene: Scene) -> None:
    """Stop an agent for `lasting` seconds."""
    scene.steady(scene.fault.steady)
    device = scene.target()
    mark = scene.mark()
    scene.fleet.pause(device)
    scene.load.wait(mark, scene.fault.lasting)
    scene.until(mark.at + scene.fault.lasting)
    scene.fleet.resume(device)
    scene.recovered()
    scene.steady(scene.fault.steady)
