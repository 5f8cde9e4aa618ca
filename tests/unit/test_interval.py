"""Intervals are those of the literature, hold what they promise, and do not take crops for photos."""

from __future__ import annotations

import math

import numpy as np
import pytest

from host.compress.judge.interval import (
    MOST_RESAMPLED,
    SHARE,
    Scale,
    drop_score,
    mean_interval,
    needed_for_share,
    newcombe_paired,
    score,
    student_quantile,
    wilson,
)
from host.errors import DatasetError

COSINE = Scale(low=-1.0, high=1.0)
ANY = Scale(low=-math.inf, high=math.inf)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_as_published(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right / count, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998) 2635-2650, method 10.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        # D. G. Altman et al., Statistics with confidence, 2nd edition (2000), table 6.2.
        ((14, 5, 0, 22), 0.011, 0.226),
        # M. W. Fagerland et al., Statistical analysis of contingency tables (2017), chapter 8.
        ((59, 6, 16, 80), -0.1186, -0.0046),
        ((1, 1, 7, 12), -0.507, -0.026),
    ],
)
def test_newcombe_is_as_published(cells: tuple[int, int, int, int], low: float, high: float) -> None:
    assert newcombe_paired(*cells) == pytest.approx((low, high), abs=5e-4 if cells[0] in (14, 1) else 5e-5)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (10, 2.2281), (30, 2.0423), (100, 1.9840), (200, 1.9719), (1000, 1.9623)],
)
def test_student_is_as_tabled(freedom: int, quantile: float) -> None:
    assert student_quantile(0.95, freedom) == pytest.approx(quantile, abs=5e-5)


def test_the_two_formulas_of_student_meet() -> None:
    assert student_quantile(0.99, 200) - student_quantile(0.99, 201) == pytest.approx(1.23e-4, rel=0.03)


@pytest.mark.parametrize(("share", "limit"), [(1.0, 0.99), (0.995, 0.99), (0.3, 0.25)])
def test_as_many_samples_as_are_needed_suffice(share: float, limit: float) -> None:
    assert wilson(share, needed_for_share(share, limit))[0] == pytest.approx(limit)
    assert wilson(share, 0.9 * needed_for_share(share, limit))[0] < limit
    assert needed_for_share(limit, limit) == math.inf


def test_twenty_right_photos_prove_little() -> None:
    found = score("top1", np.ones(20), scale=SHARE)
    assert found.value == 1.0
    assert found.low < 0.84
    assert found.count == 20


def test_crops_of_twenty_photos_count_as_twenty() -> None:
    photos = [str(index // 50) for index in range(1000)]
    alone, together = score("top1", np.ones(20), scale=SHARE), score("top1", np.ones(1000), scale=SHARE, groups=photos)
    assert together == alone
    one_wrong = np.ones(1000)
    one_wrong[7] = 0
    assert score("top1", one_wrong, scale=SHARE, groups=photos).low < together.low


def test_crops_that_fall_together_widen_a_mean() -> None:
    random = np.random.default_rng(1)
    of_photo = random.normal(0.9, 0.02, 40)
    values = np.repeat(of_photo, 25) + random.normal(0, 0.001, 1000)
    photos = [str(index // 25) for index in range(1000)]
    alone, together = score("cosine", values, scale=COSINE), score("cosine", values, scale=COSINE, groups=photos)
    assert alone.value == pytest.approx(together.value)
    assert together.count == 40
    assert together.high - together.low > 4 * (alone.high - alone.low)


def test_a_drop_is_paired() -> None:
    random = np.random.default_rng(2)
    before = (random.random(2000) < 0.7).astype(float)
    after = before.copy()
    after[:6] = 0.0
    found = drop_score("top1-drop", before, after, scale=SHARE)
    assert found.value == pytest.approx(float(np.mean(before - after)))
    # Two independent shares would differ by about ±0.028.
    assert found.high - found.low < 0.012
    swapped = drop_score("top1-drop", after, before, scale=SHARE)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_a_drop_of_nothing_on_few_samples_is_not_sure() -> None:
    right = np.array([1.0] * 15 + [0.0] * 5)
    few = drop_score("top1-drop", right, right, scale=SHARE)
    assert few.low < -0.05
    assert few.high > 0.05
    crops = drop_score(
        "top1-drop", np.repeat(right, 50), np.repeat(right, 50), scale=SHARE, groups=[str(i // 50) for i in range(1000)]
    )
    assert (crops.low, crops.high, crops.count) == pytest.approx((few.low, few.high, 20))


def test_a_drop_of_a_mean_is_paired_too() -> None:
    random = np.random.default_rng(3)
    before = random.normal(0, 5, 300)
    after = before - random.normal(0.1, 0.01, 300)
    found = drop_score("f-drop", before, after, scale=ANY)
    assert 0.098 < found.low < 0.1 < found.high < 0.102


def test_one_sample_has_no_interval_unless_the_metric_has_limits() -> None:
    assert score("cosine", np.array([0.5]), scale=COSINE).low == -1.0
    with pytest.raises(DatasetError, match=r"^f: one sample says nothing about others; measure on at least two$"):
        score("f", np.array([0.5]), scale=ANY)
    with pytest.raises(DatasetError, match=r"^f: there is no sample to measure on$"):
        score("f", np.array([]), scale=ANY)


def test_bootstrap_and_student_agree_where_they_meet() -> None:
    values = np.random.default_rng(4).exponential(1.0, MOST_RESAMPLED + 1)
    ones = np.ones(MOST_RESAMPLED + 1)
    student, bootstrap = mean_interval(values, ones), mean_interval(values[:-1], ones[:-1])
    assert student == pytest.approx(bootstrap, abs=0.003)


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(5).random(100)
    assert score("cosine", values, scale=COSINE) == score("cosine", values, scale=COSINE)


def test_nine_in_ten_intervals_hold_the_truth() -> None:
    random = np.random.default_rng(6)
    rounds, confidence = 600, 0.9
    share = np.mean(
        [
            low <= 0.97 <= high
            for low, high in (wilson(random.binomial(100, 0.97) / 100, 100, confidence) for _ in range(rounds))
        ]
    )
    drops = []
    for both, first, second, neither in random.multinomial(150, [0.8, 0.05, 0.03, 0.12], rounds).tolist():
        low, high = newcombe_paired(both, first, second, neither, confidence)
        drops.append(low <= 0.02 <= high)
    means = []
    for _ in range(150):
        low, high = mean_interval(random.gamma(2.0, 1.0, 25), np.ones(25), confidence)
        means.append(low <= 2.0 <= high)
    assert 0.87 <= share <= 0.96
    assert 0.87 <= np.mean(drops) <= 0.95
    assert 0.84 <= np.mean(means) <= 0.95


def test_intervals_of_crops_hold_the_truth_too() -> None:
    random = np.random.default_rng(7)
    photos = [str(index // 20) for index in range(600)]
    held = []
    for _ in range(150):
        values = np.repeat(random.normal(0.0, 1.0, 30), 20) + random.normal(0.0, 0.5, 600)
        found = score("f", values, scale=ANY, groups=photos, confidence=0.9)
        held.append(found.low <= 0.0 <= found.high)
    assert 0.84 <= np.mean(held) <= 0.96
