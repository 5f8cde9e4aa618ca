"""Retained values that a broker lost or mixed up are published again by the nodes. Part of the session.

A node that keeps a value publishes it when the broker shows a smaller one, or none a second after the subscription
was acknowledged; after a random time, and not when somebody else did so meanwhile.
"""

import zlib
from dataclasses import dataclass, field
from typing import Any

WAIT_SECONDS = 1.0
"""How long after its subscription a retained value may take to come."""

SPREAD_SECONDS = 2.0


@dataclass(slots=True)
class Repair:
    """Knows which retained values must be published again, and when.

    Attributes:
        seed: of the random times; another one on each node.
    """

    seed: str
    _due: dict[str, float] = field(default_factory=dict)
    _draws: int = 0

    def connected(self) -> None:
        """A connection stands: what the broker has is unknown."""
        self._due.clear()

    def subscribed(self, topic: str, now: float) -> None:
        """The subscription to a topic that this node keeps a value of stands: the broker should show it soon."""
        self._due.setdefault(topic, now + WAIT_SECONDS + self._draw())

    def saw(self, topic: str, order: Any, own: Any, now: float) -> None:
        """The broker showed a value.

        Args:
            topic: where.
            order: of what was seen; anything that compares with `own`.
            own: order of the value that this node keeps; None for none.
            now: monotonic seconds.
        """
        if own is None or order >= own:
            self._due.pop(topic, None)
            return
        due = now + self._draw()
        self._due[topic] = min(due, self._due.get(topic, due))

    def due(self, now: float) -> list[str]:
        """Return the topics whose values are to be published now."""
        ready = sorted(topic for topic, at in self._due.items() if now >= at)
        for topic in ready:
            del self._due[topic]
        return ready

    def _draw(self) -> float:
        self._draws += 1
        return SPREAD_SECONDS * zlib.crc32(f"{self.seed} {self._draws}".encode()) / 2**32
