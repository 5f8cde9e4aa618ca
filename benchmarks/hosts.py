"""Small hosts on this machine: a network namespace each, with a shaped link and a share of one core.

Needs root and Linux: `ip netns`, a `tc` token bucket in each direction, and a CPU control group (version 1 or 2). The
period of the quota is 10 ms: with the usual 100 ms a small load is never throttled within the run that measures it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from host.errors import FleetError

GATEWAY = "10.77.0.1"
"""Address of this machine that every small host reaches."""

PERIOD_MICROSECONDS = 10_000
_GROUPS = Path("/sys/fs/cgroup")
# A burst of a tenth of what the link carries in 10 ms would throttle it: the bucket must hold at least one timer tick.
_BURST = "32kb"
_QUEUE = "400ms"


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallHost:
    """What one small host may take.

    Attributes:
        name: of its namespace and group.
        number: 1 to 250, for its addresses.
        cpu_share: part of one core; None for no limit.
        megabits: its link, in each direction; None for no limit.
    """

    name: str
    number: int
    cpu_share: float | None = None
    megabits: float | None = None

    @property
    def within(self) -> tuple[str, ...]:
        """The command that runs the one behind it on this host."""
        join = 'echo $$ > "$0" && exec "$@"'
        inside = ("ip", "netns", "exec", f"shw-{self.name}")
        return inside if self.cpu_share is None else ("sh", "-c", join, str(_group(self) / "cgroup.procs"), *inside)


def missing() -> str | None:
    """Say what small hosts need and this machine lacks, or None."""
    if os.geteuid() != 0:
        return "small hosts need root"
    if lacking := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        return f"{' and '.join(lacking)} is missing: install iproute2"
    if _version() == 0:
        return f"no CPU control group under {_GROUPS}"
    return None


@contextlib.contextmanager
def small_hosts(*hosts: SmallHost) -> Iterator[None]:
    """Set hosts up for the length of a `with` block, and the gateway that they reach.

    Raises:
        FleetError: This machine cannot have them; the text says why.
    """
    if lack := missing():
        raise FleetError(lack)
    with contextlib.ExitStack() as undo:
        _run("ip", "addr", "add", f"{GATEWAY}/32", "dev", "lo")
        undo.callback(_run, "ip", "addr", "del", f"{GATEWAY}/32", "dev", "lo")
        for host in hosts:
            undo.enter_context(_small_host(host))
        yield


@contextlib.contextmanager
def _small_host(host: SmallHost) -> Iterator[None]:
    space, outer = f"shw-{host.name}", f"shw-v{host.number}"
    here, there = f"10.77.{host.number}.1", f"10.77.{host.number}.2"
    with contextlib.ExitStack() as undo:
        _run("ip", "netns", "add", space)
        undo.callback(_run, "ip", "netns", "del", space)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "addr", "add", f"{here}/24", "dev", outer)
        _run("ip", "link", "set", outer, "up")
        for words in (
            f"addr add {there}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
            f"route add default via {here}",
        ):
            _run("ip", "-n", space, *words.split())
        if host.megabits is not None:
            shape = f"root tbf rate {host.megabits:g}mbit burst {_BURST} latency {_QUEUE}".split()
            _run("tc", "qdisc", "add", "dev", outer, *shape)
            _run("tc", "-n", space, "qdisc", "add", "dev", "eth0", *shape)
        if host.cpu_share is not None:
            undo.enter_context(_cpu_group(host, host.cpu_share))
        yield


@contextlib.contextmanager
def _cpu_group(host: SmallHost, share: float) -> Iterator[None]:
    folder, quota = _group(host), round(share * PERIOD_MICROSECONDS)
    try:
        folder.mkdir(exist_ok=True)
        if _version() == 1:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (folder / "cpu.max").write_text(f"{quota} {PERIOD_MICROSECONDS}")
    except OSError as error:
        raise FleetError(f"{folder} cannot be set up: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _version() -> int:
    """Which version of control groups can limit the CPU here; 0 for none."""
    if (_GROUPS / "cpu" / "cpu.cfs_quota_us").exists() or (_GROUPS / "cpu" / "cgroup.procs").exists():
        return 1
    controllers = _GROUPS / "cgroup.subtree_control"
    return 2 if controllers.exists() and "cpu" in controllers.read_text().split() else 0


def _group(host: SmallHost) -> Path:
    return (_GROUPS / "cpu" if _version() == 1 else _GROUPS) / f"shw-{host.name}"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FleetError(f"{' '.join(command)}: {done.stderr.strip() or 'failed'}")
