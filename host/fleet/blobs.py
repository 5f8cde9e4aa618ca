"""Holding blobs for others: where they come from, and the answers to requests for their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edge.errors import StoreError
from edge.formats.bundle import Blob
from edge.formats.message import BLOCK_BYTES, FetchRequest, decode_message, encode_message
from edge.formats.topics import Topics
from edge.protocol.fetch import answer_fetch
from edge.transport import Channel, Publication
from host.bundle import OpenBundle


class BlobSource(Protocol):
    """Whole blobs by digest; `edge.store.BlobStore` is one."""

    def has(self, digest: str) -> bool:
        """Tell whether a blob is here, whole."""

    def read(self, digest: str) -> bytes:
        """Return a whole blob, verified.

        Raises:
            StoreError: it is not here or cannot be read.
            BundleError: it is not what its digest says.
        """

    def read_block(self, digest: str, index: int) -> tuple[int, bytes] | None:
        """Return the size of a blob and one block of it; None when it is not here.

        Raises:
            StoreError: the file cannot be read.
        """


class BundleBlobs:
    """The blobs of a bundle on disk."""

    def __init__(self, bundle: OpenBundle) -> None:
        self._bundle = bundle
        self._blobs: dict[str, Blob] = {blob.digest: blob for blob in bundle.blobs()}

    def has(self, digest: str) -> bool:
        """See `BlobSource.has`."""
        return digest in self._blobs

    def read(self, digest: str) -> bytes:
        """See `BlobSource.read`."""
        if digest not in self._blobs:
            raise StoreError(f"blob {digest[:80]} is not in {self._bundle.folder}")
        return self._bundle.read(self._blobs[digest])

    def read_block(self, digest: str, index: int) -> tuple[int, bytes] | None:
        """See `BlobSource.read_block`."""
        blob = self._blobs.get(digest)
        if blob is None or not 0 <= index * BLOCK_BYTES <= blob.size_bytes:
            return None
        try:
            with self._bundle.path(blob).open("rb") as file:
                file.seek(index * BLOCK_BYTES)
                return blob.size_bytes, file.read(BLOCK_BYTES)
        except OSError as error:
            raise StoreError(f"{self._bundle.path(blob)}: cannot be read ({error.strerror})") from error


class MemoryBlobs:
    """The twin of a store in memory."""

    def __init__(self, blobs: dict[str, bytes] | None = None) -> None:
        self._blobs = dict(blobs or {})

    def has(self, digest: str) -> bool:
        """See `BlobSource.has`."""
        return digest in self._blobs

    def read(self, digest: str) -> bytes:
        """See `BlobSource.read`."""
        if digest not in self._blobs:
            raise StoreError(f"blob {digest[:80]} is not here")
        return self._blobs[digest]

    def read_block(self, digest: str, index: int) -> tuple[int, bytes] | None:
        """See `BlobSource.read_block`."""
        data = self._blobs.get(digest)
        if data is None or not 0 <= index * BLOCK_BYTES <= len(data):
            return None
        return len(data), data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]


def answer_requests(payload: bytes, source: BlobSource, topics: Topics) -> Sequence[Publication]:
    """Answer one message from a node's fetch topic; a holder that lacks the block says so at once.

    A request for an answer on a topic where no blocks go is dropped.

    Raises:
        FormatError: it is no request.
    """
    request = decode_message(payload, FetchRequest)
    levels = topics.parse(request.reply_to)
    if levels is None or len(levels) != 2 or levels[0] != "blocks":
        return ()
    block = encode_message(answer_fetch(request, source.read_block))
    return (Publication(channel=Channel.DATA, topic=request.reply_to, payload=block),)
