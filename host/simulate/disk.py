"""The disk of a simulated device: blobs that are written at a fixed rate, and what outlives a loss of power."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edge.formats.message import FetchRequest, encode_message
from edge.protocol.effects import (
    AgentEvent,
    BeginBlob,
    BlobBegun,
    BlobFailed,
    BlobsDropped,
    BlobStored,
    BlocksKept,
    CollectBlobs,
    ManifestRead,
    ReadManifest,
    SaveServing,
    SaveSpeed,
)
from edge.protocol.fetch import KeepBlock, all_blocks, answer_fetch
from edge.protocol.marks import SaveMarks
from edge.protocol.on_disk import OnDisk
from host.simulate.bundle import SimulatedBundle
from host.simulate.clock import Clock

Later = Callable[[float, AgentEvent], None]
"""Takes an event that the session hears at a time."""


class SimulatedDisk:
    """What a device keeps.

    Attributes:
        held: digests of whole blobs.
    """

    def __init__(
        self,
        found: OnDisk,
        *,
        clock: Clock,
        bundles: Mapping[str, SimulatedBundle],
        room_bytes: int,
        bytes_per_second: float,
        later: Later,
    ) -> None:
        """Take what is there at first.

        Args:
            found: what is there at first.
            clock: of the simulation.
            bundles: by digest of the manifest.
            room_bytes: for blobs.
            bytes_per_second: at which blobs are written.
            later: tells the session.
        """
        self.held = set(found.held)
        self._serving = {deployment.name: deployment for deployment in found.serving}
        self._speed = found.speed
        self._marks = found.marks
        self._clock = clock
        self._bundles = bundles
        self._sizes = {digest: size for bundle in bundles.values() for digest, size in bundle.blob_bytes.items()}
        self._room_bytes = room_bytes
        self._bytes_per_second = bytes_per_second
        self._later = later
        self._partial: dict[str, set[int]] = {}
        self._free_at = 0.0

    def at_start(self) -> OnDisk:
        """Return what an agent finds when it starts; pieces of blobs are kept, too."""
        held = self._held_bytes()
        return OnDisk(
            serving=tuple(self._serving.values()),
            held=frozenset(self.held),
            held_bytes=held,
            free_disk_bytes=max(0, self._room_bytes - held),
            speed=self._speed,
            marks=self._marks,
        )

    def save(self, effect: SaveServing | SaveSpeed | SaveMarks) -> None:
        """Remember a serving plan, what was measured, or marks."""
        if isinstance(effect, SaveServing):
            self._serving[effect.deployment.name] = effect.deployment
        elif isinstance(effect, SaveMarks):
            self._marks = effect.marks
        else:
            self._speed = effect.speed

    def begin(self, effect: BeginBlob) -> None:
        """Make room for a blob."""
        digest = effect.blob.digest
        if digest in self.held:
            self._soon(self._stored(digest))
            return
        if digest not in self._partial and self._taken_bytes() + effect.blob.size_bytes > self._room_bytes:
            reason = f"blob {digest[7:19]} of {effect.blob.size_bytes} bytes does not fit"
            self._soon(BlobFailed(digest=digest, code="StoreError", reason=reason))
            return
        self._sizes.setdefault(digest, effect.blob.size_bytes)
        kept = self._partial.setdefault(digest, set())
        missing = tuple(index for index in all_blocks(effect.blob) if index not in kept)
        self._soon(BlobBegun(digest=digest, missing=missing))

    def keep(self, effect: KeepBlock) -> None:
        """Write a block, after those before it; what is no longer begun is dropped."""
        self._free_at = max(self._clock.now, self._free_at) + len(effect.data) / self._bytes_per_second
        digest = effect.blob.digest
        kept = self._partial.get(digest)
        if kept is None:
            return
        kept.add(effect.index)
        self._later(self._free_at, BlocksKept(digest=digest, indices=(effect.index,)))
        if len(kept) == len(all_blocks(effect.blob)):
            del self._partial[digest]
            self.held.add(digest)
            self._later(self._free_at, self._stored(digest))

    def read_manifest(self, effect: ReadManifest) -> None:
        """Parse a manifest."""
        digest = effect.blob.digest
        bundle = self._bundles.get(digest)
        if bundle is None:
            self._soon(BlobFailed(digest=digest, code="BundleError", reason="no bundle of the simulation"))
        else:
            self._soon(ManifestRead(digest=digest, manifest=bundle.manifest))

    def collect(self, effect: CollectBlobs) -> None:
        """Drop what nobody needs."""
        dropped = tuple(sorted((self.held | self._partial.keys()) - effect.keep))
        self.held &= effect.keep
        for digest in self._partial.keys() - effect.keep:
            del self._partial[digest]
        held = self._held_bytes()
        self._soon(BlobsDropped(digests=dropped, held_bytes=held, free_disk_bytes=max(0, self._room_bytes - held)))

    def answer(self, request: FetchRequest) -> bytes:
        """Return the message that answers a request for a block."""
        return encode_message(answer_fetch(request, self._read_block))

    def _read_block(self, digest: str, index: int) -> tuple[int, bytes] | None:
        if digest not in self.held:
            return None
        found = (bundle.read_block(digest, index) for bundle in self._bundles.values() if bundle.has(digest))
        return next(found, None)

    def _held_bytes(self) -> int:
        return sum(self._sizes.get(digest, 0) for digest in self.held)

    def _taken_bytes(self) -> int:
        return self._held_bytes() + sum(self._sizes.get(digest, 0) for digest in self._partial)

    def _stored(self, digest: str) -> BlobStored:
        held = self._held_bytes()
        return BlobStored(digest=digest, held_bytes=held, free_disk_bytes=max(0, self._room_bytes - held))

    def _soon(self, event: AgentEvent) -> None:
        self._later(self._clock.now, event)
