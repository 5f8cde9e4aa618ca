"""Which candidates are worth having."""

from __future__ import annotations

import pytest

from host.compress.judge.budget import Budget, Judgement
from host.compress.judge.evaluate import Evaluation
from host.compress.judge.score import Score
from host.compress.recipe import Recipe
from host.compress.search.front import Objective, best, closest, cost, pareto_front
from host.compress.search.trial import Costs, Trial

ORIGINAL = Costs(size_bytes=1000, predicted_seconds=1.0, latency_seconds=1.0, latency_ratio=1.0)


def judged(agreement: float) -> Judgement:
    score = Score(metric="agreement", value=agreement, low=agreement, high=agreement, count=1000)
    return Budget.parse("agreement>=0.9").judge(Evaluation(scores=(score,), per_sample={}, samples=1000))


def trial(name: str, size: int, seconds: float, agreement: float) -> Trial:
    costs = Costs(size_bytes=size, predicted_seconds=seconds, latency_seconds=seconds, latency_ratio=seconds)
    return Trial(name=name, family=name, recipe=Recipe(), costs=costs, judgement=judged(agreement))


SMALL = trial("small", 200, 0.9, 0.95)
FAST = trial("fast", 400, 0.3, 0.92)
WRONG = trial("wrong", 100, 0.2, 0.5)
WORSE = trial("worse", 500, 0.9, 0.91)
FAILED = Trial(name="failed", family="failed", recipe=Recipe(), failure="no operator that int8 can hold")
ALL = (SMALL, FAST, WRONG, WORSE, FAILED)


def test_the_front_holds_what_nothing_beats() -> None:
    assert [found.name for found in pareto_front(ALL)] == ["small", "fast", "wrong"]


def test_equal_candidates_do_not_beat_each_other() -> None:
    assert len(pareto_front((SMALL, SMALL))) == 2


@pytest.mark.parametrize(("objective", "name"), [("size", "small"), ("latency", "fast"), ("balanced", "fast")])
def test_the_best_keeps_the_budget_and_costs_least(objective: Objective, name: str) -> None:
    found = best(ALL, ORIGINAL, objective)
    assert found is not None
    assert found.name == name


def test_nothing_is_best_when_nothing_keeps_the_budget() -> None:
    assert best((WRONG, FAILED), ORIGINAL, "size") is None


def test_the_balanced_cost_is_the_geometric_mean() -> None:
    assert cost(FAST, ORIGINAL, "balanced") == pytest.approx((0.4 * 0.3) ** 0.5)
    assert cost(FAILED, ORIGINAL, "balanced") == float("inf")


def test_the_closest_are_named_first() -> None:
    assert [found.name for found in closest((WRONG, WORSE, FAILED), 2)] == ["worse", "wrong"]
