"""Blobs leave room for frames, and always go on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.formats.message import BLOCK_BYTES
from edge.protocol.pace import (
    BURST_SECONDS,
    BUSY_SECONDS,
    BUSY_WINDOW_BLOCKS,
    DEFAULT_BYTES_PER_SECOND,
    LEAST_BYTES_PER_SECOND,
    LINK_SHARE,
    WINDOW_BLOCKS,
    Pace,
    Use,
)

MIB = 1 << 20


def granted(pace: Pace, use: Use, times: list[float]) -> int:
    """Serve frames all the time, and ask for a block whenever the bucket may have one."""
    total = 0
    for now in times:
        pace.frame(now)
        while pace.take(use, BLOCK_BYTES, now):
            total += BLOCK_BYTES
    return total


def test_an_idle_device_goes_at_full_speed() -> None:
    pace = Pace(bytes_per_second=1.0)
    assert all(pace.take(Use.FETCH, BLOCK_BYTES, 0.0) for _ in range(1000))
    assert pace.window(0.0) == WINDOW_BLOCKS


def test_frames_narrow_the_window_for_as_long_as_they_come() -> None:
    pace = Pace()
    pace.frame(10.0)
    assert pace.window(10.0 + BUSY_SECONDS) == BUSY_WINDOW_BLOCKS
    assert pace.window(10.1 + BUSY_SECONDS) == WINDOW_BLOCKS


def test_a_quarter_of_the_measured_link_is_taken_unless_a_rate_is_given() -> None:
    pace = Pace()
    assert pace.bytes_per_second == DEFAULT_BYTES_PER_SECOND
    pace.measured(8.0 * MIB)
    assert pace.bytes_per_second == LINK_SHARE * 8.0 * MIB
    pace.measured(1000.0)
    assert pace.bytes_per_second == LEAST_BYTES_PER_SECOND
    fixed = Pace(bytes_per_second=5000.0)
    fixed.measured(8.0 * MIB)
    assert fixed.bytes_per_second == 5000.0


def test_what_comes_and_what_is_given_share_the_budget() -> None:
    pace = Pace(bytes_per_second=2.0 * MIB)
    ticks = [step * 0.25 for step in range(41)]
    both = dict.fromkeys(Use, 0)
    for now in ticks:
        for use in Use:
            both[use] += granted(pace, use, [now])
    assert both[Use.FETCH] == pytest.approx(10 * MIB, rel=0.1)
    assert both[Use.ANSWER] == pytest.approx(10 * MIB, rel=0.1)


@given(
    rate=st.floats(1.0, 1e9),
    steps=st.lists(st.floats(0.0, 0.25), min_size=1, max_size=60),
)
def test_never_more_than_the_rate_a_burst_and_a_block(rate: float, steps: list[float]) -> None:
    pace = Pace(bytes_per_second=rate)
    times = [sum(steps[:count]) for count in range(len(steps) + 1)]
    most = rate * times[-1] + max(BLOCK_BYTES, rate * BURST_SECONDS) + BLOCK_BYTES
    total = 0
    for now in times:
        pace.frame(now)
        while total <= most + BLOCK_BYTES and pace.take(Use.FETCH, BLOCK_BYTES, now):
            total += BLOCK_BYTES
    assert total <= most * 1.000001


@given(rate=st.floats(100.0, 1e8), others=st.integers(0, 5))
def test_there_is_always_a_next_block(rate: float, others: int) -> None:
    pace = Pace(bytes_per_second=rate)
    for _ in range(3 + others):
        pace.frame(0.0)
        pace.take(Use.FETCH, BLOCK_BYTES, 0.0)
        pace.take(Use.ANSWER, BLOCK_BYTES, 0.0)
    # In debt by one block at most, at half of the rate.
    later = 2 * BLOCK_BYTES / rate + 0.1
    pace.frame(later)
    assert pace.take(Use.FETCH, BLOCK_BYTES, later)
