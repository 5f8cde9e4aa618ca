"""Blobs on their way to a device and from it to others: the part of the session that fetches and answers."""

from collections.abc import Iterable

import pytest

from edge.formats.bundle import Blob, digest_of
from edge.formats.message import (
    BLOCK_BYTES,
    Block,
    FetchRequest,
    Session,
    State,
    Transfer,
    decode_message,
    encode_message,
)
from edge.formats.topics import Topics
from edge.protocol.blobs import MAX_WAITING_ANSWERS, Blobs
from edge.protocol.effects import (
    AnswerFetch,
    BeginBlob,
    BlobBegun,
    BlobFailed,
    BlobStored,
    BlocksKept,
    Effect,
)
from edge.protocol.fetch import BlockServed, KeepBlock
from edge.protocol.pace import BUSY_SECONDS, Pace
from edge.protocol.preparing import EpochAction, Need
from edge.protocol.presence import AgentIdentity, Presence
from edge.transport import Publication

TOPICS = Topics(fleet="default")
DATA = bytes(range(256)) * (512 * 4)
BLOB = Blob(digest=digest_of(DATA), size_bytes=len(DATA))


class Listener:
    """Waits for blobs and notes what it is told."""

    def __init__(self) -> None:
        self.waits: set[str] = {BLOB.digest}
        self.heard: list[tuple[str, str]] = []

    def wanted(self) -> frozenset[str]:
        return frozenset(self.waits)

    def stored(self, digest: str, now: float) -> list[EpochAction]:
        del now
        self.heard.append(("stored", digest))
        return []

    def blob_failed(self, digest: str, code: str, reason: str) -> list[EpochAction]:
        self.heard.append((code, reason if digest == BLOB.digest else digest))
        return []


def make_blobs(listener: Listener, *, pace: Pace | None = None, partial: Iterable[Transfer] = ()) -> Blobs:
    identity = AgentIdentity(
        name="pi-1",
        fleet="default",
        boot=1,
        instance="i",
        started=0.0,
        profile="rpi4",
        runtimes=(),
        memory_bytes=1,
        cores=1,
        agent_version="0",
    )
    blobs = Blobs(
        topics=TOPICS,
        node="pi-1",
        presence=Presence(identity=identity, topics=TOPICS, held_bytes=0, free_disk_bytes=0),
        users=(listener,),
        carry=lambda _actions, _now: [],
        spoiled=lambda _digest: None,
        pace=pace,
        partial=partial,
    )
    blobs.resumed(0.0)
    return blobs


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def blobs(listener: Listener) -> Blobs:
    return make_blobs(listener)


def need(*holders: str) -> Need:
    return Need(blob=BLOB, holders=holders)


def begun(blobs: Blobs, *holders: str, missing: tuple[int, ...] = (0, 1, 2, 3), now: float = 0.0) -> list[Effect]:
    assert blobs.need(need(*holders), now) == [BeginBlob(blob=BLOB)]
    return list(blobs.steps[BlobBegun](BlobBegun(digest=BLOB.digest, missing=missing), now))


def asked(effects: Iterable[Effect]) -> list[tuple[str, int]]:
    found = []
    for effect in effects:
        assert isinstance(effect, Publication)
        found.append((effect.topic.rsplit("/", 1)[1], decode_message(effect.payload, FetchRequest).block))
    return found


def give(index: int) -> bytes:
    piece = DATA[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
    return encode_message(Block(digest=BLOB.digest, block=index, total_bytes=len(DATA), data=piece))


def request(index: int, node: str = "pi-2") -> bytes:
    return encode_message(FetchRequest(digest=BLOB.digest, block=index, reply_to=TOPICS.blocks(node)))


def state(node: str, *, online: bool, boot: int = 1) -> State:
    return State(node=node, role="agent", online=online, session=Session(boot=boot, connect=1))


def test_a_newer_epoch_that_needs_the_same_blob_takes_the_transfer_over(blobs: Blobs) -> None:
    assert asked(begun(blobs, "host")) == [("host", index) for index in range(4)]
    assert blobs.need(need("pi-2"), 0.1) == []
    assert blobs.holders == {"host", "pi-2"}
    blobs.block(give(0), 0.2)
    assert asked(blobs.state(state("host", online=False), 0.3)) == [("pi-2", index) for index in (1, 2, 3)]
    assert blobs.counters().repeated_blocks == 3


def test_an_old_last_will_does_not_send_a_transfer_elsewhere(blobs: Blobs) -> None:
    begun(blobs, "host", "pi-2")
    blobs.state(state("host", online=True, boot=2), 0.1)
    assert blobs.state(state("host", online=False, boot=1), 0.2) == []


def test_nothing_is_asked_for_while_the_connection_is_down(blobs: Blobs) -> None:
    blobs.paused()
    assert begun(blobs, "host") == []
    assert blobs.tick(60.0) == []
    assert len(asked(blobs.resumed(61.0))) == 4
    assert blobs.counters().repeated_blocks == 0


def test_a_blob_without_holders_fails_and_says_so(blobs: Blobs, listener: Listener) -> None:
    assert blobs.need(need(), 0.0) == []
    ((code, reason),) = listener.heard
    assert (code, reason) == (
        "StoreError",
        f"blob {BLOB.digest[7:19]} is not here, and the deployment names no holder of it",
    )


def test_a_full_disk_is_told_once_and_what_still_comes_is_dropped(blobs: Blobs, listener: Listener) -> None:
    begun(blobs, "host")
    assert isinstance(blobs.block(give(0), 0.1)[0], KeepBlock)
    blobs.steps[BlobFailed](BlobFailed(digest=BLOB.digest, code="StoreError", reason="no space left"), 0.2)
    assert listener.heard == [("StoreError", "no space left")]
    assert blobs.block(give(1), 0.3) == []
    assert blobs.tick(10.0) == []
    assert blobs.transfers() == ()
    assert begun(blobs, "host"), "a later need begins anew"


def test_what_the_disk_has_after_a_restart_is_told_at_once(listener: Listener) -> None:
    kept = Transfer(digest=BLOB.digest, done_bytes=2 * BLOCK_BYTES, total_bytes=len(DATA))
    blobs = make_blobs(listener, partial=(kept,))
    assert blobs.transfers() == (kept,)
    blobs.need(need("host"), 0.0)
    assert blobs.transfers() == (kept,)
    blobs.steps[BlobBegun](BlobBegun(digest=BLOB.digest, missing=(1, 3)), 0.0)
    assert [(found.done_bytes, found.holder) for found in blobs.transfers()] == [(2 * BLOCK_BYTES, "host")]
    for index in (1, 3):
        blobs.block(give(index), 0.1)
        blobs.steps[BlocksKept](BlocksKept(digest=BLOB.digest, indices=(index,)), 0.1)
    blobs.steps[BlobStored](BlobStored(digest=BLOB.digest, held_bytes=len(DATA), free_disk_bytes=0), 0.1)
    assert blobs.transfers() == ()
    assert blobs.counters().fetched_bytes == 2 * BLOCK_BYTES


def test_what_was_dropped_from_the_disk_is_no_longer_told(listener: Listener) -> None:
    blobs = make_blobs(listener, partial=(Transfer(digest=BLOB.digest, done_bytes=1, total_bytes=2),))
    blobs.dropped((BLOB.digest,))
    assert blobs.transfers() == ()


def test_an_idle_device_answers_at_once_and_counts_what_it_gave(blobs: Blobs) -> None:
    for index in range(100):
        (answer,) = blobs.fetch_request(request(index), 0.0)
        assert isinstance(answer, AnswerFetch)
    blobs.steps[BlockServed](BlockServed(size_bytes=7), 0.0)
    assert blobs.counters().served_bytes == 7


def test_while_frames_are_served_answers_wait_for_the_budget_in_a_bounded_queue(listener: Listener) -> None:
    pace = Pace(bytes_per_second=4.0 * BLOCK_BYTES)
    blobs = make_blobs(listener, pace=pace)
    pace.frame(0.0)
    answered = [effect for index in range(200) for effect in blobs.fetch_request(request(index), 0.0)]
    assert len(answered) == 1
    again = blobs.fetch_request(request(1), 0.0)
    assert again == [], "who asks twice is answered once"
    now = 0.0
    while len(answered) < 1 + MAX_WAITING_ANSWERS:
        now += 0.25
        pace.frame(now)
        answered += blobs.tick(now)
        assert now < 30.0, "it goes on"
    assert now >= MAX_WAITING_ANSWERS / 4 - 1.0
    blocks = [effect.request.block for effect in answered if isinstance(effect, AnswerFetch)]
    assert blocks == list(range(1 + MAX_WAITING_ANSWERS)), "in order, and what is more is dropped"
    assert blobs.tick(now + 1.0) == []


def test_once_the_frames_end_what_waits_is_answered_at_once(listener: Listener) -> None:
    blobs = make_blobs(listener, pace=Pace(bytes_per_second=1000.0))
    blobs.pace.frame(0.0)
    for index in range(10):
        blobs.fetch_request(request(index), 0.0)
    assert len(blobs.tick(BUSY_SECONDS + 0.1)) == 9
