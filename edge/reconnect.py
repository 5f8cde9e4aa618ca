"""When to connect again, and why it failed, in words for a person."""

import random
import socket
from collections.abc import Callable

_FIRST_BACK_OFF_SECONDS = 0.1
_MAX_BACK_OFF_SECONDS = 4.0


def back_off_seconds(failures: int, draw: Callable[[], float] = random.random) -> float:
    """Return how long to wait after so many failures in a row: doubling, capped, jittered downwards."""
    longest = min(_MAX_BACK_OFF_SECONDS, _FIRST_BACK_OFF_SECONDS * 2 ** min(failures, 10))
    return float(longest * (0.5 + 0.5 * draw()))


def network_reason(error: Exception, *, timeout_seconds: float) -> str:
    """Return why a connection could not be made, in a few words."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return "host name not known"
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_seconds:.0f} s"
    return str(getattr(error, "strerror", None) or error).lower()
