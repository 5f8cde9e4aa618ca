"""SIGTERM ends a command like Ctrl-C does, so that what it started is taken down in order."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

TERMINATED = 143


@contextlib.contextmanager
def terminated_as_exit() -> Iterator[None]:
    """Turn SIGTERM into an exit of this program for the length of a `with` block."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        # A second one while things are taken down must not stop that.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
