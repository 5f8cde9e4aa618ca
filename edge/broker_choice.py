"""Which broker of a list a node uses now: no IO and no clock.

A node goes to the next broker when the one it uses is gone, to the one that the coordinator names, and, when it hears
no coordinator for a while, to one where a coordinator was heard. Without any coordinator it stays where it is.
"""

BRIEF_SECONDS = 1.0
"""For which a broker may be gone before the next is tried: a restart takes less."""

UNHEARD_SECONDS = 10.0
"""Without a coordinator after which the other brokers are looked at."""

_AVOID_SECONDS = 10.0
_MAX_LOOK_SECONDS = 80.0


class BrokerChoice:
    """Holds the place in the list of the broker to use; told of everything that bears on it."""

    def __init__(self, count: int, *, now: float) -> None:
        """Begin with the first of `count` brokers; `now` in monotonic seconds."""
        self._count = count
        self._current = 0
        self._down_since: float | None = now
        self._failed_at: dict[int, float] = {}
        self._heard = now
        self._look_seconds = UNHEARD_SECONDS

    @property
    def current(self) -> int:
        """Place of the broker to use."""
        return self._current

    def connected(self, now: float) -> None:
        """Take that the control connection to the current broker stands."""
        self._down_since = None
        self._failed_at.pop(self._current, None)
        self._heard = now

    def failed(self, now: float) -> None:
        """Take that the control connection to the current broker was lost, or could not be made."""
        if self._down_since is None:
            self._down_since = now
        elif now - self._down_since >= BRIEF_SECONDS:
            self._failed_at[self._current] = now
            self._go((self._current + 1) % self._count, now)

    def heard(self, named: int, now: float) -> None:
        """Take a heartbeat of the coordinator, heard on the current broker, which names the broker to use."""
        self._heard = now
        self._look_seconds = UNHEARD_SECONDS
        if self._may_go(named, now):
            self._go(named, now)

    def places_to_look(self, now: float) -> tuple[int, ...]:
        """Return where a coordinator should be looked for now, in order; each time it is due it is due later again."""
        if self._count == 1 or self._down_since is not None or now - self._heard < self._look_seconds:
            return ()
        self._heard = now
        # A fleet without a coordinator need not be asked for it all the time.
        self._look_seconds = min(_MAX_LOOK_SECONDS, 2 * self._look_seconds)
        return tuple((self._current + step) % self._count for step in range(1, self._count))

    def found(self, named: int, now: float) -> None:
        """Take that a coordinator was heard on another broker, which names the broker to use."""
        if self._may_go(named, now):
            self._go(named, now)

    def _may_go(self, named: int, now: float) -> bool:
        failed_at = self._failed_at.get(named)
        avoided = failed_at is not None and now - failed_at < _AVOID_SECONDS
        return 0 <= named < self._count and named != self._current and not avoided

    def _go(self, place: int, now: float) -> None:
        self._current = place
        self._down_since = now
        self._look_seconds = UNHEARD_SECONDS
