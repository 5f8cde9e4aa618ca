"""What messages cost this device, and how fast its way to the broker is: frames sent to itself through the broker.

They take the way of every frame: made, cut into packets, published, received, joined and checked by the session.
"""

import queue
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np

from edge.formats.frame import FrameHeader, encode_frame
from edge.formats.message import Session
from edge.formats.packet import split
from edge.formats.speed import LinkSpeed
from edge.protocol.effects import Echoed

SMALL_BYTES = 1024
LARGE_BYTES = 256 * 1024
MOST_BYTES = 16 * 1024 * 1024
MOST_SECONDS = 4.0
"""How long the large frames may take; where one takes longer, no others follow."""

_SMALL_FRAMES = 80
_PATIENCE_SECONDS = 10.0
_LOOK_SECONDS = 0.25
_IN_FLIGHT = 4
_SPIN_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class MessageCost:
    """What `measure_messages` found.

    Attributes:
        seconds: to receive or send one frame, with the share of the processor that this process gets.
        seconds_per_byte: the same for each byte of it.
    """

    seconds: float
    seconds_per_byte: float
    link: LinkSpeed


@dataclass(frozen=True, kw_only=True, slots=True)
class Burst:
    """Frames that came back.

    Attributes:
        frames: how many.
        frame_bytes: size of each tensor.
        wall_seconds: from the first to the last.
        processor_seconds: of all threads of this process.
        round_trips: seconds of each.
    """

    frames: int
    frame_bytes: int
    wall_seconds: float
    processor_seconds: float
    round_trips: tuple[float, ...]


class Echo:
    """Sends frames of this device to itself; one thread measures, the session's thread says what came back."""

    def __init__(self, publish: Callable[[bytes], bool], *, session: Session, node: str) -> None:
        """Prepare.

        Args:
            publish: sends one packet to the device's own echo topic.
            session: of this process, for the packets.
            node: name of the device.
        """
        self._publish = publish
        self._session = session
        self._node = node
        self._sequence = 0
        self._heard: queue.SimpleQueue[Echoed] = queue.SimpleQueue()
        self._give_up: Callable[[], bool] = lambda: False

    def heard(self, echoed: Echoed) -> None:
        """Note that a frame came back whole."""
        self._heard.put(echoed)

    def measure(self, give_up: Callable[[], bool] = lambda: False) -> MessageCost | None:
        """Return what messages cost; None when frames do not come back, or it was given up.

        Args:
            give_up: asked a few times a second.
        """
        self._give_up = give_up
        share = processor_share()
        single = self._burst(_SMALL_FRAMES, SMALL_BYTES, in_flight=1)
        small = self._burst(_SMALL_FRAMES, SMALL_BYTES, in_flight=_IN_FLIGHT) if single else None
        first = self._burst(1, LARGE_BYTES, in_flight=1) if small else None
        if single is None or small is None or first is None:
            return None
        count = int(min(MOST_SECONDS / max(first.wall_seconds, 1e-6), MOST_BYTES / LARGE_BYTES))
        large = self._burst(count, LARGE_BYTES, in_flight=_IN_FLIGHT) if count > 1 else first
        return None if large is None else message_cost(single, small, large, share)

    def _burst(self, frames: int, size_bytes: int, *, in_flight: int) -> Burst | None:
        while not self._heard.empty():
            self._heard.get_nowait()
        payload = np.zeros(size_bytes, np.uint8)
        sent: dict[str, float] = {}
        round_trips: list[float] = []
        started, processor = time.perf_counter(), time.process_time()
        progress = started
        while len(round_trips) < frames:
            while len(sent) < in_flight and len(sent) + len(round_trips) < frames:
                request_id, packets = self._packets(payload)
                sent[request_id] = time.perf_counter()
                if not all(self._publish(packet) for packet in packets):
                    return None
            # Frames that others send to this topic do not count, nor do they make anybody wait longer.
            if time.perf_counter() - progress > _PATIENCE_SECONDS or self._give_up():
                return None
            try:
                echoed = self._heard.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            at = sent.pop(echoed.request_id, None)
            if at is not None:
                progress = time.perf_counter()
                round_trips.append(progress - at)
        return Burst(
            frames=frames,
            frame_bytes=size_bytes,
            wall_seconds=time.perf_counter() - started,
            processor_seconds=time.process_time() - processor,
            round_trips=tuple(round_trips),
        )

    def _packets(self, payload: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> tuple[str, Iterable[bytes]]:
        self._sequence += 1
        header = FrameHeader(
            kind="tensor",
            request_id=f"echo-{self._sequence}",
            sender=self._node,
            reply_to="",
            ttl_ms=int(_PATIENCE_SECONDS * 1000),
            deployment="",
            epoch="",
            stage=0,
        )
        frame = encode_frame(header, {"x": payload})
        return header.request_id, split(frame, sender=self._node, session=self._session, sequence=self._sequence)


def message_cost(single: Burst, small: Burst, large: Burst, share: float) -> MessageCost:
    """Work out the cost of messages from bursts; an echo is sent once and received once.

    A frame that comes alone wakes every thread on its way, so it costs more than one of many, and in a pipeline they
    come alone. What a byte costs is the difference between small and large ones of many.

    Args:
        single: small frames, one after another.
        small: small frames, some in flight at a time.
        large: large frames.
        share: of one processor, that this process gets.
    """
    alone, of_many, of_large = (burst.processor_seconds / burst.frames / 2 / share for burst in (single, small, large))
    per_byte = max(0.0, of_large - of_many) / (large.frame_bytes - small.frame_bytes)
    return MessageCost(
        seconds=max(0.0, alone - per_byte * single.frame_bytes),
        seconds_per_byte=per_byte,
        link=LinkSpeed(
            bytes_per_second=large.frames * large.frame_bytes / max(large.wall_seconds, 1e-9),
            latency_seconds=median(single.round_trips) / 2,
        ),
    )


def processor_share(seconds: float = _SPIN_SECONDS) -> float:
    """Return the part of one processor that this thread gets when it wants all: 0.15 under a quota of 15 %."""
    started, processor = time.perf_counter(), time.thread_time()
    while (wall := time.perf_counter() - started) < seconds:
        pass
    return min(1.0, max(1e-3, (time.thread_time() - processor) / wall))
