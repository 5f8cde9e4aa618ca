"""Figures and names read the same on a terminal and on a page, and labels find room."""

from __future__ import annotations

import itertools

import pytest

from host.compress.judge.score import Score
from host.compress.report.placement import Label, placed
from host.compress.report.records import INFINITE, Candidate, Report
from host.compress.report.wording import (
    NO_CHANGE,
    best_metric,
    budget_limit,
    count_text,
    lower_is_better,
    number_text,
    printable,
    ratio_text,
    score_text,
    shortened,
    size_text,
    time_text,
)
from host.passes import transaction


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (size_text(None), "–"),
        (size_text(512), "512 B"),
        (size_text(4_700_000), "4.5 MiB"),
        (size_text(3 << 40), "3072.0 GiB"),
        (count_text(None), "–"),
        (count_text(98), "98"),
        (count_text(385_000_000), "385 M"),
        (count_text(1_500), "1.5 k"),
        (time_text(None), "–"),
        (time_text(0.0108), "10.8 ms"),
        (time_text(0.00042), "420 µs"),
        (time_text(2.5), "2.50 s"),
        (ratio_text(25, 100), "25 %"),
        (ratio_text(1, 250), "0.4 %"),
        (ratio_text(1, 0), "–"),
        (ratio_text(None, 3), "–"),
        (number_text(0.97), "0.9700"),
        (number_text(38.123), "38.1"),
        (number_text(INFINITE), "∞"),
        (number_text(-INFINITE), "-∞"),
        (score_text(Score(metric="m", value=0.5, low=0.4, high=0.6, count=3)), "0.5000 [0.4000, 0.6000]"),
        (printable("a\x1b[31m\u202eb"), "a�[31m�b"),
        (shortened("short", 10), "short"),
    ],
)
def test_figures_read_as_people_write_them(found: str, expected: str) -> None:
    assert found == expected


def test_a_long_name_keeps_its_ends() -> None:
    short = shortened("features/stage0/block12/depthwise/conv.weight", 20)
    assert len(short) == 20
    assert short.startswith("feature")
    assert short.endswith("conv.weight")
    assert "…" in short


@pytest.mark.parametrize(
    ("budget", "metric", "limit"),
    [
        ("top1-drop<=0.005", "top1-drop", 0.005),
        ("top1-drop<=0.5%", "top1-drop", 0.005),
        ("top1-drop<=0.5%, cosine>=0.99", "cosine", 0.99),
        ("cosine@logits>=.99", "cosine", None),
        ("cosine@logits>=.99", "cosine@logits", 0.99),
        ("top1-drop<=0.005", "top1", None),
        ("anything", "anything", None),
        (None, "top1", None),
    ],
)
def test_the_limit_of_a_budget_on_a_metric(budget: str | None, metric: str, limit: float | None) -> None:
    assert budget_limit(budget, metric) == limit


def test_a_pass_without_work_says_what_we_expect_of_it() -> None:
    assert NO_CHANGE == transaction.NOTHING


def test_drops_are_better_when_lower() -> None:
    assert lower_is_better("top1-drop")
    assert lower_is_better("top1-drop@logits")
    assert not lower_is_better("agreement")


def _candidate(*metrics: str) -> Candidate:
    scores = tuple(Score(metric=metric, value=0, low=0, high=0, count=1) for metric in metrics)
    return Candidate(name="a", summary="", status="held", scores=scores)


def test_candidates_are_compared_by_what_the_budget_limits() -> None:
    candidates = (_candidate("cosine", "top1-drop"), _candidate("cosine"))
    assert best_metric(Report(candidates=candidates, budget="top1-drop<=0.1")) == "top1-drop"
    assert best_metric(Report(candidates=candidates)) == "cosine"
    assert best_metric(Report()) is None


def test_labels_do_not_cover_each_other() -> None:
    labels = [Label(x=50 + index, y=50, width=12, height=9) for index in range(6)]
    centres = placed(labels, width=200, height=100)
    for (x, y), (other_x, other_y) in itertools.combinations(centres, 2):
        assert abs(x - other_x) >= 12 - 1e-6 or abs(y - other_y) >= 9 - 1e-6


def test_a_label_stays_in_the_drawing() -> None:
    ((x, _),) = placed([Label(x=195, y=50, width=40, height=9)], width=200, height=100)
    assert x + 20 <= 200
