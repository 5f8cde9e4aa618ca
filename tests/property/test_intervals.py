"""What every interval keeps, whatever was measured."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from host.compress.judge.interval import SHARE, Scale, drop_score, newcombe_paired, score, wilson

COUNTS = st.integers(0, 60)
CONFIDENCES = st.floats(0.5, 0.999)
WIDE = Scale(low=-1e6, high=1e6)


@given(st.integers(1, 5000), st.floats(0, 1), CONFIDENCES)
def test_a_share_lies_in_its_interval_and_more_samples_narrow_it(count: int, share: float, confidence: float) -> None:
    low, high = wilson(share, count, confidence)
    assert 0.0 <= low <= share <= high <= 1.0
    narrow = wilson(share, 4 * count, confidence)
    assert narrow[1] - narrow[0] < high - low


@given(COUNTS, COUNTS, COUNTS, COUNTS, CONFIDENCES)
def test_a_difference_lies_in_its_interval(both: int, first: int, second: int, neither: int, confidence: float) -> None:
    count = both + first + second + neither
    if count == 0:
        return
    low, high = newcombe_paired(both, first, second, neither, confidence)
    assert -1.0 <= low <= (first - second) / count + 1e-12
    assert (first - second) / count - 1e-12 <= high <= 1.0
    mirrored = newcombe_paired(both, second, first, neither, confidence)
    assert np.allclose(mirrored, (-high, -low))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(0, 5)), min_size=2, max_size=40))
def test_a_mean_lies_in_its_interval(rows: list[tuple[float, int]]) -> None:
    values, groups = np.array([value for value, _ in rows]), [str(group) for _, group in rows]
    for found in (score("f", values, scale=WIDE), score("f", values, scale=WIDE, groups=groups)):
        assert found.low - 1e-6 <= found.value <= found.high + 1e-6
    assert score("f", values, scale=WIDE, groups=groups).count == len(set(groups))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 8)), min_size=1, max_size=60))
def test_groups_never_make_an_interval_of_shares_narrower_than_as_many_samples(
    rows: list[tuple[bool, bool, int]],
) -> None:
    before, after = (np.array([row[side] for row in rows], float) for side in (0, 1))
    groups = [str(row[2]) for row in rows]
    alone, together = (drop_score("d", before, after, scale=SHARE, groups=of) for of in (None, groups))
    assert together.count <= alone.count
    assert together.low <= together.value + 1e-9
    assert together.value <= together.high + 1e-9
    assert together.high - together.low >= alone.high - alone.low - 1e-9
