"""Find the range of every activation by running real inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from edge.formats.tensor import Array
from host.compress.recipe import Quantize, Range
from host.errors import QuantizeError
from host.model import Model, Tensors, to_proto
from host.reference import Reference

MAX_SAMPLES = 128
# Percentiles are read from a histogram of absolute values, as onnxruntime's calibrator does.
HISTOGRAM_BINS = 2048
_DTYPES = {"u8s8-reduce-range": "uint8", "u8s8": "uint8", "s8s8": "int8"}


def calibrate(model: Model, quantize: Quantize, samples: Sequence[Tensors]) -> tuple[Range, ...]:
    """Find the range of each float32 tensor of the main graph.

    Args:
        model: The optimised model.
        quantize: Its method.
        samples: Real inputs; the first 128 are used.

    Returns:
        One range a tensor, in graph order.

    Raises:
        QuantizeError: If a tensor is never finite, or there is no sample.
    """
    if not samples:
        raise QuantizeError("calibration needs inputs: pass --inputs")
    names = _float_tensors(model)
    inner = [name for name in names if name not in {value.name for value in model.ir.graph.inputs}]
    reference = Reference(model, mode="exact", extra_outputs=inner)
    chosen = samples[:MAX_SAMPLES]
    lows, highs = _extremes(reference, names, chosen)
    if quantize.calibration == "percentile":
        lows, highs = _percentiles(reference, names, chosen, lows, highs, quantize.percentile)
    return tuple(
        Range(tensor=name, dtype=_DTYPES[quantize.variant], low=float(lows[name]), high=float(highs[name]))  # type: ignore[arg-type]
        for name in names
    )


def _extremes(
    reference: Reference, names: Sequence[str], samples: Sequence[Tensors]
) -> tuple[dict[str, np.float32], dict[str, np.float32]]:
    lows: dict[str, np.float32] = {}
    highs: dict[str, np.float32] = {}
    for sample in samples:
        values = _values(reference, sample)
        for name in names:
            array = values[name]
            if not array.size:
                continue
            if not np.isfinite(array).all():
                raise QuantizeError(f"tensor {name!r} is not finite on a calibration input; exclude its node by name")
            lows[name] = min(lows.get(name, np.float32(np.inf)), np.float32(array.min()))
            highs[name] = max(highs.get(name, np.float32(-np.inf)), np.float32(array.max()))
    # A tensor that was empty each time never matters.
    for name in names:
        lows.setdefault(name, np.float32(0))
        highs.setdefault(name, np.float32(0))
    return lows, highs


def _percentiles(
    reference: Reference,
    names: Sequence[str],
    samples: Sequence[Tensors],
    lows: dict[str, np.float32],
    highs: dict[str, np.float32],
    percentile: float,
) -> tuple[dict[str, np.float32], dict[str, np.float32]]:
    counts = {name: np.zeros(HISTOGRAM_BINS, np.int64) for name in names}
    for sample in samples:
        values = _values(reference, sample)
        for name in names:
            found, _ = np.histogram(values[name], HISTOGRAM_BINS, (float(lows[name]), float(highs[name])))
            counts[name] += found
    outside = (100 - percentile) / 200
    low_cut: dict[str, np.float32] = {}
    high_cut: dict[str, np.float32] = {}
    for name in names:
        edges = np.linspace(float(lows[name]), float(highs[name]), HISTOGRAM_BINS + 1)
        share = np.cumsum(counts[name]) / max(int(counts[name].sum()), 1)
        low_cut[name] = np.float32(edges[int(np.searchsorted(share, outside))])
        high_cut[name] = np.float32(edges[min(int(np.searchsorted(share, 1 - outside)) + 1, HISTOGRAM_BINS)])
    return low_cut, high_cut


def _values(reference: Reference, sample: Tensors) -> dict[str, Array]:
    return {**sample, **reference.run(sample)}


def _float_tensors(model: Model) -> tuple[str, ...]:
    inferred = onnx.shape_inference.infer_shapes(to_proto(model.ir)).graph
    floats = {
        value.name
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    ordered = [*model.ir.graph.inputs, *(value for node in model.ir.graph for value in node.outputs)]
    return tuple(value.name for value in ordered if value.name is not None and value.name in floats)
