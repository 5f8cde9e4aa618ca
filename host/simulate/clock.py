"""A virtual clock: what is due happens in the order of time, and at the same time in the order it was asked for."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[], object]


class Clock:
    """Runs actions in the order of their times.

    Attributes:
        now: seconds.
        events: actions run so far.
    """

    def __init__(self, start_seconds: float = 0.0) -> None:
        self.now = start_seconds
        self.events = 0
        self._asked = 0
        self._queue: list[tuple[float, int, Action]] = []

    def at(self, seconds: float, action: Action) -> None:
        """Run `action` when it is `seconds`, at once after what is due now when that is over."""
        self._asked += 1
        heapq.heappush(self._queue, (max(seconds, self.now), self._asked, action))

    def after(self, seconds: float, action: Action) -> None:
        """Run `action` in so many seconds."""
        self.at(self.now + seconds, action)

    def run(self, until_seconds: float, stopped: Callable[[], bool] | None = None) -> None:
        """Let time pass until `until_seconds`, or until `stopped`, which is asked after each action."""
        queue = self._queue
        while queue and queue[0][0] <= until_seconds:
            self.now, _, action = heapq.heappop(queue)
            self.events += 1
            action()
            if stopped is not None and stopped():
                return
        self.now = max(self.now, until_seconds)
