"""Content-addressed blobs on disk, fetched in blocks that survive a crash.

::

    blobs/sha256/<hex>   whole, verified blobs: real files, because runtimes map them and refuse links
    partial/<hex>        blocks that came so far, in place; its room is taken when it is begun
    partial/<hex>.bits   one bit a block, set only after the block's data is on disk, and then synced itself

What nobody needs is spare for a while before it is deleted, and its room counts as free: a transfer that was broken off
goes on where it was, and after a restart nothing is lost while it is not yet known what is needed.
"""

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from edge.errors import DigestMismatch, StoreError
from edge.formats.bundle import MAX_BLOB_BYTES, Blob, check_bytes, check_digest
from edge.formats.message import BLOCK_BYTES, Transfer

DEFAULT_QUOTA_BYTES = 64 << 30
SPARE_SECONDS = 60.0
"""How long what nobody needs stays, unless its room is wanted."""

_READ_BYTES = 1 << 20
_MIB = 1 << 20


def block_count(size_bytes: int) -> int:
    """Return of how many blocks a blob is; an empty blob has one empty block."""
    return max(1, -(-size_bytes // BLOCK_BYTES))


def block_length(size_bytes: int, index: int) -> int:
    """Return the length of block `index` of a blob in bytes."""
    return min(BLOCK_BYTES, size_bytes - index * BLOCK_BYTES)


class BlobStore:
    """A folder of blobs named by their SHA-256. One process owns a folder; not thread-safe for writers."""

    def __init__(
        self,
        folder: Path,
        *,
        quota_bytes: int = DEFAULT_QUOTA_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open or make the store.

        Args:
            folder: made when it does not exist.
            quota_bytes: most bytes that whole and partial blobs may take together.
            clock: seconds, never less than before.

        Raises:
            StoreError: the folder cannot be made or read.
        """
        self._blobs = folder / "blobs" / "sha256"
        self._partial = folder / "partial"
        self._quota_bytes = quota_bytes
        self._sizes: dict[str, int] = {}
        self._reserved: dict[str, int] = {}
        self._spare: dict[str, float] = {}
        self._clock = clock
        with _disk_errors(f"store {folder}"):
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir(parents=True, exist_ok=True)
            for path in self._blobs.iterdir():
                if path.is_file() and _is_hex(path.name):
                    self._sizes[path.name] = path.stat().st_size
            for path in self._partial.iterdir():
                if _is_hex(path.name):
                    self._reserved[path.name] = path.stat().st_size

    @property
    def weights_folder(self) -> Path:
        """The folder whose files are named by the hex digest of a blob."""
        return self._blobs

    @property
    def hold_bytes(self) -> int:
        """Size of all whole blobs that are not spare."""
        return sum(size for name, size in tuple(self._sizes.items()) if name not in self._spare)

    @property
    def free_bytes(self) -> int:
        """Room for further blobs: what quota and disk leave, and what is spare."""
        with _disk_errors("store"):
            disk = os.statvfs(self._blobs)
        on_disk = disk.f_bavail * disk.f_frsize + self._spare_bytes()
        return max(0, min(self._quota_bytes - self._used_bytes(), on_disk))

    @property
    def has_spare(self) -> bool:
        """Whether something waits to be deleted, see `sweep`."""
        return bool(self._spare)

    def held(self) -> frozenset[str]:
        """Return the digests of all whole blobs that are not spare."""
        return frozenset(f"sha256:{name}" for name in tuple(self._sizes) if name not in self._spare)

    def partial(self) -> tuple[Transfer, ...]:
        """Return how much is here of each blob that is not whole or spare, in the order of their digests.

        Raises:
            StoreError: the disk fails.
        """
        found = []
        for name, size in sorted(self._reserved.items()):
            if name in self._spare:
                continue
            with _disk_errors(f"blob {name[:12]}"):
                marks = self._bits(name).read_bytes() if self._bits(name).exists() else b""
            done = sum(block_length(size, index) for index in range(block_count(size)) if _is_marked(marks, index))
            found.append(Transfer(digest=f"sha256:{name}", done_bytes=done, total_bytes=size))
        return tuple(found)

    def has(self, digest: str) -> bool:
        """Tell whether a blob is here, whole; whoever asks needs it, so it is spare no longer."""
        name = _hex(digest)
        self._spare.pop(name, None)
        return name in self._sizes

    def is_begun(self, digest: str) -> bool:
        """Tell whether a blob is being fetched, see `begin`."""
        name = _hex(digest)
        return name in self._reserved and name not in self._spare

    def missing(self, blobs: Iterable[Blob]) -> tuple[Blob, ...]:
        """Return those of `blobs` that are not here."""
        return tuple(blob for blob in blobs if not self.has(blob.digest))

    def path(self, digest: str) -> Path:
        """Return the file of a whole blob.

        Raises:
            StoreError: it is not here.
        """
        name = _hex(digest)
        if name not in self._sizes:
            raise StoreError(f"blob {digest} is not in the store")
        return self._blobs / name

    def read(self, digest: str) -> bytes:
        """Return the bytes of a whole blob, verified.

        Raises:
            StoreError: it is not here or cannot be read.
            DigestMismatch: the file has changed; it is removed.
        """
        path = self.path(digest)
        with _disk_errors(f"blob {digest}"):
            data = path.read_bytes()
        try:
            check_bytes(data, expected=digest, where=f"stored blob {path.name[:12]}")
        except DigestMismatch:
            self.remove(digest)
            raise
        return data

    def verify(self, digest: str) -> None:
        """Hash a whole blob again, without keeping it in memory.

        Raises:
            StoreError: it is not here or cannot be read.
            DigestMismatch: the file has changed; it is removed.
        """
        path = self.path(digest)
        found = _hash_file(path)
        if found != digest:
            self.remove(digest)
            raise DigestMismatch(expected=digest, found=found, where=f"stored blob {path.name[:12]}")

    def read_block(self, digest: str, index: int) -> tuple[int, bytes] | None:
        """Return the size of a whole blob and one block of it; None when the store or the blob lacks it.

        Raises:
            StoreError: the file cannot be read.
        """
        name = _hex(digest)
        size = self._sizes.get(name)
        if size is None or not 0 <= index < block_count(size):
            return None
        with _disk_errors(f"blob {digest}"), (self._blobs / name).open("rb") as file:
            file.seek(index * BLOCK_BYTES)
            return size, file.read(BLOCK_BYTES)

    def put(self, blob: Blob, data: bytes) -> None:
        """Keep a whole blob.

        Raises:
            DigestMismatch: `data` is not the blob.
            StoreError: quota or disk.
        """
        check_bytes(data, expected=blob.digest, where="blob")
        if self.has(blob.digest):
            return
        self.begin(blob)
        blocks = range(block_count(blob.size_bytes))
        self.write_blocks(blob, {index: data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES] for index in blocks})
        self.finish(blob)

    def begin(self, blob: Blob) -> tuple[int, ...]:
        """Make room for a blob, or find what is there of it, and return the blocks still missing.

        Raises:
            StoreError: it does not fit the quota or the disk.
        """
        name = _hex(blob.digest)
        if not 0 <= blob.size_bytes <= MAX_BLOB_BYTES:
            raise StoreError(f"blob {blob.digest} has size {blob.size_bytes}; at most {MAX_BLOB_BYTES} is allowed")
        self._spare.pop(name, None)
        if name not in self._reserved and self._used_bytes() + blob.size_bytes > self._quota_bytes:
            raise StoreError(
                f"blob {name[:12]} of {blob.size_bytes / _MIB:.1f} MiB does not fit: {self._used_bytes() / _MIB:.1f} "
                f"of {self._quota_bytes / _MIB:.1f} MiB are taken"
            )
        data, bits = self._partial / name, self._bits(name)
        try:
            with _disk_errors(f"blob {name[:12]} of {blob.size_bytes / _MIB:.1f} MiB"):
                if not data.exists() or data.stat().st_size != blob.size_bytes or not bits.exists():
                    bits.unlink(missing_ok=True)
                    self._make_room(blob.size_bytes)
                    _take_room(data, blob.size_bytes)
                    bits.write_bytes(bytes(-(-block_count(blob.size_bytes) // 8)))
                self._reserved[name] = blob.size_bytes
                return self._missing_blocks(blob)
        except StoreError:
            # What could not be begun must not take the room of what can.
            with contextlib.suppress(StoreError):
                self.abandon(blob.digest)
            raise

    def write_blocks(self, blob: Blob, blocks: Mapping[int, bytes]) -> tuple[int, ...]:
        """Write blocks, make them durable, and only then mark them; return the blocks still missing.

        Raises:
            StoreError: `begin` was not called, a block has a wrong length, or the disk is full.
        """
        name = _hex(blob.digest)
        if name not in self._reserved:
            raise StoreError(f"blob {name[:12]} was not begun")
        with _disk_errors(f"blob {name[:12]}"):
            with (self._partial / name).open("r+b") as file:
                for index, data in blocks.items():
                    if len(data) != block_length(blob.size_bytes, index):
                        raise StoreError(f"blob {name[:12]}: block {index} has {len(data)} bytes")
                    file.seek(index * BLOCK_BYTES)
                    file.write(data)
                file.flush()
                os.fdatasync(file.fileno())
            marks = bytearray(self._bits(name).read_bytes())
            marks.extend(bytes(max(0, -(-block_count(blob.size_bytes) // 8) - len(marks))))
            for index in blocks:
                marks[index // 8] |= 1 << index % 8
            with self._bits(name).open("r+b") as file:
                file.write(marks)
                file.flush()
                os.fdatasync(file.fileno())
            return self._missing_blocks(blob)

    def finish(self, blob: Blob) -> None:
        """Verify a blob whose blocks are all there and move it to its place.

        Raises:
            DigestMismatch: the bytes are others; what was there of it is dropped.
            StoreError: blocks are missing, or the disk fails.
        """
        name = _hex(blob.digest)
        partial = self._partial / name
        with _disk_errors(f"blob {name[:12]}"):
            if name not in self._reserved or self._missing_blocks(blob):
                raise StoreError(f"blob {name[:12]} is not complete")
        found = _hash_file(partial)
        if found != blob.digest:
            self.abandon(blob.digest)
            raise DigestMismatch(expected=blob.digest, found=found, where=f"blob {name[:12]}")
        with _disk_errors(f"blob {name[:12]}"):
            partial.rename(self._blobs / name)
            _sync_folder(self._blobs)
            self._bits(name).unlink(missing_ok=True)
        del self._reserved[name]
        self._sizes[name] = blob.size_bytes

    def abandon(self, digest: str) -> None:
        """Drop what is there of a blob that is not whole."""
        name = _hex(digest)
        with _disk_errors(f"blob {name[:12]}"):
            (self._partial / name).unlink(missing_ok=True)
            self._bits(name).unlink(missing_ok=True)
        self._reserved.pop(name, None)
        self._spare.pop(name, None)

    def remove(self, digest: str) -> None:
        """Drop a whole blob; nothing happens when it is not here. A mapped file lives on until it is unmapped."""
        name = _hex(digest)
        self._spare.pop(name, None)
        if self._sizes.pop(name, None) is not None:
            with _disk_errors(f"blob {name[:12]}"):
                (self._blobs / name).unlink(missing_ok=True)

    def collect(self, keep: Iterable[str]) -> tuple[str, ...]:
        """Let every blob be spare, whole or partial, whose digest is not in `keep`; return those that become it."""
        kept = {_hex(digest) for digest in keep}
        for name in kept:
            self._spare.pop(name, None)
        dropped = [name for name in (*self._sizes, *self._reserved) if name not in kept and name not in self._spare]
        self._spare |= dict.fromkeys(dropped, self._clock())
        self.sweep()
        return tuple(f"sha256:{name}" for name in dropped)

    def sweep(self, *, spare_seconds: float = SPARE_SECONDS) -> None:
        """Delete what has been spare for so long.

        Raises:
            StoreError: the disk fails.
        """
        self._delete_spare(until=self._clock() - spare_seconds)

    def _delete_spare(self, *, until: float = float("inf")) -> None:
        for name in [name for name, since in self._spare.items() if since <= until]:
            self.remove(f"sha256:{name}")
            self.abandon(f"sha256:{name}")

    def _make_room(self, size_bytes: int) -> None:
        """Delete what is spare when quota or disk would not hold a further blob beside it."""
        disk = os.statvfs(self._partial)
        held = self._used_bytes() + self._spare_bytes()
        if size_bytes > min(self._quota_bytes - held, disk.f_bavail * disk.f_frsize - _MIB):
            self._delete_spare()

    def _used_bytes(self) -> int:
        return sum(self._sizes.values()) + sum(self._reserved.values()) - self._spare_bytes()

    def _spare_bytes(self) -> int:
        return sum(self._sizes.get(name, 0) + self._reserved.get(name, 0) for name in tuple(self._spare))

    def _bits(self, name: str) -> Path:
        return self._partial / f"{name}.bits"

    def _missing_blocks(self, blob: Blob) -> tuple[int, ...]:
        marks = self._bits(_hex(blob.digest)).read_bytes()
        return tuple(index for index in range(block_count(blob.size_bytes)) if not _is_marked(marks, index))


def _hex(digest: str) -> str:
    # A digest is the only thing that names a file here, and it holds nothing but hex digits: no way out of the folder.
    return check_digest(digest, where="store")


def _is_marked(marks: bytes, index: int) -> bool:
    return index // 8 < len(marks) and bool(marks[index // 8] >> index % 8 & 1)


def _take_room(path: Path, size_bytes: int) -> None:
    """Make a file whose blocks are there on the disk, so that a transfer that began does not run out of room."""
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(1, size_bytes))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
        file.truncate(size_bytes)


def _is_hex(name: str) -> bool:
    return len(name) == 64 and set("0123456789abcdef").issuperset(name)


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with _disk_errors(str(path.name)), path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{what}: no space left on the disk") from error
        raise StoreError(f"{what}: {error.strerror or error}") from error
