"""Epochs change under load, one after another."""

from __future__ import annotations

import time

from edge.errors import ShardwireError
from host.chaos.scene import Scene


def storm(scene: Scene) -> None:
    """Put the two bundles to work in turns, `times` epochs in all, while requests stream."""
    scene.steady(scene.fault.steady)
    epochs = set()
    for number in range(scene.fault.times):
        began = time.monotonic()
        try:
            epochs.add(scene.fleet.deploy(scene.bundles[(number + 1) % 2]))
        except ShardwireError as error:
            scene.complain(f"switch {number + 1}: {error}")
        scene.until(began + scene.fault.lasting)
    if len(epochs) < scene.fault.times:
        scene.complain(f"{len(epochs)} epochs of {scene.fault.times} served")
    scene.steady(scene.fault.steady)
