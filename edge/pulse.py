"""Whether a silent connection is dead: no IO and no clock.

A link whose packets are dropped, or whose other end is stopped, says nothing of it; TCP finds out after minutes. So the
other end is asked (PINGREQ) when it has been quiet, and the connection counts as dead when nothing at all comes back.
What is counted is bytes and not messages: a long message on a slow link is a sign of life from its first byte on.
"""

QUIET_SECONDS = 1.0
"""Without a byte from the broker after which it is asked."""

ANSWER_SECONDS = 2.5
"""That the answer may take: three repetitions of TCP on a link of 50 ms."""

LOOK_SECONDS = 0.25
"""Between two looks."""

_STALLED_SECONDS = 1.0


class Pulse:
    """Judges one connection by what has come and gone over it."""

    def __init__(self, now: float) -> None:
        """Begin with a connection that was just made; `now` in monotonic seconds."""
        self._looked = now
        self._alive = now
        self._asked: float | None = None
        self._received = self._taken = 0

    def look(self, now: float, *, received: int, taken: int, waiting: bool) -> bool | None:
        """Take a look, every `LOOK_SECONDS`.

        Args:
            now: monotonic seconds.
            received: bytes that have come so far.
            taken: bytes that the other end has acknowledged so far.
            waiting: whether there is more to send than the connection takes now; a question waits behind it.

        Returns:
            True to ask the other end, False when the connection is dead, None when there is nothing to do.
        """
        stalled = now - self._looked - LOOK_SECONDS
        self._looked = now
        if stalled > _STALLED_SECONDS:
            # It was this process that stood still, not the link.
            self._alive += stalled
            self._asked = None if self._asked is None else self._asked + stalled
        if received != self._received:
            self._alive, self._asked = now, None
        elif waiting and taken != self._taken:
            self._alive = now
            self._asked = None if self._asked is None else now
        self._received, self._taken = received, taken
        if self._asked is not None:
            return False if now - self._asked >= ANSWER_SECONDS else None
        if now - self._alive < QUIET_SECONDS:
            return None
        self._asked = now
        return True
