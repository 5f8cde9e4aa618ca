"""Agents that have one runtime each, of either kind, in one pipeline on a real broker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.mixed_fleet import answer, figures_of, through_fleet
from host.answers import load_whole
from host.broker import RunningBroker
from host.package import PackageRequest, package

MODELS = Path(__file__).resolve().parents[1] / "models"

# Tensors cross from either runtime to the other; the benchmark runs the other order, too.
ORDER = "litert_onnx_litert"


@pytest.mark.slow
def test_three_agents_of_both_runtimes_answer_like_the_whole_model(broker: RunningBroker, tmp_path: Path) -> None:
    request = PackageRequest(
        source=str(MODELS / "residual.onnx"),
        twin=MODELS / "residual_nhwc.tflite",
        profile="rpi4",
        target=tmp_path / "bundle",
    )
    bundle = package(request).bundle
    rng = np.random.default_rng(6)
    inputs = [{"image": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(8)]
    stage = load_whole(bundle, runtime="onnxruntime")
    whole = [answer(stage.run(each)) for each in inputs]
    stage.close()
    found = through_fleet(broker.url, tmp_path / "agents", bundle, ORDER, inputs)
    figures = figures_of([int(each.argmax()) for each in whole], whole, {ORDER: found})
    assert figures["right"] == figures["photos"] == figures["same_label"] == len(inputs)
    largest = max(float(np.abs(each).max()) for each in whole)
    assert float(figures["max_abs_difference"]) <= bundle.manifest.tolerance * largest
