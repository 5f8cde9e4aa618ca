"""Any text is a budget or refused, and every verdict follows from its score."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from host.compress.judge.budget import LEAST_PROOF, Budget
from host.compress.judge.evaluate import Evaluation
from host.compress.judge.score import Score
from host.errors import BudgetError

METRICS = st.sampled_from(["top1-drop", "top5-drop", "agreement", "cosine", "agreement-top3", "iou"])
PIECES = st.sampled_from(
    ["top1", "-drop", "cosine", "snr", "@", "y", "<=", ">=", "<", "0.1", "5", "%", ",", " ", "e9", ":", "é"]
)
SHARES = st.floats(0, 1)


@given(st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=8).map("".join)))
def test_any_text_is_a_budget_or_refused_in_one_line(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except BudgetError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert Budget.parse(str(budget)) is not budget
        assert str(Budget.parse(str(budget))) == str(budget)


@given(METRICS, SHARES, st.tuples(SHARES, SHARES, SHARES).map(sorted), st.integers(1, 100_000))
def test_a_verdict_follows_from_its_score(metric: str, bound: float, ends: list[float], count: int) -> None:
    sign = "<=" if metric.endswith("-drop") else ">="
    low, value, high = ends
    score = Score(metric=metric, value=value, low=low, high=high, count=count)
    judged = Budget.parse(f"{metric}{sign}{bound!r}").judge(
        Evaluation(scores=(score,), per_sample={}, samples=count, has_groups=False)
    )
    (verdict,) = judged.verdicts
    inside = [end <= bound if sign == "<=" else end >= bound for end in ends]
    assert judged.is_kept == inside[1]
    assert judged.is_proven == (all(inside) and count >= LEAST_PROOF)
    assert (verdict.margin >= 0) == inside[1]
    assert (verdict.needed is not None) == (judged.status == "held")
    assert verdict.needed is None or verdict.needed >= LEAST_PROOF
    assert "\n" not in verdict.text
