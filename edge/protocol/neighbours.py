"""The devices whose states an agent hears: those that it sends to, and those that it fetches from."""

from collections.abc import Iterable

from edge.formats.topics import Topics
from edge.protocol.effects import Effect, Subscribe, Unsubscribe
from edge.transport import Channel


class Neighbours:
    """Keeps the subscriptions to the states of other devices, exact topics only: wildcards bring no retained value."""

    def __init__(self, topics: Topics) -> None:
        """Start with none.

        Args:
            topics: of the fleet.
        """
        self._topics = topics
        self._watched: frozenset[str] = frozenset()

    def watches(self, device: str) -> bool:
        """Tell whether the states of a device are wanted."""
        return device in self._watched

    def connected(self) -> None:
        """A new connection has no subscriptions: the next `fit` makes them all anew."""
        self._watched = frozenset()

    def fit(self, devices: Iterable[str]) -> list[Effect]:
        """Hear the states of these devices, and of no others."""
        before, self._watched = self._watched, frozenset(devices)
        return [
            *(
                Subscribe(channel=Channel.CONTROL, filter=self._topics.state(device))
                for device in sorted(self._watched - before)
            ),
            *(
                Unsubscribe(channel=Channel.CONTROL, filter=self._topics.state(device))
                for device in sorted(before - self._watched)
            ),
        ]
