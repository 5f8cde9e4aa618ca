"""Find the range of every activation by running real inputs.

Samples stream: the first pass keeps the extremes of each tensor, the second, where the method needs it, a histogram.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx

from edge.formats.tensor import Array
from host.compress.judge.evaluate import Runner
from host.compress.recipe import Calibration, Quantize, Range, Variant
from host.errors import QuantizeError
from host.model import Model, Tensors, to_proto
from host.reference import Reference

MAX_SAMPLES = 512
HISTOGRAM_BINS = 2048
MAX_COUNTED = 1 << 16
"""Values of one tensor that one sample adds to its histogram, about."""
DTYPES: Mapping[Variant, Literal["uint8", "int8"]] = {
    "u8s8-reduce-range": "uint8",
    "u8s8": "uint8",
    "s8s8": "int8",
    "u8u8": "uint8",
}
"""Type of the activations of each variant."""

# Distance between two thresholds that are tried, in bins.
_THRESHOLD_STEP = 16
_LEVELS = 256

Extremes = tuple[float, float]


def calibrate(model: Model, plan: Quantize, samples: Sequence[Tensors]) -> tuple[Range, ...]:
    """Find the range of each float32 tensor of the main graph.

    Args:
        model: The optimised model.
        plan: Its method.
        samples: Real inputs; the first 512 are used.

    Returns:
        One range a tensor, in graph order.

    Raises:
        QuantizeError: If a tensor is not finite, or there is no sample.
    """
    if not samples:
        raise QuantizeError("calibration needs inputs: pass --inputs")
    names = _float_tensors(model)
    inputs = {value.name for value in model.ir.graph.inputs}
    outputs = {value.name for value in model.ir.graph.outputs}
    inner = [name for name in names if name not in inputs and name not in outputs]
    return ranges_of(Reference(model, mode="exact", extra_outputs=inner), names, plan, samples)


def ranges_of(runner: Runner, names: Sequence[str], plan: Quantize, samples: Sequence[Tensors]) -> tuple[Range, ...]:
    """Find the ranges of named tensors of a model of any format.

    Args:
        runner: Gives out all of the tensors that are no inputs.
        names: Of the tensors.
        plan: The method, and the type that the ranges are for.
        samples: Real inputs; the first 512 are used.

    Returns:
        One range a name, in their order.

    Raises:
        QuantizeError: If a tensor is not finite.
    """
    chosen = samples[:MAX_SAMPLES]
    found = _extremes(runner, names, chosen)
    narrow = _NARROWERS[plan.calibration]
    if narrow is not None:
        counts = _histograms(runner, found, chosen)
        found = {name: narrow(counts[name], *found[name], plan.percentile) for name in names}
    dtype = DTYPES[plan.variant]
    return tuple(Range(tensor=name, dtype=dtype, low=found[name][0], high=found[name][1]) for name in names)


def _extremes(reference: Runner, names: Sequence[str], samples: Sequence[Tensors]) -> dict[str, Extremes]:
    found: dict[str, Extremes] = {}
    for sample in samples:
        values = {**sample, **reference.run(sample)}
        for name in names:
            array = values[name]
            if not array.size:
                continue
            low, high = float(array.min()), float(array.max())
            # Not-a-number is passed on by both.
            if not np.isfinite(low) or not np.isfinite(high):
                raise QuantizeError(f"tensor {name!r} is not finite on a calibration input; exclude its node by name")
            seen = found.get(name, (low, high))
            found[name] = (min(seen[0], low), max(seen[1], high))
    # A tensor that was empty each time never matters.
    return {name: found.get(name, (0.0, 0.0)) for name in names}


def _histograms(reference: Runner, extremes: Mapping[str, Extremes], samples: Sequence[Tensors]) -> dict[str, Array]:
    counts = {name: np.zeros(HISTOGRAM_BINS, np.int64) for name in extremes}
    for sample in samples:
        values = {**sample, **reference.run(sample)}
        for name, (low, high) in extremes.items():
            counts[name] += _histogram(values[name], low, high)
    return counts


def _histogram(array: Array, low: float, high: float) -> Array:
    """Count values in equal bins over ``[low, high]``, shape ``[2048]``; of a large tensor, some at equal distances."""
    # Odd, so that it does not fall into step with rows whose length is even.
    step = (array.size // MAX_COUNTED) | 1
    values = array.reshape(-1)[::step].astype(np.float64)
    if high > low:
        values = np.minimum((values - low) * (HISTOGRAM_BINS / (high - low)), HISTOGRAM_BINS - 1)
    else:
        values = np.zeros_like(values)
    return np.bincount(values.astype(np.int64), minlength=HISTOGRAM_BINS)


def _between_percentiles(counts: Array, low: float, high: float, percentile: float) -> Extremes:
    """What lies between the percentiles of a histogram over ``[low, high]``, half of the rest left out at each end."""
    outside = (100 - percentile) / 200
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    share = np.cumsum(counts) / max(int(counts.sum()), 1)
    first = min(int(np.searchsorted(share, outside)), HISTOGRAM_BINS)
    last = min(int(np.searchsorted(share, 1 - outside)) + 1, HISTOGRAM_BINS)
    return _float32(edges[first]), _float32(edges[last])


def _least_divergence(counts: Array, low: float, high: float, percentile: float) -> Extremes:
    """The range whose 8-bit histogram diverges least from what was seen.

    Migacz, "8-bit Inference with TensorRT" (2017): of many thresholds t the one with the least Kullback-Leibler
    divergence between the histogram clipped at t and the same in as many steps as 8 bits have. Values of both signs
    are judged by their magnitude.

    Args:
        counts: Histogram over ``[low, high]``, shape ``[2048]``.
        low: Smallest value seen.
        high: Largest.
        percentile: Not used.

    Returns:
        The range, within what was seen.
    """
    del percentile
    largest = max(abs(low), abs(high))
    if low == high or largest == 0:
        return low, high
    one_sided = low >= 0 or high <= 0
    centres = np.abs((np.arange(HISTOGRAM_BINS) + 0.5) * ((high - low) / HISTOGRAM_BINS) + low)
    places = np.minimum((centres * (HISTOGRAM_BINS / largest)).astype(np.int64), HISTOGRAM_BINS - 1)
    magnitudes = np.bincount(places, weights=counts, minlength=HISTOGRAM_BINS)
    if one_sided:
        # Zeros of a Relu are exact at any scale, and so many that they would drown what matters.
        magnitudes[0] = min(magnitudes[0], magnitudes[1])
    levels = _LEVELS if one_sided else _LEVELS // 2
    stops = range(HISTOGRAM_BINS, levels - 1, -_THRESHOLD_STEP)
    # The first of equal ones is the widest.
    best = min(stops, key=lambda stop: (_divergence(magnitudes, stop, levels), -stop))
    threshold = _float32(largest * best / HISTOGRAM_BINS)
    return max(low, -threshold), min(high, threshold)


def _divergence(counts: Array, stop: int, levels: int) -> float:
    """Kullback-Leibler divergence of a histogram clipped after ``stop`` bins from itself in ``levels`` steps."""
    inside = counts[:stop]
    clipped = inside.copy()
    clipped[-1] += counts[stop:].sum()
    bounds = (np.arange(levels) * stop) // levels
    widths = np.diff(np.append(bounds, stop))
    seen = (clipped > 0).astype(np.float64)
    filled = np.add.reduceat(seen, bounds)
    each = np.add.reduceat(inside, bounds) / np.maximum(filled, 1)
    coarse = np.repeat(each, widths) * seen
    if not clipped.any() or not coarse.any():
        return float("inf")
    # A bin that only holds what was clipped is empty in the coarse one: a very small share keeps it finite.
    p, q = clipped / clipped.sum(), np.maximum(coarse / coarse.sum(), 1e-9)
    mask = p > 0
    return float(np.sum(p[mask] * np.log(p[mask] / q[mask])))


_Narrow = Callable[[Array, float, float, float], Extremes]

_NARROWERS: Mapping[Calibration, _Narrow | None] = {
    "minmax": None,
    "percentile": _between_percentiles,
    "entropy": _least_divergence,
}


def _float32(value: float) -> float:
    return float(np.float32(value))


def _float_tensors(model: Model) -> tuple[str, ...]:
    inferred = onnx.shape_inference.infer_shapes(to_proto(model.ir)).graph
    floats = {
        value.name
        for value in itertools.chain(inferred.input, inferred.value_info, inferred.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    ordered = [*model.ir.graph.inputs, *(value for node in model.ir.graph for value in node.outputs)]
    return tuple(value.name for value in ordered if value.name is not None and value.name in floats)
