"""Packets make their frame once, in any order, and never take more memory than is allowed."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import FormatError
from edge.formats.message import Session
from edge.formats.packet import MAX_PACKET_BYTES, MAX_PARTIAL_FRAMES, REASSEMBLY_SECONDS, Reassembler, split

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
COUNTS = st.integers(0, 2**31 - 1)


@given(size=st.integers(1, 400_000), seed=COUNTS, sender=NAMES, duplicates=st.booleans())
@settings(deadline=None, max_examples=60)
def test_packets_in_any_order_make_the_frame_once(size: int, seed: int, sender: str, duplicates: bool) -> None:
    rng = np.random.default_rng(seed)
    frame = rng.bytes(size)
    packets = list(split(frame, sender=sender, session=Session(boot=3, connect=1), sequence=seed))
    assert all(len(packet) <= MAX_PACKET_BYTES for packet in packets)
    order = list(rng.permutation(len(packets)))
    if duplicates and len(packets) > 1:
        order = [order[0], *order]
    join = Reassembler()
    made = [data for index in order if (data := join.add(packets[index], 0.0)) is not None]
    assert [bytes(data) for data in made] == [frame]


def packets_of(size: int, *, sender: str = "pi-1", sequence: int = 0) -> list[bytes]:
    return list(split(bytes(size), sender=sender, session=Session(boot=1, connect=1), sequence=sequence))


def test_a_frame_larger_than_the_stage_takes_is_refused_by_its_first_packet() -> None:
    with pytest.raises(FormatError, match="packet: a frame of 300000 bytes is more than 200000"):
        Reassembler(limit_bytes=200_000).add(packets_of(300_000)[0], 0.0)


def test_a_sender_has_only_so_many_partial_frames_and_the_oldest_goes() -> None:
    join = Reassembler()
    frames = [packets_of(200_000, sequence=sequence) for sequence in range(MAX_PARTIAL_FRAMES + 1)]
    for at, frame in enumerate(frames):
        assert join.add(frame[0], float(at)) is None
    assert join.add(frames[-1][1], 5.0) is not None
    assert join.add(frames[0][1], 5.0) is None, "the oldest was dropped"


def test_all_senders_together_have_only_so_many_bytes() -> None:
    join = Reassembler(total_limit_bytes=500_000)
    frames = [packets_of(200_000, sender=f"s{index}") for index in range(3)]
    for frame in frames:
        assert join.add(frame[0], 0.0) is None
    assert join.add(frames[0][1], 0.0) is None, "the oldest made room"
    assert join.add(frames[2][1], 0.0) is not None


def test_a_frame_in_crumbs_is_refused_before_it_takes_memory() -> None:
    whole = packets_of(100_000)[0]
    head = whole[: len(whole) - 100_000]
    join = Reassembler()
    crumbs = (head[:20] + offset.to_bytes(4, "little") + head[24:] + b"x" for offset in range(100_000))
    with pytest.raises(FormatError, match="a frame of 100000 bytes comes in too many pieces"):
        deque((join.add(crumb, 0.0) for crumb in crumbs), maxlen=0)


def test_a_partial_frame_dies_of_age() -> None:
    join = Reassembler()
    first, second = packets_of(200_000)
    join.add(first, 0.0)
    assert join.add(second, REASSEMBLY_SECONDS + 0.1) is None
