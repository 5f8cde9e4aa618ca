"""How long the stages here take now: a smoothed view of the frames that they ran. Part of `edge.protocol.session`."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edge.formats.speed import MOST_SECONDS, StageLoad
from edge.protocol.effects import FrameDone, StageKey

SMOOTHING_SECONDS = 5.0
"""Time constant: a frame that ran this long ago counts e times less than one that runs now."""

LARGEST_WEIGHT = 0.1
"""Of one frame, where frames are rarer than the time constant: one slow frame alone says little."""

MAX_STAGE_LOADS = 64
"""Stages that a heartbeat tells of; those that ran last go first."""


RECENT_RUNS = 512
"""Whose percentiles are told."""


@dataclass(slots=True)
class _Load:
    frames: int
    failed: int
    run_seconds: float
    queued_seconds: float
    at: float


class Loads:
    """Smooths the times of frames, stage by stage.

    The first frames are averaged; then each moves the mean by `1 - exp(-gap / SMOOTHING_SECONDS)` of its distance, at
    most by `LARGEST_WEIGHT` of it, the gap being the time since the frame before.

    Attributes:
        failed: frames that ended with an error of their stage, since the process started.
    """

    def __init__(self) -> None:
        self.failed = 0
        self._loads: dict[StageKey, _Load] = {}
        self._recent: deque[float] = deque(maxlen=RECENT_RUNS)

    def done(self, event: FrameDone, now: float) -> None:
        """Take a frame that was run; one that never ran counts for nothing, one that failed for no time.

        Args:
            event: which, and how long it waited and ran.
            now: monotonic seconds.
        """
        if event.run_seconds <= 0 and not event.failed:
            return
        known = self._loads.pop(event.key, None)
        if known is None:
            known = _Load(frames=0, failed=0, run_seconds=0.0, queued_seconds=0.0, at=now)
        self._loads[event.key] = known
        known.frames += 1
        if event.failed:
            known.failed += 1
            self.failed += 1
            return
        self._recent.append(event.run_seconds)
        recent = -math.expm1(-max(0.0, now - known.at) / SMOOTHING_SECONDS)
        timed = known.frames - known.failed
        weight = 1 / timed if timed * LARGEST_WEIGHT <= 1 else min(LARGEST_WEIGHT, recent)
        known.run_seconds += weight * (event.run_seconds - known.run_seconds)
        known.queued_seconds += weight * (event.queued_seconds - known.queued_seconds)
        known.at = now

    def percentile(self, part: float) -> float:
        """Return the run time that `part` of the last runs did not exceed, in seconds; 0 when there was none."""
        ordered = sorted(self._recent)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0

    def report(self, is_loaded: Callable[[StageKey], bool]) -> tuple[StageLoad, ...]:
        """Return what the stages did that are still loaded, and forget the others.

        Args:
            is_loaded: tells whether a stage is still here.
        """
        for key in [key for key in self._loads if not is_loaded(key)]:
            del self._loads[key]
        newest = sorted(tuple(self._loads)[-MAX_STAGE_LOADS:])
        return tuple(_told(key, self._loads[key]) for key in newest)


def _told(key: StageKey, load: _Load) -> StageLoad:
    return StageLoad(
        deployment=key.deployment,
        epoch=key.epoch,
        stage=key.stage,
        frames=load.frames,
        failed=load.failed,
        run_seconds=min(load.run_seconds, MOST_SECONDS),
        queued_seconds=min(max(0.0, load.queued_seconds), MOST_SECONDS),
    )
