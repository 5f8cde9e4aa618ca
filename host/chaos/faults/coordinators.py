"""A coordinator dies in the middle of a change, or stands still while another takes over."""

from __future__ import annotations

import threading

from edge.errors import ShardwireError
from edge.formats.plan import parse_epoch
from host.chaos.scene import Scene
from host.errors import FleetError

_PHASE_SECONDS = 30.0
_TAKEOVER_SECONDS = 20.0


def coordinator_kill(scene: Scene) -> None:
    """Kill the coordinator while it prepares or has just committed an epoch; it comes back, and can deploy."""
    scene.steady(scene.fault.steady)
    before, boss = _epoch(scene, "serving"), _boss(scene)
    change = _Change(scene)
    wanted = "desired" if scene.fault.phase == "prepare" else "serving"
    if not scene.fleet.watcher.wait(lambda: parse_epoch(_epoch(scene, wanted)) > parse_epoch(before), _PHASE_SECONDS):
        raise FleetError(f"no new {wanted} within {_PHASE_SECONDS:.0f} s")
    scene.mark()
    scene.fleet.kill(boss)
    scene.recovered()
    scene.steady(scene.fault.lasting)
    scene.fleet.start(boss)
    change.wait()
    scene.must_deploy(scene.bundles[0])
    scene.steady(scene.fault.steady)


def coordinator_pause(scene: Scene) -> None:
    """Let the coordinator stand still until another has taken over and deployed, then go on beside it."""
    scene.steady(scene.fault.steady)
    boss, watcher = _boss(scene), scene.fleet.watcher
    scene.mark()
    scene.fleet.pause(boss)
    if not watcher.wait(lambda: watcher.coordinator() not in ("", boss), _TAKEOVER_SECONDS):
        scene.complain(f"nobody took over from {boss} within {_TAKEOVER_SECONDS:.0f} s")
    scene.must_deploy(scene.bundles[-1])
    scene.steady(scene.fault.lasting)
    scene.fleet.resume(boss)
    scene.steady(scene.fault.lasting)
    scene.must_deploy(scene.bundles[0])
    scene.recovered()


class _Change:
    """A deployment that goes on in a thread, whatever becomes of it."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._thread = threading.Thread(target=self._run, name="chaos-deploy", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join(60.0)

    def _run(self) -> None:
        try:
            self._scene.fleet.deploy(self._scene.bundles[-1])
        except ShardwireError:
            return  # its coordinator was killed; what counts is what the requests saw


def _epoch(scene: Scene, kind: str) -> str:
    value = scene.fleet.watcher.value(kind)
    return value.epoch if value is not None else "0-0-0"


def _boss(scene: Scene) -> str:
    boss = scene.fleet.watcher.coordinator()
    if not boss:
        raise FleetError("no coordinator holds the lease")
    return boss
