"""The disk thread: keeps blobs and serving plans, reads manifests, and answers who fetches."""

import logging
import queue
import threading
from collections.abc import Callable

from edge.errors import DigestMismatch, ShardwireError
from edge.formats.bundle import Blob, decode_manifest
from edge.formats.message import encode_message
from edge.protocol.effects import (
    AgentEvent,
    AnswerFetch,
    BeginBlob,
    BlobBegun,
    BlobFailed,
    BlobsDropped,
    BlobSpoiled,
    BlobStored,
    BlocksKept,
    CollectBlobs,
    ManifestRead,
    ReadManifest,
    SaveServing,
    SaveSpeed,
)
from edge.protocol.fetch import BlockServed, KeepBlock, answer_fetch
from edge.protocol.marks import ForgetDeaths, SaveMarks
from edge.state import StateFolder
from edge.store import BlobStore
from edge.transport import Channel, Publication, Transport

_log = logging.getLogger(__name__)

Save = SaveServing | SaveSpeed | SaveMarks | ForgetDeaths
_SWEEP_SECONDS = 10.0

DiskJob = BeginBlob | KeepBlock | ReadManifest | CollectBlobs | AnswerFetch | Save


class Disk:
    """Carries out one job after another; blocks that wait together are made durable together."""

    def __init__(
        self, *, store: BlobStore, state: StateFolder, transport: Transport, put: Callable[[AgentEvent], None]
    ) -> None:
        self._store = store
        self._state = state
        self._transport = transport
        self._put = put
        self._jobs: queue.SimpleQueue[DiskJob | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="disk", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def do(self, job: DiskJob) -> None:
        """Queue a job."""
        self._jobs.put(job)

    def stop(self, timeout_seconds: float) -> None:
        """End after the jobs that are queued."""
        self._jobs.put(None)
        self._thread.join(timeout_seconds)

    def _loop(self) -> None:
        while True:
            try:
                jobs = [self._jobs.get(timeout=_SWEEP_SECONDS if self._store.has_spare else None)]
            except queue.Empty:
                self._guard("", self._store.sweep)
                continue
            while True:
                try:
                    jobs.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
            if not self._do_all(jobs):
                self._guard("", lambda: self._store.sweep(spare_seconds=0.0))
                return

    def _do_all(self, jobs: list[DiskJob | None]) -> bool:
        """Do jobs in order, blocks of one blob together; tell whether more may come."""
        blocks: dict[str, tuple[Blob, dict[int, bytes]]] = {}
        for job in jobs:
            if isinstance(job, KeepBlock):
                blocks.setdefault(job.blob.digest, (job.blob, {}))[1][job.index] = job.data
                continue
            if job is None or isinstance(job, BeginBlob | CollectBlobs):
                # Blocks that came before a blob is begun anew are not missing then.
                self._keep_all(blocks)
            if job is None:
                return False
            self._do(job)
        self._keep_all(blocks)
        return True

    def _keep_all(self, blocks: dict[str, tuple[Blob, dict[int, bytes]]]) -> None:
        for blob, data in blocks.values():
            self._guard(blob.digest, lambda blob=blob, data=data: self._keep(blob, data))  # type: ignore[misc]
        blocks.clear()

    def _do(self, job: DiskJob) -> None:
        if isinstance(job, BeginBlob):
            self._guard(job.blob.digest, lambda: self._begin(job.blob))
        elif isinstance(job, ReadManifest):
            self._guard(job.blob.digest, lambda: self._read_manifest(job.blob))
        elif isinstance(job, CollectBlobs):
            self._guard("", lambda: self._collect(job))
        elif isinstance(job, AnswerFetch):
            self._guard("", lambda: self._answer(job))
        elif isinstance(job, SaveServing):
            self._guard("", lambda: self._state.save_serving(job.deployment))
        elif isinstance(job, SaveSpeed):
            self._guard("", lambda: self._state.save_speed(job.speed))
        elif isinstance(job, SaveMarks):
            self._guard("", lambda: self._state.save_marks(job.marks))
        elif isinstance(job, ForgetDeaths):
            self._guard("", lambda: self._state.forget_deaths(job.deployment, job.epoch))

    def _guard(self, digest: str, step: Callable[[], None]) -> None:
        """Do one step; what goes wrong with a blob is told to the session, anything else is logged."""
        try:
            step()
        except DigestMismatch as error:
            _log.warning("%s", error)
            self._put(BlobSpoiled(digest=digest))
        except ShardwireError as error:
            _log.error("%s", error)
            if digest:
                self._put(BlobFailed(digest=digest, code=type(error).__name__, reason=str(error)))
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the thread
            _log.exception("disk job failed")
            if digest:
                self._put(BlobFailed(digest=digest, code=type(error).__name__, reason=f"fault of the agent: {error}"))

    def _begin(self, blob: Blob) -> None:
        if self._store.has(blob.digest):
            self._tell_stored(blob)
            return
        missing = self._store.begin(blob)
        if missing:
            self._put(BlobBegun(digest=blob.digest, missing=missing))
        else:
            self._finish(blob)

    def _keep(self, blob: Blob, blocks: dict[int, bytes]) -> None:
        if not self._store.is_begun(blob.digest):
            return  # of a transfer that failed or was dropped, which has been told
        missing = self._store.write_blocks(blob, blocks)
        self._put(BlocksKept(digest=blob.digest, indices=tuple(blocks)))
        if not missing:
            self._finish(blob)

    def _finish(self, blob: Blob) -> None:
        self._store.finish(blob)
        self._tell_stored(blob)

    def _tell_stored(self, blob: Blob) -> None:
        held, free = self._store.hold_bytes, self._store.free_bytes
        self._put(BlobStored(digest=blob.digest, held_bytes=held, free_disk_bytes=free))

    def _read_manifest(self, blob: Blob) -> None:
        data = self._store.read(blob.digest)
        self._put(ManifestRead(digest=blob.digest, manifest=decode_manifest(data)))

    def _collect(self, job: CollectBlobs) -> None:
        dropped = self._store.collect(job.keep)
        held, free = self._store.hold_bytes, self._store.free_bytes
        self._put(BlobsDropped(digests=dropped, held_bytes=held, free_disk_bytes=free))

    def _answer(self, job: AnswerFetch) -> None:
        block = answer_fetch(job.request, self._store.read_block)
        payload = encode_message(block)
        answer = Publication(channel=Channel.DATA, topic=job.request.reply_to, payload=payload)
        if self._transport.publish(answer) and block.data:
            self._put(BlockServed(size_bytes=len(block.data)))
