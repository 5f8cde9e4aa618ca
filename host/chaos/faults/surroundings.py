"""The machine below an agent fails: its clock jumps, its disk is full, its memory is out. Needs Linux and root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from host.chaos.cgroup import memory_group
from host.chaos.change import Change
from host.chaos.ear import Ear
from host.chaos.local import LocalFleet, Surroundings
from host.chaos.plan import FleetPart
from host.chaos.scene import Scene
from host.errors import FleetError

_BALLAST = "ballast"
_MEMORY_BYTES = 1 << 17
_DISK_BYTES = 64 << 20
_FAKETIME = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")
_LOOK_SECONDS = 0.001
_NO_SPACE = "no space left"
SPECIAL = frozenset({"clock", "disk"})
"""Kinds whose nodes start in surroundings of their own."""


@contextlib.contextmanager
def surroundings(kind: str, setup: FleetPart, folder: Path) -> Iterator[Mapping[str, Surroundings]]:
    """Prepare what nodes are started within for a kind of fault, for the length of a `with` block; yield it by node.

    Raises:
        FleetError: this machine lacks what it needs.
    """
    if kind == "clock":
        folder.mkdir(parents=True, exist_ok=True)
        _set_clock(folder, "+0")
        env = {
            "LD_PRELOAD": _faketime(),
            "FAKETIME_TIMESTAMP_FILE": str(_clock_file(folder)),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        yield {node: Surroundings(env=env) for node in (*setup.devices, *setup.coordinators)}
    elif kind == "disk":
        with _small_disk(folder / "small-disk") as place:
            yield {node: Surroundings(folder=place) for node in setup.spares[:1]}
    else:
        yield {}


@contextlib.contextmanager
def _small_disk(place: Path) -> Iterator[Path]:
    place.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(place))
    try:
        yield place
    finally:
        _run("umount", "--lazy", str(place))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FleetError(f"{' '.join(command)}: {done.stderr.strip() or 'failed'}")


def clock(scene: Scene) -> None:
    """Let the clocks of all nodes jump a day ahead, then two back, and change the epoch meanwhile."""
    fleet = _local(scene)
    scene.steady(scene.fault.steady)
    for number, jump in enumerate(("+1d", "-1d", "+0")):
        scene.mark()
        _set_clock(fleet.folder, jump)
        scene.steady(scene.fault.lasting)
        scene.must_deploy(scene.bundles[(number + 1) % len(scene.bundles)])
    scene.recovered()


def disk(scene: Scene) -> None:
    """Fill the disk of a spare device and deploy to it: that fails and says why; what serves goes on."""
    fleet, device, large = _local(scene), _spare(scene), scene.bundle("large")
    folder, before = fleet.node_folder(device), _serving(scene)
    scene.steady(scene.fault.steady)
    # Full before the first block: room for a blob is taken as its transfer begins. The coordinator does not know it.
    with Ear(fleet.url, fleet=fleet.name) as ear, full_disk(folder, scene):
        scene.mark()
        change = Change(fleet, large, devices=fleet.setup.devices)
        change.wait()
        said = [failed.reason for failed in ear.failures(device)]
    if not any(_NO_SPACE in reason for reason in said):
        scene.complain(f"{device} did not say {_NO_SPACE!r}: {said}")
    _must_have_failed(scene, change, before, _NO_SPACE)
    scene.recovered()
    scene.must_deploy(scene.bundles[-1])
    scene.steady(scene.fault.steady)


def memory(scene: Scene) -> None:
    """Let the kernel kill a device that serves whenever it loads a new epoch, until that is given up."""
    fleet, device, large = _local(scene), scene.target(), scene.bundle("large")
    before, deaths = _serving(scene), 0
    scene.steady(scene.fault.steady)
    loading = fleet.node_folder(device) / "loading"
    with ExitStack() as stack:
        ear = stack.enter_context(Ear(fleet.url, fleet=fleet.name))
        procs = stack.enter_context(memory_group(_MEMORY_BYTES))
        scene.mark()
        # All of it on this device: less might fit into what its process has already.
        change = Change(fleet, large, devices=(device,))
        doomed, cleared = "", True
        while not change.ended:
            if not fleet.running(device):
                deaths, doomed = deaths + 1, ""
                fleet.start(device)
                # What its last life wrote there says nothing of this one, which empties it first.
                cleared = False
            elif not (mark := _loading_mark(loading)):
                cleared = True
            elif cleared and not doomed and before not in mark:
                doomed = mark
                procs.write_text(str(fleet.pid(device)))
            scene.steady(_LOOK_SECONDS)
        said = [f"{failed.code}: {failed.reason}" for failed in ear.failures(device)]
    if not fleet.running(device):
        deaths += 1
        fleet.start(device)
    fleet.await_alive(device)
    if not deaths:
        scene.complain(f"{device} was not killed for want of memory")
    _must_have_failed(scene, change, before, f"killed {deaths} times; it said {said or 'nothing'}")
    scene.recovered()
    scene.must_deploy(scene.bundles[-1])
    scene.steady(scene.fault.steady)


def _loading_mark(slot: Path) -> str:
    with contextlib.suppress(OSError):
        return slot.read_bytes().rstrip(b"\0").decode(errors="replace")
    return ""


def _serving(scene: Scene) -> str:
    serving = scene.fleet.watcher.value("serving")
    return serving.epoch if serving is not None else ""


def _must_have_failed(scene: Scene, change: Change, before: str, note: str) -> None:
    """Check that a deployment failed with a reason, and that what served before goes on, if on other devices."""
    serving = scene.fleet.watcher.value("serving")
    scene.say(f"from {before}; the new epoch ended with: {change.reason or 'success'}; {note}")
    if not change.reason:
        scene.complain("the new epoch was not abandoned")
    if serving is None or serving.manifest != scene.bundles[0].manifest_blob:
        scene.complain("the old epoch does not go on")


@contextlib.contextmanager
def full_disk(folder: Path, scene: Scene) -> Iterator[None]:
    """Fill the file system of a folder, a small one of its own, for the length of a `with` block."""
    status = os.statvfs(folder)
    if status.f_blocks * status.f_frsize > 1 << 28:
        raise FleetError(f"{folder} is on no small file system of its own: it is not filled")
    ballast = folder / _BALLAST
    try:
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(1 << 12))
                file.flush()
        yield
    finally:
        ballast.unlink(missing_ok=True)
        scene.steady(0.1)


def _local(scene: Scene) -> LocalFleet:
    if not isinstance(scene.fleet, LocalFleet):
        raise FleetError(f"{scene.fault.kind} is for a fleet on this machine")
    return scene.fleet


def _spare(scene: Scene) -> str:
    fleet = _local(scene)
    if not fleet.setup.spares:
        raise FleetError(f"{scene.fault.kind} needs a spare device: name one in spares")
    return fleet.setup.spares[0]


def _clock_file(folder: Path) -> Path:
    return folder / "clock"


def _set_clock(folder: Path, offset: str) -> None:
    """Set the clock of all nodes in one step: a file that is empty for a moment is no time at all."""
    fresh = folder / "clock.new"
    fresh.write_text(offset)
    fresh.replace(_clock_file(folder))


def _faketime() -> str:
    for pattern in _FAKETIME:
        for found in sorted(Path("/").glob(pattern.lstrip("/"))):
            return str(found)
    raise FleetError("libfaketime is not installed: apt-get install faketime")
