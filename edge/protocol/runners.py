"""Which device of several that run one stage gets the next frame, by what they have taken so far."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

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
    """The frames that one node sent and that were not taken yet; safe to use from several threads.

    A silent device keeps its frames untaken, so the next ones go to others. Once they are forgotten it gets one frame,
    and if that is not taken either, one more after an ever longer pause. Any ack of it ends its silence.
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

    def choose(self, devices: Sequence[str], key: FrameKey, now: float, *, avoid: str = "") -> str:
        """Return who gets a frame, and note that it is sent: who has the fewest untaken frames, ties in turn.

        Args:
            devices: those that run its stage, at least one.
            key: of the frame.
            now: monotonic seconds.
            avoid: a device that is only chosen when it is the only one.
        """
        if len(devices) == 1:
            return devices[0]
        with self._lock:
            self._expire(now)
            self._drop(key)
            chosen = min(devices, key=lambda device: self._place(device, now, avoid))
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

    def _place(self, device: str, now: float, avoid: str) -> tuple[bool, bool, int, int]:
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
        return device == avoid, is_silent, len(untaken), turn

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


def meeting_place(devices: Sequence[str], request_id: str, attempt: int) -> str:
    """Return where all parts of a request meet: the same device for every sender, another one for each attempt."""
    return devices[(crc32(request_id.encode()) + attempt) % len(devices)]
