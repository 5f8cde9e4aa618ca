"""Bias correction: take the mean shift that quantization causes in each channel out of the biases.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.2 and appendix
D: the bias of a layer is moved by ``E[y] - E[y~]``, the means of its output in the float and in the quantized model,
where the layers before it are corrected already. One walk over the quantized graph is enough: what the corrected layer
would have answered is its answer plus the correction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge.formats.tensor import Array
from host.compress.constants import add_constant, constant_of, is_shared, own_constant, set_constant, taken_names
from host.compress.quantize.liveness import Stretch, stretches
from host.errors import RecipeError, RuntimeRefusedError
from host.model import Model, Tensors, copied
from host.passes.normalise import normalise
from host.reference import Reference

MAX_SAMPLES = 64
MAX_STORED_BYTES = 256 * 1024 * 1024
"""Of activations that wait for the next layer, over all samples."""

_BIAS = 2
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu"})
# A channel that varies less than this beside its mean is a constant, and its mean shift is noise.
_LEAST_DEVIATION = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """A node with a bias that may be corrected.

    Attributes:
        name: Of the node.
        output: Name of what it computes.
        activated: Name of what its activation makes of that; equal to ``output`` if there is none.
        bias: Name of the initializer.
        factor: What the bias is multiplied by.
    """

    name: str
    output: str
    activated: str
    bias: str
    factor: float


@dataclass(kw_only=True, slots=True)
class _Moments:
    """Sums over all samples and places of one tensor, by channel, each of shape ``[channels]``."""

    count: int = 0
    total: Array | None = None
    squares: Array | None = None
    low: Array | None = None
    high: Array | None = None

    def add(self, array: Array) -> None:
        flat = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).astype(np.float64)
        if not flat.size:
            return
        self.count += flat.shape[1]
        total, squares, low, high = flat.sum(axis=1), np.square(flat).sum(axis=1), flat.min(axis=1), flat.max(axis=1)
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)

    def mean(self) -> Array:
        return np.zeros(1) if self.total is None else self.total / self.count

    def deviation(self) -> Array:
        if self.squares is None:
            return np.zeros(1)
        return np.sqrt(np.maximum(self.squares / self.count - np.square(self.mean()), 0))


def with_biases(model: Model, *, everywhere: bool = True) -> Model:
    """Give every Conv, ConvTranspose and Gemm with constant weights a bias of its own, without looking at data.

    A missing one becomes zeros, one that others read too is copied, and a Gemm's that is a scalar or a row becomes
    ``[channels]``. A Gemm whose C is a matrix or no constant keeps it.

    Args:
        model: A normalised model; it is not changed.
        everywhere: Whether to add and to copy; otherwise only scalars and rows change, which the quantizer needs.
    """
    graph = copied(model.ir)
    taken = taken_names(graph)
    for node in graph.graph:
        channels = _channels(node)
        if channels is None:
            continue
        given = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
        if given is None:
            if not everywhere:
                continue
            node.resize_inputs(_BIAS + 1)
            zeros = add_constant(graph, f"{node.name}_bias", np.zeros(channels, np.float32), taken)
            node.replace_input_with(_BIAS, zeros)
            continue
        array = constant_of(given)
        if array is None or array.dtype != np.float32 or not _is_row(array, channels):
            continue
        if array.shape != (channels,):
            row = np.broadcast_to(array.reshape(-1), (channels,)).copy()
            node.replace_input_with(_BIAS, add_constant(graph, f"{node.name}_bias", row, taken))
        elif everywhere:
            own_constant(graph, node, _BIAS, taken)
    return normalise(model.with_ir(graph))


def with_values(model: Model, values: Mapping[str, Array]) -> Model:
    """Overwrite initializers.

    Args:
        model: A normalised model; it is not changed.
        values: Array by initializer name.

    Raises:
        RecipeError: If the model has no such initializer, or one of another shape.
    """
    graph = copied(model.ir)
    for name, array in values.items():
        value = graph.graph.initializers.get(name)
        have = constant_of(value)
        if value is None or have is None or have.shape != array.shape or have.dtype != array.dtype:
            raise RecipeError(f"the model has no constant {name!r} of {array.dtype}{list(array.shape)}: use its recipe")
        set_constant(value, array)
    return model.with_ir(graph)


def correct_biases(model: Model, quantized: Model, samples: Sequence[Tensors]) -> dict[str, Array]:
    """Find the biases with which the quantized model's channels have the means of the original's.

    Left as they are, because a shift of their mean says nothing: channels that do not vary before or after their
    activation on the samples. No bias moves by more than the deviation of its channel. Layers behind a sequence or an
    optional that is alive between two layers are left, too.

    Args:
        model: From `with_biases`.
        quantized: The same with quantize-dequantize pairs, not yet fused.
        samples: At least one; at most 64 are used, fewer where activations are large.

    Returns:
        The moved biases by initializer name, float32.
    """
    layers = _layers(model)
    places = {str(node.name): str(node.outputs[0].name) for node in quantized.ir.graph}
    layers = [layer for layer in layers if layer.name in places]
    parts = stretches(quantized, [layer.name for layer in layers])
    by_output = {places[layer.name]: layer for layer in layers}
    parts, stored = _walked(parts, samples[0])
    if not parts:
        return {}
    chosen = samples[: max(1, min(MAX_SAMPLES, MAX_STORED_BYTES // max(stored, 1)))]
    truth = _moments(model, layers, chosen)
    biases: dict[str, Array] = {}
    store: list[dict[str, Array]] = [dict(sample) for sample in chosen]
    for part in parts:
        output = next(name for name in part.writes if name in by_output)
        layer = by_output[output]
        found = _advance(part, store, output)
        shift = _guarded(truth[layer.output], truth[layer.activated], found.mean())
        if shift is None or not shift.any():
            continue
        old = constant_of(model.ir.graph.initializers[layer.bias])
        if old is None:
            continue
        biases[layer.bias] = (old.astype(np.float64) + shift / layer.factor).astype(np.float32)
        for tensors in store:
            if output in tensors:
                array = tensors[output]
                tensors[output] = (array + shift.reshape(-1, *[1] * (array.ndim - 2))).astype(np.float32)
    return biases


def _guarded(before: _Moments, after: _Moments, found: Array) -> Array | None:
    """The correction of each channel, zero where the channel is dead."""
    want, deviation = before.mean(), before.deviation()
    if want.shape != found.shape or after.low is None or after.high is None or after.low.shape != want.shape:
        return None
    alive = (deviation > _LEAST_DEVIATION * np.maximum(np.abs(want), 1e-3)) & (after.high > after.low)
    shift: Array = np.where(alive, np.clip(want - found, -deviation, deviation), 0.0)
    return shift


def _advance(part: Stretch, store: list[dict[str, Array]], output: str) -> _Moments:
    """Run one stretch on every sample in the store, which then holds what is alive after it."""
    reference = part.loaded(store[0])
    moments = _Moments()
    for tensors in store:
        tensors.update(reference.run({name: tensors[name] for name in part.reads}, part.writes))
        moments.add(tensors[output])
        for name in tensors.keys() - set(part.keeps):
            del tensors[name]
    return moments


def _walked(parts: Sequence[Stretch], sample: Tensors) -> tuple[tuple[Stretch, ...], int]:
    """The stretches up to the first that cannot run alone, and the most bytes that one sample has alive between two."""
    tensors = dict(sample)
    most = 0
    for index, part in enumerate(parts):
        try:
            tensors.update(part.loaded(tensors).run({name: tensors[name] for name in part.reads}, part.writes))
        except RuntimeRefusedError:
            # A sequence or an optional goes from one to the other.
            return tuple(parts[:index]), most
        tensors = {name: array for name, array in tensors.items() if name in part.keeps}
        most = max(most, sum(getattr(array, "nbytes", 0) for array in tensors.values()))
    return tuple(parts), most


def _moments(model: Model, layers: Sequence[_Layer], samples: Sequence[Tensors]) -> dict[str, _Moments]:
    names = list(dict.fromkeys(name for layer in layers for name in (layer.output, layer.activated)))
    given = {value.name for value in model.ir.graph.outputs}
    reference = Reference(model, extra_outputs=[name for name in names if name not in given])
    found = {name: _Moments() for name in names}
    for sample in samples:
        for name, array in reference.run(sample, names).items():
            found[name].add(array)
    return found


def _layers(model: Model) -> list[_Layer]:
    result: list[_Layer] = []
    for node in model.ir.graph:
        channels = _channels(node)
        given = node.inputs[_BIAS] if channels is not None and len(node.inputs) > _BIAS else None
        bias = constant_of(given)
        if given is None or bias is None or bias.shape != (channels,) or is_shared(given):
            continue
        output = node.outputs[0]
        users = tuple(output.uses())
        following = users[0].node if len(users) == 1 and not output.is_graph_output() else None
        activates = following is not None and following.op_type in _ACTIVATIONS and following.inputs[0] is output
        activated = following.outputs[0] if following is not None and activates else output
        result.append(
            _Layer(
                name=str(node.name),
                output=str(output.name),
                activated=str(activated.name),
                bias=str(given.name),
                factor=_number(node, "beta") if node.op_type == "Gemm" else 1.0,
            )
        )
    return result


def _channels(node: ir.Node) -> int | None:
    """Output channels of a node whose bias can be corrected, else None."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or node.domain or len(node.inputs) < 2:
        return None
    weight = constant_of(node.inputs[1])
    if weight is None or weight.dtype != np.float32 or weight.ndim < 2:
        return None
    if node.op_type == "Conv":
        return int(weight.shape[0])
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1]) * int(_number(node, "group"))
    if _number(node, "beta") == 0:
        return None
    return int(weight.shape[0] if _number(node, "transB", 0) else weight.shape[1])


def _number(node: ir.Node, name: str, default: float = 1) -> float:
    attribute = node.attributes.get(name)
    return float(attribute.value) if attribute is not None else float(default)


def _is_row(array: Array, channels: int) -> bool:
    return array.size in (1, channels) and array.ndim <= 2 and (array.ndim < 2 or array.shape[0] == 1)
