"""Real TFLite models with weights in half precision, quantized in every mode: smaller, nearly as right, repeatable."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.compress.recipe import Quantize, Recipe
from host.model import Tensors
from host.tflite.model import read_tflite
from host.tflite.quantize import quantize_tflite
from host.tflite.quantize_compress import compress_tflite
from host.tflite.reference import TfliteReference
from tests.zoo import zoo_model

LEAST_COSINE: Mapping[str, float] = {
    "float16": 1 - 1e-6,
    "int8-weights": 0.99,
    "int8-dynamic": 0.99,
    "int8": 0.95,
    # A scale a channel is coarse for four bits; the search gives some operators eight.
    "int4": 0.75,
}
MOST_LEFT: Mapping[str, float] = {
    "float16": 1.05,
    "int8-weights": 0.75,
    "int8-dynamic": 0.75,
    "int8": 0.9,
    "int4": 0.6,
}
"""Of the file, whose weights have 16 bits; scales and zero points of channels take room, too."""


def photo(name: str) -> dict[str, np.ndarray[Any, Any]]:
    """The real input of a model of the zoo."""
    module, _, function = str(zoo_model(name).inputs).partition(":")
    (sample,) = getattr(importlib.import_module(module), function)()
    return dict(sample)


def turned(sample: Tensors) -> list[Tensors]:
    """The photo mirrored, shifted and darkened: calibration sees other values than the test."""
    found: list[Tensors] = []
    for name, array in sample.items():
        mirrored, darker = array[:, :, ::-1].copy(), array * np.float32(0.8)
        found += [{name: each} for each in (mirrored, darker, np.roll(array, 16, axis=1), np.roll(array, -16, axis=2))]
    return found


def cosine(have: Tensors, want: Tensors) -> float:
    """The least over the outputs that hold more than one number."""
    pairs = [(have[name].ravel(), array.ravel()) for name, array in want.items() if array.size > 1]
    return min(float(a @ b / np.sqrt((a @ a) * (b @ b))) for a, b in pairs)


@pytest.mark.parametrize(
    ("name", "mode"), [*(("blazeface-short", mode) for mode in LEAST_COSINE), ("face-landmark", "int8")]
)
def test_a_quantized_model_is_smaller_and_answers_nearly_alike(name: str, mode: str) -> None:
    model = read_tflite(Path(zoo_model(name).source))
    sample = photo(name)
    recipe = Recipe(quantize=Quantize(mode=mode))  # type: ignore[arg-type]  # keys are modes
    made = compress_tflite(model, recipe, samples=turned(sample))
    assert len(made.model.data) < MOST_LEFT[mode] * len(model.data)
    want = TfliteReference(model, mode="default").run(sample)
    assert cosine(TfliteReference(made.model, mode="default").run(sample), want) >= LEAST_COSINE[mode]
    assert quantize_tflite(model, made.recipe.quantize, ()).model.data == made.model.data
