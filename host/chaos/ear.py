"""Hears what a fleet's devices say while they are hurt: the blocks that go to them, and their events."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from edge.errors import ShardwireError
from edge.formats.message import Block, Failed, decode_message
from edge.formats.topics import Topics
from edge.mqtt import MqttTransport
from edge.transport import Channel, Connected, Received, Subscribed, TransportEvent
from host.errors import FleetError

_CONNECT_SECONDS = 10.0


class Heard(NamedTuple):
    """A block on its way to a device; `at` is in monotonic seconds."""

    at: float
    device: str
    digest: str
    block: int


class Ear:
    """Listens to all devices of a fleet for the length of a `with` block; thread-safe."""

    def __init__(self, url: str, *, fleet: str) -> None:
        """Prepare to listen to a fleet at a broker."""
        self._topics = Topics(fleet=fleet)
        self._changed = threading.Condition()
        self._blocks: list[Heard] = []
        self._failures: list[tuple[str, Failed]] = []
        self._waiting = 2
        node = f"chaos-{secrets.token_hex(4)}"
        self._transport = MqttTransport(url, fleet=fleet, node=node, on_event=self._on_event)

    def __enter__(self) -> Self:
        """Connect, and wait until nothing is missed any more.

        Raises:
            FleetError: there is no broker, or it refuses us.
        """
        self._transport.start()
        if not self.wait(lambda: self._waiting <= 0, _CONNECT_SECONDS):
            self._transport.close()
            raise FleetError("the broker does not let chaos listen")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        self._transport.close()

    def wait(self, holds: Callable[[], bool], timeout_seconds: float) -> bool:
        """Wait until something holds; it is asked whenever something was heard, and four times a second."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while not holds():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.25))
            return True

    def blocks(self, device: str) -> list[Heard]:
        """Return the blocks that went to a device, in order; one that was sent twice is there twice."""
        with self._changed:
            return [heard for heard in self._blocks if heard.device == device]

    def failures(self, device: str) -> list[Failed]:
        """Return why a device said that it cannot run an epoch, in order."""
        with self._changed:
            return [failed for name, failed in self._failures if name == device]

    def _on_event(self, event: TransportEvent) -> None:
        if isinstance(event, Connected):
            control = event.channel is Channel.CONTROL
            filter = self._topics.any_device("event") if control else self._topics.blocks("+")
            self._transport.subscribe(event.channel, filter)
            return
        with self._changed:
            if isinstance(event, Subscribed):
                self._waiting -= 1
            elif isinstance(event, Received):
                self._take(event)
            self._changed.notify_all()

    def _take(self, event: Received) -> None:
        levels = self._topics.parse(event.topic) or ("",)
        try:
            message = decode_message(event.payload, object)
        except ShardwireError:
            return
        if isinstance(message, Block) and len(levels) == 2:
            self._blocks.append(
                Heard(at=time.monotonic(), device=levels[1], digest=message.digest, block=message.block)
            )
        elif isinstance(message, Failed) and levels[0] == "device":
            self._failures.append((levels[1], message))
