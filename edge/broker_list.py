"""The brokers of a node, shared by its connections: which is used now, and a look at the others now and then."""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from edge.broker_choice import BrokerChoice
from edge.dial import CONNECT_SECONDS, CONNECT_SECONDS_OF_MANY, Dialect, Dialer, drop
from edge.errors import ShardwireError
from edge.formats.message import MAX_MESSAGE_BYTES, Heartbeat, decode_message
from edge.mqtt_url import BrokerAddress

_log = logging.getLogger(__name__)

_LISTEN_SECONDS = 2.5
_SPREAD_SECONDS = 2.0
_SCOUT_PACKET_BYTES = MAX_MESSAGE_BYTES


class BrokerList:
    """Thread-safe; closed by its owner."""

    def __init__(self, addresses: Sequence[BrokerAddress], *, client_id: str, topic: str) -> None:
        """Begin with the first.

        Args:
            addresses: in order of preference.
            client_id: of the control connection; the scout's is made from it.
            topic: of the coordinator's heartbeat.
        """
        self.topic = topic
        self._client_id = client_id
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._choice = BrokerChoice(len(addresses), now=time.monotonic())
        self._patience_seconds = CONNECT_SECONDS if len(addresses) == 1 else CONNECT_SECONDS_OF_MANY
        self._dialers = [
            Dialer(
                address=address,
                dialect=Dialect(),
                patience_seconds=self._patience_seconds,
                stopped=self._closing.is_set,
            )
            for address in addresses
        ]
        self._scout: threading.Thread | None = None

    @property
    def many(self) -> bool:
        """Whether there is a choice."""
        return len(self._dialers) > 1

    @property
    def shown(self) -> str:
        """All addresses, for messages."""
        return " or ".join(dialer.address.shown for dialer in self._dialers)

    @property
    def current(self) -> int:
        """Place of the broker to use now."""
        with self._lock:
            return self._choice.current

    def dialer(self, place: int) -> Dialer:
        """Return how to reach a broker."""
        return self._dialers[place]

    def connected(self) -> None:
        """Take that the control connection stands."""
        self._tell(self._choice.connected)

    def failed(self) -> None:
        """Take that the control connection was lost or not made."""
        self._tell(self._choice.failed)

    def heard(self, payload: bytes) -> None:
        """Take what was published as the coordinator's heartbeat at the broker that is used."""
        named = _named(payload)
        if named is not None:
            self._tell(lambda now: self._choice.heard(named, now))

    def look_around(self) -> None:
        """Look at the other brokers when it is time to, in a thread of its own."""
        with self._lock:
            places = self._choice.places_to_look(time.monotonic())
            if not places or (self._scout is not None and self._scout.is_alive()):
                return
            self._scout = threading.Thread(target=self._look, args=(places,), name="mqtt-scout", daemon=True)
        self._scout.start()

    def close(self) -> None:
        """Stop looking, and every attempt to connect."""
        self._closing.set()

    def _tell(self, tell: Callable[[float], None]) -> None:
        with self._lock:
            before = self._choice.current
            tell(time.monotonic())
            after = self._choice.current
        if before != after:
            _log.warning("goes to broker %s", self._dialers[after].address.shown)

    def _look(self, places: Sequence[int]) -> None:
        # Not all nodes of a fleet at once.
        self._closing.wait(random.random() * _SPREAD_SECONDS)  # noqa: S311 - no secret
        for place in places:
            named = None if self._closing.is_set() else self._listen(self._dialers[place])
            if named is not None:
                self._tell(lambda now, named=named: self._choice.found(named, now))  # type: ignore[misc]  # bound now
                return

    def _listen(self, dialer: Dialer) -> int | None:
        """Return which broker a coordinator names at this one, None when none is heard."""
        found: list[int] = []

        def take(_client: object, _data: object, message: object) -> None:
            named = _named(bytes(getattr(message, "payload", b"")))
            if named is not None:
                found.append(named)

        try:
            client = dialer.client(f"{self._client_id}.scout")
            client.on_message = take
            code = dialer.connect(client, keepalive_seconds=10, max_packet_bytes=_SCOUT_PACKET_BYTES)
            if code is None or code.is_failure:
                drop(client)
                return None
            client.subscribe(self.topic, 0)
            deadline = time.monotonic() + _LISTEN_SECONDS
            while not found and not self._closing.is_set() and time.monotonic() < deadline:
                if client.loop(0.1):
                    break
            client.disconnect()
            client.loop(0.0)
        except (OSError, ValueError):
            return None
        return found[0] if found else None


def _named(payload: bytes) -> int | None:
    """Return the place that a coordinator's heartbeat names, None when it is none."""
    try:
        beat = decode_message(payload, Heartbeat)
    except ShardwireError:
        return None
    return beat.broker if beat.broker >= 0 else None
