"""Transport: publish, subscribe, and events in a bounded queue; with an in-memory twin."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class Channel(Enum):
    """The two connections of a node."""

    CONTROL = "control"
    DATA = "data"


@dataclass(frozen=True, kw_only=True, slots=True)
class Connected:
    """A connection stands; subscriptions must be made anew (all sessions are clean).

    Attributes:
        connect: how many connections this transport has made on the channel, this one included.
    """

    channel: Channel
    connect: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Disconnected:
    """A connection is gone; the transport tries again by itself."""

    channel: Channel
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Subscribed:
    """The broker acknowledged a subscription."""

    channel: Channel
    filter: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """A message arrived on a topic."""

    channel: Channel
    topic: str
    payload: bytes
    retained: bool = False


TransportEvent = Connected | Disconnected | Subscribed | Received
OnEvent = Callable[[TransportEvent], None]
"""Called from the network thread; must only put into a queue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """One message to publish.

    Attributes:
        qos: 0 or 1.
    """

    channel: Channel
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


class Transport(Protocol):
    """Carries messages between nodes. Thread-safe; never blocks on the network."""

    def publish(self, publication: Publication) -> bool:
        """Hand a message to the connection; False when it is down or its queue is full (nothing is kept)."""

    def subscribe(self, channel: Channel, filter: str) -> None:
        """Ask for a topic filter on a standing connection; `Subscribed` follows."""

    def unsubscribe(self, channel: Channel, filter: str) -> None:
        """Give a topic filter back."""

    def close(self) -> None:
        """Close both connections, with the last will published as `offline`; idempotent."""


WillMaker = Callable[[int], Publication]
"""Makes the last will of the control connection from its number, see `Connected.connect`."""


def topic_matches(filter: str, topic: str) -> bool:
    """Tell whether an MQTT topic filter with `+` and `#` covers a topic."""
    wanted, levels = filter.split("/"), topic.split("/")
    for index, part in enumerate(wanted):
        if part == "#":
            return True
        if index >= len(levels) or part not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)


@dataclass(slots=True)
class MemoryBroker:
    """An MQTT broker in this process: routes at once, keeps retained messages, publishes last wills.

    Not thread-safe; meant for one thread with a virtual clock.
    """

    retained: dict[str, bytes] = field(default_factory=dict)
    _clients: list["MemoryTransport"] = field(default_factory=list)

    def join(self, client: "MemoryTransport") -> None:
        """Add a client."""
        self._clients.append(client)

    def leave(self, client: "MemoryTransport") -> None:
        """Remove a client."""
        self._clients.remove(client)

    def route(self, publication: Publication) -> None:
        """Deliver a message to every subscriber, and keep it when it is retained."""
        if publication.retain:
            self.retained.pop(publication.topic, None)
            if publication.payload:
                self.retained[publication.topic] = publication.payload
        for client in tuple(self._clients):
            client.deliver(publication)


class MemoryTransport:
    """The twin of `edge.mqtt.MqttTransport` on a `MemoryBroker`; `connect` and `cut` play the network."""

    def __init__(self, broker: MemoryBroker, *, on_event: OnEvent, will: WillMaker | None = None) -> None:
        self._broker = broker
        self._on_event = on_event
        self._will = will
        self._filters: dict[Channel, set[str]] = {}
        self._connects = dict.fromkeys(Channel, 0)
        broker.join(self)

    def connect(self, channel: Channel) -> None:
        """Let a connection stand."""
        self._filters[channel] = set()
        self._connects[channel] += 1
        self._on_event(Connected(channel=channel, connect=self._connects[channel]))

    def cut(self, channel: Channel, *, reason: str = "cut") -> None:
        """Break a connection; the broker publishes the last will of the control connection."""
        if self._filters.pop(channel, None) is None:
            return
        if channel is Channel.CONTROL and self._will is not None:
            self._broker.route(self._will(self._connects[channel]))
        self._on_event(Disconnected(channel=channel, reason=reason))

    def deliver(self, publication: Publication, *, retained: bool = False) -> None:
        """Take a message that the broker routes, once a connection that subscribed to its topic."""
        for channel, filters in self._filters.items():
            if any(topic_matches(filter, publication.topic) for filter in filters):
                self._on_event(
                    Received(channel=channel, topic=publication.topic, payload=publication.payload, retained=retained)
                )

    def publish(self, publication: Publication) -> bool:
        """See `Transport.publish`."""
        if publication.channel not in self._filters:
            return False
        self._broker.route(publication)
        return True

    def subscribe(self, channel: Channel, filter: str) -> None:
        """See `Transport.subscribe`."""
        if channel not in self._filters:
            return
        self._filters[channel].add(filter)
        self._on_event(Subscribed(channel=channel, filter=filter))
        for topic, payload in tuple(self._broker.retained.items()):
            if topic_matches(filter, topic):
                self._on_event(Received(channel=channel, topic=topic, payload=payload, retained=True))

    def unsubscribe(self, channel: Channel, filter: str) -> None:
        """See `Transport.unsubscribe`."""
        self._filters.get(channel, set()).discard(filter)

    def close(self) -> None:
        """See `Transport.close`."""
        if Channel.CONTROL in self._filters and self._will is not None:
            self._broker.route(self._will(self._connects[Channel.CONTROL]))
        if self._filters:
            self._filters.clear()
            self._broker.leave(self)
