"""The broker dies and comes back, at once or after a while."""

from __future__ import annotations

from host.chaos.scene import Scene


def broker(scene: Scene) -> None:
    """Kill the broker and start it again after `lasting` seconds; recovery counts from then."""
    scene.steady(scene.fault.steady)
    mark = scene.mark()
    scene.fleet.kill_broker()
    scene.until(mark.at + scene.fault.lasting)
    scene.fleet.start_broker()
    scene.over()
    scene.recovered()
    scene.steady(scene.fault.steady)
