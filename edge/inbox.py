"""The one queue of a node: everything that happens goes through it, bounded where it comes from the network."""

import queue
import threading
from typing import Generic, TypeVar

from edge.transport import Channel, Received, TransportEvent

MAX_PENDING_BYTES = 64 * 1024 * 1024
MAX_PENDING_EVENTS = 4096

_T = TypeVar("_T")


class Inbox(Generic[_T]):
    """Events of this process, never dropped, and messages, dropped and counted when too many wait.

    Everything that travels is repaired by those who sent it, so a message may be dropped.
    """

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[_T | TransportEvent] = queue.SimpleQueue()
        self._adding = threading.Lock()
        self._added = dict.fromkeys(Channel, 0)
        self._taken = dict.fromkeys(Channel, 0)
        self.dropped = 0

    def put(self, event: _T) -> None:
        """Add an event of this process."""
        self._events.put(event)

    def put_from_network(self, event: TransportEvent) -> None:
        """Add an event of the network, from any thread."""
        if isinstance(event, Received):
            channel, size = event.channel, len(event.payload)
            with self._adding:
                pending_bytes = self._added[channel] - self._taken[channel]
                if pending_bytes + size > MAX_PENDING_BYTES or self._events.qsize() >= MAX_PENDING_EVENTS:
                    self.dropped += 1
                    return
                self._added[channel] += size
        self._events.put(event)

    def get(self, timeout_seconds: float) -> _T | TransportEvent | None:
        """Return the next event, None when none comes in time."""
        try:
            event = self._events.get(timeout=timeout_seconds)
        except queue.Empty:
            return None
        if isinstance(event, Received):
            self._taken[event.channel] += len(event.payload)
        return event
