"""The blob store keeps what it was given, all of it, or says why not."""

import contextlib
import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import BundleError, DigestMismatch, StoreError
from edge.formats.bundle import Blob, digest_of
from edge.formats.message import BLOCK_BYTES, Transfer
from edge.store import SPARE_SECONDS, BlobStore, block_count, block_length

DATA = bytes(range(256)) * 1024 + b"tail"  # two blocks and a bit


def blob_of(data: bytes) -> Blob:
    return Blob(digest=digest_of(data), size_bytes=len(data))


def block(index: int, data: bytes = DATA) -> bytes:
    return data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


@pytest.mark.parametrize(
    ("size", "count", "last"), [(0, 1, 0), (1, 1, 1), (BLOCK_BYTES, 1, BLOCK_BYTES), (BLOCK_BYTES + 1, 2, 1)]
)
def test_a_blob_is_cut_into_blocks(size: int, count: int, last: int) -> None:
    assert block_count(size) == count
    assert block_length(size, count - 1) == last


@pytest.mark.parametrize("data", [b"", b"x", DATA])
def test_what_is_put_is_read_back_and_survives_a_restart(store: BlobStore, tmp_path: Path, data: bytes) -> None:
    blob = blob_of(data)
    store.put(blob, data)
    for opened in (store, BlobStore(tmp_path)):
        assert opened.has(blob.digest)
        assert opened.read(blob.digest) == data
        assert opened.hold_bytes == len(data)
        assert opened.missing([blob]) == ()
        assert opened.path(blob.digest).name == blob.digest.removeprefix("sha256:")


def test_blocks_come_in_any_order_and_the_blob_is_there_only_when_all_are_verified(store: BlobStore) -> None:
    blob = blob_of(DATA)
    assert store.begin(blob) == (0, 1, 2)
    assert store.write_blocks(blob, {2: block(2)}) == (0, 1)
    assert not store.has(blob.digest)
    with pytest.raises(StoreError, match="is not complete"):
        store.finish(blob)
    assert store.write_blocks(blob, {1: block(1), 0: block(0)}) == ()
    store.finish(blob)
    assert store.read(blob.digest) == DATA


def test_a_transfer_goes_on_after_a_restart_where_it_was(store: BlobStore, tmp_path: Path) -> None:
    blob = blob_of(DATA)
    store.begin(blob)
    store.write_blocks(blob, {1: block(1)})
    again = BlobStore(tmp_path)
    assert again.begin(blob) == (0, 2)
    assert again.write_blocks(blob, {0: block(0), 2: block(2)}) == ()
    again.finish(blob)
    assert again.read(blob.digest) == DATA


def test_a_partial_file_without_its_bitmap_is_begun_anew(store: BlobStore, tmp_path: Path) -> None:
    blob = blob_of(DATA)
    store.begin(blob)
    store.write_blocks(blob, {1: block(1)})
    next((tmp_path / "partial").glob("*.bits")).unlink()
    assert BlobStore(tmp_path).begin(blob) == (0, 1, 2)


def test_bytes_with_another_digest_are_dropped_and_can_be_fetched_again(store: BlobStore) -> None:
    blob = blob_of(DATA)
    store.begin(blob)
    store.write_blocks(blob, {0: block(0), 1: bytes(BLOCK_BYTES), 2: block(2)})
    with pytest.raises(DigestMismatch, match="digest is sha256:"):
        store.finish(blob)
    assert not store.has(blob.digest)
    assert store.begin(blob) == (0, 1, 2)


def test_a_block_of_a_wrong_length_or_of_no_transfer_is_refused(store: BlobStore) -> None:
    blob = blob_of(DATA)
    with pytest.raises(StoreError, match="was not begun"):
        store.write_blocks(blob, {0: block(0)})
    store.begin(blob)
    with pytest.raises(StoreError, match="block 2 has 3 bytes"):
        store.write_blocks(blob, {2: b"abc"})


def test_a_blob_that_changed_on_the_disk_is_found_out_and_removed(store: BlobStore) -> None:
    blob = blob_of(DATA)
    for look in (store.read, store.verify):
        store.put(blob, DATA)
        store.path(blob.digest).write_bytes(b"rot" + DATA[3:])
        with pytest.raises(DigestMismatch, match="stored blob"):
            look(blob.digest)
        assert not store.has(blob.digest)


def test_the_quota_names_what_is_needed_and_what_is_taken(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, quota_bytes=300_000)
    store.put(blob_of(DATA), DATA)
    other = b"y" * 100_000
    with pytest.raises(StoreError) as caught:
        store.put(blob_of(other), other)
    assert str(caught.value) == (f"blob {digest_of(other)[7:19]} of 0.1 MiB does not fit: 0.3 of 0.3 MiB are taken")
    assert store.has(digest_of(DATA))
    assert store.free_bytes == 300_000 - len(DATA)


def test_a_transfer_takes_its_room_from_the_quota_at_once(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, quota_bytes=300_000)
    store.begin(blob_of(DATA))
    with pytest.raises(StoreError, match="does not fit"):
        store.begin(blob_of(b"y" * 100_000))
    store.abandon(digest_of(DATA))
    assert store.begin(blob_of(b"y" * 100_000)) == (0,)


def test_a_full_disk_is_told_as_such(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    blob = blob_of(DATA)
    store.begin(blob)
    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(StoreError) as caught:
        store.write_blocks(blob, {0: block(0)})
    assert str(caught.value) == f"blob {blob.digest[7:19]}: no space left on the disk"
    monkeypatch.undo()
    assert 0 in store.begin(blob), "a block whose sync failed must not be marked"


def test_a_blob_that_the_disk_has_no_room_for_is_refused_before_a_block_comes(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    blob, small = blob_of(DATA), blob_of(b"small")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreError) as caught:
        store.begin(blob)
    assert str(caught.value) == f"blob {blob.digest[7:19]} of 0.3 MiB: no space left on the disk"
    assert not list((tmp_path / "partial").iterdir()), "what could not be begun takes no room"
    assert not store.is_begun(blob.digest)
    monkeypatch.undo()
    store.put(small, b"small")
    assert store.begin(blob) == (0, 1, 2), "room that came back is used"


def test_a_disk_that_cannot_promise_room_is_used_all_the_same(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(_descriptor: int, _offset: int, _length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unable)
    store.put(blob_of(DATA), DATA)
    assert store.read(digest_of(DATA)) == DATA


def test_the_room_of_a_transfer_is_taken_on_the_disk_when_it_begins(store: BlobStore, tmp_path: Path) -> None:
    store.begin(blob_of(DATA))
    (file,) = (path for path in (tmp_path / "partial").iterdir() if path.suffix != ".bits")
    assert file.stat().st_size == len(DATA)
    assert file.stat().st_blocks * 512 >= len(DATA)


def test_what_is_there_of_a_blob_is_told_after_a_restart(store: BlobStore, tmp_path: Path) -> None:
    blob = blob_of(DATA)
    store.begin(blob)
    store.write_blocks(blob, {0: block(0), 2: block(2)})
    expected = Transfer(digest=blob.digest, done_bytes=BLOCK_BYTES + len(block(2)), total_bytes=len(DATA))
    assert BlobStore(tmp_path).partial() == (expected,)
    store.write_blocks(blob, {1: block(1)})
    store.finish(blob)
    assert BlobStore(tmp_path).partial() == ()


def test_a_bitmap_that_was_cut_short_only_costs_blocks(store: BlobStore, tmp_path: Path) -> None:
    blob = blob_of(DATA)
    store.begin(blob)
    store.write_blocks(blob, {0: block(0)})
    next((tmp_path / "partial").glob("*.bits")).write_bytes(b"")
    again = BlobStore(tmp_path)
    assert again.begin(blob) == (0, 1, 2)
    assert again.write_blocks(blob, {2: block(2)}) == (0, 1)


def test_data_is_on_the_disk_before_its_bit_is_set_and_the_bit_before_it_is_told(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = blob_of(DATA)
    store.begin(blob)
    bits = next((tmp_path / "partial").glob("*.bits"))
    seen: list[bytes] = []
    monkeypatch.setattr(os, "fdatasync", lambda _descriptor: seen.append(bits.read_bytes()))
    store.write_blocks(blob, {1: block(1)})
    assert seen == [b"\x00", b"\x02"]


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "md5:abc", "sha256:" + "A" * 64, "/etc/passwd", ""])
def test_nothing_but_a_digest_names_a_file(store: BlobStore, digest: str) -> None:
    for ask in (store.has, store.read, store.path, store.remove, store.abandon):
        with pytest.raises(BundleError, match="is not sha256:<64 hex digits>"):
            ask(digest)


def test_only_what_is_to_be_kept_is_kept(store: BlobStore) -> None:
    kept, dropped, partial = b"kept", b"dropped", DATA
    store.put(blob_of(kept), kept)
    store.put(blob_of(dropped), dropped)
    store.begin(blob_of(partial))
    assert set(store.collect([digest_of(kept)])) == {digest_of(dropped), digest_of(partial)}
    assert store.held() == {digest_of(kept)}
    assert store.hold_bytes == len(kept)


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def files(folder: Path) -> set[str]:
    """Return the names of what is on the disk, whole or partial."""
    return {path.name for place in ("blobs/sha256", "partial") for path in (folder / place).iterdir()}


def test_what_is_not_needed_stays_for_a_while_and_costs_nothing_to_get_again(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, clock=Clock())
    whole, partial = blob_of(b"whole"), blob_of(DATA)
    store.put(whole, b"whole")
    store.begin(partial)
    store.write_blocks(partial, {1: block(1)})
    store.collect([])
    assert store.held() == frozenset()
    assert store.partial() == ()
    assert store.hold_bytes == 0
    assert not store.is_begun(partial.digest)
    assert store.missing([whole]) == ()
    assert store.begin(partial) == (0, 2)
    assert store.held() == {whole.digest}


def test_what_is_spare_is_deleted_after_a_while(tmp_path: Path) -> None:
    clock = Clock()
    store = BlobStore(tmp_path, clock=clock)
    for data in (b"old", b"young"):
        store.put(blob_of(data), data)
    store.begin(blob_of(DATA))
    store.collect([digest_of(b"young")])
    clock.now += SPARE_SECONDS / 2
    store.collect([])
    store.sweep()
    assert len(files(tmp_path)) == 4
    clock.now += SPARE_SECONDS / 2
    store.sweep()
    assert files(tmp_path) == {digest_of(b"young")[7:]}
    clock.now += SPARE_SECONDS / 2
    store.sweep()
    assert files(tmp_path) == set()
    assert not store.has_spare


def test_what_is_spare_is_deleted_when_its_room_is_wanted(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, quota_bytes=300_000)
    store.put(blob_of(DATA), DATA)
    store.collect([])
    assert store.free_bytes == 300_000
    other = b"y" * 100_000
    store.put(blob_of(other), other)
    assert files(tmp_path) == {digest_of(other)[7:]}


def test_what_is_needed_again_is_not_deleted(tmp_path: Path) -> None:
    clock = Clock()
    store = BlobStore(tmp_path, clock=clock)
    store.put(blob_of(b"kept"), b"kept")
    store.collect([])
    store.collect([digest_of(b"kept")])
    clock.now += 2 * SPARE_SECONDS
    store.sweep()
    assert store.read(digest_of(b"kept")) == b"kept"


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(("put", "begin", "collect", "wait")), st.sets(st.integers(0, 5), max_size=4)),
        max_size=25,
    )
)
@settings(max_examples=60, deadline=None)
def test_nothing_that_is_needed_is_ever_deleted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, set[int]]]
) -> None:
    clock = Clock()
    data = [bytes([index]) * 40_000 for index in range(6)]
    store = BlobStore(tmp_path_factory.mktemp("store"), quota_bytes=130_000, clock=clock)
    live: set[str] = set()
    for what, indices in steps:
        if what == "wait":
            clock.now += 10.0 * len(indices)
            store.sweep()
        elif what == "collect":
            live &= {digest_of(data[index]) for index in indices}
            store.collect(live)
        for index in sorted(indices) if what in ("put", "begin") else ():
            with contextlib.suppress(StoreError):
                if what == "put":
                    store.put(blob_of(data[index]), data[index])
                else:
                    store.begin(blob_of(data[index]))
                live.add(digest_of(data[index]))
        begun = {found.digest for found in store.partial()}
        assert live <= store.held() | begun
        for digest in live & store.held():
            store.verify(digest)


@pytest.mark.parametrize(("index", "found"), [(0, True), (2, True), (3, False), (-1, False)])
def test_a_block_is_read_for_others(store: BlobStore, index: int, found: bool) -> None:
    store.put(blob_of(DATA), DATA)
    expected = (len(DATA), block(index)) if found else None
    assert store.read_block(digest_of(DATA), index) == expected


def test_a_blob_that_is_not_here_is_said_so(store: BlobStore) -> None:
    digest = digest_of(b"elsewhere")
    assert store.read_block(digest, 0) is None
    with pytest.raises(StoreError, match=f"blob {digest} is not in the store"):
        store.read(digest)
