"""Which retained values a node publishes again when the broker lost them or shows older ones. No IO and no clock.

Every node keeps the largest value that it has seen. After a connection it compares what the broker shows; where that is
smaller, or nothing, it waits for a moment drawn at random, so that not everybody speaks at once, and publishes its own,
unless somebody else did so meanwhile. Absence means nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

ABSENT_SECONDS = 1.0
"""How long after its subscription a retained value may take to arrive."""

MOST_WAIT_SECONDS = 2.0


class Repairs:
    """Remembers what the broker showed since the last connection."""

    def __init__(self, draw: Callable[[], float]) -> None:
        """Start without a connection.

        Args:
            draw: returns a number within 0 and 1, another one each time.
        """
        self._draw = draw
        self._absent_at: float | None = None
        self._shown: set[str] = set()
        self._due: dict[str, float] = {}

    def connected(self, now: float) -> None:
        """Begin anew: what the broker shows is not known."""
        self._absent_at = now + ABSENT_SECONDS
        self._shown.clear()
        self._due.clear()

    def acknowledged(self, now: float) -> None:
        """Note that a subscription to the values was acknowledged just now."""
        if self._absent_at is not None:
            self._absent_at = max(self._absent_at, now + ABSENT_SECONDS)

    def shown(self, topic: str, now: float, *, older: bool) -> None:
        """Note that the broker delivered a value.

        Args:
            topic: of it.
            now: monotonic seconds.
            older: whether it is smaller than ours.
        """
        self._shown.add(topic)
        if older:
            self._due.setdefault(topic, now + MOST_WAIT_SECONDS * self._draw())
        else:
            self._due.pop(topic, None)

    def due(self, topics: Iterable[str], now: float) -> list[str]:
        """Return the topics of values to publish again now.

        Args:
            topics: of all values that this node holds.
            now: monotonic seconds.
        """
        held = tuple(topics)
        if self._absent_at is not None and now >= self._absent_at:
            self._absent_at = None
            for topic in held:
                if topic not in self._shown:
                    self._due.setdefault(topic, now + MOST_WAIT_SECONDS * self._draw())
        ready = [topic for topic in held if topic in self._due and now >= self._due[topic]]
        for topic in ready:
            del self._due[topic]
        return ready
