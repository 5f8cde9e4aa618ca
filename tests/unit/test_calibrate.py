"""Ranges of activations, by three methods."""

from __future__ import annotations

import numpy as np
import pytest

from host.compress.quantize.calibrate import calibrate
from host.compress.recipe import Calibration, Quantize, Range
from host.errors import QuantizeError
from host.model import Model
from host.passes.normalise import normalise
from host.reference import Reference
from tests.graphs import conv_net, model_of, photos

SAMPLES = photos(8)


@pytest.fixture
def model() -> Model:
    return normalise(model_of(conv_net()))


def ranges(model: Model, samples: list[dict[str, np.ndarray]] = SAMPLES, **fields: object) -> dict[str, Range]:
    plan = Quantize(**fields)  # type: ignore[arg-type]
    return {entry.tensor: entry for entry in calibrate(model, plan, samples)}


def copies(values: np.ndarray) -> tuple[Model, list[dict[str, np.ndarray]]]:
    """A model that hands its input on, and one sample for it."""
    size = values.size
    model = normalise(model_of(f"main (float[1,{size}] x) => (float[1,{size}] y) {{ y = Neg (x) }}"))
    return model, [{"x": values.astype(np.float32).reshape(1, size)}]


def test_ranges_are_the_extremes_seen(model: Model) -> None:
    found = ranges(model)
    values = [Reference(model, extra_outputs=["c1"]).run(sample)["c1"] for sample in SAMPLES]
    assert found["c1"].low == min(float(value.min()) for value in values)
    assert found["c1"].high == max(float(value.max()) for value in values)
    assert found["x"].low == min(float(sample["x"].min()) for sample in SAMPLES)


def test_every_float_tensor_has_a_range_in_graph_order(model: Model) -> None:
    assert list(ranges(model)) == ["x", "c1", "r1", "c2", "a", "p", "f", "y"]


def test_percentiles_are_narrower_than_extremes(model: Model) -> None:
    extremes, narrow = ranges(model)["c1"], ranges(model, calibration="percentile", percentile=90.0)["c1"]
    assert 0.3 * (extremes.high - extremes.low) < narrow.high - narrow.low < 0.9 * (extremes.high - extremes.low)


def test_entropy_cuts_off_a_lonely_outlier() -> None:
    values = np.random.default_rng(0).standard_normal(20_000)
    values[7] = 100.0
    model, samples = copies(values)
    found = ranges(model, samples, calibration="entropy")["x"]
    assert found.low == values.astype(np.float32).min()
    assert 3 < found.high < 60


def test_entropy_keeps_the_range_of_an_even_spread() -> None:
    model, samples = copies(np.linspace(0, 10, 20_000))
    found = ranges(model, samples, calibration="entropy")["x"]
    assert found.low == 0.0
    assert found.high > 9.5


def test_entropy_does_not_count_the_zeros_of_a_relu() -> None:
    values = np.maximum(np.random.default_rng(0).standard_normal(20_000), 0)
    model, samples = copies(values)
    found = ranges(model, samples, calibration="entropy")["x"]
    assert found.high > 2.5


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_constant_tensor_has_a_range_too(calibration: Calibration, value: float) -> None:
    model, samples = copies(np.full(16, value))
    found = ranges(model, samples, calibration=calibration)["x"]
    assert found.low <= value <= found.high


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
def test_the_same_samples_give_the_same_ranges(model: Model, calibration: Calibration) -> None:
    assert ranges(model, calibration=calibration) == ranges(model, calibration=calibration)


def test_the_variant_decides_the_type(model: Model) -> None:
    assert {entry.dtype for entry in ranges(model, variant="s8s8").values()} == {"int8"}
    assert {entry.dtype for entry in ranges(model, variant="u8u8").values()} == {"uint8"}


def test_calibration_without_inputs_says_what_to_pass(model: Model) -> None:
    with pytest.raises(QuantizeError, match="calibration needs inputs: pass --inputs"):
        calibrate(model, Quantize(), ())


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_tensor_that_is_not_finite_is_named(bad: float) -> None:
    log = normalise(model_of("main (float[1,3] x) => (float[1,3] y) { t = Log (x)\n y = Add (t, x) }"))
    with pytest.raises(QuantizeError, match="is not finite on a calibration input"):
        calibrate(log, Quantize(), [{"x": np.array([[bad, 1.0, 2.0]], np.float32)}])
