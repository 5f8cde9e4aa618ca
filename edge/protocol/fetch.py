"""Getting blobs block by block from holders, and answering those who ask; no IO, no clock.

The receiver sets the pace: it keeps at most `WINDOW_BLOCKS` blocks asked for and not yet durable, so a holder never
floods a link, and an interrupted transfer loses no more than that window.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from edge.errors import BundleError, StoreError
from edge.formats.bundle import Blob
from edge.formats.message import Block, FetchRequest
from edge.store import block_count, block_length

WINDOW_BLOCKS = 8
PATIENCE_SECONDS = 3.0
BLOCK_SECONDS = 2.0
ROUNDS = 4
ROUND_PAUSE_SECONDS = 0.5
_DIGEST_BYTES = 32
_SLOWNESS = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AskBlock:
    """Publish a request to a holder."""

    holder: str
    request: FetchRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepBlock:
    """Make a block durable, then say `kept`."""

    blob: Blob
    index: int
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchFailed:
    """No holder gave the blob; it is no longer wanted."""

    digest: str
    reason: str


FetchAction = AskBlock | KeepBlock | FetchFailed


@dataclass(slots=True)
class _Want:
    blob: Blob
    holders: tuple[str, ...]
    missing: deque[int]
    at: int = 0
    round: int = 0
    not_before: float = 0.0
    heard: float = 0.0
    idle: bool = True
    asked: dict[int, float] = field(default_factory=dict)
    keeping: set[int] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def holder(self) -> str:
        return self.holders[self.at]


class Fetcher:
    """Gets wanted blobs, in the order in which they were wanted."""

    def __init__(self, *, reply_to: str) -> None:
        """Start with nothing wanted.

        Args:
            reply_to: topic for the blocks.
        """
        self._reply_to = reply_to
        self._wants: dict[str, _Want] = {}
        self._block_seconds = 0.0

    @property
    def wanted(self) -> frozenset[str]:
        """Digests of the blobs that are being fetched."""
        return frozenset(self._wants)

    def missing_bytes(self, digest: str) -> int:
        """Return how many bytes of a wanted blob are not durable yet; 0 when it is not wanted."""
        want = self._wants.get(digest)
        if want is None:
            return 0
        blocks = (*want.missing, *want.asked, *want.keeping)
        return sum(block_length(want.blob.size_bytes, index) for index in blocks)

    def want(self, blob: Blob, holders: Iterable[str], missing: Iterable[int], now: float) -> list[FetchAction]:
        """Begin to fetch the blocks `missing` of a blob from `holders`, one holder after another."""
        asked = tuple(dict.fromkeys(holders))
        if blob.digest in self._wants:
            return []
        if not asked:
            return [FetchFailed(digest=blob.digest, reason=f"blob {_short(blob)} has no holder")]
        self._wants[blob.digest] = _Want(blob=blob, holders=asked, missing=deque(missing), heard=now)
        return self._fill(now)

    def forget(self, digest: str) -> None:
        """Stop fetching a blob."""
        self._wants.pop(digest, None)

    def take(self, block: Block, now: float) -> list[FetchAction]:
        """Take a block that came; what was not asked for, or came before, is dropped."""
        want = self._wants.get(block.digest)
        if want is None or (block.block not in want.asked and block.block not in want.missing):
            return []
        if block.total_bytes == -1:
            return self._next_holder(want, "does not hold it", now) if block.block in want.asked else []
        if not _is_right(want.blob, block):
            return self._next_holder(want, "sent a wrong block", now)
        asked_at = want.asked.pop(block.block, None)
        if asked_at is None:
            want.missing.remove(block.block)
        else:
            self._block_seconds = 0.8 * self._block_seconds + 0.2 * (now - asked_at)
        want.heard = now
        want.idle = not want.asked
        want.keeping.add(block.block)
        return [KeepBlock(blob=want.blob, index=block.block, data=block.data), *self._fill(now)]

    def kept(self, digest: str, indices: Iterable[int], now: float) -> list[FetchAction]:
        """Note that blocks are durable. A blob whose blocks are all kept is no longer wanted."""
        want = self._wants.get(digest)
        if want is None:
            return []
        want.keeping.difference_update(indices)
        if not want.keeping and not want.asked and not want.missing:
            del self._wants[digest]
        return self._fill(now)

    def tick(self, now: float) -> list[FetchAction]:
        """Ask again for what did not come; pass on to the next holder when one is silent."""
        actions: list[FetchAction] = []
        patience = max(PATIENCE_SECONDS, _SLOWNESS * self._block_seconds)
        block_patience = max(BLOCK_SECONDS, _SLOWNESS * self._block_seconds)
        for want in tuple(self._wants.values()):
            if not want.idle and now - want.heard > patience:
                actions += self._next_holder(want, "does not answer", now)
                continue
            for index in [index for index, at in want.asked.items() if now - at > block_patience]:
                del want.asked[index]
                want.missing.appendleft(index)
        return actions + self._fill(now)

    def _next_holder(self, want: _Want, reason: str, now: float) -> list[FetchAction]:
        want.reasons[want.holder] = reason
        want.missing.extendleft(sorted(want.asked, reverse=True))
        want.asked.clear()
        want.idle = True
        want.at += 1
        if want.at == len(want.holders):
            want.at = 0
            want.round += 1
            want.not_before = now + ROUND_PAUSE_SECONDS * 2 ** (want.round - 1)
        if want.round >= ROUNDS:
            del self._wants[want.blob.digest]
            why = "; ".join(f"{holder} {said}" for holder, said in want.reasons.items())
            return [FetchFailed(digest=want.blob.digest, reason=f"blob {_short(want.blob)} cannot be fetched: {why}")]
        return self._fill(now)

    def _fill(self, now: float) -> list[FetchAction]:
        actions: list[FetchAction] = []
        room = WINDOW_BLOCKS - sum(len(want.asked) + len(want.keeping) for want in self._wants.values())
        for want in self._wants.values():
            if now < want.not_before:
                continue
            while room > 0 and want.missing:
                index = want.missing.popleft()
                # Patience with a holder starts when it is asked, not while the window was full of other blobs.
                want.heard = now if want.idle else want.heard
                want.idle = False
                want.asked[index] = now
                request = FetchRequest(digest=want.blob.digest, block=index, reply_to=self._reply_to)
                actions.append(AskBlock(holder=want.holder, request=request))
                room -= 1
        return actions


def answer_fetch(request: FetchRequest, read_block: Callable[[str, int], tuple[int, bytes] | None]) -> Block:
    """Answer one request from a store, see `BlobStore.read_block`; what is not held is said so."""
    try:
        found = read_block(request.digest, request.block)
    except (BundleError, StoreError):
        found = None
    if found is None:
        return Block(digest=request.digest[:80], block=request.block, total_bytes=-1, data=b"")
    return Block(digest=request.digest, block=request.block, total_bytes=found[0], data=found[1])


def all_blocks(blob: Blob) -> range:
    """Return the indices of all blocks of a blob."""
    return range(block_count(blob.size_bytes))


def _is_right(blob: Blob, block: Block) -> bool:
    if block.total_bytes != blob.size_bytes or len(block.data) != block_length(blob.size_bytes, block.block):
        return False
    start = block.block * _DIGEST_BYTES
    if len(blob.block_digests) != block_count(blob.size_bytes) * _DIGEST_BYTES:
        return True
    return hashlib.sha256(block.data).digest() == blob.block_digests[start : start + _DIGEST_BYTES]


def _short(blob: Blob) -> str:
    return blob.digest.removeprefix("sha256:")[:12]
