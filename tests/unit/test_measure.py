"""Comparing answers."""

from __future__ import annotations

import numpy as np
import pytest

from edge.formats.tensor import Array
from host.compare import compare, cosine, relative_error
from host.compress.measure import Fidelity, fidelity
from host.errors import QuantizeError
from host.model import Model
from host.passes.normalise import normalise
from tests.graphs import model_of

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.1, 0.0], [0.0, 0.0], INF),
        ([NAN, 1.0], [NAN, 1.0], 0.0),
        ([NAN, 1.5], [NAN, 1.0], 0.5),
        ([NAN, 1.0], [0.0, 1.0], INF),
        ([INF, 1.0], [-INF, 1.0], INF),
        ([], [], 0.0),
    ],
)
def test_relative_error(found: list[float], expected: list[float], error: float) -> None:
    assert relative_error(np.asarray(found), np.asarray(expected)) == error


@pytest.mark.parametrize(
    ("found", "expected", "angle"),
    [([1.0, 0.0], [2.0, 0.0], 1.0), ([1.0, 0.0], [0.0, 1.0], 0.0), ([0.0], [0.0], 1.0), ([0.0], [1.0], 0.0)],
)
def test_cosine(found: list[float], expected: list[float], angle: float) -> None:
    assert cosine(np.asarray(found), np.asarray(expected)) == angle


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        (np.ones(2, np.float32), np.ones(2, np.float32), None),
        (np.ones(2, np.float32), np.ones(3, np.float32), "output 'y' is float32[2], expected float32[3]"),
        (np.ones(2, np.float32), np.ones(2, np.float64), "output 'y' is float32[2], expected float64[2]"),
        (np.array([1.0, 1.1]), np.ones(2), "output 'y' has relative error 1.00e-01, above 0.01"),
        (np.array([1, 2]), np.array([1, 3]), "output 'y' has relative error 3.33e-01, above 0.01"),
    ],
)
def test_compare_names_the_fault(found: Array, expected: Array, message: str | None) -> None:
    assert compare({"y": found}, {"y": expected}, tolerance=1e-2) == message


def test_compare_wants_equal_integers_when_the_tolerance_is_small() -> None:
    fault = compare({"y": np.array([1000, 1001])}, {"y": np.array([1000, 1000])}, tolerance=5e-3)
    assert fault == "output 'y' has relative error 1.00e-03, above 0"


def test_compare_names_outputs_that_differ() -> None:
    assert compare({"a": np.ones(1)}, {"b": np.ones(1)}, tolerance=0) == "outputs are ['a'], expected ['b']"


def scaled(*factors: float) -> Model:
    return normalise(
        model_of(
            "main (float[1,3] x) => (float[1,3] y) { "
            f"f = Constant <value_floats = [{', '.join(map(str, factors))}]> ()\n y = Mul (x, f) }}"
        )
    )


SAMPLES = [{"x": np.array([row], np.float32)} for row in ([1, 2, 4], [4, 2, 1], [1, 4, 2], [0, 0, 1])]


def test_a_model_is_faithful_to_itself() -> None:
    assert fidelity(scaled(1.0, 1.0, 1.0), scaled(1.0, 1.0, 1.0), SAMPLES) == Fidelity(
        mode="exact", samples=4, cosine=1.0, worst_cosine=1.0, max_relative_error=0.0, top1_agreement=1.0
    )


def test_what_changes_is_measured() -> None:
    found = fidelity(scaled(1.0, 1.0, 1.0), scaled(1.0, 1.0, 3.0), SAMPLES, mode="default")
    assert found.max_relative_error == 2.0
    # Only [1, 4, 2] is won by another class when the third counts three times.
    assert found.top1_agreement == 0.75
    assert found.worst_cosine < found.cosine < 1.0
    assert str(found).endswith("max relative error 2.00e+00, top-1 agreement 75.0%, 4 inputs")


def test_fidelity_needs_inputs() -> None:
    with pytest.raises(QuantizeError, match="fidelity needs inputs: pass --inputs"):
        fidelity(scaled(1.0, 1.0, 1.0), scaled(1.0, 1.0, 1.0), [])
