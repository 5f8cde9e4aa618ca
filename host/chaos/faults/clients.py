"""A client with an outbox dies while it streams, and lives again."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from host.chaos.durable import INPUTS, Line, decode_outputs, read_log, write_inputs
from host.chaos.oracle import Sample
from host.chaos.scene import Scene
from host.processes import start_child, stop_child

_LIVES = 3


def client_kill(scene: Scene) -> None:
    """Kill a client twice while it streams; in its third life every row has its one outcome."""
    with TemporaryDirectory(prefix="shardwire-outbox-") as place:
        folder = Path(place)
        write_inputs(folder / INPUTS, [dict(tensors) for tensors in scene.answers.inputs])
        for life in range(1, _LIVES + 1):
            child = _start(scene, folder)
            try:
                scene.steady(max(scene.fault.steady, 0.5) + scene.random.random())
                if life < _LIVES:
                    scene.mark()
                    child.kill()
                    child.wait(10.0)
                else:
                    _end(scene, child)
            finally:
                stop_child(child)
        _judge(scene, read_log(folder / "log"))
    scene.recovered()


def _start(scene: Scene, folder: Path) -> subprocess.Popen[bytes]:
    load = scene.load
    command = [
        *(sys.executable, "-P", "-m", "host.chaos.durable", "--broker", scene.fleet.url, "--fleet", scene.fleet.name),
        *("--deployment", load.deployment, "--folder", str(folder), "--rate", str(load.rate)),
        *("--deadline", str(load.deadline_seconds)),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return start_child(command, log=folder / "output", env=env, piped=True)


def _end(scene: Scene, child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        child.stdin.close()
    try:
        if child.wait(scene.load.deadline_seconds + 30.0):
            scene.complain(f"the client ended with code {child.returncode}")
    except subprocess.TimeoutExpired:
        scene.complain("the client did not end")


def _judge(scene: Scene, log: list[Line]) -> None:
    accepted = {line.tag: line for line in log if line.what == "accepted"}
    collected: dict[str, list[Line]] = {}
    forgotten: set[str] = set()
    again: set[str] = set()
    for line in log:
        if line.what == "forgotten":
            forgotten.add(line.tag)
        elif line.what == "collected":
            again |= {line.tag} & forgotten
            collected.setdefault(line.tag, []).append(line)
    for tag in {**accepted, **collected}:
        scene.add(_sample(scene, tag, accepted.get(tag), collected.get(tag, []), again=tag in again))
    scene.say(
        f"{_LIVES} lives of the client: {len(accepted)} accepted, {len(collected)} rows with an outcome, "
        f"{len(again)} collected again after they were forgotten"
    )


def _sample(scene: Scene, tag: str, accepted: Line | None, collected: list[Line], *, again: bool) -> Sample:
    # A kill between collecting and forgetting shows the same outcome again: that is one; two different ones are two.
    outcomes = {(line.outcome, line.epoch, line.outputs) for line in collected}
    first = collected[0] if collected else None
    right = True
    if first is not None and first.outcome == "result":
        digest = scene.fleet.watcher.digest(first.epoch)
        right = scene.answers.right(digest, int(tag.partition(" ")[0]), decode_outputs(first))
    at = accepted.at if accepted is not None else first.at if first is not None else 0.0
    return Sample(
        submitted=at,
        done=first.at if first is not None else math.inf,
        outcome=first.outcome if first is not None else "",
        outcomes=len(outcomes) + again,
        epoch=first.epoch if first is not None else "",
        right=right,
    )
