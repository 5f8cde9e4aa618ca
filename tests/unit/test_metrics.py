"""Each metric gives the figure that a person would work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from host.compress.data.samples import Label
from host.compress.judge.metrics import asked, first_output, ranks, snr_db
from host.errors import BudgetError

SCORES = np.array([[0.1, 0.7, 0.2, 0.0]], np.float32)
OTHER = np.array([[0.1, 0.2, 0.7, 0.0]], np.float32)


def figure(name: str, found: np.ndarray, expected: np.ndarray | None = None, label: Label = None) -> float:
    want = found if expected is None else expected
    return asked(name)({"y": found}, {"y": want}, label)


def distance(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], label: Label) -> float:
    return float(np.abs(found["y"] - expected["y"]).max()) + (0 if label is None else 100)


def largest(found: np.ndarray, _expected: np.ndarray, _label: Label) -> float:
    return float(found.max())


def fails(_found: object, _expected: object, _label: object) -> float:
    raise KeyError("no such thing")


def endless(_found: object, _expected: object, _label: object) -> float:
    return float("inf")


@pytest.mark.parametrize(
    ("name", "label", "expected"),
    [("top1", 1, 1.0), ("top1", 2, 0.0), ("top2", 2, 1.0), ("top2", 0, 0.0), ("top3", 0, 1.0), ("top9", 3, 1.0)],
)
def test_a_label_is_right_among_the_largest_scores(name: str, label: int, expected: float) -> None:
    assert figure(name, SCORES, label=label) == expected


@pytest.mark.parametrize(("name", "expected"), [("agreement", 0.0), ("agreement-top1", 0.0), ("agreement-top2", 1.0)])
def test_agreement_takes_the_originals_answer_for_the_label(name: str, expected: float) -> None:
    assert figure(name, SCORES, OTHER) == expected
    assert figure(name, SCORES, SCORES) == 1.0


def test_equal_scores_rank_by_their_place_and_no_number_ranks_last() -> None:
    equal = np.array([[1.0, 1.0, 0.5]])
    assert [int(ranks(equal, np.array([answer]))[0]) for answer in range(3)] == [0, 1, 2]
    broken = np.array([[np.nan, 0.0, 1.0]])
    assert [int(ranks(broken, np.array([answer]))[0]) for answer in range(3)] == [3, 1, 0]


def test_a_model_that_answers_with_no_numbers_is_wrong() -> None:
    lost = np.full((1, 4), np.nan, np.float32)
    assert figure("top1", lost, label=0) == 0.0
    assert figure("agreement", lost, SCORES) == 0.0
    assert figure("agreement", lost, lost) == 0.0
    assert figure("cosine", lost, SCORES) == 0.0
    assert figure("snr", lost, SCORES) == -100.0


def test_several_answers_of_a_sample_count_together() -> None:
    tokens = np.stack([SCORES[0], OTHER[0], SCORES[0], SCORES[0]])[None]
    assert figure("top1", tokens, label=np.array([1, 2, 1, 0])) == 0.75
    pixels = np.moveaxis(tokens, 2, 1)[..., None]
    assert pixels.shape == (1, 4, 4, 1)
    assert figure("top1", pixels, label=np.array([[[1], [2], [1], [0]]])) == 0.75
    assert figure("agreement", pixels, np.roll(pixels, 1, axis=2)) == 0.5


def test_scores_with_leftover_axes_are_classes_too() -> None:
    assert figure("top1", SCORES.reshape(1, 4, 1, 1), label=1) == 1.0
    assert figure("top1", SCORES[0], label=1) == 1.0


def test_an_output_of_integers_holds_the_answers() -> None:
    answers = np.array([[3, 5, 5]])
    assert figure("top1", answers, label=np.array([3, 5, 6])) == pytest.approx(2 / 3)
    assert figure("agreement", answers, np.array([[3, 4, 5]])) == pytest.approx(2 / 3)


def test_noise_is_measured_in_decibels() -> None:
    signal = np.ones((1, 100), np.float32)
    assert snr_db(signal * 1.1, signal) == pytest.approx(20.0, abs=1e-4)
    assert snr_db(signal, signal) == 100.0
    assert snr_db(signal, signal * 0) == -100.0
    assert snr_db(signal * 1e30, signal) == -100.0
    assert figure("snr", signal * 0, signal) == pytest.approx(0.0)


def test_masks_overlap() -> None:
    found = np.array([[[[0.9, 0.8, 0.1, 0.2]]]], np.float32)
    assert figure("iou", found, label=np.array([[0, 1, 1, 0]])) == pytest.approx(1 / 3)
    assert figure("iou", found, label=np.array([[255, 1, 255, 0]])) == 1.0
    assert figure("iou", found, np.array([[[[0.9, 0.1, 0.1, 0.2]]]], np.float32)) == 0.5
    assert figure("iou", found * 0, found * 0) == 1.0


def test_masks_of_several_classes_overlap_class_by_class() -> None:
    classes = np.array([[0, 1], [2, 2]])
    found = np.moveaxis(np.eye(3, dtype=np.float32)[classes], 2, 0)[None]
    assert figure("iou", found, label=classes) == 1.0
    assert figure("iou", found, label=np.array([[0, 1], [2, 1]])) == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert figure("iou", found, found) == 1.0


def test_an_output_is_chosen_by_name_or_as_the_first_that_holds_floats() -> None:
    found = {"count": np.array([3]), "a": SCORES, "b": OTHER}
    assert first_output(found) == "a"
    assert asked("top1")(found, found, 1) == 1.0
    assert asked("top1@b")(found, found, 1) == 0.0
    assert asked("top1-drop@b").name == asked("top1@b-drop").name == "top1-drop@b"


def test_a_function_of_the_users_own() -> None:
    name = "tests.unit.test_metrics:distance"
    assert figure(name, SCORES, OTHER) == pytest.approx(0.5)
    assert figure(name, SCORES, OTHER, 1) == pytest.approx(100.5)
    assert figure("tests.unit.test_metrics:largest@y", SCORES) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("name", "found", "label", "message"),
    [
        ("top1", SCORES, None, "there is no label; agreement, cosine and snr need none"),
        ("iou-drop", SCORES, None, "there is no label; agreement, cosine and snr need none"),
        ("top1", SCORES, 4, "a label is 4 to 4; there are 4 classes"),
        ("top1", SCORES, np.array([1, 2]), "2 labels for 1 answers of the output [1, 4]"),
        ("top1", SCORES[:, :1], 0, "the output [1, 1] holds one score at each place, not scores of classes"),
        ("agreement", np.float32(1), None, "the output is a single number, not scores of classes"),
        ("agreement", SCORES[:0], None, "output 'y' is empty"),
        ("top1@z", SCORES, 1, "there is no output 'z'; there are y"),
        ("iou", SCORES, 1, "the mask is [], the output [1, 4]"),
        ("tests.unit.test_metrics:fails", SCORES, 1, "KeyError: 'no such thing'"),
        ("tests.unit.test_metrics:endless", SCORES, 1, "it returned inf"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, found: np.ndarray, label: Label, message: str) -> None:
    with pytest.raises(BudgetError) as caught:
        figure(name, np.asarray(found), label=label)
    assert str(caught.value) == message


def test_another_shape_than_the_originals_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"^output 'y' is \[1, 3\] and was \[1, 4\]$"):
        figure("cosine", SCORES[:, :3], SCORES)


@pytest.mark.parametrize(
    "name", ["", "top0", "top", "Top1", "agreement-top", "cosine-top5", "os:getcwd:x", "top1-drop-drop"]
)
def test_what_is_no_metric_is_refused_with_what_is(name: str) -> None:
    with pytest.raises(
        BudgetError, match=r"there is no such one; possible are top1, top5 or topK for any K, agreement"
    ):
        asked(name)
