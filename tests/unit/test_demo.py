"""What counts as wrong in the demo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.protocol.requests import InferenceResult
from host.cli.demo import AGENTS, FLOAT_TOLERANCE, Answer, Photo, differs, verdict

_RESULT = InferenceResult(outputs={}, trace=(), latency_seconds=0.1, taken_seconds=(), attempts=1, epoch="1-a-1")
_PHOTO = Photo(path=Path("goose.jpg"), label="goose", tensor=np.zeros(1))


def answer(label: str = "goose", *, mismatch: bool = False, deployment: str = "lite0-int8") -> Answer:
    return Answer(
        deployment=deployment,
        photo=_PHOTO,
        label=label,
        probability=0.9,
        result=_RESULT,
        relative_error=0.0,
        mismatch=mismatch,
    )


def test_all_right_is_said_in_one_line_and_is_no_failure() -> None:
    answers = [answer(), answer(deployment="lite0-fp32")]
    assert verdict(answers) == ("2 photos (1 through each of 2 deployments), 2 right, 0 mismatches", False)


@pytest.mark.parametrize("answers", [[answer("swan")], [answer(mismatch=True)], [answer(), answer("swan")], []])
def test_a_wrong_label_a_mismatch_or_no_answer_at_all_is_a_failure(answers: list[Answer]) -> None:
    assert verdict(answers)[1]


def test_int8_must_be_equal_bit_by_bit_and_fp32_nearly() -> None:
    whole = {"y": np.array([[1.0, -100.0]], np.float32)}
    near = {"y": np.array([[1.0, -100.0005]], np.float32)}
    far = {"y": np.array([[1.0, -100.01]], np.float32)}
    assert differs(whole, whole, tolerance=0.0) == (0.0, False)
    assert differs(near, whole, tolerance=0.0)[1]
    assert not differs(near, whole, tolerance=FLOAT_TOLERANCE)[1]
    assert differs(far, whole, tolerance=FLOAT_TOLERANCE)[1]


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"z": np.zeros((1, 2), np.float32)},
        {"y": np.zeros((2, 1), np.float32)},
        {"y": np.full((1, 2), np.nan, np.float32)},
    ],
)
def test_an_answer_of_another_form_is_a_mismatch(found: dict[str, np.ndarray]) -> None:
    assert differs(found, {"y": np.ones((1, 2), np.float32)}, tolerance=FLOAT_TOLERANCE) == (float("inf"), True)


def test_three_agents_pretend_to_be_different_devices() -> None:
    assert len({agent.profile for agent in AGENTS}) == len({agent.name for agent in AGENTS}) == 3
