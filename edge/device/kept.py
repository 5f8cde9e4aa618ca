"""States of streams that this device keeps between two requests, bounded in streams, bytes and time.

Of each stream the last few states are kept, each by the number of the request that left it. So a request that comes
again is answered alike, and one that goes on from before a failed one finds what it began with.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from edge.errors import StreamLost
from edge.formats.frame import FrameHeader
from edge.formats.tensor import Array, held_bytes
from edge.protocol.effects import StageKey
from edge.stage import Stage

MAX_KEPT_STREAMS = 256
MAX_KEPT_BYTES = 32 * 1024 * 1024
MAX_KEPT_STATES = 4
KEPT_SECONDS = 120.0
"""A stream that rests for longer is forgotten."""

_Key = tuple[StageKey, str, str]


@dataclass(slots=True)
class _Kept:
    states: OrderedDict[int, dict[str, Array]] = field(default_factory=OrderedDict)
    size_bytes: int = 0
    used: float = 0.0


class KeptStates:
    """The states of all streams of one device; used by its compute thread only."""

    def __init__(self) -> None:
        """Start empty."""
        self._streams: OrderedDict[_Key, _Kept] = OrderedDict()
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """What all states take."""
        return self._size_bytes

    def __len__(self) -> int:
        """How many streams are known."""
        return len(self._streams)

    def run(
        self, stage: Stage, key: StageKey, header: FrameHeader, tensors: Mapping[str, Array], now: float
    ) -> dict[str, Array]:
        """Run a request of a stream with the state that it goes on from, and keep what it leaves.

        Args:
            stage: that runs it.
            key: of the stage.
            header: of its frame.
            tensors: what the stage receives.
            now: monotonic seconds.

        Raises:
            StreamLost: that state is not here.
            InvalidInput, StageError: as `Stage.run`.
        """
        self._expire(now)
        if not stage.keeps:
            return stage.run_in_stream(tensors, {})[0]
        # Whose stream it is, too: no client can go on with the state of another one.
        at = (key, header.reply_to, header.stream)
        sent, after = stage.run_in_stream(tensors, stage.zeros() if header.after < 0 else self._before(at, header))
        self._keep(at, header.sequence, after, now)
        return sent

    def close(self, key: StageKey) -> None:
        """Forget the streams of a stage."""
        for at in [at for at in self._streams if at[0] == key]:
            self._forget(at)

    def _before(self, at: _Key, header: FrameHeader) -> dict[str, Array]:
        kept = self._streams.get(at)
        if kept is None or header.after not in kept.states:
            raise StreamLost(
                f"the state after request {header.after} of stream {header.stream} is not here: the device or the plan "
                "changed, or the stream rested for too long"
            )
        return kept.states[header.after]

    def _keep(self, at: _Key, sequence: int, state: dict[str, Array], now: float) -> None:
        kept = self._streams.setdefault(at, _Kept())
        self._streams.move_to_end(at)
        kept.used = now
        self._drop(kept, sequence)
        kept.states[sequence] = state
        self._count(kept, _size(state))
        while len(kept.states) > MAX_KEPT_STATES:
            self._drop(kept, next(iter(kept.states)))
        while len(self._streams) > MAX_KEPT_STREAMS or self._size_bytes > MAX_KEPT_BYTES:
            self._forget(next(iter(self._streams)))

    def _drop(self, kept: _Kept, sequence: int) -> None:
        self._count(kept, -_size(kept.states.pop(sequence, {})))

    def _count(self, kept: _Kept, size_bytes: int) -> None:
        kept.size_bytes += size_bytes
        self._size_bytes += size_bytes

    def _expire(self, now: float) -> None:
        while self._streams:
            at, kept = next(iter(self._streams.items()))
            if now - kept.used <= KEPT_SECONDS:
                return
            self._forget(at)

    def _forget(self, at: _Key) -> None:
        self._size_bytes -= self._streams.pop(at).size_bytes


def _size(state: Mapping[str, Array]) -> int:
    return sum(held_bytes(array) for array in state.values())
