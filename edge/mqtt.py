"""MQTT by paho, which is imported here and in `edge.dial` only.

What paho does not do by itself, and is done here: a new client object for every connection (an old one delivers
later what it refused before), callbacks that cannot raise (an exception there kills the network thread unseen),
a bound on what waits to be sent at QoS 0, one writer of the socket (paho's own is not safe for two), and a link that
was cut without a word found within four seconds.
"""

import contextlib
import logging
import math
import threading
import time
from collections import deque

import paho.mqtt.client as paho
from paho.mqtt.reasoncodes import ReasonCode

from edge.broker_list import BrokerList
from edge.dial import CONNECT_SECONDS, MAX_QUEUED_MESSAGES, ask, count_bytes, drop
from edge.errors import TransportError
from edge.formats.message import MAX_MESSAGE_BYTES
from edge.formats.packet import MAX_PACKET_BYTES
from edge.formats.topics import Topics, check_name
from edge.mqtt_url import BrokerAddress, parse_broker_urls
from edge.pulse import LOOK_SECONDS, Pulse
from edge.reconnect import back_off_seconds, network_reason
from edge.transport import (
    Channel,
    Connected,
    Disconnected,
    OnEvent,
    Publication,
    Received,
    Subscribed,
    TransportEvent,
    WillMaker,
)

_log = logging.getLogger(__name__)

MAX_QUEUED_BYTES = 64 * 1024 * 1024
_KEEPALIVE_SECONDS = {Channel.CONTROL: 10, Channel.DATA: 20}
_MAX_PACKET_BYTES = {Channel.CONTROL: MAX_MESSAGE_BYTES + 4096, Channel.DATA: MAX_PACKET_BYTES + 4096}
_CLOSE_SECONDS = {Channel.CONTROL: 0.5, Channel.DATA: 0.25}
_JOIN_SECONDS = 0.25


class MqttTransport:
    """A node's two connections to a broker; both are made again for ever, with back-off, until `close`."""

    def __init__(self, url: str, *, fleet: str, node: str, on_event: OnEvent, will: WillMaker | None = None) -> None:
        """Prepare; nothing connects before `start`.

        Args:
            url: `mqtt://[user:password@]host[:port]`, or `mqtts://` for TLS; several with commas between them, of
                which one is used at a time, by both connections (see `edge.broker_choice`).
            fleet: name of the fleet; part of the client id, as two fleets may share a broker.
            node: name of this node.
            on_event: called from the network threads.
            will: makes the last will of the control connection from its number.

        Raises:
            TransportError: the URL is not one.
            FormatError: fleet or node is no name.
        """
        addresses = parse_broker_urls(url)
        client_id = f"shardwire.{check_name(fleet, what='fleet name')}.{check_name(node, what='node name')}"
        topic = Topics(fleet=fleet).coordinator_heartbeat()
        self._brokers = BrokerList(addresses, client_id=client_id, topic=topic)
        self._links = {
            Channel.CONTROL: _Link(self._brokers, Channel.CONTROL, client_id, on_event, will),
            Channel.DATA: _Link(self._brokers, Channel.DATA, f"{client_id}.data", on_event, None),
        }

    def start(self) -> None:
        """Start both network threads."""
        for link in self._links.values():
            link.start()

    def wait_connected(self, timeout_seconds: float) -> None:
        """Wait until both connections have stood once.

        Raises:
            TransportError: they have not within the time-out, or the broker refuses this node.
        """
        deadline = time.monotonic() + timeout_seconds
        for link in self._links.values():
            if not link.wait_first(deadline - time.monotonic()):
                raise TransportError(link.failure())

    def connected(self, channel: Channel) -> bool:
        """Tell whether a connection stands now."""
        return self._links[channel].connected

    def publish(self, publication: Publication) -> bool:
        """See `Transport.publish`."""
        return self._links[publication.channel].publish(publication)

    def subscribe(self, channel: Channel, filter: str) -> None:
        """See `Transport.subscribe`."""
        self._links[channel].subscribe(filter)

    def unsubscribe(self, channel: Channel, filter: str) -> None:
        """See `Transport.unsubscribe`."""
        self._links[channel].unsubscribe(filter)

    def close(self) -> None:
        """See `Transport.close`."""
        for link in (self._links[Channel.DATA], self._links[Channel.CONTROL]):
            link.close()
        self._brokers.close()


class _Link:
    """One connection: its thread makes a client object, runs it until it dies, and makes the next."""

    def __init__(
        self,
        brokers: BrokerList,
        channel: Channel,
        client_id: str,
        on_event: OnEvent,
        will: WillMaker | None,
    ) -> None:
        self._brokers = brokers
        self._place = 0
        self._leads = channel is Channel.CONTROL
        self._channel = channel
        self._client_id = client_id
        self._on_event = on_event
        self._will = will
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._close_by = math.inf
        self._stood = threading.Event()
        self._lock = threading.Lock()
        self._client: paho.Client | None = None
        self._connects = 0
        self._reason = "no answer"
        self._refused = False
        self._told = False
        self._waiting: deque[tuple[paho.MQTTMessageInfo, int]] = deque()
        self._waiting_bytes = 0
        self._filters: dict[int, str] = {}

    @property
    def _address(self) -> BrokerAddress:
        return self._brokers.dialer(self._place).address

    @property
    def connected(self) -> bool:
        return self._client is not None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{self._channel.value}", daemon=True)
        self._thread.start()

    def wait_first(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        # Short turns: a refusal, which no waiting cures, ends the wait early.
        while not self._stood.wait(min(0.1, max(0.0, deadline - time.monotonic()))):
            if self._refused or time.monotonic() >= deadline:
                return False
        return True

    def failure(self) -> str:
        if self._refused:
            return f"broker {self._address.shown} refuses the connection: {self._reason}"
        start = f"mosquitto -p {self._address.port}"
        return f"no broker at {self._brokers.shown}: {self._reason}; start one ({start}) or give --broker"

    # ------------------------------------------------------------------------------------------- any thread
    def publish(self, publication: Publication) -> bool:
        with self._lock:
            client = self._client
            if client is None:
                return False
            self._forget_sent()
            size = len(publication.payload)
            if len(self._waiting) >= MAX_QUEUED_MESSAGES or self._waiting_bytes + size > MAX_QUEUED_BYTES:
                return False
            result = client.publish(publication.topic, publication.payload, publication.qos, publication.retain)
            if result.rc != paho.MQTT_ERR_SUCCESS:
                return False
            self._waiting.append((result, size))
            self._waiting_bytes += size
            return True

    def _forget_sent(self) -> None:
        while self._waiting and self._waiting[0][0].is_published():
            self._waiting_bytes -= self._waiting.popleft()[1]

    def subscribe(self, filter: str) -> None:
        # The lock is held until the message id is noted: the answer may come before.
        with self._lock:
            if self._client is not None:
                qos = 1 if self._channel is Channel.CONTROL else 0
                result, message_id = self._client.subscribe(filter, qos)
                if result == paho.MQTT_ERR_SUCCESS and message_id is not None:
                    self._filters[message_id] = filter

    def unsubscribe(self, filter: str) -> None:
        with self._lock:
            if self._client is not None:
                self._client.unsubscribe(filter)

    def close(self) -> None:
        self._close_by = time.monotonic() + _CLOSE_SECONDS[self._channel] + _JOIN_SECONDS
        self._closing.set()
        with self._lock:
            client = self._client
        if client is not None:
            self._say_goodbye(client)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    def _say_goodbye(self, client: paho.Client) -> None:
        deadline = time.monotonic() + _CLOSE_SECONDS[self._channel]
        if self._will is not None:
            will = self._will(self._connects)
            self.publish(will)
        with contextlib.suppress(ValueError, RuntimeError):
            for result, _ in tuple(self._waiting):
                result.wait_for_publish(max(0.0, deadline - time.monotonic()))
        client.disconnect()

    # ------------------------------------------------------------------------------------------- own thread
    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            stood = False
            self._place = self._brokers.current
            try:
                stood = self._connect_and_serve()
            except (OSError, ValueError) as error:
                self._note_failure(network_reason(error, timeout_seconds=CONNECT_SECONDS))
            if self._place == self._brokers.current:
                if self._leads:
                    self._brokers.failed()
                failures = 0 if stood else failures + 1
                self._closing.wait(back_off_seconds(failures // 2 if self._brokers.many else failures))

    def _connect_and_serve(self) -> bool:
        """Make one connection and serve it until it ends; tell whether it stood."""
        dialer = self._brokers.dialer(self._place)
        client = dialer.client(self._client_id)
        if self._will is not None:
            will = self._will(self._connects + 1)
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        code = dialer.connect(
            client,
            keepalive_seconds=_KEEPALIVE_SECONDS[self._channel],
            max_packet_bytes=_MAX_PACKET_BYTES[self._channel],
        )
        if code is None or code.is_failure:
            self._refused = code is not None
            self._note_failure("no answer to CONNECT" if code is None else str(code).lower())
            drop(client)
            return False
        self._serve(client)
        return True

    def _overdue(self) -> bool:
        """Tell whether a broker that takes nothing more has kept us from closing for too long."""
        return self._closing.is_set() and time.monotonic() > self._close_by

    def _serve(self, client: paho.Client) -> None:
        with self._lock:
            self._client = client
            self._connects += 1
            self._waiting.clear()
            self._waiting_bytes = 0
            self._filters.clear()
        if self._told:
            _log.info("connected to %s again (%s)", self._address.shown, self._channel.value)
        self._told = self._refused = False
        if self._leads:
            self._brokers.connected()
            if self._brokers.many:
                client.subscribe(self._brokers.topic, 0)
        self._emit(Connected(channel=self._channel, connect=self._connects))
        self._stood.set()
        reason = self._loop(client)
        with self._lock:
            self._client = None
        drop(client)
        if self._closing.is_set():
            reason = "closed"
        else:
            self._note_failure(reason)
        self._emit(Disconnected(channel=self._channel, reason=reason))

    def _loop(self, client: paho.Client) -> str:
        """Serve a connection; return why it ended."""
        pulse = Pulse(time.monotonic())
        look_at = 0.0
        while not self._overdue():
            result = client.loop(LOOK_SECONDS)
            if result != paho.MQTT_ERR_SUCCESS:
                return paho.error_string(result).rstrip(".").lower()
            now = time.monotonic()
            if now < look_at:
                continue
            look_at = now + LOOK_SECONDS
            if self._place != self._brokers.current:
                return "another broker is to be used"
            counted = count_bytes(client)
            if counted is not None:
                verdict = pulse.look(
                    now, received=counted.received, taken=counted.taken, waiting=bool(client.want_write())
                )
                if verdict is False:
                    return "no sign of life from the broker"
                if verdict:
                    ask(client)
            if self._leads:
                self._brokers.look_around()
        return "closed"

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if len(message.payload) > _MAX_PACKET_BYTES[self._channel]:
            _log.warning("message of %d bytes dropped: more than allowed", len(message.payload))
            return
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        if self._leads and self._brokers.many and topic == self._brokers.topic:
            self._brokers.heard(bytes(message.payload))
            return
        self._emit(
            Received(channel=self._channel, topic=topic, payload=bytes(message.payload), retained=bool(message.retain))
        )

    def _on_subscribe(
        self, _client: paho.Client, _data: object, message_id: int, codes: list[ReasonCode], _properties: object
    ) -> None:
        with self._lock:
            filter = self._filters.pop(message_id, None)
        if filter is None:
            return
        if any(code.is_failure for code in codes):
            _log.warning("broker %s refuses the subscription to %s", self._address.shown, filter)
            return
        self._emit(Subscribed(channel=self._channel, filter=filter))

    def _emit(self, event: TransportEvent) -> None:
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001 - whatever it is, the network thread goes on
            _log.exception("event dropped")

    def _note_failure(self, reason: str) -> None:
        self._reason = reason
        if not self._told and not self._closing.is_set():
            self._told = True
            # One line tells that the broker is gone; the other connection only says so when it is cut alone.
            level = logging.WARNING if self._channel is Channel.CONTROL else logging.INFO
            _log.log(level, "broker %s (%s): %s; trying again", self._address.shown, self._channel.value, reason)
