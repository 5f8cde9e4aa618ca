"""A broker and its connections in memory, with time: messages queue on links, wait, get lost, come twice, or late.

QoS 0 may be lost, duplicated and reordered; QoS 1 reaches every connection that stands. A node whose power or link is
gone stays connected in the broker's eyes until its keep-alive is over: then its last will is published.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from edge.transport import (
    Channel,
    Connected,
    Disconnected,
    OnEvent,
    Publication,
    Received,
    Subscribed,
    WillMaker,
)
from host.planning.costs import LinkCost
from host.simulate.clock import Clock
from host.simulate.topic_tree import FilterTree, RetainedTree
from host.simulate.wire import NodeLinks, Wire, head_bytes

KEEP_ALIVE_SECONDS = {Channel.CONTROL: 10.0, Channel.DATA: 20.0}
"""As `edge.mqtt` asks for; a broker waits half as long again."""

_PATIENCE = 1.5
_SIGNAL_BYTES = 64
_INDEX = {Channel.CONTROL: 0, Channel.DATA: 1}

WireSize = Callable[[str, bytes], tuple[int, float]]
"""From topic and payload to the bytes on the wire, and to the part of a frame of tensors that it is (0 for none)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weather:
    """What befalls messages of QoS 0 on their way from the broker to a subscriber.

    Attributes:
        loss: part of the packets of 128 KiB that do not arrive; a message of several is lost with one of them.
        duplication: part of the messages that come twice.
        reordering: part of the messages that come late, behind others.
        late_seconds: by how much at most.
    """

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    late_seconds: float = 0.05

    @property
    def fair(self) -> bool:
        """Whether nothing befalls them."""
        return not (self.loss or self.duplication or self.reordering)


class _Connection:
    """One connection, as the broker and its node see it."""

    __slots__ = ("channel", "filters", "known", "node", "number", "standing")

    def __init__(self, node: SimulatedTransport, channel: Channel, number: int) -> None:
        self.node = node
        self.channel = channel
        self.number = number
        self.standing = True  # the node can use it
        self.known = True  # the broker has not given it up
        self.filters: set[str] = set()


class SimulatedBroker:
    """Routes messages between the nodes of a simulated fleet."""

    def __init__(self, clock: Clock, wire: Wire, *, weather: Weather, wire_size: WireSize, seed: int) -> None:
        """Start with nobody connected.

        Args:
            clock: of the simulation.
            wire: links and what is shared.
            weather: what befalls messages of QoS 0.
            wire_size: says how large publications are on the wire.
            seed: of the weather.
        """
        self.clock = clock
        self.links: dict[str, NodeLinks] = {}
        self.lost = 0
        self.delivered = 0
        self._wire = wire
        self._weather = weather
        self.wire_size = wire_size
        self._random = random.Random(seed)  # noqa: S311 - a simulation must be repeatable
        self._filters: FilterTree[_Connection] = FilterTree()
        self._retained = RetainedTree()

    def join(self, name: str, link: LinkCost) -> NodeLinks:
        """Add a node, or find the link of one that comes back."""
        return self.links.setdefault(name, NodeLinks(link))

    def latency(self, name: str) -> float:
        """Return the one-way latency of a node's link."""
        return self.links[name].cost.latency_seconds

    # --------------------------------------------------------------------------------------------------- to the broker
    def take(self, name: str, publication: Publication) -> None:
        """Carry a message from a node to the broker."""
        size, frames = self.wire_size(publication.topic, publication.payload)
        now = self.clock.now
        receiver = publication.topic.split("/", 4)[3] if frames else ""
        if frames and (pair := self._wire.pair(name, receiver)) is not None:
            cost, lane = pair
            _, end = lane.carry(size, now)
            arrive = end + cost.latency_seconds
            direct = partial(self._route_direct, name, receiver, publication, size, cost.bytes_per_second)
            self.clock.at(arrive, direct)
            return
        links = self.links[name]
        start, end = links.up[_INDEX[publication.channel]].carry(size, now)
        latency = links.cost.latency_seconds
        first = start + head_bytes(size) / links.cost.up_bytes_per_second + latency
        if frames:
            self.clock.at(first, partial(self._route_tensors, name, receiver, publication, size, end + latency))
        else:
            self.clock.at(first, partial(self.route, publication, size, end + latency))

    def _size(self, publication: Publication) -> int:
        return self.wire_size(publication.topic, publication.payload)[0]

    def signal(self, name: str, channel: Channel, action: Callable[[], None]) -> None:
        """Carry a small packet of the protocol itself (such as SUBSCRIBE) to the broker, in order with the others."""
        links = self.links[name]
        _, end = links.up[_INDEX[channel]].carry(_SIGNAL_BYTES, self.clock.now)
        self.clock.at(end + links.cost.latency_seconds, action)

    # ------------------------------------------------------------------------------------------------- in the broker
    def subscribe(self, connection: _Connection, filter: str) -> None:
        """Take a subscription: acknowledge it, and send what is retained."""
        if not connection.known:
            return
        connection.filters.add(filter)
        self._filters.add(filter, connection)
        acknowledged = Subscribed(channel=connection.channel, filter=filter)
        self._pass_on(
            connection, _SIGNAL_BYTES, self.clock.now, partial(connection.node.tell, connection, acknowledged)
        )
        for topic, payload in self._retained.matching(filter):
            publication = Publication(channel=connection.channel, topic=topic, payload=payload, qos=1)
            size = self._size(publication)
            self._deliver(connection, publication, size, self.clock.now, retained=True)

    def unsubscribe(self, connection: _Connection, filter: str) -> None:
        """Give a subscription back."""
        connection.filters.discard(filter)
        self._filters.remove(filter, connection)

    def give_up(self, connection: _Connection, *, will: bool) -> None:
        """End a connection, and publish its last will unless its node said goodbye."""
        if not connection.known:
            return
        connection.known = False
        for filter in sorted(connection.filters):
            self._filters.remove(filter, connection)
        last = connection.node.will_of(connection) if will else None
        if last is not None:
            self.route(last, self._size(last), self.clock.now)

    def expect(self, connection: _Connection) -> None:
        """Give a connection up when its keep-alive is over."""
        seconds = KEEP_ALIVE_SECONDS[connection.channel] * _PATIENCE
        self.clock.after(seconds, partial(self.give_up, connection, will=True))

    def retain(self, publication: Publication) -> None:
        """Have a retained message from the beginning."""
        self._retained.keep(publication.topic, publication.payload)

    def route(self, publication: Publication, size_bytes: int, last_at: float) -> None:
        """Deliver to every subscriber.

        Args:
            publication: whose first packet is here.
            size_bytes: on the wire.
            last_at: when its last packet is here.
        """
        if publication.retain:
            self._retained.keep(publication.topic, publication.payload)
        for connection in self._filters.find(publication.topic):
            self._deliver(connection, publication, size_bytes, last_at)

    def _route_tensors(self, sender: str, receiver: str, publication: Publication, size: int, last_at: float) -> None:
        up, down = self.links[sender].cost, self.links.get(receiver, self.links[sender]).cost
        rates = (up.up_bytes_per_second, down.down_bytes_per_second)
        held = self._wire.hold(sender, receiver, size, self.clock.now, links=rates)
        if held > 0:
            self.clock.after(held, partial(self.route, publication, size, last_at + held))
        else:
            self.route(publication, size, last_at)

    def _route_direct(self, sender: str, receiver: str, publication: Publication, size: int, rate: float) -> None:
        held = self._wire.hold(sender, receiver, size, self.clock.now, links=(rate,))
        for connection in self._filters.find(publication.topic):
            received = partial(self._arrive, connection, publication, retained=False)
            for late in self._fate(publication, size):
                self.clock.after(held + late, received)

    # ------------------------------------------------------------------------------------------------ to a subscriber
    def _deliver(
        self, connection: _Connection, publication: Publication, size: int, last_at: float, *, retained: bool = False
    ) -> None:
        received = partial(self._arrive, connection, publication, retained=retained)
        if publication.qos or self._weather.fair:
            self._pass_on(connection, size, last_at, received)
            return
        for late in self._fate(publication, size):
            self._pass_on(connection, size, last_at, received, late=late)

    def _fate(self, publication: Publication, size: int) -> list[float]:
        """Return for each copy that arrives by how much it is late."""
        weather, draw = self._weather, self._random.random
        if publication.qos or weather.fair:
            return [0.0]
        packets = -(-size // head_bytes(max(1, size)))
        if weather.loss and draw() >= (1.0 - weather.loss) ** packets:
            self.lost += 1
            return []
        copies = 2 if weather.duplication and draw() < weather.duplication else 1
        return [
            draw() * weather.late_seconds if copy or (weather.reordering and draw() < weather.reordering) else 0.0
            for copy in range(copies)
        ]

    def _pass_on(
        self, connection: _Connection, size: int, last_at: float, then: Callable[[], None], *, late: float = 0.0
    ) -> None:
        """Carry a message over a downlink; its last packet leaves no sooner than it came to the broker."""
        links = self.links[connection.node.name]
        tail = (size - head_bytes(size)) / links.cost.down_bytes_per_second
        ready = last_at - tail
        if ready > self.clock.now:
            self.clock.at(ready, partial(self._occupy, connection, size, then, late))
        else:
            self._occupy(connection, size, then, late)

    def _occupy(self, connection: _Connection, size: int, then: Callable[[], None], late: float) -> None:
        links = self.links[connection.node.name]
        _, end = links.down[_INDEX[connection.channel]].carry(size, self.clock.now)
        self.clock.at(end + links.cost.latency_seconds + late, then)

    def _arrive(self, connection: _Connection, publication: Publication, *, retained: bool) -> None:
        self.delivered += 1
        event = Received(
            channel=connection.channel, topic=publication.topic, payload=publication.payload, retained=retained
        )
        connection.node.tell(connection, event)


class SimulatedTransport:
    """The twin of `edge.mqtt.MqttTransport`: a `Transport` whose events come in virtual time."""

    def __init__(
        self, broker: SimulatedBroker, name: str, link: LinkCost, *, on_event: OnEvent, will: WillMaker | None = None
    ) -> None:
        self.name = name
        self._broker = broker
        self._on_event = on_event
        self._will = will
        self._connections: dict[Channel, _Connection] = {}
        self._numbers = dict.fromkeys(Channel, 0)
        broker.join(name, link)

    def connect(self) -> None:
        """Ask for both connections; they stand after a round trip."""
        for channel in Channel:
            self._broker.signal(self.name, channel, partial(self._accepted, channel))

    def _accepted(self, channel: Channel) -> None:
        before = self._connections.get(channel)
        if before is not None:
            before.standing = False
            self._broker.give_up(before, will=True)
        self._numbers[channel] += 1
        connection = self._connections[channel] = _Connection(self, channel, self._numbers[channel])
        event = Connected(channel=channel, connect=connection.number)
        self._broker.clock.after(self._broker.latency(self.name), partial(self.tell, connection, event))

    def lose(self, *, reason: str) -> None:
        """Lose both connections by no word to the broker: power or link is gone."""
        for connection in self._connections.values():
            if connection.standing:
                connection.standing = False
                self._broker.expect(connection)
                self._on_event(Disconnected(channel=connection.channel, reason=reason))

    def tell(self, connection: _Connection, event: Connected | Received | Subscribed) -> None:
        """Hand over an event of a connection, if that still stands."""
        if connection.standing:
            self._on_event(event)

    def will_of(self, connection: _Connection) -> Publication | None:
        """Return the last will of a connection."""
        return self._will(connection.number) if self._will and connection.channel is Channel.CONTROL else None

    def publish(self, publication: Publication) -> bool:
        """See `Transport.publish`."""
        connection = self._connections.get(publication.channel)
        if connection is None or not connection.standing:
            return False
        self._broker.take(self.name, publication)
        return True

    def subscribe(self, channel: Channel, filter: str) -> None:
        """See `Transport.subscribe`."""
        connection = self._connections.get(channel)
        if connection is not None and connection.standing:
            self._broker.signal(self.name, channel, partial(self._broker.subscribe, connection, filter))

    def unsubscribe(self, channel: Channel, filter: str) -> None:
        """See `Transport.unsubscribe`."""
        connection = self._connections.get(channel)
        if connection is not None and connection.standing:
            self._broker.signal(self.name, channel, partial(self._broker.unsubscribe, connection, filter))

    def close(self) -> None:
        """See `Transport.close`."""
        for connection in self._connections.values():
            if connection.standing:
                connection.standing = False
                self._broker.give_up(connection, will=True)
