"""The `shardwire` command as a person runs it: a process of its own, judged by what it prints and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LIMIT_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A command that has ended.

    Attributes:
        code: Its exit code.
        out: What it printed.
        err: What it said beside that.
    """

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The lines on stderr that are no progress: those indented by two spaces are."""
        return "\n".join(line for line in self.err.splitlines() if line and not line.startswith("  "))


def command_of(*arguments: str | Path) -> list[str]:
    """The command line that runs `shardwire` with these arguments in this interpreter."""
    return [sys.executable, "-m", "host", *map(str, arguments)]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, in which `host` and `tests` are found from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1", **(more or {})}


def shardwire(*arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Finished:
    """Run `shardwire` to its end."""
    ran = subprocess.run(
        command_of(*arguments),
        cwd=cwd,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    return Finished(code=ran.returncode, out=ran.stdout, err=ran.stderr)


def shardwire_ok(*arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Finished:
    """Run `shardwire` and fail with what it said unless it ends well."""
    ran = shardwire(*arguments, cwd=cwd, env=env)
    assert ran.code == 0, ran.err
    return ran


def interrupted(*arguments: str | Path, step: str, cwd: Path | None = None) -> Finished:
    """Run `shardwire`, press Ctrl-C when it begins a step, and wait for its end."""
    running = subprocess.Popen(
        command_of(*arguments),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    with running, running.stderr as lines:
        said = next(line for line in lines if line.strip().startswith(step))
        running.send_signal(signal.SIGINT)
        rest = lines.read()
    return Finished(code=running.returncode, out="", err=said + rest)
