"""Making one connection to a broker, by paho: a client object, its version of MQTT, CONNECT and what comes back."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge.mqtt_url import BrokerAddress

MAX_QUEUED_MESSAGES = 4096
CONNECT_SECONDS = 5.0
CONNECT_SECONDS_OF_MANY = 3.0
"""How long one broker of several may take to answer."""

_UNSUPPORTED_PROTOCOL = ("Unsupported protocol version", "Unspecified error", "Malformed packet", "Protocol error")
_TURN_SECONDS = 0.1
# struct tcp_info of Linux up to tcpi_bytes_acked and tcpi_bytes_received.
_TCP_INFO = struct.Struct("@120xQQ")

Stopped = Callable[[], bool]


class Dialect:
    """The version of MQTT that a broker speaks, None while unknown; found out by a bare CONNECT of MQTT 5.

    A last will or properties are only sent once it is known that they are understood: a broker that only speaks
    3.1.1 may misread such a CONNECT of MQTT 5 and never answer (seen with amqtt 0.12).
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.version: MQTTProtocolVersion | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialer:
    """How to reach one broker.

    Attributes:
        dialect: shared by all connections to it.
        patience_seconds: how long it may take to answer, each time.
        stopped: tells whether nobody waits for the connection any more.
    """

    address: BrokerAddress
    dialect: Dialect
    patience_seconds: float
    stopped: Stopped

    def client(self, client_id: str) -> paho.Client:
        """Return a client object that speaks the broker's version of MQTT.

        Raises:
            OSError, ValueError: the broker cannot be reached.
        """
        return self._make(self._find_version(client_id), client_id)

    def connect(self, client: paho.Client, *, keepalive_seconds: int, max_packet_bytes: int) -> ReasonCode | None:
        """Connect; return the answer of the broker, None when there was none.

        Raises:
            OSError, ValueError: the broker cannot be reached.
        """
        arguments: dict[str, Any] = {}
        if client.protocol == paho.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.MaximumPacketSize = max_packet_bytes
            arguments = {"clean_start": True, "properties": properties}
        code = self._dial(client, keepalive_seconds, arguments)
        if code is None or code.is_failure:
            self.dialect.version = None
        return code

    def _find_version(self, client_id: str) -> MQTTProtocolVersion:
        with self.dialect.lock:
            if self.dialect.version is None:
                client = self._make(paho.MQTTv5, f"{client_id}.probe")
                code = self._dial(client, 10, {"clean_start": True})
                client.disconnect()
                client.loop(0.0)
                unable = code is None or str(code) in _UNSUPPORTED_PROTOCOL
                self.dialect.version = paho.MQTTv311 if unable else paho.MQTTv5
            return self.dialect.version

    def _dial(self, client: paho.Client, keepalive_seconds: int, arguments: dict[str, Any]) -> ReasonCode | None:
        answered: list[ReasonCode] = []
        client.on_connect = lambda _client, _data, _flags, code, _properties: answered.append(code)
        client.connect(self.address.host, self.address.port, keepalive_seconds, **arguments)
        deadline = time.monotonic() + self.patience_seconds
        while not answered and not self.stopped() and time.monotonic() < deadline:
            if client.loop(_TURN_SECONDS) != paho.MQTT_ERR_SUCCESS:
                break
        return answered[0] if answered else None

    def _make(self, version: MQTTProtocolVersion, client_id: str) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=version,
            clean_session=None if version == paho.MQTTv5 else True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = self.patience_seconds
        client.max_queued_messages_set(MAX_QUEUED_MESSAGES)
        client.max_inflight_messages_set(100)
        client.suppress_exceptions = True
        client.on_socket_open = _without_delay
        # With this set, a publishing thread wakes the network thread instead of writing the socket beside it.
        client.on_socket_register_write = _nothing
        if self.address.user is not None:
            client.username_pw_set(self.address.user, self.address.password)
        if self.address.tls:
            client.tls_set()
        return client


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """What a connection carried so far: bytes `received`, and bytes that the other end has `taken`."""

    received: int
    taken: int


def count_bytes(client: paho.Client) -> Counted | None:
    """Return what a connection carried so far, None where the system does not count it (all but Linux)."""
    link = client.socket()
    if not isinstance(link, socket.socket) or not hasattr(socket, "TCP_INFO"):
        return None
    try:
        raw = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return None
    if len(raw) < _TCP_INFO.size:
        return None
    taken, received = _TCP_INFO.unpack(raw)
    # CONNACK has come, so nothing received means not counted.
    return Counted(received=received, taken=taken) if received else None


def ask(client: paho.Client) -> None:
    """Send PINGREQ."""
    client._send_pingreq()  # noqa: SLF001 - paho has no public way to


def drop(client: paho.Client) -> None:
    """Close a connection without a farewell, so that the broker publishes the last will."""
    link = client.socket()
    if isinstance(link, socket.socket):
        with contextlib.suppress(OSError):
            link.shutdown(socket.SHUT_RDWR)
    client.loop(0.0)


def _without_delay(_client: paho.Client, _data: object, link: Any) -> None:
    with contextlib.suppress(OSError):
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _nothing(_client: paho.Client, _data: object, _link: object) -> None:
    """Be there; see `Dialer.client`."""
