"""Whether a new bundle that is tried on a part of the requests may serve them all. Pure; no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from edge.formats.canary import Canary
from edge.formats.speed import StageLoad


class Verdict(Enum):
    """What to do with a canary now."""

    TRY_ON = "tried on"
    PROMOTE = "promoted"
    TAKE_BACK = "taken back"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """What an epoch did so far.

    Attributes:
        frames: requests that its first stage ran, those of the probe not counted.
        failed: frames that ended with an error, of all of its stages.
    """

    frames: int = 0
    failed: int = 0


class Counters:
    """Adds up what the stages of one epoch tell in heartbeats; a counter that begins anew goes on where it was."""

    def __init__(self, name: str, epoch: str, *, probed: int = 0) -> None:
        """Start with nothing counted.

        Args:
            name: of the deployment.
            epoch: that is tried.
            probed: frames of the probe, which went through the first stage before.
        """
        self._key = (name, epoch)
        self._probed = probed
        self._done: dict[tuple[str, int], tuple[int, int]] = {}
        self._now: dict[tuple[str, int], tuple[int, int]] = {}

    def hear(self, device: str, loads: Iterable[StageLoad]) -> None:
        """Take a heartbeat."""
        for load in loads:
            if (load.deployment, load.epoch) != self._key:
                continue
            place, now = (device, load.stage), (max(0, load.frames), max(0, load.failed))
            before = self._now.get(place, (0, 0))
            if now[0] < before[0]:
                done = self._done.get(place, (0, 0))
                self._done[place] = (done[0] + before[0], done[1] + before[1])
            self._now[place] = now

    def tally(self) -> Tally:
        """Return what was counted."""
        first = sum(frames for (_, stage), (frames, _) in _both(self._done, self._now) if stage == 0)
        failed = sum(failed for _, (_, failed) in _both(self._done, self._now))
        return Tally(frames=max(0, first - self._probed), failed=failed)


def judge(terms: Canary, tally: Tally, *, seconds: float) -> tuple[Verdict, str]:
    """Decide what becomes of a canary, and say why in one line.

    It is taken back as soon as more failed than may fail, of all frames that it must see at least; it is promoted
    after its time, and when it has seen as many.

    Args:
        terms: how it is tried.
        tally: what it did so far.
        seconds: how long it is tried already.
    """
    frames = max(tally.frames, terms.least_frames, 1)
    told = f"{tally.failed} of {tally.frames} frames failed"
    if tally.failed > terms.most_failed * frames:
        return Verdict.TAKE_BACK, f"{told}, more than {100 * terms.most_failed:g} %"
    if seconds >= terms.seconds and tally.frames >= terms.least_frames:
        return Verdict.PROMOTE, f"{told} in {seconds:.0f} s"
    waits = f", it needs {terms.least_frames}" if tally.frames < terms.least_frames else ""
    return Verdict.TRY_ON, f"{told}{waits}"


def _both(
    done: Mapping[tuple[str, int], tuple[int, int]], now: Mapping[tuple[str, int], tuple[int, int]]
) -> list[tuple[tuple[str, int], tuple[int, int]]]:
    return [*done.items(), *now.items()]
