"""A node's connections on the host: events of the network threads in a queue, one thread that takes them."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from edge.mqtt import MqttTransport
from edge.transport import Channel, Connected, Publication, TransportEvent, WillMaker
from host.fleet.identity import Caller

CONNECT_SECONDS = 3.0
_QUEUED_EVENTS = 10_000


class FleetLink:
    """Both connections of one node for the length of a `with` block."""

    def __init__(
        self, url: str, caller: Caller, *, will: WillMaker | None = None, connect_seconds: float = CONNECT_SECONDS
    ) -> None:
        """Prepare; the `with` block connects.

        Args:
            url: `mqtt://host:port`.
            caller: who we are.
            will: last will of the control connection.
            connect_seconds: how long the first connection may take.

        Raises:
            TransportError: the URL is not one.
        """
        self.caller = caller
        self._events: queue.Queue[TransportEvent] = queue.Queue(maxsize=_QUEUED_EVENTS)
        self._connect_seconds = connect_seconds
        self._transport = MqttTransport(
            url, fleet=caller.topics.fleet, node=caller.node, on_event=self._events.put_nowait, will=will
        )

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            TransportError: there is no broker, or it refuses us.
        """
        try:
            self._transport.start()
            self._transport.wait_connected(self._connect_seconds)
        except BaseException:
            self._transport.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Sign off and disconnect."""
        self._transport.close()

    def take(self, timeout_seconds: float) -> TransportEvent | None:
        """Return the next event, or None when there is none within the time."""
        try:
            return self._events.get(timeout=max(0.0, timeout_seconds))
        except queue.Empty:
            return None

    def first_connections(self) -> Sequence[Connected]:
        """Return the events of both connections again, for a protocol that joins a link that stands."""
        connect = self.caller.session.connect
        return [Connected(channel=channel, connect=connect) for channel in Channel]

    def publish(self, publication: Publication) -> bool:
        """See `edge.transport.Transport.publish`."""
        return self._transport.publish(publication)

    def subscribe(self, channel: Channel, filter: str) -> None:
        """See `edge.transport.Transport.subscribe`."""
        self._transport.subscribe(channel, filter)
