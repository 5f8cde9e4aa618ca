"""A coordinator gets the blobs of a bundle into its own store, and gives them to others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge.errors import FormatError, StoreError
from edge.formats.bundle import Blob
from edge.formats.message import Block, FetchRequest, Session, decode_message, encode_message
from edge.store import BlobStore
from edge.transport import Publication
from host.bundle import blob_of
from host.fleet.blobs import MemoryBlobs, answer_requests
from host.fleet.collect import Collector
from host.fleet.identity import Caller
from tests.fake_fleet import TOPICS

_CALLER = Caller(node="hub", session=Session(boot=1, connect=1), topics=TOPICS)


def exchange(collector: Collector, publications: list[Publication], holders: dict[str, MemoryBlobs]) -> None:
    """Carry requests to holders and blocks back until nobody has anything to say."""
    waiting = list(publications)
    while waiting:
        request = waiting.pop(0)
        holder = holders.get(request.topic.rpartition("/")[2])
        if holder is None:
            continue
        for answer in answer_requests(request.payload, holder, TOPICS):
            assert answer.topic == TOPICS.blocks("hub")
            waiting += collector.receive(answer.payload, 0.0)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def test_blobs_of_many_blocks_and_of_one_arrive_whole(store: BlobStore) -> None:
    contents = [os.urandom(300_000), b"small", b""]
    blobs = [blob_of(content) for content in contents]
    source = MemoryBlobs({blob.digest: content for blob, content in zip(blobs, contents, strict=True)})
    collector = Collector(store, _CALLER)
    exchange(collector, collector.want(blobs, ["host-1"], 0.0), {"host-1": source})
    assert [store.read(blob.digest) for blob in blobs] == contents
    assert collector.want(blobs, ["host-1"], 1.0) == [], "what is there is not asked for"


def test_another_holder_is_asked_when_the_first_lacks_a_blob(store: BlobStore) -> None:
    blob = blob_of(b"weights")
    collector = Collector(store, _CALLER)
    holders = {"a": MemoryBlobs(), "b": MemoryBlobs({blob.digest: b"weights"})}
    exchange(collector, collector.want([blob], ["a", "b"], 0.0), holders)
    assert store.has(blob.digest)


def test_a_blob_that_nobody_has_fails_with_its_reasons(store: BlobStore) -> None:
    blob = blob_of(b"weights")
    collector = Collector(store, _CALLER)
    exchange(collector, collector.want([blob], ["a"], 0.0), {"a": MemoryBlobs()})
    for second in range(1, 20):
        exchange(collector, collector.tick(float(second)), {"a": MemoryBlobs()})
    failure = collector.failure([blob])
    assert failure == f"blob {blob.digest[7:19]} cannot be fetched: a does not hold it"


def test_what_failed_for_one_is_tried_anew_for_another(store: BlobStore) -> None:
    blob = blob_of(b"weights")
    collector = Collector(store, _CALLER)
    exchange(collector, collector.want([blob], ["a"], 0.0), {"a": MemoryBlobs()})
    for second in range(1, 20):
        exchange(collector, collector.tick(float(second)), {"a": MemoryBlobs()})
    assert collector.failure([blob]) is not None
    collector.drop([blob.digest])
    assert collector.failure([blob]) is None
    exchange(collector, collector.want([blob], ["b"], 20.0), {"b": MemoryBlobs({blob.digest: b"weights"})})
    assert store.has(blob.digest)


def test_bytes_that_are_not_the_blob_are_refused(store: BlobStore) -> None:
    blob = blob_of(b"weights")
    collector = Collector(store, _CALLER)
    liar = {"a": MemoryBlobs({blob.digest: b"WEIGHTS"})}
    exchange(collector, collector.want([blob], ["a"], 0.0), liar)
    for second in range(1, 20):
        exchange(collector, collector.tick(float(second)), liar)
    assert not store.has(blob.digest)
    assert collector.failure([blob]) == f"blob {blob.digest[7:19]} cannot be fetched: a sent a wrong block"


def test_a_holder_that_is_away_is_passed_over_and_a_newer_plan_names_another(store: BlobStore) -> None:
    blob = blob_of(b"weights")
    collector = Collector(store, _CALLER)
    collector.away("a", 0.0)
    holders = {name: MemoryBlobs({blob.digest: b"weights"}) for name in ("a", "b")}
    assert collector.want([blob], ["a"], 0.0) == []
    exchange(collector, collector.want([blob], ["b"], 0.1), holders)
    assert store.has(blob.digest)
    assert collector.back("a", 0.2) == []
    assert collector.resumed(0.3) == []


def test_a_blob_over_the_quota_is_refused_before_a_byte_is_asked_for(tmp_path: Path) -> None:
    collector = Collector(BlobStore(tmp_path, quota_bytes=10), _CALLER)
    blob = Blob(digest="sha256:" + "0" * 64, size_bytes=11)
    assert collector.want([blob], ["a"], 0.0) == []
    assert "does not fit" in (collector.failure([blob]) or "")


@pytest.mark.parametrize(
    "reply_to", ["shardwire/test/device/pi-1/command", "shardwire/test/result/x", "shardwire/other/blocks/x", "x", ""]
)
def test_blocks_are_sent_to_nothing_but_topics_for_blocks(reply_to: str) -> None:
    request = FetchRequest(digest="sha256:" + "0" * 64, block=0, reply_to=reply_to)
    assert answer_requests(encode_message(request), MemoryBlobs(), TOPICS) == ()


@pytest.mark.parametrize(("digest", "block"), [("sha256:" + "0" * 64, 0), ("../../etc/passwd", 0), ("sha256:00", -1)])
def test_what_is_not_held_is_said_so(digest: str, block: int, store: BlobStore) -> None:
    request = FetchRequest(digest=digest, block=block, reply_to=TOPICS.blocks("pi-1"))
    (answer,) = answer_requests(encode_message(request), store, TOPICS)
    assert decode_message(answer.payload, Block).total_bytes == -1


def test_a_message_that_is_no_request_is_an_error() -> None:
    with pytest.raises(FormatError):
        answer_requests(b"\xff", MemoryBlobs(), TOPICS)


def test_a_source_in_memory_tells_what_it_lacks() -> None:
    with pytest.raises(StoreError, match="is not here"):
        MemoryBlobs().read("sha256:00")
