"""A budget is read, refused with what is possible, and judged with proof or without."""

from __future__ import annotations

import numpy as np
import pytest

from host.compress.judge.budget import Budget
from host.compress.judge.evaluate import Evaluation
from host.compress.judge.interval import SHARE, Scale, score
from host.compress.judge.metrics import SNR_LIMIT_DB
from host.compress.judge.score import Score
from host.errors import BudgetError


def measured(
    metric: str, value: float, low: float, high: float, count: int = 10_000, *, groups: bool = False
) -> Evaluation:
    one = Score(metric=metric, value=value, low=low, high=high, count=count)
    return Evaluation(scores=(one,), per_sample={}, samples=count * 50 if groups else count, has_groups=groups)


def closeness(found: np.ndarray, expected: np.ndarray, label: object) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("top1-drop<=0.005", "top1-drop<=0.005"),
        (" top5-drop <= 0.7% , agreement>=0.99", "top5-drop<=0.007,agreement>=0.99"),
        ("cosine@logits>=.99", "cosine@logits>=0.99"),
        ("top1@y-drop<=1e-2", "top1-drop@y<=0.01"),
        ("snr>=30", "snr>=30.0"),
        ("agreement-top5>=99%", "agreement-top5>=0.99"),
        ("iou-drop<=0", "iou-drop<=0.0"),
        ("tests.unit.test_budget:closeness>=2.5", "tests.unit.test_budget:closeness>=2.5"),
        ("tests.unit.test_budget:closeness-drop<=2.5", "tests.unit.test_budget:closeness-drop<=2.5"),
    ],
)
def test_what_is_read_is_written_the_same_way(text: str, written: str) -> None:
    budget = Budget.parse(text)
    assert str(budget) == written
    assert str(Budget.parse(written)) == written


def test_a_budget_says_what_it_must_be_told() -> None:
    budget = Budget.parse("agreement>=0.9,top1-drop<=0.01,cosine>=0.9")
    assert budget.metrics == ("agreement", "top1-drop", "cosine")
    assert budget.needs_labels
    assert not Budget.parse("agreement>=0.9,iou>=0.5").needs_labels
    assert Budget.parse("iou-drop<=0.1").needs_labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            " ",
            "the budget is empty; give limits such as top1-drop<=0.005, top5-drop<=1%, agreement>=0.99, cosine>=0.99",
        ),
        ("agreement>=0.9,", "budget: '' is no limit; write METRIC<=NUMBER or METRIC>=NUMBER, as in top1-drop<=0.005"),
        ("top1-drop<0.1", "budget: 'top1-drop<0.1' is no limit; write METRIC<=NUMBER or METRIC>=NUMBER"),
        ("top1-drop<=1.2.3", "budget: 'top1-drop<=1.2.3': '1.2.3' is no number"),
        (
            "accuracy>=0.9",
            "budget: 'accuracy>=0.9': metric 'accuracy': there is no such one; possible are top1, top5 or",
        ),
        ("cosine-drop<=0.1", "compares with the original already; write cosine>=…"),
        ("top1-drop>=0.1", "budget: 'top1-drop>=0.1': a drop should be small: write top1-drop<=…"),
        ("agreement<=0.99", "budget: 'agreement<=0.99': agreement should be large: write agreement>=…"),
        ("top1-drop<=5", "top1-drop lies between -1 and 1; for 5 percent write 5%"),
        ("snr>=30%", "snr is no share: write the limit without %"),
        ("top1-drop<=0.1,top1-drop<=1%", "budget 'top1-drop<=0.1,top1-drop<=1%': top1-drop is limited twice"),
        ("top1@>=0.5", "metric 'top1@': no output behind the @"),
        ("no.module:f>=1", "no.module:f: cannot import no.module: ModuleNotFoundError: No module named 'no'"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_limit_is_proven_when_the_whole_interval_is_inside() -> None:
    judged = Budget.parse("top1-drop<=0.005").judge(measured("top1-drop", 0.0012, -0.001, 0.0034))
    assert judged.is_proven
    assert judged.margin == pytest.approx(0.76)
    assert str(judged) == "top1-drop 0.12 points (95 %: -0.10 to 0.34), limit 0.50: proven on 10,000 samples"


def test_a_limit_is_held_when_only_the_value_is_inside() -> None:
    judged = Budget.parse("agreement>=0.99").judge(measured("agreement", 0.995, 0.9718, 0.9991, 200))
    assert judged.is_kept
    assert not judged.is_proven
    assert judged.verdicts[0].needed == pytest.approx(1521, abs=1)
    assert str(judged) == (
        "agreement 0.9950 (95 %: 0.9718 to 0.9991), limit 0.9900: held on 200 samples, not proven: "
        "that takes about 1,600 samples"
    )


def test_a_limit_is_broken_when_the_value_is_outside() -> None:
    judged = Budget.parse("cosine>=0.99").judge(measured("cosine", 0.989996, 0.98, 0.999))
    assert not judged.is_kept
    assert judged.margin == pytest.approx(-0.0004)
    assert str(judged) == "cosine 0.989996 (95 %: 0.980000 to 0.999000), limit 0.990000: broken on 10,000 samples"


def test_the_worst_limit_decides() -> None:
    evaluation = Evaluation(
        scores=(
            Score(metric="snr", value=40.0, low=39.0, high=41.0, count=100),
            Score(metric="agreement", value=0.98, low=0.93, high=0.995, count=100),
        ),
        per_sample={},
        samples=100,
    )
    judged = Budget.parse("snr>=30,agreement>=0.99").judge(evaluation)
    assert [verdict.status for verdict in judged.verdicts] == ["proven", "broken"]
    assert judged.status == "broken"
    assert judged.margin == pytest.approx(-1.0)
    assert judged.verdicts[0].margin == pytest.approx(10 / (SNR_LIMIT_DB - 30))
    assert "snr 40.0 dB (95 %: 39.0 to 41.0), limit 30.0: proven on 100 samples" in str(judged)


def test_few_samples_prove_nothing_however_close_they_lie() -> None:
    close = score("cosine", np.full(20, 0.9999), scale=Scale(low=-1, high=1))
    judged = Budget.parse("cosine>=0.99").judge(Evaluation(scores=(close,), per_sample={}, samples=20))
    assert judged.status == "held"
    assert str(judged).endswith("held on 20 samples, not proven: that takes about 30 samples")


def test_a_thousand_crops_of_twenty_photos_prove_nothing() -> None:
    right = score("agreement", np.ones(1000), scale=SHARE, groups=[str(index % 20) for index in range(1000)])
    evaluation = Evaluation(scores=(right,), per_sample={}, samples=1000, has_groups=True)
    judged = Budget.parse("agreement>=0.99").judge(evaluation)
    assert judged.status == "held"
    assert str(judged).endswith("held on 1,000 samples of 20 sources, not proven: that takes about 390 sources")


def test_no_number_of_samples_proves_a_value_at_its_limit() -> None:
    judged = Budget.parse("top1-drop<=0.01").judge(measured("top1-drop", 0.01, 0.0, 0.02))
    assert judged.verdicts[0].needed == float("inf")
    assert str(judged).endswith("held on 10,000 samples, not proven: no number of samples proves a value at its limit")


def test_candidates_rank_by_their_margin() -> None:
    budget = Budget.parse("top1-drop<=0.005")
    values = [-0.002, 0.0, 0.004, 0.005, 0.006, 0.1]
    margins = [budget.judge(measured("top1-drop", value, value, value)).margin for value in values]
    assert margins == sorted(margins, reverse=True)
    assert margins[1] == pytest.approx(1.0)
    assert margins[3] == 0.0


def test_what_was_not_measured_is_named() -> None:
    with pytest.raises(BudgetError, match=r"^agreement was not measured; there are top1-drop$"):
        Budget.parse("agreement>=0.9").judge(measured("top1-drop", 0.0, 0.0, 0.0))
