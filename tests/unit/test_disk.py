"""The disk thread: blocks that wait together are kept together, and in order with what else is to be done."""

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.device.disk import Disk
from edge.errors import StoreError
from edge.formats.bundle import Blob, digest_of
from edge.formats.message import BLOCK_BYTES, Block, FetchRequest, decode_message
from edge.protocol.effects import (
    AgentEvent,
    AnswerFetch,
    BeginBlob,
    BlobBegun,
    BlobFailed,
    BlobsDropped,
    BlobStored,
    BlocksKept,
    CollectBlobs,
)
from edge.protocol.fetch import BlockServed, KeepBlock
from edge.state import StateFolder
from edge.store import BlobStore
from edge.transport import Channel, MemoryBroker, MemoryTransport, TransportEvent

DATA = bytes(range(256)) * 1024 + b"tail"  # two blocks and a bit
BLOB = Blob(digest=digest_of(DATA), size_bytes=len(DATA))


def keep(index: int) -> KeepBlock:
    return KeepBlock(blob=BLOB, index=index, data=DATA[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])


class Bench:
    """A disk whose thread starts when the test says so."""

    def __init__(self, folder: Path, state: StateFolder) -> None:
        self.store = BlobStore(folder)
        self.events: queue.Queue[AgentEvent] = queue.Queue()
        self.published: queue.Queue[TransportEvent] = queue.Queue()
        transport = MemoryTransport(MemoryBroker(), on_event=self.published.put)
        transport.connect(Channel.DATA)
        transport.subscribe(Channel.DATA, "blocks")
        for _ in range(2):
            self.published.get(timeout=5)
        self.disk = Disk(store=self.store, state=state, transport=transport, put=self.events.put)

    def run(self) -> list[AgentEvent]:
        """Do what is queued and return what was told."""
        self.disk.start()
        self.disk.stop(10.0)
        return [self.events.get_nowait() for _ in range(self.events.qsize())]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with StateFolder(tmp_path) as state:
        yield Bench(tmp_path, state)


def test_a_blob_comes_in_blocks_and_is_stored(bench: Bench) -> None:
    for job in (BeginBlob(blob=BLOB), keep(2), keep(0), keep(1)):
        bench.disk.do(job)
    begun, kept, stored = bench.run()
    assert begun == BlobBegun(digest=BLOB.digest, missing=(0, 1, 2))
    assert kept == BlocksKept(digest=BLOB.digest, indices=(2, 0, 1))
    assert isinstance(stored, BlobStored)


def test_blocks_that_came_are_not_missing_when_the_blob_is_begun_anew(bench: Bench) -> None:
    for job in (BeginBlob(blob=BLOB), keep(0), BeginBlob(blob=BLOB)):
        bench.disk.do(job)
    told = bench.run()
    assert [event.missing for event in told if isinstance(event, BlobBegun)] == [(0, 1, 2), (1, 2)]


def test_blocks_of_a_blob_that_was_dropped_are_passed_over(bench: Bench) -> None:
    for job in (BeginBlob(blob=BLOB), CollectBlobs(keep=frozenset()), keep(0)):
        bench.disk.do(job)
    assert [type(event) for event in bench.run()] == [BlobBegun, BlobsDropped]


def test_a_disk_that_fails_is_told_once_for_blocks_that_wait_together(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_blob: Blob, _blocks: object) -> tuple[int, ...]:
        raise StoreError("no space left on the disk")

    monkeypatch.setattr(bench.store, "write_blocks", full)
    for job in (BeginBlob(blob=BLOB), keep(0), keep(1)):
        bench.disk.do(job)
    failed = [event for event in bench.run() if isinstance(event, BlobFailed)]
    assert failed == [BlobFailed(digest=BLOB.digest, code="StoreError", reason="no space left on the disk")]


def test_what_is_given_to_others_is_counted(bench: Bench) -> None:
    bench.store.put(BLOB, DATA)
    for index in (2, 9):
        bench.disk.do(AnswerFetch(request=FetchRequest(digest=BLOB.digest, block=index, reply_to="blocks")))
    assert bench.run() == [BlockServed(size_bytes=4)]
    answers = [decode_message(bench.published.get_nowait().payload, Block) for _ in range(2)]  # type: ignore[union-attr]  # all are messages
    assert [answer.total_bytes for answer in answers] == [len(DATA), -1]
