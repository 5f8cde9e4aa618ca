"""Transfers of blobs: cut short by the death of the device again and again, or on the way of a recovery."""

from __future__ import annotations

import shutil
import time

from edge.protocol.pace import WINDOW_BLOCKS
from host.chaos.change import Change
from host.chaos.ear import Ear
from host.chaos.faults.poison import local
from host.chaos.local import LocalFleet, deploy
from host.chaos.scene import Scene
from host.chaos.wire import Condition
from host.errors import FleetError

_NAME = "large"
_EVERY_BLOCKS = 10
_LEAST_BLOCKS = 150
_BLOCK_SECONDS = 30.0
_SLOW = Condition(bytes_per_second=3e6)
_MOVE_SECONDS = 2.0


def transfer(scene: Scene) -> None:
    """Kill a device at every tenth block that it gets; at most a window of blocks is sent again for each kill."""
    fleet, bundle = local(scene), scene.bundle("large")
    device = fleet.setup.spares[0]
    scene.steady(scene.fault.steady)
    fleet.slow(device, _SLOW)
    kills, end = 0, time.monotonic() + 240.0
    with Ear(fleet.url, fleet=fleet.name) as ear:

        def got() -> int:
            return len({(heard.digest, heard.block) for heard in ear.blocks(device)})

        scene.mark()
        change = Change(fleet, bundle, devices=(device,), name=_NAME)
        while time.monotonic() < end:
            goal = _EVERY_BLOCKS * (kills + 1)
            if goal < _LEAST_BLOCKS + _EVERY_BLOCKS and ear.wait(lambda goal=goal: got() >= goal, _BLOCK_SECONDS):  # type: ignore[misc]  # a default of a lambda has no type
                kills += 1
                fleet.kill(device)
                fleet.start(device)
            if change.ended and not change.reason:
                break
            if change.ended:
                # It was given up while the device was away; what it has is on its disk.
                fleet.await_alive(device)
                change = Change(fleet, bundle, devices=(device,), name=_NAME)
            elif goal >= _LEAST_BLOCKS + _EVERY_BLOCKS:
                scene.steady(0.1)
        repeats = len(ear.blocks(device)) - got()
        scene.say(f"{kills} kills, {got()} blocks, {repeats} sent again")
        if got() < _LEAST_BLOCKS or kills < _LEAST_BLOCKS // _EVERY_BLOCKS:
            scene.complain(f"{got()} blocks and {kills} kills are too few; the last reason: {change.reason}")
        if repeats > kills * WINDOW_BLOCKS:
            scene.complain(f"{repeats} blocks were sent again, {kills * WINDOW_BLOCKS} are allowed")
        if not change.ended or change.reason:
            scene.complain(f"the deployment did not come to its end: {change.reason}")
    scene.recovered()
    scene.steady(scene.fault.steady)


def move(scene: Scene) -> None:
    """Kill every device that has the shards; a fresh one gets them all: recovery is the transfer and two seconds."""
    fleet = local(scene)
    device = fleet.setup.spares[0]
    fleet.kill(device)
    fleet.watcher.wait(lambda: not fleet.watcher.alive(device), _BLOCK_SECONDS)
    # Without names: a plan for named devices uses no other, and this one is not here yet.
    epoch = deploy(fleet.url, fleet.name, fleet.load, scene.bundles[-1], devices=())
    fleet.watcher.wait(lambda: _epoch(fleet) == epoch, _BLOCK_SECONDS)
    serving = fleet.watcher.value("serving")
    if serving is None or serving.plan is None:
        raise FleetError("nothing is served now")
    shutil.rmtree(fleet.node_folder(device) / "blobs", ignore_errors=True)
    fleet.slow(device, _SLOW)
    fleet.start(device)
    fleet.await_alive(device)
    scene.steady(scene.fault.steady)
    with Ear(fleet.url, fleet=fleet.name) as ear:
        mark = scene.mark()
        for name in sorted({name for stage in serving.plan.stages for name in stage.devices}):
            fleet.kill(name)
        scene.recovered()
        at = [heard.at for heard in ear.blocks(device) if heard.at >= mark.at]
    moved = at[-1] - at[0] if at else 0.0
    scene.say(f"{len(at)} blocks moved within {moved:.2f} s")
    if not at:
        scene.complain("nothing moved")
    scene.limit(moved + _MOVE_SECONDS)
    scene.steady(scene.fault.lasting)


def _epoch(fleet: LocalFleet) -> str:
    serving = fleet.watcher.value("serving")
    return serving.epoch if serving is not None else ""
