"""A coordinator at a list of brokers: connected to all, it names the one that its fleet uses, and works there."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import msgspec

from edge.errors import ShardwireError, TransportError
from edge.formats.message import Heartbeat, decode_message, encode_message
from edge.mqtt import MqttTransport
from edge.transport import (
    Channel,
    Connected,
    Disconnected,
    Publication,
    Received,
    TransportEvent,
    WillMaker,
)
from host.fleet.identity import Caller, heartbeat
from host.fleet.link import FleetLink

CONNECT_SECONDS = 3.0
BEAT_SECONDS = 1.0
GONE_SECONDS = 1.0
"""For which a broker may be gone before another is named."""

FOLLOW_SECONDS = 3.0
"""For which the broker that another coordinator named counts."""

_QUEUED_EVENTS = 10_000


class ActiveBroker:
    """Decides which broker of a list a fleet uses: the first that stands, for as long as it stands. No IO, no clock."""

    def __init__(self, count: int, *, now: float) -> None:
        """Begin with the first of `count` brokers; `now` in monotonic seconds."""
        self._gone_since: list[float | None] = [now] * count
        self._named: tuple[int, float] | None = None
        self.place = 0

    def stands(self, place: int) -> None:
        """Take that both connections to a broker stand."""
        self._gone_since[place] = None

    def gone(self, place: int, now: float) -> None:
        """Take that a connection to a broker was lost."""
        if self._gone_since[place] is None:
            self._gone_since[place] = now

    def named(self, place: int, now: float) -> None:
        """Take which broker another coordinator, the one that holds the lease, names."""
        if 0 <= place < len(self._gone_since):
            self._named = (place, now)

    def choose(self, now: float, *, leads: bool) -> int:
        """Return the place of the broker to use now.

        Args:
            now: monotonic seconds.
            leads: whether this coordinator holds the lease, so that nobody else's word counts.
        """
        if not leads and self._named is not None and now - self._named[1] < FOLLOW_SECONDS:
            wanted = self._named[0]
            if self._gone_since[wanted] is None:
                self.place = wanted
                return self.place
        since = self._gone_since[self.place]
        if since is not None and now - since >= GONE_SECONDS:
            standing = [place for place, gone in enumerate(self._gone_since) if gone is None]
            self.place = standing[0] if standing else self.place
        return self.place


class ManyBrokersLink:
    """In the place of `FleetLink` for a list of brokers: one transport each, and the events of the active one."""

    def __init__(
        self,
        urls: str,
        caller: Caller,
        *,
        will: WillMaker,
        leads: Callable[[], bool],
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        """Prepare; the `with` block connects.

        Args:
            urls: addresses with commas between them.
            caller: who we are.
            will: last will of a control connection from its number.
            leads: tells whether this coordinator holds the lease.
            connect_seconds: how long the first connection to any of them may take.

        Raises:
            TransportError: one is no address.
        """
        self.caller = caller
        self._leads = leads
        self._connect_seconds = connect_seconds
        self._events: queue.Queue[tuple[int, int, TransportEvent]] = queue.Queue(maxsize=_QUEUED_EVENTS)
        # All connections count together: whoever saw a session of one broker must find that of the next one newer.
        self._numbers = itertools.count(1)
        self._highest = 0
        self._wills: dict[tuple[int, int], int] = {}
        self._make_will = will
        self._urls = [url.strip() for url in urls.split(",")]
        self._lives = [0] * len(self._urls)
        self._transports = [self._open(place) for place in range(len(self._urls))]
        self._up: list[dict[Channel, int]] = [{} for _ in self._urls]
        self._active = ActiveBroker(len(self._urls), now=time.monotonic())
        self._place = 0
        self._told: list[TransportEvent] = []
        self._beat_at = 0.0
        self._topic = caller.topics.coordinator_heartbeat()

    def _open(self, place: int) -> MqttTransport:
        self._lives[place] += 1
        life = self._lives[place]
        self._wills = {key: number for key, number in self._wills.items() if key[0] != place}

        def will(connect: int) -> Publication:
            # Asked again at the end for the connection that stands: the same number.
            if (place, connect) not in self._wills:
                self._wills = {key: number for key, number in self._wills.items() if key[0] != place}
                self._wills[place, connect] = next(self._numbers)
            return self._make_will(self._wills[place, connect])

        return MqttTransport(
            self._urls[place],
            fleet=self.caller.topics.fleet,
            node=self.caller.node,
            on_event=lambda event: self._events.put_nowait((place, life, event)),
            will=will,
        )

    @property
    def place(self) -> int:
        """Place of the broker that is used now."""
        return self._place

    def __enter__(self) -> Self:
        """Connect to all; one that answers is enough.

        Raises:
            TransportError: none does within the time.
        """
        for transport in self._transports:
            transport.start()
        try:
            self._await_any(time.monotonic() + self._connect_seconds)
        except BaseException:
            self._close()
            raise
        return self

    def _await_any(self, deadline: float) -> None:
        faults: Sequence[str] = ()
        while time.monotonic() < deadline:
            faults = []
            for transport in self._transports:
                try:
                    transport.wait_connected(min(0.2, max(0.0, deadline - time.monotonic())))
                except TransportError as error:
                    faults.append(str(error))
                else:
                    return
        raise TransportError("; ".join(dict.fromkeys(faults)) or "no broker answered in time")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Sign off everywhere and disconnect."""
        self._close()

    def _close(self) -> None:
        for transport in self._transports:
            transport.close()

    def take(self, timeout_seconds: float) -> TransportEvent | None:
        """Return the next event of the active broker, or None when there is none within the time."""
        deadline = time.monotonic() + max(0.0, timeout_seconds)
        while True:
            now = time.monotonic()
            self._tick(now)
            if self._told:
                return self._told.pop(0)
            try:
                place, life, event = self._events.get(timeout=max(0.0, min(deadline - now, BEAT_SECONDS / 4)))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    return None
                continue
            if life == self._lives[place]:
                self._sort(place, event, time.monotonic())

    def publish(self, publication: Publication) -> bool:
        """See `edge.transport.Transport.publish`; at the active broker."""
        return self._transports[self._place].publish(publication)

    def subscribe(self, channel: Channel, filter: str) -> None:
        """See `edge.transport.Transport.subscribe`; at the active broker."""
        self._transports[self._place].subscribe(channel, filter)

    def unsubscribe(self, channel: Channel, filter: str) -> None:
        """See `edge.transport.Transport.unsubscribe`; at the active broker."""
        self._transports[self._place].unsubscribe(channel, filter)

    def _sort(self, place: int, event: TransportEvent, now: float) -> None:
        up = self._up[place]
        match event:
            case Connected(channel=channel, connect=connect):
                up[channel] = self._wills.get((place, connect), connect)
                event = Connected(channel=channel, connect=up[channel])
                if channel is Channel.CONTROL:
                    self._transports[place].subscribe(Channel.CONTROL, self._topic)
                if len(up) == len(Channel):
                    self._active.stands(place)
            case Disconnected(channel=channel):
                up.pop(channel, None)
                self._active.gone(place, now)
            case Received(topic=self._topic, payload=payload):
                self._hear(payload, now)
                return
            case _:
                pass
        if place == self._place:
            if isinstance(event, Connected) and event.channel is Channel.CONTROL:
                self._highest = max(self._highest, event.connect)
            self._told.append(event)

    def _hear(self, payload: bytes, now: float) -> None:
        try:
            beat = decode_message(payload, Heartbeat)
        except ShardwireError:
            return
        if beat.node != self.caller.node:
            self._active.named(beat.broker, now)

    def _tick(self, now: float) -> None:
        leads = self._leads()
        place = self._active.choose(now, leads=leads)
        if place != self._place:
            self._go(place)
        if leads and now >= self._beat_at:
            self._beat_at = now + BEAT_SECONDS
            self._name(place)

    def _go(self, place: int) -> None:
        """Tell the protocol that its connections were lost and stand again, as if there were one broker."""
        for channel in self._up[self._place]:
            self._told.append(Disconnected(channel=channel, reason="another broker is used"))
        self._place = place
        if self._up[place].get(Channel.CONTROL, self._highest) < self._highest:
            # Who comes from the last broker would take this session for an old one: make a newer one.
            self._transports[place].close()
            self._up[place].clear()
            self._transports[place] = self._open(place)
            self._transports[place].start()
        self._told += [Connected(channel=channel, connect=number) for channel, number in self._up[place].items()]

    def _name(self, place: int) -> None:
        beat = decode_message(heartbeat(self.caller, data_up=True).payload, Heartbeat)
        payload = encode_message(msgspec.structs.replace(beat, broker=place))
        for transport in self._transports:
            transport.publish(Publication(channel=Channel.CONTROL, topic=self._topic, payload=payload))


def coordinator_link(
    urls: str, caller: Caller, *, will: WillMaker, leads: Callable[[], bool], connect_seconds: float
) -> FleetLink | ManyBrokersLink:
    """Return the link of a coordinator that stays, to one broker or to a list; see `ManyBrokersLink`.

    Raises:
        TransportError: one is no address.
    """
    if "," not in urls:
        return FleetLink(urls, caller, will=will, connect_seconds=connect_seconds)
    return ManyBrokersLink(urls, caller, will=will, leads=leads, connect_seconds=connect_seconds)
