"""When each of many requests is due next; what is settled or moved leaves no trace for long. No clock."""

import heapq
import itertools
import math

_LEAST_ENTRIES = 256


class Timers:
    """One moment for each name, which may be moved and forgotten."""

    def __init__(self) -> None:
        """Start empty."""
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, name: str) -> float:
        """Return when it is due; infinity when it is not."""
        return self._at.get(name, math.inf)

    def set(self, name: str, at: float) -> None:
        """Let it be due at a moment, whatever was said before; never, when that is infinity."""
        if self.at(name) == at:
            return
        if at == math.inf:
            self.forget(name)
            return
        self._at[name] = at
        if len(self._heap) >= 2 * len(self._at) + _LEAST_ENTRIES:
            # Most are of requests that have their outcome: with long deadlines they would pile up.
            self._heap = [entry for entry in self._heap if self._stands(entry)]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (at, next(self._numbers), name))

    def forget(self, name: str) -> None:
        """Let it never be due."""
        self._at.pop(name, None)

    def next(self) -> float:
        """Return when the first is due; infinity when none is."""
        while self._heap and not self._stands(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def due(self, now: float) -> str | None:
        """Take one that is due by now, the longest due first; None when none is."""
        if self.next() > now:
            return None
        _, _, name = heapq.heappop(self._heap)
        del self._at[name]
        return name

    def _stands(self, entry: tuple[float, int, str]) -> bool:
        return self._at.get(entry[2]) == entry[0]
