"""Fetching: a window of blocks, one holder after another, and an end to it."""

from hashlib import sha256

import pytest

from edge.formats.bundle import Blob, digest_of
from edge.formats.message import BLOCK_BYTES, Block, FetchRequest, Transfer
from edge.protocol.fetch import (
    AWAY_SECONDS,
    PATIENCE_SECONDS,
    ROUND_PAUSE_SECONDS,
    ROUNDS,
    AskBlock,
    FetchAction,
    Fetcher,
    FetchFailed,
    KeepBlock,
    all_blocks,
    answer_fetch,
)
from edge.protocol.pace import WINDOW_BLOCKS, Pace

DATA = bytes(range(256)) * (512 * 20) + b"end"  # 20 blocks and a bit


def make_blob(data: bytes, *, with_digests: bool = True) -> Blob:
    pieces = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
    digests = b"".join(sha256(piece).digest() for piece in pieces)
    return Blob(digest=digest_of(data), size_bytes=len(data), block_digests=digests if with_digests else b"")


BLOB = make_blob(DATA)


def give(index: int, blob: Blob = BLOB, data: bytes = DATA) -> Block:
    piece = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
    return Block(digest=blob.digest, block=index, total_bytes=len(data), data=piece)


def asked(actions: list[FetchAction]) -> list[tuple[str, int]]:
    return [(action.holder, action.request.block) for action in actions if isinstance(action, AskBlock)]


@pytest.fixture
def fetcher() -> Fetcher:
    return Fetcher(reply_to="shardwire/default/blocks/pi-1")


def test_only_a_window_of_blocks_is_asked_for(fetcher: Fetcher) -> None:
    actions = fetcher.want(BLOB, ["host"], all_blocks(BLOB), 0.0)
    assert asked(actions) == [("host", index) for index in range(WINDOW_BLOCKS)]
    assert fetcher.tick(0.1) == []


def test_the_window_opens_when_a_block_is_durable_not_when_it_comes(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host"], all_blocks(BLOB), 0.0)
    assert fetcher.take(give(3), 0.1) == [KeepBlock(blob=BLOB, index=3, data=give(3).data)]
    assert asked(fetcher.kept(BLOB.digest, [3], 0.2)) == [("host", WINDOW_BLOCKS)]


def test_a_whole_transfer_asks_for_every_block_once(fetcher: Fetcher) -> None:
    to_do = fetcher.want(BLOB, ["host"], all_blocks(BLOB), 0.0)
    seen = []
    while to_do:
        for _, index in asked(to_do):
            seen.append(index)
        requests, to_do = asked(to_do), []
        for _, index in requests:
            to_do += fetcher.take(give(index), 1.0)
            to_do += fetcher.kept(BLOB.digest, [index], 1.0)
    assert sorted(seen) == list(all_blocks(BLOB))
    assert fetcher.wanted == frozenset()


def test_blocks_that_are_here_already_are_not_asked_for(fetcher: Fetcher) -> None:
    assert asked(fetcher.want(BLOB, ["host"], (5, 9), 0.0)) == [("host", 5), ("host", 9)]
    assert fetcher.missing_bytes(BLOB.digest) == 2 * BLOCK_BYTES


def test_a_duplicate_and_a_block_nobody_asked_for_change_nothing(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host"], (0, 1), 0.0)
    assert fetcher.take(give(0), 0.1)
    assert fetcher.take(give(0), 0.1) == []
    assert fetcher.take(give(7), 0.1) == []
    other = b"other"
    assert fetcher.take(give(0, make_blob(other), other), 0.1) == []


def test_a_lost_block_is_asked_for_again_while_others_come(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host"], (0, 1), 0.0)
    fetcher.take(give(1), 2.0)
    assert asked(fetcher.tick(2.5)) == [("host", 0)]


def test_a_silent_holder_is_left_for_the_next_with_the_blocks_that_are_missing(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host", "pi-2"], (0, 1), 0.0)
    fetcher.take(give(1), 0.5)
    assert asked(fetcher.tick(0.5 + PATIENCE_SECONDS + 0.1)) == [("pi-2", 0)]


def test_a_holder_that_lacks_the_blob_is_left_at_once(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host", "pi-2"], (0, 1), 0.0)
    assert asked(fetcher.take(nothing(0), 0.1)) == [("pi-2", 0), ("pi-2", 1)]


@pytest.mark.parametrize(
    "wrong",
    [
        Block(digest=BLOB.digest, block=0, total_bytes=len(DATA), data=bytes(BLOCK_BYTES)),
        Block(digest=BLOB.digest, block=0, total_bytes=len(DATA) + 1, data=give(0).data),
        Block(digest=BLOB.digest, block=0, total_bytes=len(DATA), data=give(0).data[:-1]),
    ],
    ids=["bytes", "size", "length"],
)
def test_a_wrong_block_is_not_kept_and_its_holder_is_left(fetcher: Fetcher, wrong: Block) -> None:
    fetcher.want(BLOB, ["host", "pi-2"], (0,), 0.0)
    assert asked(fetcher.take(wrong, 0.1)) == [("pi-2", 0)]


def test_without_block_digests_only_lengths_are_checked(fetcher: Fetcher) -> None:
    blob = make_blob(DATA, with_digests=False)
    fetcher.want(blob, ["host"], (0,), 0.0)
    flipped = Block(digest=blob.digest, block=0, total_bytes=len(DATA), data=bytes(BLOCK_BYTES))
    assert isinstance(fetcher.take(flipped, 0.1)[0], KeepBlock)


def test_it_ends_after_some_rounds_and_says_what_each_holder_did(fetcher: Fetcher) -> None:
    actions = fetcher.want(BLOB, ["host", "pi-2"], (0,), 0.0)
    now, rounds = 0.0, 0
    while not any(isinstance(action, FetchFailed) for action in actions):
        now += PATIENCE_SECONDS + ROUND_PAUSE_SECONDS * 2**ROUNDS
        if asked(actions) == [("pi-2", 0)]:
            actions = fetcher.take(nothing(0), now)
            rounds += 1
        else:
            actions = fetcher.tick(now)
        assert rounds <= ROUNDS
    short = BLOB.digest[7:19]
    assert actions == [
        FetchFailed(
            digest=BLOB.digest,
            reason=f"blob {short} cannot be fetched: host does not answer; pi-2 does not hold it",
        )
    ]
    assert fetcher.wanted == frozenset()


def test_a_round_that_failed_at_once_is_not_repeated_at_once(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host"], (0,), 0.0)
    assert fetcher.take(nothing(0), 0.1) == []
    assert fetcher.tick(0.1 + ROUND_PAUSE_SECONDS / 2) == []
    assert asked(fetcher.tick(0.2 + ROUND_PAUSE_SECONDS)) == [("host", 0)]


def test_a_slow_link_is_given_time_in_proportion(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host", "pi-2"], all_blocks(BLOB), 0.0)
    now = 0.0
    for index in range(12):
        now += 2.0
        fetcher.take(give(index), now)
        fetcher.kept(BLOB.digest, [index], now)
    assert all(holder == "host" for holder, _ in asked(fetcher.tick(now + PATIENCE_SECONDS + 1.0)))


def test_a_blob_without_holders_fails_at_once(fetcher: Fetcher) -> None:
    short = BLOB.digest[7:19]
    assert fetcher.want(BLOB, [], (0,), 0.0) == [FetchFailed(digest=BLOB.digest, reason=f"blob {short} has no holder")]


def test_what_is_forgotten_is_neither_asked_for_nor_kept(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host"], (0,), 0.0)
    fetcher.forget(BLOB.digest)
    assert fetcher.take(give(0), 0.1) == []
    assert fetcher.tick(100.0) == []


def nothing(index: int, blob: Blob = BLOB) -> Block:
    return Block(digest=blob.digest, block=index, total_bytes=-1, data=b"")


def test_a_holder_that_lacks_the_blob_is_left_once_however_often_it_says_so(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host", "pi-2", "pi-3"], all_blocks(BLOB), 0.0)
    assert {holder for holder, _ in asked(fetcher.take(nothing(0), 0.1))} == {"pi-2"}
    for index in range(1, WINDOW_BLOCKS):
        assert fetcher.take(nothing(index), 0.1) == []
    assert fetcher.take(give(0), 0.2), "pi-2 is still asked"
    assert asked(fetcher.take(nothing(1), 0.3))[0] == ("pi-3", 1), "pi-2 says it, too"


def test_a_blob_of_one_block_is_checked_by_its_own_digest(fetcher: Fetcher) -> None:
    data = b"weights"
    blob = Blob(digest=digest_of(data), size_bytes=len(data))
    fetcher.want(blob, ["host", "pi-2"], (0,), 0.0)
    assert asked(fetcher.take(Block(digest=blob.digest, block=0, total_bytes=7, data=b"WEIGHTS"), 0.1)) == [("pi-2", 0)]


def test_a_newer_plan_adds_holders_and_who_gives_now_goes_on(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host"], (0, 1), 0.0)
    assert fetcher.want(BLOB, ["pi-2"], (0, 1), 0.1) == [], "nothing is asked for twice"
    assert fetcher.take(give(0), 0.2), "the host's answer is taken"
    assert asked(fetcher.tick(0.3 + PATIENCE_SECONDS)) == [("pi-2", 1)]
    assert fetcher.repeated_blocks == 1


def test_a_newer_plan_helps_at_once_where_nobody_gave_anything(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host"], (0,), 0.0)
    fetcher.take(nothing(0), 0.1)
    assert asked(fetcher.renew(BLOB.digest, ["pi-2", "host"], 0.2)) == [("pi-2", 0)]


def test_a_holder_that_is_away_is_passed_over_and_asked_again_when_it_is_back(fetcher: Fetcher) -> None:
    fetcher.away("host", 0.0)
    assert asked(fetcher.want(BLOB, ["host", "pi-2"], (0, 1), 0.0)) == [("pi-2", 0), ("pi-2", 1)]
    fetcher.take(give(0), 0.1)
    assert fetcher.away("pi-2", 0.2) == []
    assert asked(fetcher.back("host", 0.3)) == [("host", 1)]


def test_no_more_than_a_window_is_asked_for_again_when_a_holder_dies(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host", "pi-2"], all_blocks(BLOB), 0.0)
    for index in range(4):
        fetcher.take(give(index), 0.1)
        fetcher.kept(BLOB.digest, [index], 0.1)
    assert asked(fetcher.away("host", 0.2)) == [("pi-2", index) for index in range(4, 4 + WINDOW_BLOCKS)]
    assert fetcher.repeated_blocks == WINDOW_BLOCKS
    assert fetcher.take(give(5), 0.3), "a late block of the dead one counts"
    assert fetcher.take(give(5), 0.3) == []


def test_it_waits_a_while_for_holders_that_are_all_away(fetcher: Fetcher) -> None:
    fetcher.away("host", 0.0)
    assert fetcher.want(BLOB, ["host"], (0,), 0.0) == []
    assert fetcher.tick(AWAY_SECONDS) == []
    (failed,) = fetcher.tick(AWAY_SECONDS + 0.1)
    short = BLOB.digest[7:19]
    assert failed == FetchFailed(digest=BLOB.digest, reason=f"blob {short} cannot be fetched: host is away")


def test_nothing_is_asked_for_without_a_connection_and_nobody_is_blamed(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host", "pi-2"], (0, 1), 0.0)
    fetcher.paused()
    assert fetcher.tick(60.0) == []
    assert asked(fetcher.resumed(60.0)) == [("host", 0), ("host", 1)]
    assert fetcher.tick(60.1) == []


def test_a_transfer_that_goes_on_never_ends_however_many_holders_fail(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host", "pi-2"], all_blocks(BLOB), 0.0)
    now = 0.0
    for index in range(15):
        now += PATIENCE_SECONDS + ROUND_PAUSE_SECONDS + 0.1
        fetcher.tick(now)
        fetcher.take(give(index), now)
        fetcher.kept(BLOB.digest, [index], now)
    assert BLOB.digest in fetcher.wanted


def test_blocks_that_were_durable_before_it_was_begun_anew_are_not_asked_for(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host"], all_blocks(BLOB), 0.0)
    fetcher.kept(BLOB.digest, [WINDOW_BLOCKS + 1], 0.1)
    for index in range(WINDOW_BLOCKS):
        fetcher.take(give(index), 0.2)
    following = asked(fetcher.kept(BLOB.digest, range(WINDOW_BLOCKS), 0.3))
    assert WINDOW_BLOCKS + 1 not in [index for _, index in following]


def test_frames_leave_two_blocks_on_their_way_at_the_given_rate() -> None:
    pace = Pace(bytes_per_second=2.0 * BLOCK_BYTES)
    fetcher = Fetcher(reply_to="t", pace=pace)
    pace.frame(0.0)
    requests = asked(fetcher.want(BLOB, ["host"], all_blocks(BLOB), 0.0))
    came, now = 0, 0.0
    while fetcher.wanted:
        assert len(requests) <= 2
        for _, index in requests:
            came += 1
            fetcher.take(give(index), now)
            fetcher.kept(BLOB.digest, [index], now)
        now += 0.25
        pace.frame(now)
        requests = asked(fetcher.tick(now))
        assert now < 20.0, "it goes on"
    assert came == len(all_blocks(BLOB))
    assert now >= came / 2 - 1.0


def test_transfers_tell_what_is_durable_and_who_is_asked(fetcher: Fetcher) -> None:
    fetcher.want(BLOB, ["host"], (20,), 0.0)
    last = len(DATA) - 20 * BLOCK_BYTES
    expected = Transfer(digest=BLOB.digest, done_bytes=len(DATA) - last, total_bytes=len(DATA), holder="host")
    assert fetcher.transfers() == (expected,)
    assert fetcher.holders == {"host"}
    fetcher.take(give(20), 0.1)
    assert fetcher.fetched_bytes == last


def test_a_holder_answers_with_the_block_or_says_that_it_lacks_it() -> None:
    def read_block(digest: str, index: int) -> tuple[int, bytes] | None:
        return (len(DATA), give(index).data) if digest == BLOB.digest and index < 21 else None

    def request(digest: str, index: int) -> FetchRequest:
        return FetchRequest(digest=digest, block=index, reply_to="t")

    assert answer_fetch(request(BLOB.digest, 2), read_block) == give(2)
    for digest, index in ((BLOB.digest, 99), ("sha256:" + "0" * 64, 0)):
        answer = answer_fetch(request(digest, index), read_block)
        assert (answer.total_bytes, answer.data) == (-1, b"")
