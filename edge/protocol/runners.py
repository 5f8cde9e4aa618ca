"""Which device of several that hold one stage gets the next frame, by their states and what they have taken so far."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

from edge.formats.message import Session, State
from edge.protocol.absences import Absences, Change

SILENT_SECONDS = 1.0
"""How long a frame may be on its way before others are preferred to its device."""

FORGET_SECONDS = 5.0
"""How long a frame that was not taken counts against its device; then a device that came back is tried again."""

MOST_PAUSE_SECONDS = 30.0
"""How long a device that stays silent is left alone at most before one more frame tries it."""

MAX_UNTAKEN = 4096
_MAX_DEVICES = 4096


class FrameKey(NamedTuple):
    """Names one frame, as `Taken` does."""

    request_id: str
    attempt: int
    stage: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Silence:
    """A device that left a frame untaken until it was forgotten, `times` in a row, last at `since`."""

    times: int
    since: float

    def is_over(self, now: float) -> bool:
        pause_seconds = FORGET_SECONDS * float(2 ** min(self.times - 1, 10) - 1)
        return now - self.since >= min(MOST_PAUSE_SECONDS, pause_seconds)


class Runners:
    """Who is there, and the frames that one node sent and that were not taken yet; safe to use from several threads.

    A device that its state says is away gets nothing while another is there. A silent one keeps its frames untaken, so
    the next ones go to others. Once they are forgotten it gets one frame, and if that is not taken either, one more
    after an ever longer pause. Any ack of it ends its silence.
    """

    def __init__(self, node: str = "") -> None:
        """Start with nothing sent.

        Args:
            node: who sends; senders with different names begin their turns with different devices.
        """
        self._node = node
        self._lock = threading.Lock()
        self._where: OrderedDict[FrameKey, str] = OrderedDict()
        self._untaken: dict[str, OrderedDict[FrameKey, float]] = {}
        self._silent: dict[str, _Silence] = {}
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._absences = Absences()

    def choose(
        self,
        runners: Sequence[str],
        key: FrameKey,
        now: float,
        *,
        standbys: Sequence[str] = (),
        avoid: str = "",
    ) -> str:
        """Return who gets a frame, and note that it is sent.

        It is a runner that is there; without one, a standby that is there; else any. Of several, it is who has the
        fewest untaken frames, ties in turn.

        Args:
            runners: those that run its stage, at least one.
            key: of the frame.
            now: monotonic seconds.
            standbys: those that only hold the stage.
            avoid: a device that is only chosen when no other is there.
        """
        if len(runners) == 1 and not standbys:
            return runners[0]
        with self._lock:
            self._expire(now)
            avoided = {avoid, self._silent_before(key, now)}
            self._drop(key)
            idle = frozenset(standbys) - frozenset(runners)
            devices = dict.fromkeys((*runners, *standbys))
            chosen = min(devices, key=lambda device: self._place(device, now, avoided, idle))
            if len(self._turns) >= _MAX_DEVICES:
                self._turns.clear()
                self._silent.clear()
            self._turn += 1
            self._turns[chosen] = self._turn
            self._where[key] = chosen
            self._untaken.setdefault(chosen, OrderedDict())[key] = now
            if len(self._where) > MAX_UNTAKEN:
                self._drop(next(iter(self._where)))
            return chosen

    def meet(self, runners: Sequence[str], request_id: str, attempt: int, *, standbys: Sequence[str] = ()) -> str:
        """Return where all parts of a request meet, see `meeting_place`; devices that are away are passed over."""
        with self._lock:
            there = [device for device in runners if not self._absences.is_away(device)]
            spare = [device for device in standbys if not self._absences.is_away(device)]
        if there or spare:
            return meeting_place(there, request_id, attempt, standbys=spare)
        return meeting_place(runners, request_id, attempt, standbys=standbys)

    def state(self, state: State) -> Change | None:
        """Take the state of a device; return what it changes.

        What was on its way to one that is away is not counted against it: it starts anew when it is back.
        """
        with self._lock:
            change = self._absences.take(state)
            if change is not None:
                for key in tuple(self._untaken.get(change.device, ())):
                    self._drop(key)
                self._silent.pop(change.device, None)
            return change

    def session(self, device: str) -> Session | None:
        """Return the newest session that a device's state told, None when none did."""
        with self._lock:
            return self._absences.session(device)

    def is_away(self, device: str) -> bool:
        """Tell whether the state of a device says that it is gone."""
        with self._lock:
            return self._absences.is_away(device)

    def taken(self, device: str, key: FrameKey) -> None:
        """Note that a device has a frame, or has answered it."""
        with self._lock:
            self._silent.pop(device, None)
            if self._where.get(key) == device:
                self._drop(key)

    def untaken(self, device: str, now: float) -> int:
        """Return how many frames a device was sent and did not take."""
        with self._lock:
            self._expire(now)
            return len(self._untaken.get(device, ()))

    def _silent_before(self, key: FrameKey, now: float) -> str:
        """Return who left the attempt before this one untaken for a while: others are asked first."""
        before = key._replace(attempt=key.attempt - 1)
        device = self._where.get(before, "")
        return device if device and now - self._untaken[device][before] >= SILENT_SECONDS / 2 else ""

    def _place(
        self, device: str, now: float, avoided: AbstractSet[str], idle: AbstractSet[str]
    ) -> tuple[bool, bool, bool, bool, int, int]:
        """Return what is least for the device to choose."""
        untaken: Mapping[FrameKey, float] = self._untaken.get(device, {})
        silence = self._silent.get(device)
        oldest = next(iter(untaken.values()), now)
        is_silent = now - oldest >= SILENT_SECONDS
        if silence is not None:
            is_silent = bool(untaken) or not silence.is_over(now)
        turn = self._turns.get(device)
        if turn is None:
            # All senders in one order would all send to the same device at the same time.
            turn = self._turns[device] = -crc32(f"{self._node}/{device}".encode()) if self._node else 0
        away = self._absences.is_away(device)
        return away, device in avoided, is_silent, device in idle, len(untaken), turn

    def _expire(self, now: float) -> None:
        while self._where:
            key, device = next(iter(self._where.items()))
            sent_at = self._untaken[device][key]
            if now - sent_at < FORGET_SECONDS:
                return
            self._drop(key)
            silence = self._silent.get(device)
            if silence is None or sent_at >= silence.since:
                self._silent[device] = _Silence(times=silence.times + 1 if silence else 1, since=now)

    def _drop(self, key: FrameKey) -> None:
        device = self._where.pop(key, None)
        if device is not None:
            del self._untaken[device][key]
            if not self._untaken[device]:
                del self._untaken[device]


def meeting_place(runners: Sequence[str], request_id: str, attempt: int, *, standbys: Sequence[str] = ()) -> str:
    """Return where all parts of a request meet: the same device for every sender, another one for each attempt.

    The first attempt goes to a runner where there is one; further ones go on through the others, standbys after them.
    """
    devices = (*runners, *standbys)
    first = crc32(request_id.encode()) % (len(runners) or len(devices))
    return devices[(first + attempt) % len(devices)]
