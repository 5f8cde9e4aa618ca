"""A report of a compression as a real one looks, for tests of what shows it."""

from __future__ import annotations

import math

import numpy as np

from host.compress.judge.score import Score
from host.compress.report.records import (
    Candidate,
    Evaluation,
    LayerTime,
    Machine,
    NodeSensitivity,
    OperatorTime,
    PassRow,
    Report,
    Status,
    TensorHistogram,
    sparsity_note,
)
from host.figures import GraphFigures

BUDGET = "top1-drop<=0.005"


def example_report(
    *, layers: int = 36, name: str = "efficientnet-lite0", node: str = "features/block{}/conv"
) -> Report:
    """An image classifier, searched under a budget.

    Args:
        layers: Nodes with a sensitivity, a time and, every sixth, histograms.
        name: Of the model.
        node: Pattern of node names.
    """
    nodes = [node.format(index) for index in range(layers)]
    return Report(
        model=name,
        source_digest="sha256:" + "8b" * 32,
        profile="rpi4",
        machine=Machine(
            processor="AMD EPYC 7B13", isa=("avx2", "fma"), onnxruntime="1.32.0", system="Linux 6.1 x86_64"
        ),
        passes=_passes(),
        original=_figures(186, 385_000_000, 18_600_000, 4_816_896, 0.0162),
        result=_figures(98, 301_000_000, 4_700_000, 1_204_224, 0.0108),
        evaluations=_evaluations(),
        budget=BUDGET,
        outcome="prune-25+int8 keeps the budget: top1-drop 0.0021, at most 0.0044 with 95 % confidence.",
        candidates=_candidates(),
        sensitivity=tuple(_sensitivity(nodes)),
        histograms=tuple(_histograms(nodes[::6])),
        layers=tuple(_layer_times(nodes)),
        operators=(
            OperatorTime(operator="Conv", seconds_before=0.0119, seconds_after=0.0078),
            OperatorTime(operator="Clip", seconds_before=0.0021, seconds_after=None),
            OperatorTime(operator="Add", seconds_before=0.0012, seconds_after=0.0009),
            OperatorTime(operator="QuantizeLinear", seconds_before=None, seconds_after=0.0004),
            OperatorTime(operator="Gemm", seconds_before=0.0007, seconds_after=0.0003),
        ),
        notes=(
            sparsity_note(
                zeros=2_300_000, weights=4_600_000, stored_bytes=4_700_000, packed_bytes=2_900_000, pattern="2:4"
            ),
            "The calibration photos and the photos of the evaluation are disjoint by file.",
        ),
    )


def _figures(nodes: int, macs: int, weights: int, peak: int, seconds: float | None = None) -> GraphFigures:
    return GraphFigures(
        nodes=nodes, macs=macs, weight_bytes=weights, peak_activation_bytes=peak, latency_seconds=seconds
    )


def _passes() -> tuple[PassRow, ...]:
    start = _figures(186, 385_000_000, 18_600_000, 4_816_896, 0.0162)
    folded = _figures(151, 385_000_000, 18_560_000, 4_816_896, 0.0160)
    merged = _figures(147, 384_000_000, 18_560_000, 4_816_896, 0.0158)
    fused = _figures(98, 301_000_000, 4_700_000, 1_204_224, 0.0108)
    return (
        PassRow(name="fold-constants", kept=True, reason="folded 35 nodes", before=start, after=folded),
        PassRow(name="fold-batch-norm", kept=True, reason="nothing to do", before=folded, after=folded),
        PassRow(name="merge-duplicates", kept=True, reason="4 equal nodes are one", before=folded, after=merged),
        PassRow(name="merge-pool-conv", kept=False, reason="values differ: relative error 3.1e-04"),
        PassRow(name="fuse", kept=True, reason="49 nodes fused", before=merged, after=fused),
    )


def _score(metric: str, value: float, spread: float, count: int = 1200) -> Score:
    return Score(metric=metric, value=value, low=value - spread, high=value + spread, count=count)


def _evaluations() -> tuple[Evaluation, ...]:
    return tuple(
        Evaluation(
            where=where,
            dataset="1,200 crops of 60 labelled photos",
            samples=1200,
            scores=(
                _score("top1-drop", drop, 0.0023),
                _score("agreement", agreement, 0.009),
                _score("cosine", cos, 0.001),
            ),
        )
        for where, drop, agreement, cos in (
            ("unfused", 0.0018, 0.974, 0.9941),
            ("as run here", 0.0021, 0.970, 0.9931),
            ("aarch64, emulated", 0.0021, 0.970, 0.9931),
        )
    )


def _candidates() -> tuple[Candidate, ...]:
    def made(
        name: str, summary: str, size: int, seconds: float, drop: float, status: Status, *, front: bool = False
    ) -> Candidate:
        word = {"proven": "within", "held": "perhaps within", "broken": "outside"}.get(status, "")
        return Candidate(
            name=name,
            summary=summary,
            size_bytes=size,
            predicted_seconds=seconds * 4.2,
            latency_seconds=seconds,
            latency_ratio=seconds / 0.0162,
            scores=(_score("top1-drop", drop, 0.0023), _score("agreement", 0.985 - drop * 3, 0.009)),
            judgement=f"top1-drop {drop:.4f} is {word} {BUDGET}",
            status=status,
            on_front=front,
            chosen=name == "prune-25+int8",
        )

    return (
        made("fp32", "optimised only", 18_560_000, 0.0158, 0.0, "proven", front=True),
        made("float16", "weights in half precision", 9_280_000, 0.0159, 0.0001, "proven", front=True),
        made("int8-dynamic", "MatMul and Gemm only", 14_700_000, 0.0157, 0.0004, "proven"),
        made("int8", "u8s8, reduced range", 4_900_000, 0.0124, 0.0012, "proven", front=True),
        made("int8-entropy", "u8s8, entropy calibration", 4_900_000, 0.0125, 0.0038, "held"),
        made("prune-25+int8", "25 % of the channels, repaired, int8", 4_700_000, 0.0108, 0.0021, "proven", front=True),
        made("prune-50+int8", "50 % of the channels, repaired, int8", 2_600_000, 0.0074, 0.0212, "broken", front=True),
        made("prune-60+int8", "60 % of the channels, repaired, int8", 2_100_000, 0.0069, 0.0443, "broken", front=True),
        Candidate(
            name="int4", summary="MatMul weights in blocks of 32", status="failed", judgement="no MatMul to quantize"
        ),
    )


def _sensitivity(nodes: list[str]) -> list[NodeSensitivity]:
    rng = np.random.default_rng(3)
    found = []
    for index, name in enumerate(nodes):
        snr = 21 + 14 * math.sqrt(index + 1) / 3 + float(rng.normal(0, 4))
        precision = "float32" if snr < 22 else "int8"
        found.append(NodeSensitivity(node=name, operator="Conv", snr_db=round(snr, 2), precision=precision))
    return found


def _histograms(nodes: list[str]) -> list[TensorHistogram]:
    rng = np.random.default_rng(4)
    found = []
    for kind in ("weight", "activation"):
        for index, name in enumerate(nodes):
            values = rng.normal(0.0, 0.2 + 0.1 * index, 20_000)
            values = np.maximum(values, 0.0) if kind == "activation" else values
            low, high = float(values.min()), float(values.max())
            step = (high - low) / 63
            coarse = np.clip(np.round(values / step) * step, low * 0.7, high * 0.7)
            found.append(
                TensorHistogram(
                    tensor=f"{name}.{kind}",
                    kind="weight" if kind == "weight" else "activation",
                    low=low,
                    high=high,
                    before=tuple(int(count) for count in np.histogram(values, 64, (low, high))[0]),
                    after=tuple(int(count) for count in np.histogram(coarse, 64, (low, high))[0]),
                )
            )
    return found


def _layer_times(nodes: list[str]) -> list[LayerTime]:
    rng = np.random.default_rng(5)
    times = []
    for index, name in enumerate(nodes):
        before = float(rng.uniform(0.0001, 0.0009))
        after = None if index % 7 == 3 else before * float(rng.uniform(0.4, 0.9))
        times.append(LayerTime(node=name, operator="Conv", seconds_before=before, seconds_after=after))
    return times
