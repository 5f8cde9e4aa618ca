"""Which operators can be cut across their output channels, and what of each input a slice of them needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from host.observe import Observed

QUANTIZERS = ("DequantizeLinear", "QuantizeLinear")
"""Operators with a scale and a zero point: one for all, or one for each index of an axis."""

_GATHERED = "Gather"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """How an input follows the output channels.

    Attributes:
        axis: of the input, counted from the front.
        of: its size along that axis.
    """

    axis: int
    of: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sliceable:
    """A node that can be cut.

    Attributes:
        channels: of its output.
        together: neighbouring channels that stay in one slice.
        axis: of the output, counted from the front.
        parts: by index of the inputs that are cut; a slice reads the others whole.
        counted: name of the attribute that says how many channels (or groups of them) there are; `""` for none.
    """

    channels: int
    together: int = 1
    axis: int
    parts: Mapping[int, Part]
    counted: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rule:
    """Inputs of one operator.

    Attributes:
        weight: index of the one that says how many channels there are.
        axis: of the weight.
        following: axis of further inputs that have one value a channel, or one for all.
        output_axis: of the output.
        counted: see `Sliceable`.
    """

    weight: int
    axis: int
    following: Mapping[int, int] = field(default_factory=dict)
    output_axis: int = -1
    counted: str = ""


_RULES: dict[str, _Rule] = {
    "Conv": _Rule(weight=1, axis=0, following={2: 0}, output_axis=1, counted="group"),
    "FusedConv": _Rule(weight=1, axis=0, following={2: 0, 3: 1}, output_axis=1, counted="group"),
    "ConvInteger": _Rule(weight=1, axis=0, following={3: 0}, output_axis=1, counted="group"),
    "QLinearConv": _Rule(weight=3, axis=0, following={4: 0, 5: 0, 8: 0}, output_axis=1, counted="group"),
    "ConvTranspose": _Rule(weight=1, axis=1, following={2: 0}, output_axis=1, counted="group"),
    "Gemm": _Rule(weight=1, axis=1, following={2: -1}),
    "FusedGemm": _Rule(weight=1, axis=1, following={2: -1}),
    "QGemm": _Rule(weight=3, axis=1, following={4: -1, 5: -1, 6: -1}),
    "MatMul": _Rule(weight=1, axis=-1),
    "FusedMatMul": _Rule(weight=1, axis=-1),
    "MatMulInteger": _Rule(weight=1, axis=-1, following={3: -1}),
    "MatMulIntegerToFloat": _Rule(weight=1, axis=-1, following={3: -1, 5: -1, 6: -1}),
    "DynamicQuantizeMatMul": _Rule(weight=1, axis=-1, following={2: -1, 3: -1, 4: -1}),
    "QLinearMatMul": _Rule(weight=3, axis=-1, following={4: -1, 5: -1}),
    "MatMulNBits": _Rule(weight=1, axis=0, following={2: 0, 3: 0, 5: 0}, counted="N"),
    _GATHERED: _Rule(weight=0, axis=-1),
}
"""What onnxruntime's EXTENDED level leaves of layers with weights, by operator."""

ShapeOf = Callable[[ir.Value], tuple[int, ...] | None]


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer, or made of one by nodes that a slice can be taken through."""
    if value is None:
        return False
    if value.is_initializer():
        return value.const_value is not None
    maker = value.producer()
    if maker is not None and maker.op_type == "ConstantOfShape":
        return maker.inputs[0] is not None and maker.inputs[0].is_initializer()
    if maker is None or maker.op_type not in (*QUANTIZERS, "Cast", "Identity", "Transpose"):
        return False
    if maker.op_type in QUANTIZERS and maker.attributes.get_int("block_size", 0) > 0:
        return False
    return all(read is None or is_constant(read) for read in maker.inputs)


def shapes(observed: Mapping[str, Observed]) -> ShapeOf:
    """Return a function that tells the shape of any value of the main graph; None when it is not known."""

    def shape_of(value: ir.Value) -> tuple[int, ...] | None:
        if value.is_initializer() and value.const_value is not None:
            return tuple(int(dim) for dim in value.const_value.shape)  # type: ignore[arg-type]  # constants are static
        found = observed.get(str(value.name))
        return found.shape if found is not None and found.dtype else None

    return shape_of


def sliceable(node: ir.Node, shape_of: ShapeOf) -> Sliceable | str:
    """Return how a node can be cut across its output channels, or why it cannot."""
    rule = _RULES.get(node.op_type)
    if rule is None:
        return f"{node.op_type} cannot be sliced"
    weight = _input(node, rule.weight)
    if weight is None or not is_constant(weight):
        return "its weights are computed"
    shape, made = shape_of(weight), shape_of(node.outputs[0])
    if shape is None or made is None or len(shape) < 2 or any(value.uses() for value in node.outputs[1:]):
        return "its weights have no channels"
    if (reason := _unusual(node)) is not None:
        return reason
    axis = _weight_axis(node, rule) % len(shape)
    group = node.attributes.get_int("group", 1) if rule.counted == "group" else 1
    channels = shape[axis]
    output_axis = -1 if node.attributes.get_int("channels_last", 0) else rule.output_axis
    parts = {rule.weight: Part(axis=axis, of=shape[axis])}
    for index, wanted in rule.following.items():
        value = _input(node, index)
        found = shape_of(value) if value is not None else ()
        if found is None:
            return f"the shape of its input {index} is not known"
        if not found or found[wanted % len(found)] == 1:
            continue
        if found[wanted % len(found)] % channels:
            return f"its input {index} does not follow its channels"
        parts[index] = Part(axis=wanted % len(found), of=found[wanted % len(found)])
    if group > 1:
        source = shape_of(node.inputs[0]) if node.inputs[0] is not None else None
        if source is None:
            return "the shape of its input is not known"
        channel_axis = output_axis % len(source)
        parts[0] = Part(axis=channel_axis, of=source[channel_axis])
    return Sliceable(
        channels=channels,
        together=channels // group if group > 1 else 1,
        axis=output_axis % len(made),
        parts=parts,
        counted=rule.counted if group > 1 or rule.counted == "N" else "",
    )


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _weight_axis(node: ir.Node, rule: _Rule) -> int:
    if node.op_type in ("Gemm", "FusedGemm", "QGemm"):
        return 0 if node.attributes.get_int("transB", 0) else 1
    if node.op_type == "FusedMatMul" and node.attributes.get_int("transB", 0) != 0:
        return -2
    return rule.axis


def _unusual(node: ir.Node) -> str | None:
    """Return what about a node of a known operator keeps it whole."""
    attributes = node.attributes
    if node.op_type == "ConvTranspose" and attributes.get_int("group", 1) > 1:
        return "a ConvTranspose with groups cannot be sliced"
    if node.op_type == "FusedMatMul" and attributes.get_int("transBatchB", 0) != 0:
        return "its weights are transposed across the batch"
    if node.op_type == _GATHERED and attributes.get_int("axis", 0) != 0:
        return "it gathers along its channels"
    return None
