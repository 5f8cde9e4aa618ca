"""The blobs that are on their way to a device, for its epochs and its bench, and from it to others.

Part of the session. Both ways keep to one budget while frames are served, see `edge.protocol.pace`.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from edge.errors import FormatError
from edge.formats.bundle import Blob
from edge.formats.message import (
    BLOCK_BYTES,
    MAX_TRANSFERS,
    Block,
    FetchRequest,
    State,
    Transfer,
    decode_message,
    encode_message,
)
from edge.formats.topics import Topics, check_name
from edge.protocol.absences import Absences
from edge.protocol.effects import (
    AnswerFetch,
    BeginBlob,
    BlobBegun,
    BlobFailed,
    BlobSpoiled,
    BlobStored,
    BlocksKept,
    Effect,
)
from edge.protocol.fetch import MAX_HOLDERS, AskBlock, BlockServed, FetchAction, Fetcher, FetchFailed
from edge.protocol.pace import Pace, Use
from edge.protocol.preparing import EpochAction, Need
from edge.protocol.presence import Presence
from edge.transport import Channel, Publication

MAX_WAITING_ANSWERS = 64
"""Requests of others that wait for the budget; what is more is dropped, and asked for again."""

Carry = Callable[[Iterable[EpochAction], float], list[Effect]]


class BlobUser(Protocol):
    """Who needs blobs, and is told of every one."""

    def wanted(self) -> frozenset[str]:
        """Return the digests of the blobs that it waits for."""

    def stored(self, digest: str, now: float) -> list[EpochAction]:
        """A blob is whole."""

    def blob_failed(self, digest: str, code: str, reason: str) -> list[EpochAction]:
        """A blob cannot be had, kept or parsed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlobCounters:
    """What went both ways since the process started, see `edge.formats.message.Metrics`."""

    fetched_bytes: int
    served_bytes: int
    repeated_blocks: int


class Blobs:
    """Makes room for blobs, fetches them, tells their users, and answers others.

    Attributes:
        pace: the budget; to be told of every frame that comes, and of the measured link.
        make_room: drops what can be done without for the sake of a blob; returns nothing when there is nothing.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        node: str,
        presence: Presence,
        users: tuple[BlobUser, ...],
        carry: Carry,
        spoiled: Callable[[str], None],
        pace: Pace | None = None,
        partial: Iterable[Transfer] = (),
    ) -> None:
        """Start with nothing wanted.

        Args:
            topics: of the fleet.
            node: name of this device.
            presence: where the sizes on the disk are told.
            users: who needs blobs.
            carry: carries out what users answer.
            spoiled: told of a blob that was here and is damaged.
            pace: the budget; that of an unknown link when left out.
            partial: what the disk has of blobs that are not whole, see `edge.store.BlobStore.partial`.
        """
        self._topics = topics
        self._presence = presence
        self._users = users
        self._carry = carry
        self._spoiled = spoiled
        self.make_room: Callable[[str], list[EpochAction]] = lambda _digest: []
        self.pace = pace or Pace()
        self._node = node
        self._fetcher = Fetcher(reply_to=topics.blocks(node), pace=self.pace)
        self._fetcher.paused()  # until it is connected
        self._begun: dict[str, tuple[Blob, tuple[str, ...]]] = {}
        self._partial = {found.digest: found for found in partial}
        self._absences = Absences()
        self._waiting: OrderedDict[tuple[str, int, str], FetchRequest] = OrderedDict()
        self._served_bytes = 0
        self.steps: dict[type[Any], Callable[[Any, float], list[Effect]]] = {
            BlobBegun: self._blob_begun,
            BlocksKept: lambda event, now: self._fetch(self._fetcher.kept(event.digest, event.indices, now), now),
            BlobStored: self._blob_stored,
            BlobSpoiled: self._blob_spoiled,
            BlobFailed: self._blob_refused,
            BlockServed: self._block_served,
        }

    @property
    def holders(self) -> frozenset[str]:
        """The nodes whose states matter now: they may be asked for something."""
        return frozenset(holder for _, holders in self._begun.values() for holder in holders) - {self._node}

    def counters(self) -> BlobCounters:
        """Return what went both ways since the start."""
        return BlobCounters(
            fetched_bytes=self._fetcher.fetched_bytes,
            served_bytes=self._served_bytes,
            repeated_blocks=self._fetcher.repeated_blocks,
        )

    def transfers(self) -> tuple[Transfer, ...]:
        """Return what is on its way, then what the disk has of other blobs; at most `MAX_TRANSFERS`."""
        going = {transfer.digest: transfer for transfer in self._fetcher.transfers()}
        resting = {
            digest: Transfer(digest=digest, done_bytes=0, total_bytes=blob.size_bytes)
            for digest, (blob, _) in self._begun.items()
        }
        return tuple({**going, **resting, **self._partial, **going}.values())[:MAX_TRANSFERS]

    def missing_bytes(self) -> dict[str, int]:
        """Return how many bytes of each blob that is being fetched are not durable yet."""
        return {digest: self._fetcher.missing_bytes(digest) for digest in self._fetcher.wanted}

    def need(self, need: Need, now: float) -> list[Effect]:
        """Get a blob, or say that it is here; one that is on its way is asked of the holders of a newer plan, too."""
        begun = self._begun.get(need.blob.digest)
        if begun is not None:
            holders = tuple(dict.fromkeys((*need.holders, *begun[1])))[:MAX_HOLDERS]
            self._begun[need.blob.digest] = (begun[0], holders)
            return self._fetch(self._fetcher.renew(need.blob.digest, need.holders, now), now)
        self._begun[need.blob.digest] = (need.blob, need.holders)
        if not need.holders:
            reason = f"blob {need.blob.digest[7:19]} is not here, and the deployment names no holder of it"
            return self._blob_failed(BlobFailed(digest=need.blob.digest, code="StoreError", reason=reason), now)
        return [BeginBlob(blob=need.blob)]

    def forget_unwanted(self) -> None:
        """Stop fetching what nobody waits for any more."""
        wanted = frozenset[str]().union(*(user.wanted() for user in self._users))
        for digest in self._begun.keys() - wanted:
            del self._begun[digest]
            self._fetcher.forget(digest)

    def tick(self, now: float) -> list[Effect]:
        """Ask again for what did not come, and give others what waits, as far as the budget goes."""
        return [*self._fetch(self._fetcher.tick(now), now), *self._answers(now)]

    def paused(self) -> None:
        """The data connection is gone: ask for nothing."""
        self._fetcher.paused()

    def resumed(self, now: float) -> list[Effect]:
        """The subscription to blocks stands again after the connection broke: ask again for what was on its way."""
        return self._fetch(self._fetcher.resumed(now), now)

    def state(self, state: State, now: float) -> list[Effect]:
        """Note whether another node is there: a holder that is away is passed over."""
        self._absences.take(state)
        turn = self._fetcher.away if self._absences.is_away(state.node) else self._fetcher.back
        return self._fetch(turn(state.node, now), now)

    def dropped(self, digests: Iterable[str]) -> None:
        """Blobs, whole or in part, are gone from the disk."""
        for digest in digests:
            self._partial.pop(digest, None)

    def block(self, payload: bytes, now: float) -> list[Effect]:
        """Take a block.

        Raises:
            FormatError: it is none.
        """
        return self._fetch(self._fetcher.take(decode_message(payload, Block), now), now)

    def fetch_request(self, payload: bytes, now: float) -> list[Effect]:
        """Answer one who asks for a block, now or when the budget allows.

        Raises:
            FormatError: the request is malformed.
        """
        request = decode_message(payload, FetchRequest)
        levels = self._topics.parse(request.reply_to)
        if levels is None or len(levels) != 2 or levels[0] != "blocks":
            raise FormatError(f"{request.reply_to[:120]!r} is no blocks topic of this fleet")
        check_name(levels[1], what="node name")
        key = (request.digest, request.block, request.reply_to)
        if key in self._waiting or len(self._waiting) < MAX_WAITING_ANSWERS:
            self._waiting[key] = request
        return self._answers(now)

    def _answers(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._waiting and self.pace.take(Use.ANSWER, BLOCK_BYTES, now):
            effects.append(AnswerFetch(request=self._waiting.popitem(last=False)[1]))
        return effects

    def _block_served(self, event: BlockServed, _now: float) -> list[Effect]:
        self._served_bytes += event.size_bytes
        return []

    def _blob_begun(self, event: BlobBegun, now: float) -> list[Effect]:
        begun = self._begun.get(event.digest)
        if begun is None:
            return []
        self._partial.pop(event.digest, None)
        return self._fetch(self._fetcher.want(begun[0], begun[1], event.missing, now), now)

    def _blob_stored(self, event: BlobStored, now: float) -> list[Effect]:
        self._presence.held_bytes, self._presence.free_disk_bytes = event.held_bytes, event.free_disk_bytes
        self._begun.pop(event.digest, None)
        self._partial.pop(event.digest, None)
        self._fetcher.forget(event.digest)
        return self._carry([action for user in self._users for action in user.stored(event.digest, now)], now)

    def _blob_spoiled(self, event: BlobSpoiled, now: float) -> list[Effect]:
        begun = self._begun.get(event.digest)
        if begun is None:
            # It was here, and the file has changed since.
            self._spoiled(event.digest)
            reason = f"stored blob {event.digest[7:19]} has changed on the disk"
            return self._blob_failed(BlobFailed(digest=event.digest, code="DigestMismatch", reason=reason), now)
        blob, holders = begun
        self._fetcher.forget(event.digest)
        if len(holders) <= 1:
            reason = f"blob {event.digest[7:19]}: what its holders sent has another digest"
            return self._blob_failed(BlobFailed(digest=event.digest, code="DigestMismatch", reason=reason), now)
        self._begun[event.digest] = (blob, holders[1:])
        return [BeginBlob(blob=blob)]

    def _blob_refused(self, event: BlobFailed, now: float) -> list[Effect]:
        """Try again where the disk has no room, and room can be made."""
        begun = self._begun.get(event.digest)
        if begun is None or event.code != "StoreError" or not (room := self.make_room(event.digest)):
            return self._blob_failed(event, now)
        self._fetcher.forget(event.digest)
        return [*self._carry(room, now), BeginBlob(blob=begun[0])]

    def _blob_failed(self, event: BlobFailed, now: float) -> list[Effect]:
        self._begun.pop(event.digest, None)
        self._fetcher.forget(event.digest)
        failed = [action for user in self._users for action in user.blob_failed(event.digest, event.code, event.reason)]
        return self._carry(failed, now)

    def _fetch(self, actions: Iterable[FetchAction], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for action in actions:
            if isinstance(action, AskBlock):
                topic, payload = self._topics.fetch(action.holder), encode_message(action.request)
                effects.append(Publication(channel=Channel.DATA, topic=topic, payload=payload))
            elif isinstance(action, FetchFailed):
                failed = BlobFailed(digest=action.digest, code="TransportError", reason=action.reason)
                effects += self._blob_failed(failed, now)
            else:
                effects.append(action)
        return effects
