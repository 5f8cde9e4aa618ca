"""Getting blobs block by block from holders, and answering those who ask; no IO, no clock.

The receiver sets the pace: it keeps at most a window of blocks asked for and not yet durable, so a holder never
floods a link, and an interrupted transfer loses no more than that window. Holders answer in the order in which they
are asked; what was passed over is lost, and a holder of whom nothing comes is silent.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from edge.errors import BundleError, StoreError
from edge.formats.bundle import Blob
from edge.formats.message import Block, FetchRequest, Transfer
from edge.protocol.pace import Pace, Use
from edge.store import block_count, block_length

PATIENCE_SECONDS = 3.0
BLOCK_SECONDS = 2.0
ROUNDS = 4
ROUND_PAUSE_SECONDS = 0.5
AWAY_SECONDS = 15.0
"""How long a transfer waits when all its holders are known to be away."""

MAX_HOLDERS = 64
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
class BlockServed:
    """A block was given to another node."""

    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchFailed:
    """No holder gave the blob; it is no longer wanted."""

    digest: str
    reason: str


FetchAction = AskBlock | KeepBlock | FetchFailed


@dataclass(slots=True)
class _Want:
    """A blob on its way.

    Attributes:
        missing: blocks to ask for.
        asked: blocks asked of the present holder, in order, with the time.
        passed: of them, those after which another was asked that came: they are lost.
        owed: blocks for which a holder that was left may still say that it lacks them, or send wrong bytes.
        keeping: blocks that are being made durable.
        ever: blocks that were asked for at least once.
        heard: when the present holder gave something last, or was first asked.
        stalled: since when no holder is there; None while one is.
    """

    blob: Blob
    holders: tuple[str, ...]
    missing: deque[int]
    at: int = 0
    round: int = 0
    not_before: float = 0.0
    heard: float = 0.0
    stalled: float | None = None
    asked: dict[int, float] = field(default_factory=dict)
    passed: set[int] = field(default_factory=set)
    owed: set[int] = field(default_factory=set)
    keeping: set[int] = field(default_factory=set)
    ever: set[int] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def holder(self) -> str:
        return self.holders[self.at]

    @property
    def missing_bytes(self) -> int:
        blocks = (*self.missing, *self.asked, *self.keeping)
        return sum(block_length(self.blob.size_bytes, index) for index in blocks)

    def ask_again(self, indices: Iterable[int]) -> None:
        """Put blocks that were asked for back to those to ask for, in their order."""
        lost = sorted(indices, reverse=True)
        self.missing.extendleft(lost)
        for index in lost:
            del self.asked[index]
        self.passed.difference_update(lost)


class Fetcher:
    """Gets wanted blobs, in the order in which they were wanted.

    Attributes:
        fetched_bytes: of blocks that were taken.
        repeated_blocks: requests for a block that had been asked for before.
    """

    def __init__(self, *, reply_to: str, pace: Pace | None = None) -> None:
        """Start with nothing wanted.

        Args:
            reply_to: topic for the blocks.
            pace: how fast blocks may come; full speed when left out.
        """
        self.fetched_bytes = 0
        self.repeated_blocks = 0
        self._reply_to = reply_to
        self._pace = pace or Pace()
        self._wants: dict[str, _Want] = {}
        self._away: set[str] = set()
        self._is_paused = False
        self._block_seconds = 0.0

    # ---------------------------------------------------------------------------------------------------- looking
    @property
    def wanted(self) -> frozenset[str]:
        """Digests of the blobs that are being fetched."""
        return frozenset(self._wants)

    @property
    def holders(self) -> frozenset[str]:
        """All nodes that may be asked."""
        return frozenset(holder for want in self._wants.values() for holder in want.holders)

    def missing_bytes(self, digest: str) -> int:
        """Return how many bytes of a wanted blob are not durable yet; 0 when it is not wanted."""
        want = self._wants.get(digest)
        return want.missing_bytes if want is not None else 0

    def transfers(self) -> tuple[Transfer, ...]:
        """Return how far each blob is, in the order in which they were wanted."""
        return tuple(
            Transfer(
                digest=want.blob.digest,
                done_bytes=want.blob.size_bytes - want.missing_bytes,
                total_bytes=want.blob.size_bytes,
                holder=want.holder if want.asked else "",
            )
            for want in self._wants.values()
        )

    # ---------------------------------------------------------------------------------------------------- wanting
    def want(self, blob: Blob, holders: Iterable[str], missing: Iterable[int], now: float) -> list[FetchAction]:
        """Begin to fetch the blocks `missing` of a blob from `holders`, one holder after another.

        For a blob that is on its way already, `holders` are taken up and nothing is begun anew.
        """
        if blob.digest in self._wants:
            return self.renew(blob.digest, holders, now)
        asked = tuple(dict.fromkeys(holders))[:MAX_HOLDERS]
        if not asked:
            return [FetchFailed(digest=blob.digest, reason=f"blob {_short(blob)} has no holder")]
        want = _Want(blob=blob, holders=asked, missing=deque(missing), heard=now)
        self._wants[blob.digest] = want
        self._turn_to(want, self._first_there(want, 0), now)
        return self._fill(now)

    def renew(self, digest: str, holders: Iterable[str], now: float) -> list[FetchAction]:
        """Take up the holders that a newer plan names; who gives blocks now goes on, and former ones come last."""
        want = self._wants.get(digest)
        named = tuple(dict.fromkeys(holders))[:MAX_HOLDERS]
        if want is None or not named or set(named) <= set(want.holders):
            return []
        current, stuck = want.holder, want.stalled is not None or now < want.not_before
        first = () if stuck else (current,)
        want.holders = tuple(dict.fromkeys((*first, *named, *want.holders)))[:MAX_HOLDERS]
        want.round, want.not_before = 0, 0.0
        self._turn_to(want, self._first_there(want, 0), now)
        return self._fill(now)

    def forget(self, digest: str) -> None:
        """Stop fetching a blob."""
        self._wants.pop(digest, None)

    # ------------------------------------------------------------------------------------------------ what happens
    def take(self, block: Block, now: float) -> list[FetchAction]:
        """Take a block that came; what was not asked for, or came before, is dropped."""
        want = self._wants.get(block.digest)
        if want is None or (block.block not in want.asked and block.block not in want.missing):
            return []
        if block.total_bytes == -1 or not _is_right(want.blob, block):
            if block.block in want.owed or block.block not in want.asked:
                want.owed.discard(block.block)  # of a holder that was left before: the present one is not to blame
                return []
            reason = "does not hold it" if block.total_bytes == -1 else "sent a wrong block"
            want.owed.update(index for index in want.asked if index != block.block)
            return self._next_holder(want, reason, now)
        asked_at = want.asked.get(block.block)
        if asked_at is None:
            want.missing.remove(block.block)
        else:
            self._note_came(want, block.block, now - asked_at)
        want.heard, want.round = now, 0
        want.keeping.add(block.block)
        self.fetched_bytes += len(block.data)
        return [KeepBlock(blob=want.blob, index=block.block, data=block.data), *self._fill(now)]

    def kept(self, digest: str, indices: Iterable[int], now: float) -> list[FetchAction]:
        """Note that blocks are durable. A blob whose blocks are all kept is no longer wanted."""
        want = self._wants.get(digest)
        if want is None:
            return []
        for index in indices:
            want.keeping.discard(index)
            want.asked.pop(index, None)
            if index in want.missing:  # written before this transfer was begun anew, and not yet seen then
                want.missing.remove(index)
        if not want.keeping and not want.asked and not want.missing:
            del self._wants[digest]
        return self._fill(now)

    def away(self, holder: str, now: float) -> list[FetchAction]:
        """Note that a node is known to be away: it is passed over, and what it was asked for is asked of others."""
        self._away.add(holder)
        for want in self._wants.values():
            if want.holder == holder:
                want.ask_again(tuple(want.asked))
                want.reasons[holder] = "is away"
                self._turn_to(want, self._first_there(want, want.at), now)
        return self._fill(now)

    def back(self, holder: str, now: float) -> list[FetchAction]:
        """Note that a node is there, or there again."""
        if holder not in self._away:
            return []
        self._away.remove(holder)
        for want in self._wants.values():
            if want.stalled is not None and holder in want.holders:
                self._turn_to(want, want.holders.index(holder), now)
        return self._fill(now)

    def paused(self) -> None:
        """Ask for nothing: there is no connection, and what was on its way is lost."""
        self._is_paused = True

    def resumed(self, now: float) -> list[FetchAction]:
        """Ask again for what was on its way when the connection broke; the time without it is nobody's fault."""
        self._is_paused = False
        for want in self._wants.values():
            want.ask_again(tuple(want.asked))
            want.owed.clear()
            want.heard = now
            want.stalled = now if want.stalled is not None else None
        return self._fill(now)

    def tick(self, now: float) -> list[FetchAction]:
        """Ask again for what was lost; pass on to the next holder when one is silent."""
        actions: list[FetchAction] = []
        if self._is_paused:
            return actions
        patience = max(PATIENCE_SECONDS, _SLOWNESS * self._block_seconds)
        for want in tuple(self._wants.values()):
            if want.stalled is not None:
                if now - want.stalled > AWAY_SECONDS:
                    actions.append(self._give_up(want))
            elif want.asked and now - want.heard > patience:
                actions += self._next_holder(want, "does not answer", now)
            else:
                want.ask_again([index for index in want.passed if now - want.asked[index] > BLOCK_SECONDS])
        return actions + self._fill(now)

    # -------------------------------------------------------------------------------------------------- own steps
    def _note_came(self, want: _Want, index: int, seconds: float) -> None:
        for before in want.asked:
            if before == index:
                break
            want.passed.add(before)
        del want.asked[index]
        want.passed.discard(index)
        self._block_seconds = 0.8 * self._block_seconds + 0.2 * seconds if self._block_seconds else seconds

    def _first_there(self, want: _Want, start: int) -> int | None:
        """Return the place of the first holder from `start` on, around, that is not known to be away."""
        count = len(want.holders)
        places = ((start + step) % count for step in range(count))
        return next((place for place in places if want.holders[place] not in self._away), None)

    def _turn_to(self, want: _Want, place: int | None, now: float) -> None:
        if place is None:
            want.stalled = now if want.stalled is None else want.stalled
        else:
            want.at, want.stalled = place, None

    def _next_holder(self, want: _Want, reason: str, now: float) -> list[FetchAction]:
        want.reasons[want.holder] = reason
        want.ask_again(tuple(want.asked))
        before, place = want.at, self._first_there(want, want.at + 1)
        self._turn_to(want, place, now)
        if place is not None and place <= before:
            want.round += 1
            want.not_before = now + ROUND_PAUSE_SECONDS * 2 ** (want.round - 1)
        if want.round >= ROUNDS:
            return [self._give_up(want), *self._fill(now)]
        return self._fill(now)

    def _give_up(self, want: _Want) -> FetchFailed:
        del self._wants[want.blob.digest]
        for holder in want.holders:
            if holder in self._away:
                want.reasons[holder] = "is away"
        why = "; ".join(f"{holder} {want.reasons[holder]}" for holder in want.holders if holder in want.reasons)
        return FetchFailed(digest=want.blob.digest, reason=f"blob {_short(want.blob)} cannot be fetched: {why}")

    def _fill(self, now: float) -> list[FetchAction]:
        actions: list[FetchAction] = []
        if self._is_paused:
            return actions
        room = self._pace.window(now) - sum(len(want.asked) + len(want.keeping) for want in self._wants.values())
        for want in self._wants.values():
            if now < want.not_before or want.stalled is not None:
                continue
            while room > 0 and want.missing:
                index = want.missing[0]
                if not self._pace.take(Use.FETCH, block_length(want.blob.size_bytes, index), now):
                    return actions
                want.missing.popleft()
                # Patience with a holder starts when it is asked, not while the window was full of other blobs.
                want.heard = want.heard if want.asked else now
                want.asked[index] = now
                self.repeated_blocks += index in want.ever
                want.ever.add(index)
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
    count = block_count(blob.size_bytes)
    if count == 1:
        return f"sha256:{hashlib.sha256(block.data).hexdigest()}" == blob.digest
    if len(blob.block_digests) != count * _DIGEST_BYTES:
        return True
    start = block.block * _DIGEST_BYTES
    return hashlib.sha256(block.data).digest() == blob.block_digests[start : start + _DIGEST_BYTES]


def _short(blob: Blob) -> str:
    return blob.digest.removeprefix("sha256:")[:12]
