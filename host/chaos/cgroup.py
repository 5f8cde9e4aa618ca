"""Control groups of memory, by which the kernel kills who takes more than a limit. Linux (v1 or v2), and root."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from host.errors import FleetError

_GROUPS = Path("/sys/fs/cgroup")
_numbers = itertools.count()


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """Make a control group that kills who takes more; yield the file that takes process ids.

    What a process had before it came into the group is not counted.

    Raises:
        FleetError: this machine cannot have one.
    """
    first = (_GROUPS / "memory" / "memory.limit_in_bytes").exists()
    folder = (_GROUPS / "memory" if first else _GROUPS) / f"shw-chaos-{os.getpid()}-{next(_numbers)}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit_bytes))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise FleetError(f"{folder} cannot be set up: {error.strerror}") from error
    try:
        yield folder / "cgroup.procs"
    finally:
        with contextlib.suppress(OSError):
            for pid in (folder / "cgroup.procs").read_text().split():
                (folder.parent / "cgroup.procs").write_text(pid)
            folder.rmdir()
