"""How much memory this process may still take: what the system has free, within the limits of its control groups."""

import os
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
# A group without a limit shows a huge number in version 1.
_NO_LIMIT_BYTES = 1 << 60


def available_bytes(proc: Path = _PROC, cgroup: Path = _CGROUP) -> int:
    """Return the bytes that this process can still allocate; a huge number where the system does not say."""
    return min(_mem_available(proc), *_cgroup_free(proc, cgroup), _NO_LIMIT_BYTES)


def resident_bytes(proc: Path = _PROC) -> int:
    """Return the resident set size of this process in bytes; 0 where the system does not say."""
    try:
        return int((proc / "self" / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _mem_available(proc: Path) -> int:
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return _NO_LIMIT_BYTES


def _cgroup_free(proc: Path, cgroup: Path) -> list[int]:
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    free: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            free += _free_along(cgroup, path, limit="memory.max", usage="memory.current")
        elif "memory" in controllers.split(","):
            root = cgroup / "memory"
            free += _free_along(root, path, limit="memory.limit_in_bytes", usage="memory.usage_in_bytes")
    return free


def _free_along(root: Path, path: str, *, limit: str, usage: str) -> list[int]:
    """Return what is free in a group and in every group around it; the tightest counts."""
    folder = root / path.strip("/")
    free: list[int] = []
    # In a container the path may not exist below the mount: then the mount itself is our group.
    for place in (folder, *folder.parents):
        if not place.is_relative_to(root):
            break
        try:
            most = int((place / limit).read_text())
            used = int((place / usage).read_text()) - _reclaimable(place / "memory.stat")
        except (OSError, ValueError):
            continue
        if most < _NO_LIMIT_BYTES:
            free.append(max(0, most - used))
    return free


def _reclaimable(stat: Path) -> int:
    """Return the page cache that the kernel would give back first."""
    for line in stat.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
