"""Getting the blobs of a bundle into the coordinator's own store, so that it holds them too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edge.errors import BundleError, FormatError, StoreError
from edge.formats.bundle import Blob
from edge.formats.message import Block, decode_message, encode_message
from edge.protocol.fetch import AskBlock, FetchAction, Fetcher, KeepBlock
from edge.store import BlobStore
from edge.transport import Channel, Publication
from host.fleet.identity import Caller


class Collector:
    """Fetches blobs from their holders into a store."""

    def __init__(self, store: BlobStore, caller: Caller) -> None:
        self._store = store
        self._topics = caller.topics
        self._fetcher = Fetcher(reply_to=caller.topics.blocks(caller.node))
        self._failures: dict[str, str] = {}

    def want(self, blobs: Iterable[Blob], holders: Sequence[str], now: float) -> list[Publication]:
        """Start to fetch those of `blobs` that are not in the store; what is on its way is asked of `holders`, too."""
        publications: list[Publication] = []
        for blob in self._store.missing(blobs):
            self._failures.pop(blob.digest, None)
            if blob.digest in self._fetcher.wanted:
                publications += self._perform(self._fetcher.renew(blob.digest, holders, now), now)
                continue
            try:
                missing = self._store.begin(blob)
                publications += self._perform(self._fetcher.want(blob, holders, missing, now), now)
                if not missing:
                    self._store.finish(blob)
                    self._fetcher.forget(blob.digest)
            except (StoreError, BundleError) as error:
                self._fail(blob.digest, str(error))
        return publications

    def receive(self, payload: bytes, now: float) -> list[Publication]:
        """Take a message from this node's topic for blocks.

        Raises:
            FormatError: it is no block.
        """
        return self._perform(self._fetcher.take(decode_message(payload, Block), now), now)

    def tick(self, now: float) -> list[Publication]:
        """Ask again for what did not come."""
        return self._perform(self._fetcher.tick(now), now)

    def away(self, node: str, now: float) -> list[Publication]:
        """Note that a node is known to be away: it is passed over."""
        return self._perform(self._fetcher.away(node, now), now)

    def back(self, node: str, now: float) -> list[Publication]:
        """Note that a node is there, or there again."""
        return self._perform(self._fetcher.back(node, now), now)

    def resumed(self, now: float) -> list[Publication]:
        """Ask again, after the connection broke, for what was on its way."""
        return self._perform(self._fetcher.resumed(now), now)

    def drop(self, digests: Iterable[str]) -> None:
        """Forget about blobs: fetches under way, and why one failed."""
        for digest in digests:
            self._fetcher.forget(digest)
            self._failures.pop(digest, None)

    def failure(self, blobs: Iterable[Blob]) -> str | None:
        """Say why one of `blobs` cannot be had, or None while there is hope."""
        return next((self._failures[blob.digest] for blob in blobs if blob.digest in self._failures), None)

    def _perform(self, actions: Sequence[FetchAction], now: float) -> list[Publication]:
        publications: list[Publication] = []
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            match action:
                case AskBlock(holder=holder, request=request):
                    topic, payload = self._topics.fetch(holder), encode_message(request)
                    publications.append(Publication(channel=Channel.DATA, topic=topic, payload=payload))
                case KeepBlock():
                    waiting += self._keep(action, now)
                case _:
                    self._fail(action.digest, action.reason)
        return publications

    def _keep(self, action: KeepBlock, now: float) -> list[FetchAction]:
        blob = action.blob
        try:
            if not self._store.write_blocks(blob, {action.index: action.data}):
                self._store.finish(blob)
        except (StoreError, BundleError, FormatError) as error:
            self._fail(blob.digest, str(error))
            return []
        return self._fetcher.kept(blob.digest, [action.index], now)

    def _fail(self, digest: str, reason: str) -> None:
        self._fetcher.forget(digest)
        self._failures[digest] = reason
