"""Child processes that never outlive the process which started them.

A child gets a session of its own, so that Ctrl-C in the terminal reaches only the parent, which then stops its
children in order; and the kernel kills the child when the parent dies of a signal that nobody can catch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_STOP_SECONDS = 5.0

# Runs in a bare interpreter that asks for its own death with its parent's, then becomes the command. Not a
# `preexec_fn`: that runs Python between fork and exec, which can deadlock in a process with threads. The parent may die
# before the request is made, hence the look at the parent afterwards. Other systems than Linux lack the call and go
# without.
_TETHER = """
import os, sys
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
except (AttributeError, ImportError, OSError):
    pass
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as fault:
    sys.exit(f"cannot start {sys.argv[2]}: {fault.strerror}")
"""


def start_child(
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
    piped: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one. Its output is appended to a file.

    Call it from a thread that lives as long as the child should: the kernel ties a child to the thread that started it.

    Args:
        command: Program and arguments; the program is looked up on PATH.
        log: File for the child's standard output and error.
        env: Environment of the child, this process's own by default.
        folder: Where the child works, where this process does by default.
        piped: Whether its standard input and output are pipes to this process, which closes them; else it has no
            input, and its output goes to the log too.

    Returns:
        The running child, leader of its own session and process group. Give it to `stop_child`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), *command],
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else output,
            stderr=output,
            env=None if env is None else dict(env),
            cwd=folder,
            start_new_session=True,
        )


def stop_child(child: subprocess.Popen[bytes], *, grace_seconds: float = _STOP_SECONDS) -> int:
    """End a child and everything in its process group.

    Args:
        child: A process from `start_child`, running or not.
        grace_seconds: How long it may take to end by itself after SIGTERM before it is killed.

    Returns:
        Its exit status, negative if a signal ended it.
    """
    try:
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=grace_seconds)
    finally:
        # The group is signalled even when its leader is gone: a grandchild may be left in it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


@contextlib.contextmanager
def running_child(
    command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a child for the length of a `with` block and stop it whatever happens in the block.

    Args:
        command: As for `start_child`.
        log: As for `start_child`.
        env: As for `start_child`.

    Yields:
        The running child.
    """
    child = start_child(command, log=log, env=env)
    try:
        yield child
    finally:
        stop_child(child)
