"""A node that only listens: who is there, which epoch is of which bundle, and what serves."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from edge.errors import ShardwireError
from edge.formats.message import Heartbeat, Lease, State, decode_message
from edge.formats.plan import Deployment, decode_deployment, parse_epoch
from edge.formats.topics import Topics
from edge.mqtt import MqttTransport
from edge.transport import Channel, Connected, Received, TransportEvent

ALIVE_SECONDS = 2.5
_KINDS = ("desired", "serving", "canary")


class Watcher:
    """Listens for the length of a `with` block; thread-safe."""

    def __init__(self, url: str, *, fleet: str, deployment: str) -> None:
        """Prepare to listen to one deployment of a fleet at a broker."""
        self._topics = Topics(fleet=fleet)
        self._deployment = deployment
        self._changed = threading.Condition()
        self._heard: dict[str, float] = {}
        self._digests: dict[str, str] = {}
        self._values: dict[str, Deployment] = {}
        self._lease: Lease | None = None
        node = f"chaos-{secrets.token_hex(4)}"
        self._transport = MqttTransport(url, fleet=fleet, node=node, on_event=self._on_event)

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            TransportError: there is no broker, or it refuses us.
        """
        self._transport.start()
        try:
            self._transport.wait_connected(10.0)
        except BaseException:
            self._transport.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        self._transport.close()

    def digest(self, epoch: str) -> str | None:
        """Return the digest of the manifest of an epoch, None when it was never seen."""
        with self._changed:
            return self._digests.get(epoch)

    def value(self, kind: str) -> Deployment | None:
        """Return the newest `desired`, `serving` or `canary` seen."""
        with self._changed:
            return self._values.get(kind)

    def alive(self, node: str) -> bool:
        """Tell whether a node's heart beats."""
        with self._changed:
            return time.monotonic() - self._heard.get(node, -ALIVE_SECONDS) < ALIVE_SECONDS

    def coordinator(self) -> str:
        """Return who holds the lease, empty when nobody was seen with it."""
        with self._changed:
            return self._lease.coordinator if self._lease is not None else ""

    def wait(self, holds: Callable[[], bool], timeout_seconds: float) -> bool:
        """Wait until something holds; it is asked again whenever a message came, and four times a second."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while not holds():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.25))
            return True

    def _on_event(self, event: TransportEvent) -> None:
        topics = self._topics
        if isinstance(event, Connected) and event.channel is Channel.CONTROL:
            exact = (topics.desired, topics.serving, topics.canary)
            for filter in (
                topics.any_device("heartbeat"),
                topics.any_device("state"),
                topics.lease(),
                *(topic(self._deployment) for topic in exact),
            ):
                self._transport.subscribe(Channel.CONTROL, filter)
        elif isinstance(event, Received) and event.payload:
            try:
                with self._changed:
                    self._take(event)
                    self._changed.notify_all()
            except ShardwireError:
                return  # somebody publishes nonsense, as chaos does

    def _take(self, event: Received) -> None:
        levels = self._topics.parse(event.topic) or ("",)
        if event.topic == self._topics.lease():
            lease = decode_message(event.payload, Lease)
            if self._lease is None or lease.term >= self._lease.term:
                self._lease = lease
        elif levels[0] == "device" and levels[-1] == "heartbeat":
            self._heard[decode_message(event.payload, Heartbeat).node] = time.monotonic()
        elif levels[0] == "device" and levels[-1] == "state":
            state = decode_message(event.payload, State)
            if not state.online:
                self._heard.pop(state.node, None)
        elif levels[0] == "deployment" and levels[2] in _KINDS:
            self._keep(levels[2], decode_deployment(event.payload))

    def _keep(self, kind: str, value: Deployment) -> None:
        if value.manifest is not None:
            self._digests[value.epoch] = value.manifest.digest
        known = self._values.get(kind)
        if known is None or parse_epoch(value.epoch) >= parse_epoch(known.epoch):
            self._values[kind] = value
