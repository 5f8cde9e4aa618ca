"""How fast blobs may travel beside inference: token buckets. No IO, no clock.

While a device serves frames, what it fetches and what it gives to others keep to a part of its link, so that tensors
are not starved; an idle device goes at full speed. A bucket may go into debt by one block: at any rate above zero
there is always a next block, so a transfer never stalls for good.
"""

from enum import Enum

from edge.formats.message import BLOCK_BYTES

WINDOW_BLOCKS = 8
BUSY_WINDOW_BLOCKS = 2
BUSY_SECONDS = 1.0
"""A device serves while its last frame is no older."""

LINK_SHARE = 0.25
DEFAULT_BYTES_PER_SECOND = 2.0 * (1 << 20)
"""For a link that was not measured."""

LEAST_BYTES_PER_SECOND = 64.0 * 1024
"""A block in two seconds: less, and whoever asks takes a holder for dead."""

BURST_SECONDS = 0.25
"""What a bucket holds: the time between two ticks, or less than the rate would come out."""


class Use(Enum):
    """What a bucket is for."""

    FETCH = "fetch"
    ANSWER = "answer"


class TokenBucket:
    """Grants bytes at a rate, with bursts; goes into debt by what it granted last."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._filled = float("-inf")

    def take(self, size_bytes: int, now: float, *, bytes_per_second: float) -> bool:
        """Grant bytes, or not yet.

        Args:
            size_bytes: to be sent or asked for.
            now: monotonic seconds, never less than before.
            bytes_per_second: since it was asked last; above 0.
        """
        most = max(float(BLOCK_BYTES), bytes_per_second * BURST_SECONDS)
        self._tokens = min(most, self._tokens + (now - self._filled) * bytes_per_second)
        self._filled = now
        if self._tokens <= 0.0:
            return False
        self._tokens -= size_bytes
        return True


class Pace:
    """The budget of one device, shared by what it fetches and what it gives to others."""

    def __init__(self, *, bytes_per_second: float | None = None) -> None:
        """Start idle.

        Args:
            bytes_per_second: while frames are served; None for a part of the link, or what suits an unknown one.
        """
        self._fixed = bytes_per_second
        self._link: float | None = None
        self._frame = float("-inf")
        self._buckets = {use: TokenBucket() for use in Use}
        self._used = dict.fromkeys(Use, float("-inf"))

    @property
    def bytes_per_second(self) -> float:
        """The rate that is kept to while frames are served."""
        if self._fixed is not None:
            return max(1.0, self._fixed)
        if self._link is None:
            return DEFAULT_BYTES_PER_SECOND
        return max(LEAST_BYTES_PER_SECOND, LINK_SHARE * self._link)

    def measured(self, link_bytes_per_second: float) -> None:
        """Note how fast the link to the broker is."""
        self._link = link_bytes_per_second

    def frame(self, now: float) -> None:
        """Note that a frame came."""
        self._frame = now

    def serves(self, now: float) -> bool:
        """Tell whether frames are served."""
        return now - self._frame <= BUSY_SECONDS

    def window(self, now: float) -> int:
        """Return how many blocks may be asked for and not yet durable."""
        return BUSY_WINDOW_BLOCKS if self.serves(now) else WINDOW_BLOCKS

    def take(self, use: Use, size_bytes: int, now: float) -> bool:
        """Grant bytes, or not yet. Who fetches and gives at the same time has half of the rate for each."""
        if not self.serves(now):
            return True
        self._used[use] = now
        users = sum(now - used <= BUSY_SECONDS for used in self._used.values())
        return self._buckets[use].take(size_bytes, now, bytes_per_second=self.bytes_per_second / users)
