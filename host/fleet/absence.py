"""Who is away, since when and why; and who comes and goes too often. No IO and no clock. Part of `host.fleet.watch`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from edge.formats.message import Heartbeat
from edge.formats.plan import Deployment
from host.fleet.effects import Happened
from host.fleet.roster import HEARTBEAT_SECONDS, SILENT_SECONDS, Node, Roster

AWAY_SECONDS = 0.25
"""After its last will: an agent that is back sooner is not worth a plan. Who is silent is away at once."""

DATA_DOWN_SECONDS = 1.0
"""How long a device may have no connection for tensors; a new one takes less."""

STUCK_SECONDS = 5.0
"""A frame that waits for less says nothing, whatever the device does."""

STUCK_FACTOR = 10.0
"""By how much a frame may wait longer than all that stands before it should take."""

STUCK_BEATS = 3
"""Heartbeats over which no frame is done until a device counts as stuck."""

DEAF_SECONDS = 1.0
"""When nobody listened for longer, silence is counted anew: what was said meanwhile may still be on its way."""

FLAPS = 3
FLAP_SECONDS = 300.0
"""A device that left `FLAPS` times within this time is used again once it stayed for `STEADY_SECONDS`."""

STEADY_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """What the plans that serve expect of one device.

    Attributes:
        run_seconds: of its longest stage; its heart does not beat while it runs.
        wait_seconds: that a frame may wait there: the stages of a full window, one after another.
    """

    run_seconds: float = 0.0
    wait_seconds: float = 0.0


@dataclass(slots=True)
class _Seen:
    """What is remembered of one device; times are monotonic seconds."""

    why: str | None = None
    was_here: bool = False
    off_since: float | None = None
    down_since: float | None = None
    beat: Heartbeat | None = None
    still: int = 0
    back_since: float = float("-inf")
    left: deque[float] = field(default_factory=lambda: deque(maxlen=FLAPS))


class Absence:
    """Judges who is away by last wills, silence, the data connection and the progress of what is queued."""

    def __init__(self, roster: Roster) -> None:
        """Start with everybody here.

        Args:
            roster: what devices say.
        """
        self._roster = roster
        self._seen: dict[str, _Seen] = {}
        self._looked = float("-inf")
        self._listening_since = float("-inf")

    def look(
        self, names: Iterable[str], now: float, *, patience: Mapping[str, Patience], settled: bool
    ) -> list[Happened]:
        """Judge some devices anew, and return who came and who left.

        Args:
            names: of devices.
            now: monotonic seconds.
            patience: with those that run stages.
            settled: whether everybody had the time to come back since we connected; else nobody is judged away.
        """
        if now - self._looked > DEAF_SECONDS:
            self._listening_since = now
        self._looked = now
        found: list[Happened] = []
        for name in names:
            seen = self._seen.setdefault(name, _Seen())
            why = self._judge(self._roster.get(name), seen, patience.get(name, Patience()), now)
            if why is None:
                found += self._came(name, seen, now, settled=settled)
            elif settled and seen.why is None:
                found += self._left(name, seen, why, now)
        return found

    def why(self, name: str) -> str | None:
        """Return why a device is away, None when it is not."""
        seen = self._seen.get(name)
        return None if seen is None else seen.why

    def steady(self, name: str, now: float) -> bool:
        """Tell whether new plans may use a device: it is here, and does not come and go."""
        seen = self._seen.get(name)
        if seen is None or seen.why is not None:
            return seen is None
        flaps = len(seen.left) == FLAPS and now - seen.left[0] <= FLAP_SECONDS
        return not flaps or now - seen.back_since >= STEADY_SECONDS

    def away_since(self, name: str) -> float | None:
        """Return when a device left last, None when it is here."""
        seen = self._seen.get(name)
        return seen.off_since if seen is not None and seen.why is not None else None

    def _judge(self, node: Node, seen: _Seen, patience: Patience, now: float) -> str | None:
        self._note_beat(node, seen, patience, now)
        if node.state is not None and not node.state.online:
            seen.off_since = now if seen.off_since is None else seen.off_since
            # Who was away before its last will came is not here again for a moment.
            return "its connection ended" if seen.why or now - seen.off_since >= AWAY_SECONDS else None
        heard = max(node.heard if node.heard is not None else self._listening_since, self._listening_since)
        most = max(SILENT_SECONDS, HEARTBEAT_SECONDS + 2 * patience.run_seconds)
        if now - heard > most or (node.state is None and node.heard is None):
            seen.off_since = now if seen.off_since is None else seen.off_since
            return f"nothing was heard of it for {most:.1f} s"
        if seen.down_since is not None and now - seen.down_since >= DATA_DOWN_SECONDS:
            seen.off_since = now if seen.off_since is None else seen.off_since
            return "it has no connection for tensors"
        if seen.still >= STUCK_BEATS and seen.beat is not None:
            seen.off_since = now if seen.off_since is None else seen.off_since
            return f"it is stuck: a frame waits for {seen.beat.oldest_queued_seconds:.0f} s and none is done"
        seen.off_since = None
        return None

    @staticmethod
    def _note_beat(node: Node, seen: _Seen, patience: Patience, now: float) -> None:
        beat, before = node.heartbeat, seen.beat
        if beat is None or beat is before:
            return
        seen.beat = beat
        seen.down_since = None if beat.data_up else now if seen.down_since is None else seen.down_since
        waits = beat.oldest_queued_seconds > max(STUCK_SECONDS, STUCK_FACTOR * patience.wait_seconds)
        moves = before is None or before.session != beat.session or before.frames_done != beat.frames_done
        seen.still = seen.still + 1 if waits and not moves else 0

    @staticmethod
    def _came(name: str, seen: _Seen, now: float, *, settled: bool) -> list[Happened]:
        came = seen.off_since is None and (seen.why is not None or not seen.was_here)
        news = seen.why is not None or settled
        if came:
            seen.why, seen.was_here, seen.back_since = None, True, now
        return [Happened(what="joined", device=name)] if came and news else []

    @staticmethod
    def _left(name: str, seen: _Seen, why: str, now: float) -> list[Happened]:
        seen.why = why
        if not seen.was_here:
            return []  # it left long before anybody looked
        seen.left.append(now)
        return [Happened(what="left", device=name, why=why)]


def patience_with(served: Iterable[Deployment]) -> dict[str, Patience]:
    """Return what the plans that serve expect of each of their devices."""
    found: dict[str, Patience] = {}
    for value in served:
        for stage in value.plan.stages if value.plan is not None else ():
            for name in stage.devices:
                before = found.get(name, Patience())
                found[name] = Patience(
                    run_seconds=max(before.run_seconds, stage.predicted_seconds),
                    wait_seconds=before.wait_seconds + value.window * stage.predicted_seconds,
                )
    return found
