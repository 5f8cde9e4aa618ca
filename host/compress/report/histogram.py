"""How the values of weights and activations are spread before and after a compression."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from edge.formats.tensor import Array
from host.compress.report.records import TensorHistogram
from host.errors import QuantizeError
from host.model import Model, Tensors
from host.reference import Reference

BINS = 64
LIMIT = 12
"""Tensors of each kind."""

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
# What the quantizers add to the name of a weight.
_QUANTIZED = "_quantized"
_SCALE = "_scale"
_ZERO_POINT = "_zero_point"
_HALF = "_half"
_BITS = ("_q4", "_q8", "_Q4", "_Q8")
_ROW_SCALES = "_row_scales"
_DEQUANTIZED = "_DequantizeLinear_Output"


def histograms(
    before: Model, after: Model, samples: Sequence[Tensors], *, bins: int = BINS, limit: int = LIMIT
) -> tuple[TensorHistogram, ...]:
    """Count the values of the tensors that both models have, quantized ones as the real values that they stand for.

    Args:
        before: The optimised, normalised original.
        after: What became of it, best not yet fused, so that its activations still have names.
        samples: Inputs; each is run twice in each model.
        bins: Equally wide ones between the extremes of both.
        limit: How many weights, the largest, and how many activations, spread evenly over the graph.

    Returns:
        Weights, then activations, each in graph order.

    Raises:
        QuantizeError: If ``bins`` or ``limit`` is below 1.
        RuntimeRefusedError: If one of the models does not run on the samples.
    """
    if bins < 1 or limit < 1:
        raise QuantizeError(f"histograms need at least one bin and one tensor, got {bins} bins and {limit} tensors")
    return (
        *_weight_histograms(before, after, bins, limit),
        *_activation_histograms(before, after, samples, bins, limit),
    )


def zero_weights(model: Model) -> tuple[int, int]:
    """How many weights are zero and how many there are, in initializers of two or more dimensions.

    Quantized weights count by the real value that they stand for.
    """
    zeros = total = 0
    for name in _weight_names(model):
        values = dequantized(model, name)
        if values is not None:
            zeros += int(values.size - np.count_nonzero(values))
            total += values.size
    return zeros, total


def dequantized(model: Model, name: str) -> Array | None:
    """The real values of a weight of a quantized model; None if the model has none of that name.

    Args:
        model: A normalised model.
        name: Of the weight before quantization; ``<name>_quantized``, ``<name>_scale`` and ``<name>_zero_point`` are
            what it became in 8 bits, ``<name>_q4`` or ``<name>_q8`` in blocks, ``<name>_half`` in half precision.

    Returns:
        float32; for the weights of a MatMulNBits ``[N, K]``, the transpose of what it was.
    """
    constants = model.ir.graph.initializers
    for plain in (constants.get(name), constants.get(name + _HALF)):
        if plain is not None and plain.dtype in _FLOATS:
            return _array(plain).astype(np.float32)
    stored = constants.get(name + _QUANTIZED)
    scale = constants.get(name + _SCALE)
    if stored is not None and scale is not None:
        if _array(scale).ndim > 1:
            return None  # in blocks along an axis, which none of our quantizers writes this way
        zero = constants.get(name + _ZERO_POINT)
        return _linear(_array(stored), _array(scale), None if zero is None else _array(zero), _axis(stored, scale))
    return next((_of_bits(model, constants[name + bits]) for bits in _BITS if name + bits in constants), None)


def _weight_histograms(before: Model, after: Model, bins: int, limit: int) -> Iterator[TensorHistogram]:
    pairs: dict[str, tuple[Array, Array]] = {}
    for name in _weight_names(before):
        old, new = dequantized(before, name), dequantized(after, name)
        if old is not None and new is not None and old.size and new.size:
            pairs[name] = old, new
    largest = set(sorted(pairs, key=lambda name: (-pairs[name][0].size, name))[:limit])
    for name, (old, new) in pairs.items():
        if name in largest:
            low, high = _edges(min(_low(old), _low(new)), max(_high(old), _high(new)))
            yield _histogram(name, "weight", low, high, _counts(old, bins, low, high), _counts(new, bins, low, high))


def _weight_names(model: Model) -> tuple[str, ...]:
    """Weights by their name before quantization, in the order of the nodes that use them."""
    ordered: dict[str, None] = {}
    for node in model.ir.graph:
        for value in node.inputs:
            if value is None or value.name is None or value.const_value is None or len(value.const_value.shape) < 2:
                continue
            if value.dtype in _FLOATS or value.name.endswith(_QUANTIZED):
                ordered.setdefault(value.name.removesuffix(_QUANTIZED))
    return tuple(ordered)


def _activation_histograms(
    before: Model, after: Model, samples: Sequence[Tensors], bins: int, limit: int
) -> Iterator[TensorHistogram]:
    if not samples:
        return
    names = _shared_activations(before, after)
    chosen = [names[at] for at in sorted({round(at) for at in np.linspace(0, len(names) - 1, limit)})] if names else []
    twins = {name: _twin(after, name) for name in chosen}
    old = _Observed(before, chosen, samples)
    new = _Observed(after, list(twins.values()), samples)
    edges: dict[str, tuple[float, float]] = {}
    for name, twin in twins.items():
        if name in old.ranges and twin in new.ranges:
            lows, highs = zip(old.ranges[name], new.ranges[twin], strict=True)
            edges[name] = _edges(min(lows), max(highs))
    counts_before = old.counts(edges, bins)
    counts_after = new.counts({twins[name]: edge for name, edge in edges.items()}, bins)
    for name, (low, high) in edges.items():
        yield _histogram(name, "activation", low, high, counts_before[name], counts_after[twins[name]])


class _Observed:
    """Inner tensors of a model on samples, looked at twice so that they need not be kept."""

    def __init__(self, model: Model, names: Sequence[str], samples: Sequence[Tensors]) -> None:
        given = {value.name for value in (*model.ir.graph.inputs, *model.ir.graph.outputs)}
        self._reference = Reference(model, mode="exact", extra_outputs=[name for name in names if name not in given])
        self._names = tuple(dict.fromkeys(names))
        self._samples = samples
        self.ranges: dict[str, tuple[float, float]] = {}
        for values in self._values():
            for name, array in values.items():
                found = self.ranges.get(name, (np.inf, -np.inf))
                self.ranges[name] = min(found[0], _low(array)), max(found[1], _high(array))

    def _values(self) -> Iterator[dict[str, Array]]:
        for sample in self._samples:
            ran = self._reference.run(sample)
            values = {name: ran[name] if name in ran else sample[name] for name in self._names}
            yield {name: array for name, array in values.items() if array.dtype.kind == "f" and _finite(array).size}

    def counts(self, edges: Mapping[str, tuple[float, float]], bins: int) -> dict[str, Array]:
        total = {name: np.zeros(bins, np.int64) for name in edges}
        for values in self._values():
            for name, array in values.items():
                if name in edges:
                    total[name] += _counts(array, bins, *edges[name])
        return total


def _shared_activations(before: Model, after: Model) -> list[str]:
    there = {value.name for node in after.ir.graph for value in node.outputs}
    inputs = [value.name for value in before.ir.graph.inputs if value.name is not None and value.dtype in _FLOATS]
    inner = [
        value.name
        for node in before.ir.graph
        for value in node.outputs
        if value.name in there and (value.dtype is None or value.dtype in _FLOATS)
    ]
    return [*inputs, *(name for name in inner if name is not None)]


def _twin(after: Model, name: str) -> str:
    """What the next layer reads in the quantized model: the tensor after its pair, where it has one."""
    dequantized_name = name + _DEQUANTIZED
    found = any(value.name == dequantized_name for node in after.ir.graph for value in node.outputs)
    return dequantized_name if found else name


def _linear(stored: Array, scale: Array, zero: Array | None, axis: int) -> Array:
    """``(q - z) · s`` of DequantizeLinear, per tensor or along ``axis``."""
    shape = [1] * stored.ndim
    if scale.size > 1:
        shape[axis] = stored.shape[axis]
    offset = 0 if zero is None else zero.astype(np.int32).reshape(shape if zero.size > 1 else [1] * stored.ndim)
    real = (stored.astype(np.int32) - offset) * scale.astype(np.float32).reshape(shape)
    return np.asarray(real, np.float32)


def _axis(stored: ir.Value, scale: ir.Value) -> int:
    """Along which axis the scales lie: what the dequantizer says, else the first as long as they are many."""
    for use in stored.uses():
        if use.node.op_type == "DequantizeLinear":
            attribute = use.node.attributes.get("axis")
            return 1 if attribute is None else int(attribute.value)
    lengths = list(_array(stored).shape)
    # Of a square matrix that is multiplied from the right, the columns are the output channels.
    if any(use.node.op_type.startswith(("QLinearMatMul", "MatMul")) for use in stored.uses()):
        return len(lengths) - 1
    count = _array(scale).size
    return lengths.index(count) if count in lengths else 0


def _of_bits(model: Model, stored: ir.Value) -> Array | None:
    for use in stored.uses():
        if use.node.op_type == "MatMulNBits":
            return _blockwise(use.node)
        if use.node.op_type == "GatherBlockQuantized":
            return _table(use.node)
    scales = model.ir.graph.initializers.get(str(stored.name)[:-3] + _ROW_SCALES)
    return None if scales is None else np.asarray(_array(stored).astype(np.float32) * _array(scales), np.float32)


def _blockwise(node: ir.Node) -> Array:
    """Weights of a MatMulNBits: 4-bit numbers, the low half of a byte first, in blocks along K with a scale each."""
    rows, columns, bits = (int(node.attributes[key].value) for key in ("N", "K", "bits"))

    def unpacked(data: Array) -> Array:
        return data.astype(np.int32) if bits == 8 else _halves(data)

    scales = _array(node.inputs[2]).astype(np.float32).reshape(rows, -1, 1)
    numbers = unpacked(_array(node.inputs[1])).reshape(rows, scales.shape[1], -1)
    zero = node.inputs[3] if len(node.inputs) > 3 else None
    if zero is None:
        # Without zero points the middle of the range stands for zero.
        offsets = np.full(scales.shape, 1 << (bits - 1), np.int32)
    else:
        offsets = unpacked(_array(zero)).reshape(rows, -1)[:, : scales.shape[1], None]
    return np.asarray(((numbers - offsets) * scales).reshape(rows, -1)[:, :columns], np.float32)


def _table(node: ir.Node) -> Array | None:
    """Rows of a GatherBlockQuantized with an unpacked table, its blocks along the last axis."""
    numbers, scales = _array(node.inputs[0]), _array(node.inputs[2])
    zero = node.inputs[3] if len(node.inputs) > 3 else None
    if numbers.ndim != 2 or zero is None or numbers.dtype == np.uint8:
        return None
    block = int(node.attributes["block_size"].value)

    def spread(each: Array) -> Array:
        return np.repeat(each.astype(np.float32), block, axis=1)[:, : numbers.shape[1]]

    real = (numbers.astype(np.float32) - spread(_array(zero))) * spread(scales)
    return np.asarray(real, np.float32)


def _halves(packed: Array) -> Array:
    flat = packed.astype(np.uint8)
    return np.stack([flat & 15, flat >> 4], axis=-1).astype(np.int32)


def _array(value: ir.Value | None) -> Array:
    tensor = value.const_value if value is not None else None
    if tensor is None:
        raise QuantizeError("a quantized weight has no constant scale")
    return np.asarray(tensor.numpy())


def _finite(array: Array) -> Array:
    return array[np.isfinite(array)]


def _low(array: Array) -> float:
    return float(_finite(array).min(initial=np.inf))


def _high(array: Array) -> float:
    return float(_finite(array).max(initial=-np.inf))


def _edges(low: float, high: float) -> tuple[float, float]:
    """Edges that are apart, also for a tensor of one value."""
    if not low < high:
        middle = low if np.isfinite(low) else 0.0
        wide = max(abs(middle) * 1e-3, 0.5)
        return middle - wide, middle + wide
    return low, high


def _counts(array: Array, bins: int, low: float, high: float) -> Array:
    found, _ = np.histogram(_finite(array).astype(np.float64), bins, (low, high))
    return np.asarray(found, np.int64)


def _histogram(
    name: str, kind: Literal["weight", "activation"], low: float, high: float, before: Array, after: Array
) -> TensorHistogram:
    return TensorHistogram(
        tensor=name,
        kind=kind,
        low=low,
        high=high,
        before=tuple(int(count) for count in before),
        after=tuple(int(count) for count in after),
    )
