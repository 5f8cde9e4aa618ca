"""Giving way to inference on the same machine: a coordinator, and a command that deploys, may well wait."""

import contextlib
import os
from pathlib import Path

_NICE = 15
_AUTOGROUP = Path("/proc/self/autogroup")


def give_way() -> None:
    """Let other processes go first; does nothing where the system does not allow it.

    Linux shares a processor out between sessions first (sched_autogroup, see sched(7)) and looks at the nice value of
    a process only within its own: so the session gives way too where the process leads it, as a daemon does.
    """
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    with contextlib.suppress(OSError):
        if os.getsid(0) == os.getpid():
            _AUTOGROUP.write_text(str(_NICE))
