"""A search finds the smallest model within a budget, says how sure that is, and makes it again from its recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.formats.profile import load_profile
from host.compress.data.dataset import Dataset
from host.compress.judge.budget import Budget
from host.compress.pipeline import Training
from host.compress.recover import Lesson
from host.compress.search.onnx_workpiece import OnnxWorkpiece
from host.compress.search.search import BudgetUnmetError, Found, Wish, replayed, search
from host.compress.search.trial import TrialCache
from host.compress.search.workpiece import Material
from host.model import Golden, Ingested, to_bytes
from host.reference import Reference
from tests.graphs import conv_net, model_of, photos

pytestmark = pytest.mark.slow

SAMPLES = photos(32)
ASKED = photos(300, seed=5)


def ingested() -> Ingested:
    model = model_of(conv_net())
    golden = Golden(inputs=SAMPLES[0], outputs=Reference(model).run(SAMPLES[0]))
    return Ingested(model=model, samples=tuple(SAMPLES), golden=(golden,))


def material(labels: list[int] | None = None) -> Material:
    return Material(dataset=Dataset.held(ASKED, labels, name="asked"), calibration=SAMPLES, training=Training())


def wish(budget: str, **more: object) -> Wish:
    return Wish(budget=Budget.parse(budget), profile=load_profile("rpi4"), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found() -> Found:
    """What a search for nine in ten equal answers finds."""
    return search(ingested(), material(), wish("agreement>=0.9"))[1]


def names(found: Found) -> list[str]:
    return [trial.name for trial in found.trials]


def test_the_chosen_keeps_the_budget_and_costs_least(found: Found) -> None:
    assert found.chosen is not None
    assert found.chosen.keeps_budget
    kept = [trial for trial in found.trials if trial.keeps_budget and trial.costs is not None]
    assert found.chosen in kept
    assert found.chosen.costs is not None
    assert found.chosen.costs.size_bytes < found.original.size_bytes


def test_int8_is_tried_first_and_hopeless_families_are_not(found: Found) -> None:
    assert names(found)[0] == "int8"
    assert "none" not in names(found)


def test_the_front_holds_the_chosen(found: Found) -> None:
    assert any(trial is found.chosen for trial in found.front)


def test_the_recipe_makes_the_same_model_without_data() -> None:
    compressed, found = search(ingested(), material(), wish("agreement>=0.9", ratios=()))
    assert isinstance(found.workpiece, OnnxWorkpiece)
    assert found.chosen is not None
    assert to_bytes(replayed(found.workpiece.prepared, found.chosen).model.ir) == to_bytes(compressed.model.ir)


def test_two_searches_give_the_same_bytes() -> None:
    first, second = (search(ingested(), material(), wish("cosine>=0.98", ratios=(0.25,)))[0] for _ in range(2))
    assert to_bytes(first.model.ir) == to_bytes(second.model.ir)
    assert first.recipe == second.recipe


def test_a_stricter_budget_ends_with_a_gentler_model() -> None:
    _, found = search(ingested(), material(), wish("cosine>=0.9999999", ratios=()))
    assert found.chosen is not None
    assert found.chosen.name in ("none", "float16")
    assert any("in fp32" in name for name in names(found))
    assert found.sensitivity


def test_an_unmet_budget_names_the_closest() -> None:
    labels = [int(label) for label in np.random.default_rng(0).integers(0, 4, len(ASKED))]
    with pytest.raises(BudgetUnmetError) as caught:
        search(ingested(), material(labels), wish("top1>=0.9", ratios=()))
    assert str(caught.value).startswith(
        f"none of {len(caught.value.found.trials)} candidates keeps top1>=0.9; closest:"
    )
    assert caught.value.found.chosen is None
    assert "\n" not in str(caught.value)


def test_thorough_tries_everything() -> None:
    _, found = search(ingested(), material(), wish("agreement>=0.5", ratios=(0.25,), thorough=True))
    assert {"int8", "25%-of-channels-less", "float16", "none"} <= set(names(found))


def test_the_second_search_takes_trials_from_the_cache(tmp_path: Path) -> None:
    cache = TrialCache(tmp_path)
    first, before = search(ingested(), material(), wish("agreement>=0.9"), cache=cache)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second, after = search(ingested(), material(), wish("agreement>=0.9"), cache=cache)
    assert kept
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    assert to_bytes(first.model.ir) == to_bytes(second.model.ir)
    # Times are measured, so equal ones were read.
    assert [trial.costs for trial in before.trials] == [trial.costs for trial in after.trials]


def test_a_damaged_cache_is_worked_out_again(tmp_path: Path) -> None:
    cache = TrialCache(tmp_path)
    first, _ = search(ingested(), material(), wish("agreement>=0.9", ratios=()), cache=cache)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-7])
    second, _ = search(ingested(), material(), wish("agreement>=0.9", ratios=()), cache=cache)
    assert to_bytes(first.model.ir) == to_bytes(second.model.ir)


def test_other_data_is_another_question(tmp_path: Path) -> None:
    cache = TrialCache(tmp_path)
    search(ingested(), material(), wish("agreement>=0.9", ratios=()), cache=cache)
    entries = len(list(tmp_path.glob("*.json")))
    other = Material(dataset=Dataset.held(photos(300, seed=6)), calibration=SAMPLES, training=Training())
    search(ingested(), other, wish("agreement>=0.9", ratios=()), cache=cache)
    assert len(list(tmp_path.glob("*.json"))) > entries


def _with_labels(labels: list[int]) -> Material:
    return Material(
        dataset=Dataset.held(ASKED, name="asked"),
        calibration=SAMPLES,
        training=Training(samples=SAMPLES, lesson=Lesson(labels=labels)),
    )


def test_what_may_change_the_result_is_another_question(tmp_path: Path) -> None:
    cache = TrialCache(tmp_path)
    asked = wish("agreement>=0.9", ratios=())
    slower = msgspec.structs.replace(asked.profile, memory_bytes_per_second=1.0)
    questions = (
        (material(), asked),
        (_with_labels([0] * len(SAMPLES)), asked),
        (_with_labels([1] * len(SAMPLES)), asked),
        (material(), replace(asked, profile=slower)),
        (material(), replace(asked, confidence=0.9)),
    )
    entries = []
    for given, question in questions:
        search(ingested(), given, question, cache=cache)
        entries.append(len(list(tmp_path.glob("*.json"))))
    assert entries == sorted(set(entries))


def test_figures_of_a_metric_of_ones_own_are_never_kept(tmp_path: Path) -> None:
    question = wish("tests.integration.test_search:closeness>=0.5", ratios=())
    search(ingested(), material(), question, cache=TrialCache(tmp_path))
    assert list(tmp_path.iterdir()) == []


def closeness(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], label: object) -> float:
    """A metric of one's own."""
    del label
    return 1.0 - float(np.abs(found["y"] - expected["y"]).max())


def test_what_was_hopeless_on_a_part_is_asked_again_where_that_settles_nothing(tmp_path: Path) -> None:
    many = Material(dataset=Dataset.held(photos(1100, seed=5)), calibration=SAMPLES, training=Training())
    labels = Dataset.held(photos(1100, seed=5), [0] * 1100)
    cache = TrialCache(tmp_path)
    with pytest.raises(BudgetUnmetError) as caught:
        search(ingested(), replace(many, dataset=labels), wish("top1>=0.99", ratios=()), cache=cache)
    hopeless = caught.value.found.trials[0]
    assert hopeless.scores[0].count == 512
    with pytest.raises(BudgetUnmetError) as caught:
        search(ingested(), replace(many, dataset=labels), wish("top1>=0.99", ratios=()), cache=cache)
    assert caught.value.found.trials[0].costs == hopeless.costs
    _, found = search(ingested(), replace(many, dataset=labels), wish("top1>=0.01", ratios=()), cache=cache)
    assert found.trials[0].scores[0].count == 1100


def test_what_removes_no_channel_is_no_candidate() -> None:
    _, found = search(ingested(), material(), wish("agreement>=0.9", ratios=(0.5,)))
    (pruned,) = (trial for trial in found.trials if trial.family == "50%-of-channels-less")
    assert pruned.failure == "no channel can go: layers keep multiples of 8, and none has enough"


def test_an_original_outside_the_budget_is_named() -> None:
    with pytest.raises(BudgetUnmetError, match="the original itself does not keep it: top1 "):
        search(ingested(), material([-1 % 4] * len(ASKED)), wish("top1>=0.999", ratios=()))
