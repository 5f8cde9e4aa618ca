"""A link is cut and healed, or slow and lossy."""

from __future__ import annotations

from host.chaos.scene import Scene
from host.chaos.wire import Condition

SLOW = Condition(delay_seconds=0.05, loss=0.01)


def cut(scene: Scene) -> None:
    """Cut a device off for `lasting` seconds: both links, or one."""
    scene.steady(scene.fault.steady)
    device = scene.target()
    mark = scene.mark()
    scene.fleet.cut(device, scene.fault.link)
    scene.until(mark.at + scene.fault.lasting)
    scene.fleet.heal(device)
    scene.recovered()
    scene.steady(scene.fault.steady)


def slow(scene: Scene) -> None:
    """Delay and lose what passes for `lasting` seconds; nobody may be thought away, so no epoch may change."""
    scene.steady(scene.fault.steady)
    before = scene.fleet.watcher.value("serving")
    device = scene.target()
    mark = scene.mark()
    scene.fleet.slow(device, SLOW)
    scene.until(mark.at + scene.fault.lasting)
    after = scene.fleet.watcher.value("serving")
    if before is not None and after is not None and after.epoch != before.epoch:
        scene.complain(f"the epoch changed from {before.epoch} to {after.epoch}")
    scene.fleet.heal(device)
    scene.recovered()
    scene.steady(scene.fault.steady)
