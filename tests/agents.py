"""Agents for tests, each the real program in a process of its own."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from host.processes import start_child, stop_child

HERE = (sys.executable, "-m", "edge.cli")
"""The agent of this source tree."""


class AgentProcess:
    """One `shardwire-agent`; `restart` starts it again in the same folder."""

    def __init__(
        self, url: str, name: str, folder: Path, options: tuple[str, ...] = (), *, program: tuple[str, ...] = HERE
    ) -> None:
        self.name = name
        self.folder = folder / name
        self.log = folder / f"{name}.log"
        self._command = [
            *(*program, "--broker", url, "--name", name, "--profile", "x86-gateway"),
            *("--folder", str(self.folder), "--threads", "1", *options),
        ]
        self.process: subprocess.Popen[bytes] = start_child(self._command, log=self.log)

    def restart(self) -> None:
        """Start the program again after its end."""
        self.process.wait(timeout=10)
        self.process = start_child(self._command, log=self.log)

    def stop(self) -> None:
        """End the program that runs now."""
        stop_child(self.process)

    def said(self) -> str:
        """Return everything it wrote."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def await_line(self, pattern: str, timeout_seconds: float = 20.0) -> None:
        """Wait until it wrote a line that matches; fail loudly when it does not or ends."""
        deadline = time.monotonic() + timeout_seconds
        pause = threading.Event()
        while not re.search(pattern, self.said()):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"{self.name} did not say {pattern!r}: {self.said()}")
            pause.wait(0.02)


@contextmanager
def running_agents(
    url: str, folder: Path, *names: str, options: tuple[str, ...] = (), program: tuple[str, ...] = HERE
) -> Iterator[tuple[AgentProcess, ...]]:
    """Run agents for the length of a `with` block, each connected at its start."""
    with ExitStack() as stack:
        agents = []
        for name in names:
            agent = AgentProcess(url, name, folder, options, program=program)
            stack.callback(agent.stop)
            agents.append(agent)
        for agent in agents:
            agent.await_line(" ready: ")
        yield tuple(agents)
