"""What operator speeds mean: from them to the time of each shard, and from measured shards back to them.

A layer takes, by its kind k, `call_seconds` for each call that it makes and the larger of multiplying and moving:

    t = Σ calls · c_k + max(macs / R_k, bytes / B_k)

That is the roofline model (Williams, Waterman, Patterson: "Roofline", CACM 52(4), 2009) with a cost of each call. What
is moved is taken to be the layer's weights and its activations at their peak, which were written and are read again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.formats.bundle import Layer, Manifest
from edge.formats.speed import OperatorSpeed

KINDS = ("conv", "conv-int8", "matmul", "matmul-int8", "other")
"""Kinds of operators; a layer is of the kind of its first operator that multiplies, else `other`."""

_KIND_OF: Mapping[str, str] = {
    **dict.fromkeys(("Conv", "FusedConv", "ConvTranspose", "NhwcFusedConv"), "conv"),
    **dict.fromkeys(("QLinearConv", "ConvInteger"), "conv-int8"),
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Attention", "MultiHeadAttention"), "matmul"),
    # TFLite's names say nothing of the type: a model's kind is that of floats there.
    **dict.fromkeys(
        ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "Convolution2DTransposeBias", "CONV_3D"), "conv"
    ),
    **dict.fromkeys(("FULLY_CONNECTED", "BATCH_MATMUL"), "matmul"),
    # Blocks of 4-bit weights are multiplied with activations that are rounded to 8 bits on the way.
    **dict.fromkeys(
        ("QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm", "MatMulNBits"),
        "matmul-int8",
    ),
}
# Fused into the operator before them, or only another view of the same bytes.
_FREE = frozenset(
    {
        *("Relu", "Clip", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Constant"),
        *("RELU", "RELU6", "RESHAPE", "SQUEEZE", "EXPAND_DIMS"),
    }
)
_ROUNDS = 20
_TINY = 1e-30


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerWork:
    """What a layer does, as the model sees it.

    Attributes:
        kind: one of `KINDS`.
        calls: operators of that kind.
        other_calls: further operators.
        macs: multiply-accumulate operations; 0 for the kind `other`.
        moved_bytes: read and written.
    """

    kind: str
    calls: int
    other_calls: int
    macs: int
    moved_bytes: int


def layer_work(layer: Layer) -> LayerWork:
    """Return what a layer does."""
    kinds = [_KIND_OF.get(name, "other") for name in layer.operators if name not in _FREE]
    kind = next((found for found in kinds if found != "other"), "other")
    calls = kinds.count(kind)
    return LayerWork(
        kind=kind,
        calls=calls,
        other_calls=len(kinds) - calls,
        macs=0 if kind == "other" else layer.macs,
        moved_bytes=layer.weight_bytes + layer.peak_activation_bytes if kinds else 0,
    )


def predict(manifest: Manifest, operators: Sequence[OperatorSpeed]) -> tuple[float, ...]:
    """Return the seconds of each shard; a kind that is not among `operators` takes its speed from a related one."""
    speeds = {speed.kind: speed for speed in operators}
    seconds = [_layer_seconds(layer_work(layer), speeds) for layer in manifest.layers]
    return tuple(sum(seconds[shard.first_layer : shard.stop_layer]) for shard in manifest.shards)


_RELATED: Mapping[str, tuple[str, ...]] = {
    "conv": ("matmul",),
    "conv-int8": ("matmul-int8", "conv", "matmul"),
    "matmul": ("conv",),
    "matmul-int8": ("conv-int8", "matmul", "conv"),
    "other": (),
}


def covers(manifest: Manifest, operators: Sequence[OperatorSpeed]) -> bool:
    """Tell whether `operators` say something of every kind of layer that multiplies."""
    known = {speed.kind for speed in operators}
    kinds = {layer_work(layer).kind for layer in manifest.layers} - {"other"}
    return bool(known) and all(known.intersection((kind, *_RELATED[kind])) for kind in kinds)


def _layer_seconds(work: LayerWork, speeds: Mapping[str, OperatorSpeed]) -> float:
    speed = next((speeds[kind] for kind in (work.kind, *_RELATED[work.kind]) if kind in speeds), None)
    other = speeds.get("other")
    seconds = work.other_calls * other.call_seconds if other is not None else 0.0
    if speed is None:
        return seconds
    multiplying = work.macs / speed.macs_per_second if speed.macs_per_second > 0 else 0.0
    moving = work.moved_bytes / speed.memory_bytes_per_second if speed.memory_bytes_per_second > 0 else 0.0
    return seconds + work.calls * speed.call_seconds + max(multiplying, moving)


def fit(manifest: Manifest, shard_seconds: Sequence[float]) -> tuple[OperatorSpeed, ...]:
    """Fit operator speeds to measured shards.

    Which of multiplying and moving takes longer is assumed for every layer, the rest is non-negative least squares of
    relative errors, and the assumption is made anew from the result until it holds; of several first assumptions the
    one that ends with the least error counts.

    Args:
        manifest: of the shards.
        shard_seconds: of each; those that are not positive are left out.

    Returns:
        One speed for each kind that the shards have, in the order of `KINDS`.
    """
    works = [[layer_work(layer) for layer in manifest.layers[s.first_layer : s.stop_layer]] for s in manifest.shards]
    chosen = [index for index, seconds in enumerate(shard_seconds) if seconds > 0 and works[index]]
    kinds = [kind for kind in KINDS if any(work.kind == kind for index in chosen for work in works[index])]
    if not kinds:
        return ()
    target = np.array([shard_seconds[index] for index in chosen])
    best: tuple[float, npt.NDArray[np.float64]] | None = None
    for ridge in (0.0, 1.0, 4.0, 16.0, 64.0, 256.0, float("inf")):
        ridges = dict.fromkeys(kinds, ridge)
        for _ in range(_ROUNDS):
            matrix = _matrix([works[index] for index in chosen], kinds, ridges)
            found = _non_negative(matrix / target[:, None], np.ones(len(target)))
            after = {kind: _ridge(found[3 * at : 3 * at + 3]) for at, kind in enumerate(kinds)}
            if after == ridges:
                break
            ridges = after
        error = _error(found, [works[index] for index in chosen], kinds, target)
        if best is None or error < best[0]:
            best = (error, found)
    values = best[1] if best is not None else np.zeros(3 * len(kinds))
    return tuple(_speed(kind, values[3 * at : 3 * at + 3]) for at, kind in enumerate(kinds))


def _speed(kind: str, values: npt.NDArray[np.float64]) -> OperatorSpeed:
    call, per_mac, per_byte = (float(value) for value in values)
    return OperatorSpeed(
        kind=kind,
        macs_per_second=1 / per_mac if per_mac > _TINY else 0.0,
        memory_bytes_per_second=1 / per_byte if per_byte > _TINY else 0.0,
        call_seconds=call,
    )


def _ridge(values: npt.NDArray[np.float64]) -> float:
    """Multiplications a byte above which multiplying takes longer."""
    return float(values[2] / values[1]) if values[1] > _TINY else float("inf")


def _matrix(
    works: Sequence[Sequence[LayerWork]], kinds: Sequence[str], ridges: Mapping[str, float]
) -> npt.NDArray[np.float64]:
    """Columns are calls, multiplications and bytes of each kind, of the side that takes longer."""
    matrix = np.zeros((len(works), 3 * len(kinds)))
    place = {kind: 3 * at for at, kind in enumerate(kinds)}
    for row, layers in enumerate(works):
        for work in layers:
            at = place[work.kind]
            matrix[row, at] += work.calls
            if "other" in place:
                matrix[row, place["other"]] += work.other_calls
            if work.macs >= ridges[work.kind] * work.moved_bytes and work.macs:
                matrix[row, at + 1] += work.macs
            else:
                matrix[row, at + 2] += work.moved_bytes
    return matrix


def _error(
    values: npt.NDArray[np.float64],
    works: Sequence[Sequence[LayerWork]],
    kinds: Sequence[str],
    target: npt.NDArray[np.float64],
) -> float:
    speeds = {kind: _speed(kind, values[3 * at : 3 * at + 3]) for at, kind in enumerate(kinds)}
    predicted = np.array([sum(_layer_seconds(work, speeds) for work in layers) for layers in works])
    return float(np.sum((predicted / target - 1) ** 2))


def _non_negative(matrix: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return x ≥ 0 that minimises |matrix · x - target|² (Lawson, Hanson: "Solving Least Squares Problems", 1974)."""
    scale = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(scale > 0, scale, 1.0)
    count = scaled.shape[1]
    free = np.zeros(count, bool)
    found = np.zeros(count)
    for _ in range(3 * count):
        slope = scaled.T @ (target - scaled @ found)
        slope[free | (scale == 0)] = -np.inf
        if np.max(slope) <= 1e-10:
            break
        free[int(np.argmax(slope))] = True
        while True:
            trial = np.zeros(count)
            trial[free] = np.linalg.lstsq(scaled[:, free], target, rcond=None)[0]
            if not (free & (trial <= 0)).any():
                break
            sinking = free & (trial <= 0)
            step = float(np.min(found[sinking] / np.maximum(found[sinking] - trial[sinking], _TINY)))
            found = found + step * (trial - found)
            free &= found > 1e-12
            found[~free] = 0.0
        found = trial
    return np.asarray(found / np.where(scale > 0, scale, 1.0))
