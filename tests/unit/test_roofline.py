"""Operator speeds: fitting finds the speeds that made the times, predicting gives the times back."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from edge.formats.bundle import Layer, Manifest
from edge.formats.roofline import covers, fit, layer_work, predict
from edge.formats.speed import OperatorSpeed
from host.fleet.operator_mix import operator_mix
from tests.fake_bundle import fake_bundle

MIX = operator_mix().manifest
TRUTH = (
    OperatorSpeed(kind="conv", macs_per_second=8e9, memory_bytes_per_second=3e9, call_seconds=20e-6),
    OperatorSpeed(kind="conv-int8", macs_per_second=20e9, memory_bytes_per_second=2e9, call_seconds=30e-6),
    OperatorSpeed(kind="matmul", macs_per_second=6e9, memory_bytes_per_second=4e9, call_seconds=10e-6),
    OperatorSpeed(kind="matmul-int8", macs_per_second=15e9, memory_bytes_per_second=1e9, call_seconds=15e-6),
    OperatorSpeed(kind="other", macs_per_second=0.0, memory_bytes_per_second=5e9, call_seconds=5e-6),
)


def _layer(*operators: str, macs: int = 0, weights: int = 0, peak: int = 0) -> Layer:
    return Layer(name="l", operators=operators, macs=macs, weight_bytes=weights, peak_activation_bytes=peak)


def _manifest(*layers: Layer) -> Manifest:
    made = fake_bundle(shards=len(layers)).manifest
    return msgspec.structs.replace(made, layers=layers)


@pytest.mark.parametrize(
    ("operators", "kind", "calls", "others"),
    [
        (("Conv", "Relu"), "conv", 1, 0),
        (("FusedConv", "Add", "FusedConv"), "conv", 2, 1),
        (("DequantizeLinear", "QLinearConv"), "conv-int8", 1, 1),
        (("Gemm",), "matmul", 1, 0),
        (("MatMulNBits",), "matmul-int8", 1, 0),
        (("Add", "Clip"), "other", 1, 0),
        (("Reshape",), "other", 0, 0),
        (("DEPTHWISE_CONV_2D", "RELU6", "ADD"), "conv", 1, 1),
        (("RESHAPE", "FULLY_CONNECTED"), "matmul", 1, 0),
        (("SomethingNew",), "other", 1, 0),
    ],
)
def test_a_layer_is_of_the_kind_of_its_first_operator_that_multiplies(
    operators: tuple[str, ...], kind: str, calls: int, others: int
) -> None:
    work = layer_work(_layer(*operators, macs=7, weights=1, peak=2))
    assert (work.kind, work.calls, work.other_calls) == (kind, calls, others)
    assert work.macs == (0 if kind == "other" else 7)
    assert work.moved_bytes == (3 if calls else 0)


def test_a_layer_takes_its_calls_and_the_longer_of_multiplying_and_moving() -> None:
    manifest = _manifest(
        _layer("Conv", "Add", macs=8_000_000, weights=1, peak=1),
        _layer("Conv", macs=1, weights=2_000_000, peak=1_000_000),
        _layer("Reshape", peak=10**9),
    )
    assert predict(manifest, TRUTH) == pytest.approx((0.001 + 25e-6, 0.001 + 20e-6, 0.0))


def test_a_kind_that_was_not_timed_is_taken_for_a_related_one() -> None:
    manifest = _manifest(_layer("Gemm", macs=8_000_000))
    assert predict(manifest, TRUTH[:1]) == pytest.approx((0.001 + 20e-6,))
    assert covers(manifest, TRUTH[:1])
    assert not covers(manifest, TRUTH[4:])
    assert not covers(manifest, ())


def test_the_microbenchmarks_tell_the_speeds_of_every_kind() -> None:
    found = fit(MIX, predict(MIX, TRUTH))
    assert [speed.kind for speed in found] == [speed.kind for speed in TRUTH]
    for speed, true in zip(found, TRUTH, strict=True):
        assert speed.call_seconds == pytest.approx(true.call_seconds, rel=0.02)
        assert speed.memory_bytes_per_second == pytest.approx(true.memory_bytes_per_second, rel=0.02)
    assert found[0].macs_per_second == pytest.approx(8e9, rel=0.02)
    assert found[1].macs_per_second == pytest.approx(20e9, rel=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_a_tenth_moves_predictions_of_the_whole_by_less(seed: int) -> None:
    exact = np.array(predict(MIX, TRUTH))
    noisy = exact * np.exp(np.random.default_rng(seed).normal(0, 0.1, len(exact)))
    assert math.fsum(predict(MIX, fit(MIX, noisy.tolist()))) == pytest.approx(float(exact.sum()), rel=0.1)


def test_nothing_is_ever_negative_and_what_was_not_timed_is_left_out() -> None:
    seconds = [1e-5 if index % 3 else -1.0 for index in range(len(MIX.shards))]
    for speed in fit(MIX, seconds):
        assert speed.macs_per_second >= 0
        assert speed.memory_bytes_per_second >= 0
        assert speed.call_seconds >= 0
    assert fit(MIX, [-1.0] * len(MIX.shards)) == ()
