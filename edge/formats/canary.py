"""How a new bundle is tried on a part of the requests first."""

import msgspec

from edge.errors import FormatError

MAX_CANARY_SECONDS = 7 * 86_400.0
MAX_CANARY_FRAMES = 1_000_000


class Canary(msgspec.Struct, frozen=True, kw_only=True):
    """How a new bundle is tried.

    Attributes:
        share: part of the requests that go to it, above 0 and below 1.
        seconds: how long it is tried; then it serves all.
        most_failed: part of its frames that may fail; beyond, the bundle before it serves all again.
        least_frames: fewer say nothing; it is tried until there were as many.
    """

    share: float
    seconds: float = 60.0
    most_failed: float = 0.01
    least_frames: int = 20


def check_canary(canary: Canary, where: str) -> None:
    """Check the terms of a trial that came from outside.

    Args:
        canary: of a deployment, or of the request for one.
        where: said first in what is wrong.

    Raises:
        FormatError: out of bounds.
    """
    if not 0.0 < canary.share < 1.0:
        raise FormatError(f"{where}: a canary gets more than none and less than all requests, not {canary.share:g}")
    if not 0.0 <= canary.seconds <= MAX_CANARY_SECONDS:
        raise FormatError(f"{where}: a canary takes 0 to {MAX_CANARY_SECONDS:.0f} s, not {canary.seconds:g}")
    if not 0.0 <= canary.most_failed < 1.0:
        raise FormatError(f"{where}: a canary may fail in less than all of its frames, not {canary.most_failed:g}")
    if not 0 <= canary.least_frames <= MAX_CANARY_FRAMES:
        raise FormatError(f"{where}: a canary needs 0 to {MAX_CANARY_FRAMES} frames, not {canary.least_frames}")
