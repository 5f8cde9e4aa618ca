"""The blobs that are on their way to a device, for its epochs and its bench. Part of the session."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from edge.errors import FormatError
from edge.formats.bundle import Blob
from edge.formats.message import Block, FetchRequest, decode_message, encode_message
from edge.formats.topics import Topics, check_name
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
from edge.protocol.epochs import EpochAction, Need
from edge.protocol.fetch import AskBlock, FetchAction, Fetcher, FetchFailed
from edge.protocol.presence import Presence
from edge.transport import Channel, Publication

Carry = Callable[[Iterable[EpochAction], float], list[Effect]]


class BlobUser(Protocol):
    """Who needs blobs, and is told of every one."""

    def wanted(self) -> frozenset[str]:
        """Return the digests of the blobs that it waits for."""

    def stored(self, digest: str, now: float) -> list[EpochAction]:
        """A blob is whole."""

    def blob_failed(self, digest: str, code: str, reason: str) -> list[EpochAction]:
        """A blob cannot be had, kept or parsed."""


class Blobs:
    """Makes room for blobs, fetches them, and tells their users."""

    def __init__(
        self,
        *,
        topics: Topics,
        node: str,
        presence: Presence,
        users: tuple[BlobUser, ...],
        carry: Carry,
        spoiled: Callable[[str], None],
    ) -> None:
        """Start with nothing wanted.

        Args:
            topics: of the fleet.
            node: name of this device.
            presence: where the sizes on the disk are told.
            users: who needs blobs.
            carry: carries out what users answer.
            spoiled: told of a blob that was here and is damaged.
        """
        self._topics = topics
        self._presence = presence
        self._users = users
        self._carry = carry
        self._spoiled = spoiled
        self._fetcher = Fetcher(reply_to=topics.blocks(node))
        self._begun: dict[str, tuple[Blob, tuple[str, ...]]] = {}
        self.steps: dict[type[Any], Callable[[Any, float], list[Effect]]] = {
            BlobBegun: self._blob_begun,
            BlocksKept: lambda event, now: self._fetch(self._fetcher.kept(event.digest, event.indices, now), now),
            BlobStored: self._blob_stored,
            BlobSpoiled: self._blob_spoiled,
            BlobFailed: self._blob_failed,
        }

    def missing_bytes(self) -> dict[str, int]:
        """Return how many bytes of each blob that is being fetched are not durable yet."""
        return {digest: self._fetcher.missing_bytes(digest) for digest in self._fetcher.wanted}

    def need(self, need: Need, now: float) -> list[Effect]:
        """Get a blob, or say that it is here."""
        if need.blob.digest in self._begun:
            return []
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
        """Ask again for what did not come."""
        return self._fetch(self._fetcher.tick(now), now)

    def block(self, payload: bytes, now: float) -> list[Effect]:
        """Take a block.

        Raises:
            FormatError: it is none.
        """
        return self._fetch(self._fetcher.take(decode_message(payload, Block), now), now)

    def fetch_request(self, payload: bytes, _now: float) -> list[Effect]:
        """Answer one who asks for a block.

        Raises:
            FormatError: the request is malformed.
        """
        request = decode_message(payload, FetchRequest)
        levels = self._topics.parse(request.reply_to)
        if levels is None or len(levels) != 2 or levels[0] != "blocks":
            raise FormatError(f"{request.reply_to[:120]!r} is no blocks topic of this fleet")
        check_name(levels[1], what="node name")
        return [AnswerFetch(request=request)]

    def _blob_begun(self, event: BlobBegun, now: float) -> list[Effect]:
        begun = self._begun.get(event.digest)
        if begun is None:
            return []
        return self._fetch(self._fetcher.want(begun[0], begun[1], event.missing, now), now)

    def _blob_stored(self, event: BlobStored, now: float) -> list[Effect]:
        self._presence.held_bytes, self._presence.free_disk_bytes = event.held_bytes, event.free_disk_bytes
        self._begun.pop(event.digest, None)
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
