"""Frames that come in parts, one of each stage side by side, until all are here. Part of `edge.protocol.intake`."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from edge.errors import FormatError
from edge.formats.frame import Frame, FrameHeader, Hop
from edge.formats.tensor import Array
from edge.protocol.effects import StageKey
from edge.routes import Route


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One frame of a join.

    Attributes:
        arrived: monotonic seconds.
        received_bytes: its size on the wire.
        held_bytes: what it takes while it waits.
        expires: monotonic seconds when the time of its request is up.
    """

    frame: Frame
    arrived: float
    received_bytes: int
    held_bytes: int
    expires: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """All parts of a request in one frame."""

    frame: Frame
    received_bytes: int
    held_bytes: int


@dataclass(slots=True)
class _Waiting:
    parts: dict[int, Part] = field(default_factory=dict)

    @property
    def held_bytes(self) -> int:
        return sum(part.held_bytes for part in self.parts.values())

    @property
    def expires(self) -> float:
        return min(part.expires for part in self.parts.values())


_Key = tuple[StageKey, str]


class Joins:
    """The requests of which some parts are here; what does not fit makes the oldest of them go."""

    def __init__(self) -> None:
        """Start empty."""
        self._waiting: OrderedDict[_Key, _Waiting] = OrderedDict()
        self._held_bytes = 0
        self.dropped = 0

    @property
    def held_bytes(self) -> int:
        """What all parts take that wait."""
        return self._held_bytes

    def count(self, key: StageKey) -> int:
        """Return of how many requests parts wait for a stage."""
        return sum(1 for stage, _ in self._waiting if stage == key)

    def add(self, key: StageKey, part: Part, route: Route, *, most_requests: int, room_bytes: int) -> Joined | None:
        """Take a part; return the whole when it was the last that lacked.

        Args:
            key: stage that joins.
            part: its header's `part` is within the route.
            route: of the stage.
            most_requests: that may wait for this stage.
            room_bytes: that all parts of all requests may take.

        Raises:
            FormatError: its tensors are not those of this part of the route.
        """
        header = part.frame.header
        if set(part.frame.tensors) != set(route.arriving[header.part]):
            raise FormatError(
                f"frame: part {header.part} for stage {key.stage} has other tensors than its sender hands"
            )
        at = (key, header.request_id)
        waiting = self._waiting.get(at)
        if waiting is not None and header.part in waiting.parts:
            return None
        if waiting is not None and len(waiting.parts) + 1 == len(route.arriving):
            self._forget(at)
            return _join({**waiting.parts, header.part: part}, part.arrived)
        if waiting is None:
            while self.count(key) >= most_requests:
                self._evict(next(other for other in self._waiting if other[0] == key))
        self.make_room(room_bytes - part.held_bytes)
        if part.held_bytes > room_bytes:
            self.dropped += 1
            return None
        self._waiting.setdefault(at, _Waiting()).parts[header.part] = part
        self._held_bytes += part.held_bytes
        return None

    def make_room(self, room_bytes: int) -> None:
        """Let the oldest go until those that are left take no more."""
        while self._waiting and self._held_bytes > room_bytes:
            self._evict(next(iter(self._waiting)))

    def expire(self, now: float, is_here: Callable[[StageKey], bool]) -> None:
        """Drop the parts of requests whose time is up, or whose stage is closed."""
        for at in [at for at, waiting in self._waiting.items() if now >= waiting.expires or not is_here(at[0])]:
            self._forget(at)

    def _evict(self, at: _Key) -> None:
        self.dropped += 1
        self._forget(at)

    def _forget(self, at: _Key) -> None:
        self._held_bytes -= self._waiting.pop(at).held_bytes


def _join(parts: dict[int, Part], now: float) -> Joined:
    """Return one frame of all parts: the header of the newest attempt, the least time, each stage's hop once."""
    ordered = [parts[index] for index in sorted(parts)]
    newest = max(ordered, key=lambda part: part.frame.header.attempt).frame.header
    tensors: dict[str, Array] = {}
    hops: dict[int, Hop] = {}
    for part in sorted(ordered, key=lambda part: -part.frame.header.attempt):
        for hop in part.frame.header.trace:
            hops.setdefault(hop.stage, hop)
    for part in ordered:
        tensors.update(part.frame.tensors)
    header: FrameHeader = msgspec.structs.replace(
        newest,
        part=0,
        parts=1,
        tensors=tuple(spec for part in ordered for spec in part.frame.header.tensors),
        ttl_ms=min(max(0, part.frame.header.ttl_ms - round((now - part.arrived) * 1000)) for part in ordered),
        trace=tuple(hops[stage] for stage in sorted(hops)),
    )
    return Joined(
        frame=Frame(header=header, tensors=tensors),
        received_bytes=sum(part.received_bytes for part in ordered),
        held_bytes=sum(part.held_bytes for part in ordered),
    )
