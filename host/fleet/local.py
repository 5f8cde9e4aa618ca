"""Agents on this machine, each a process of its own: for the demo, for a first look, and for tests."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from host.errors import FleetError
from host.fleet.observe import look
from host.processes import running_child

START_SECONDS = 40.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalAgent:
    """An agent to start.

    Attributes:
        name: device name.
        profile: id of the profile that it pretends to have.
        threads: of one operator; this machine's cores are shared.
        runtimes: that it may use, of those that are installed; empty for all.
        memory_limit_bytes: most that its stages may take, None for what the profile says.
        within: command that runs the one behind it, such as `ip netns exec pi-1`; nothing for a plain process.
        url: of the broker as this agent reaches it, None for the url of all.
    """

    name: str
    profile: str
    threads: int = 1
    runtimes: tuple[str, ...] = ()
    memory_limit_bytes: int | None = None
    within: tuple[str, ...] = ()
    url: str | None = None


@contextlib.contextmanager
def local_agents(
    url: str, agents: Sequence[LocalAgent], *, folder: Path, fleet: str = "default"
) -> Iterator[Mapping[str, subprocess.Popen[bytes]]]:
    """Run agents for the length of a `with` block; they do not outlive this process, whatever happens to it.

    Args:
        url: of the broker.
        agents: which ones.
        folder: where their blobs and logs (`<name>.log`) go.
        fleet: name of the fleet.

    Yields:
        Their processes by device name, once all are online.

    Raises:
        FleetError: one ended or was not online in time; the text has its last line.
    """
    with contextlib.ExitStack() as stack:
        processes = {
            agent.name: stack.enter_context(
                running_child(_command(url, agent, folder=folder, fleet=fleet), log=folder / f"{agent.name}.log")
            )
            for agent in agents
        }
        _await_online(url, processes, folder=folder, fleet=fleet)
        yield processes


def _command(url: str, agent: LocalAgent, *, folder: Path, fleet: str) -> list[str]:
    limit = [] if agent.memory_limit_bytes is None else ["--memory-limit", str(agent.memory_limit_bytes)]
    return [
        *agent.within,
        sys.executable,
        "-P",
        *("-m", "edge.cli"),
        *("--broker", agent.url or url),
        *("--name", agent.name),
        *("--profile", agent.profile),
        *("--fleet", fleet),
        *("--folder", str(folder / agent.name)),
        *("--threads", str(agent.threads)),
        *limit,
        *(("--runtimes", ",".join(agent.runtimes)) if agent.runtimes else ()),
    ]


def _await_online(url: str, processes: Mapping[str, subprocess.Popen[bytes]], *, folder: Path, fleet: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        view = look(url, fleet=fleet, until_online=processes.keys())
        for name, process in processes.items():
            if process.poll() is not None:
                raise FleetError(f"agent {name} ended at its start: {last_line(folder / f'{name}.log')}")
        away = [name for name in processes if not view.online(name)]
        if not away:
            return
        if time.monotonic() > deadline:
            raise FleetError(
                f"agent {away[0]} was not online within {START_SECONDS:.0f} s: {last_line(folder / f'{away[0]}.log')}"
            )


def last_line(log: Path) -> str:
    """Return the last line of a log, for a message."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it said nothing"
