"""A request whose input brings the runtime down: memory without end, and the kernel kills the agent."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edge.client import Client, InferenceResult
from edge.errors import Poison, RequestError
from edge.formats.tensor import Array
from host.answers import load_whole
from host.bundle import OpenBundle
from host.chaos.cgroup import memory_group
from host.chaos.local import LocalFleet
from host.chaos.oracle import Sample
from host.chaos.scene import Scene
from host.errors import FleetError

_NAME = "poison"
_GROUP_BYTES = 256 << 20
_MEBIBYTES = 2048.0
_GOOD = 12
_MOST_DEATHS = 3
_CATCH_SECONDS = 30.0
_CATCH_PAUSE_SECONDS = 0.003


def poison(scene: Scene) -> None:
    """Send a request that kills every agent that runs it, amid good ones.

    Where there are no control groups, or no bundle for it, an agent is killed in the middle of a run instead.
    """
    fleet, bundle = local(scene), scene.bundle("poison")
    with ExitStack() as stack:
        try:
            groups = {device: stack.enter_context(memory_group(_GROUP_BYTES)) for device in fleet.setup.devices}
        except FleetError:
            groups = {}
        if bundle is None or not groups:
            scene.say("no control groups or no poison bundle: the agent was killed from outside, amid a run")
            _kill_amid_run(scene, fleet)
        else:
            _poison(scene, fleet, bundle, groups)


def _poison(scene: Scene, fleet: LocalFleet, bundle: OpenBundle, groups: Mapping[str, Path]) -> None:
    # What the load has on its way to a device that dies may be what it dies of, for all that the device knows.
    scene.allow(Poison.code)
    fleet.deploy(bundle, devices=fleet.setup.devices, name=_NAME, standbys=1)
    for device, procs in groups.items():
        procs.write_text(str(fleet.pid(device)))
    scene.steady(scene.fault.steady)
    draw = np.random.default_rng(scene.random.randrange(1 << 30))
    inputs = [draw.uniform(-1.0, 0.0, (1, 8)).astype(np.float32) for _ in range(_GOOD + 1)]
    inputs[_GOOD // 2][0, 0] = _MEBIBYTES
    whole = load_whole(bundle, mode=fleet.load.mode)
    sent: list[tuple[float, Array, Future[InferenceResult]]] = []
    deaths = 0
    with Client.connect(fleet.url, fleet=fleet.name, name=f"chaos-{secrets.token_hex(4)}") as client:
        client.deployment(_NAME)
        scene.mark()
        sent += [
            (time.monotonic(), x, client.submit(_NAME, {"x": x}, deadline_seconds=fleet.load.deadline)) for x in inputs
        ]
        end = time.monotonic() + fleet.load.deadline
        while not all(future.done() for _, _, future in sent) and time.monotonic() < end:
            deaths += _revive(fleet, groups)
            scene.steady(0.02)
        for number, (at, x, future) in enumerate(sent):
            poisonous = number == _GOOD // 2
            # The answer to the poison is never worked out here.
            expected = {} if poisonous else whole.run({"x": x})
            scene.add(_judged(at, future, expected, poisonous=poisonous))
    whole.close()
    outcome = _outcome(sent[_GOOD // 2][2])
    scene.say(f"the kernel killed {deaths} agents for want of memory; the poison ended with {outcome or 'nothing'}")
    if outcome != Poison.code:
        scene.complain(f"the poison ended with {outcome or 'nothing'}")
    if not 1 <= deaths <= _MOST_DEATHS:
        scene.complain(f"{deaths} agents died, 1 to {_MOST_DEATHS} were to")
    _revive(fleet, groups)
    fleet.await_alive()
    scene.recovered()
    scene.steady(scene.fault.lasting)


def _revive(fleet: LocalFleet, groups: Mapping[str, Path]) -> int:
    """Start every dead agent again, in its group, as the machine's supervisor would; return how many were dead."""
    dead = [device for device in groups if not fleet.running(device)]
    for device in dead:
        fleet.start(device)
        groups[device].write_text(str(fleet.pid(device)))
    return len(dead)


def _judged(at: float, future: Future[InferenceResult], expected: Mapping[str, Array], *, poisonous: bool) -> Sample:
    outcome, right = _outcome(future), True
    if outcome == "result" and not poisonous:
        outputs = future.result().outputs
        right = all(np.allclose(outputs[name], value, rtol=1e-5, atol=1e-6) for name, value in expected.items())
    # When it came is not known to the millisecond, and nothing is made of it.
    return Sample(
        submitted=at,
        done=at if outcome else float("inf"),
        outcome=outcome,
        outcomes=int(bool(outcome)),
        epoch=_NAME if outcome == "result" else "",
        right=right,
        poisonous=poisonous,
    )


def _outcome(future: Future[InferenceResult]) -> str:
    if not future.done():
        return ""
    with contextlib.suppress(CancelledError):
        error = future.exception()
        if error is None:
            return "result"
        return error.code if isinstance(error, RequestError) else type(error).__name__
    return ""


def _kill_amid_run(scene: Scene, fleet: LocalFleet) -> None:
    """Kill an agent in the middle of a run, as its input would; that request is never run again there.

    It ends with `poison` or, where another device has answered it meanwhile, with a result; all others go on.
    """
    scene.allow(Poison.code)
    scene.steady(scene.fault.steady)
    device = scene.target()
    slot = fleet.node_folder(device) / "running"
    deadline = time.monotonic() + _CATCH_SECONDS
    while True:
        fleet.pause(device)
        if slot.read_bytes().rstrip(b"\0"):
            break
        fleet.resume(device)
        if time.monotonic() > deadline:
            raise FleetError(f"{device} was never seen running a request")
        scene.steady(_CATCH_PAUSE_SECONDS * (1 + scene.random.random()))
    scene.mark()
    fleet.kill(device)
    fleet.start(device)
    scene.recovered()
    scene.steady(scene.fault.lasting)
    if sum(sample.outcome == Poison.code for sample in scene.load.samples()) > 1:
        scene.complain("more than one request ended with poison")


def local(scene: Scene) -> LocalFleet:
    """Return the fleet, which is on this machine.

    Raises:
        FleetError: it is not.
    """
    if not isinstance(scene.fleet, LocalFleet):
        raise FleetError(f"{scene.fault.kind} is for a fleet on this machine")
    return scene.fleet
