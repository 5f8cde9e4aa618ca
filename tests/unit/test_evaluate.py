"""A candidate is judged on the answers to a dataset, paired with those of the original."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from host.compress.data.dataset import Dataset
from host.compress.judge.budget import Budget
from host.compress.judge.evaluate import Answers, answers, evaluate
from host.errors import BudgetError, DatasetError, RuntimeRefusedError
from host.model import Tensors
from host.reference import Reference
from tests.graphs import conv_net, model_of, photos

METRICS = ("top1", "top1-drop", "agreement", "cosine", "snr")


class Sure:
    """Gives a class away: the number that is its input, or another one for some inputs."""

    def __init__(self, *wrong: int) -> None:
        self._wrong = wrong

    def run(self, inputs: Tensors) -> Mapping[str, np.ndarray]:
        number = int(inputs["x"][0])
        scores = np.zeros((1, 10), np.float32)
        scores[0, number % 10 if number not in self._wrong else (number + 1) % 10] = 1.0
        return {"count": np.array([number]), "y": scores}


class Refusing:
    """Runs two samples, then no more."""

    def run(self, inputs: Tensors) -> Mapping[str, np.ndarray]:
        if int(inputs["x"][0]) == 2:
            raise RuntimeRefusedError("onnxruntime could not run the model: out of luck")
        return {"y": inputs["x"]}


def numbers(count: int, *, groups: list[int] | None = None, labelled: bool = True) -> Dataset:
    inputs = [{"x": np.array([number], np.float32)} for number in range(count)]
    return Dataset.held(inputs, [number % 10 for number in range(count)] if labelled else None, groups, name="numbers")


def test_a_candidate_is_paired_with_its_original() -> None:
    dataset = numbers(200)
    original, found = answers(Sure(3, 4), dataset), answers(Sure(4, 5, 6), dataset)
    seen = evaluate(found, original, dataset, METRICS)
    assert [score.metric for score in seen.scores] == list(METRICS)
    assert seen.score("top1").value == pytest.approx(197 / 200)
    assert seen.score("top1-drop").value == pytest.approx(1 / 200)
    assert seen.score("agreement").value == pytest.approx(197 / 200)
    assert np.flatnonzero(seen.per_sample["agreement"] == 0).tolist() == [3, 5, 6]
    assert np.flatnonzero(seen.per_sample["top1-drop"]).tolist() == [3, 5, 6]
    assert seen.per_sample["top1-drop"][3] == -1.0
    assert seen.samples == seen.score("top1").count == 200


def test_real_models_are_judged_too() -> None:
    samples = photos(6)
    net, other = model_of(conv_net()), model_of(conv_net(seed=1))
    dataset = Dataset.held(samples)
    original = answers(Reference(net), dataset)
    same = evaluate(original, original, dataset, ["agreement", "cosine"])
    assert [score.value for score in same.scores] == pytest.approx([1.0, 1.0])
    differs = evaluate(answers(Reference(other), dataset), original, dataset, ["cosine"])
    assert differs.scores[0].value < 0.99


def test_a_budget_is_judged_on_what_it_asks_for() -> None:
    dataset = numbers(1000)
    original = answers(Sure(), dataset)
    budget = Budget.parse("top1-drop<=1%,agreement>=0.98")
    assert budget.judge(evaluate(original, original, dataset, budget.metrics)).is_proven
    worse = answers(Sure(*range(7)), dataset)
    judged = budget.judge(evaluate(worse, original, dataset, budget.metrics))
    assert [verdict.status for verdict in judged.verdicts] == ["held", "proven"]
    assert judged.margin == pytest.approx(0.3)


def test_crops_of_one_photo_count_once() -> None:
    dataset = numbers(1000, groups=[index // 50 for index in range(1000)])
    original = answers(Sure(), dataset)
    seen = evaluate(original, original, dataset, ["agreement"])
    assert seen.has_groups
    assert seen.samples == 1000
    assert seen.scores[0].count == 20
    assert Budget.parse("agreement>=0.99").judge(seen).status == "held"


def test_another_confidence_gives_another_interval() -> None:
    dataset = numbers(50)
    found = answers(Sure(1), dataset)
    wide, narrow = (evaluate(found, found, dataset, ["top1"], confidence=level).scores[0] for level in (0.99, 0.8))
    assert wide.low < narrow.low
    assert (wide.confidence, narrow.confidence) == (0.99, 0.8)
    with pytest.raises(BudgetError, match=r"^confidence 1\.5 is not between 0 and 1$"):
        evaluate(found, found, dataset, ["top1"], confidence=1.5)


@pytest.mark.parametrize("memory_bytes", [1 << 20, 16])
def test_answers_come_back_as_they_were_from_memory_and_from_disk(memory_bytes: int) -> None:
    outputs: list[dict[str, np.ndarray]] = [
        {"a": np.array(3.5, np.float32), "b": np.arange(index * 3, dtype=np.float16).reshape(index, 3)}
        for index in range(4)
    ]
    kept = Answers(outputs, memory_bytes=memory_bytes)
    assert len(kept) == 4
    for one, want in zip(kept, outputs, strict=True):
        for name, array in one.items():
            assert array.dtype == want[name].dtype
            assert array.shape == want[name].shape
            assert np.array_equal(array, want[name])
    assert kept[2]["b"].flags.writeable


def test_only_floats_are_kept_unless_there_are_none_or_all_are_wanted() -> None:
    dataset = numbers(2)
    assert list(answers(Sure(), dataset)[0]) == ["y"]
    assert list(answers(Sure(), dataset, floats_only=False)[0]) == ["count", "y"]
    assert list(Answers([{"count": np.array([3])}])[0]) == ["count"]


def test_progress_is_told_now_and_then() -> None:
    told: list[str] = []
    answers(Sure(), numbers(1000), told.append)
    assert len(told) == 20
    assert told[0] == "answered 50 of 1,000 samples of numbers"
    assert told[-1] == "answered 1,000 of 1,000 samples of numbers"


def test_a_sample_that_the_model_refuses_is_named() -> None:
    with pytest.raises(
        RuntimeRefusedError, match=r"^numbers: sample 2: onnxruntime could not run the model: out of luck$"
    ):
        answers(Refusing(), numbers(5))


def test_a_metric_that_does_not_fit_names_the_sample() -> None:
    dataset = numbers(5, labelled=False)
    found = answers(Sure(), dataset)
    with pytest.raises(BudgetError, match=r"^numbers: sample 0: top1-drop: there is no label; agreement, cosine and"):
        evaluate(found, found, dataset, ["top1-drop"])


def test_answers_to_something_else_are_refused() -> None:
    found = answers(Sure(), numbers(5))
    with pytest.raises(DatasetError, match=r"^numbers: 5 and 5 answers to 6 samples$"):
        evaluate(found, found, numbers(6), ["top1"])
