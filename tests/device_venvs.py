"""Installs of a device, each in a venv of its own under `build/devices`: made once, the project renewed each time."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from tests.architecture.sources import ROOT

_FOLDER = ROOT / "build" / "devices"


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceVenv:
    """A venv with the device side of this project and one runtime.

    Attributes:
        runtime: name of the runtime; the extra of the project that brings it.
        pins: exact versions instead of those of `constraints.txt`.
    """

    runtime: str
    pins: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where it is; another place when something of what was installed changes."""
        return _folder(self.runtime, self.pins)

    @property
    def agent(self) -> tuple[str, ...]:
        """The command of its agent."""
        return (str(self.folder / "bin" / "shardwire-agent"),)

    def run(self, *command: str, cwd: Path, environment: dict[str, str] | None = None) -> str:
        """Return what one of its programs prints; fail with that when the program does."""
        ran = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=cwd,
            env=_environment() | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout
        return ran.stdout

    def install(self, wheel: Path, *tools: str) -> None:
        """Make it where it is not there yet, and put the project of today into it; one process at a time."""
        _FOLDER.mkdir(parents=True, exist_ok=True)
        with (_FOLDER / f"{self.runtime}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._install(wheel, tools)

    def _install(self, wheel: Path, tools: tuple[str, ...]) -> None:
        whole = self.folder / "whole"
        if not whole.exists():
            for old in _FOLDER.glob(f"{self.runtime}-*/"):
                shutil.rmtree(old)
            venv.create(self.folder)
            constraints = self.folder / "constraints.txt"
            constraints.write_text(_constraints(self.pins))
            self._pip("install", "-q", "-c", str(constraints), f"{wheel}[{self.runtime}]", *tools)
            whole.touch()
        # Another process may run what is there: put nothing in its place that is the same.
        project, digest = self.folder / "project", sha256(wheel.read_bytes()).hexdigest()
        if not project.exists() or project.read_text() != digest:
            self._pip("install", "-q", "--no-deps", "--force-reinstall", str(wheel))
            project.write_text(digest)

    def library(self, name: str, requirement: str) -> Path:
        """Return a folder beside the venv with another version of a library, for `PYTHONPATH`."""
        target = self.folder / name
        if not target.exists():
            self._pip("install", "-q", "--no-deps", "--target", str(target), requirement)
        return target

    def packages(self) -> dict[str, str]:
        """Return the version of every package that is installed there, by its name in lower case."""
        listed = self._pip("list", "--format=freeze").lower().split()
        return {name: found for name, _, found in (line.partition("==") for line in listed)}

    def _pip(self, *what: str) -> str:
        # The pip of these tests: a device has none to begin with.
        pip = (sys.executable, "-m", "pip", "--python", str(self.folder / "bin" / "python"))
        ran = subprocess.run(
            [*pip, "--disable-pip-version-check", *what],
            cwd=self.folder,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout
        return ran.stdout


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this project as for a release."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@cache
def _folder(runtime: str, pins: tuple[str, ...]) -> Path:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = (*project["dependencies"], *project["optional-dependencies"][runtime])
    text = "\n".join((sys.version, *needs, _constraints(pins)))
    return _FOLDER / f"{runtime}-{sha256(text.encode()).hexdigest()[:12]}"


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _constraints(pins: tuple[str, ...]) -> str:
    pinned = {pin.partition("==")[0] for pin in pins}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return "\n".join([*(line for line in lines if line.partition("==")[0] not in pinned), *pins, ""])
