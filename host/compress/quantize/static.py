"""Static int8 quantization: quantize-dequantize pairs around every operator that can run on 8 bits."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from edge.formats.tensor import Array
from host.compress.constants import constant_of
from host.compress.quantize.bias import correct_biases, with_biases, with_values
from host.compress.quantize.calibrate import calibrate
from host.compress.quantize.equalize import equalize
from host.compress.quantize.quantized import (
    Quantized,
    Say,
    at_least_opset,
    check_nodes,
    digest_of_model,
    nothing_to_quantize,
)
from host.compress.recipe import Quantize, Range, Variant
from host.errors import QuantizeError, RecipeError
from host.model import Model, Tensors, from_proto, to_proto
from host.passes.normalise import normalise
from host.reference import Reference, first_line

# Operators with 8-bit kernels, and those that only move data between them. Normalisations and softmax are left in
# fp32: their 8-bit forms cost accuracy and save nothing.
OPERATORS = (
    "Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Flatten", "Gather", "Gemm", "GlobalAveragePool",
    "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip

# Per-channel scales came with opset 13.
LEAST_OPSET = 13


@dataclass(frozen=True, kw_only=True, slots=True)
class _Types:
    activation: QuantType
    weight: QuantType
    reduce_range: bool = False


# Unsigned weights are symmetric about 128: the convolution kernels want one zero point for all channels.
_VARIANTS: dict[Variant, _Types] = {
    "u8s8-reduce-range": _Types(activation=QuantType.QUInt8, weight=QuantType.QInt8, reduce_range=True),
    "u8s8": _Types(activation=QuantType.QUInt8, weight=QuantType.QInt8),
    "s8s8": _Types(activation=QuantType.QInt8, weight=QuantType.QInt8),
    "u8u8": _Types(activation=QuantType.QUInt8, weight=QuantType.QUInt8),
}
# What correction gains or loses shows on few. A little more noise is chance; where channels quantize to nothing, their
# means say nothing, and correcting by them was seen to ruin a net whose ranges spread over four decades.
_JUDGING_SAMPLES = 16
_HARM = 1.5
_QUANT_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


def quantize_static(
    model: Model,
    plan: Quantize,
    samples: Sequence[Tensors],
    biases: Mapping[str, Array] | None,
    say: Say,
) -> Quantized:
    """Equalize, calibrate, correct biases and insert quantize-dequantize pairs, as far as the plan asks for it.

    The structural steps before calibration look at no data and at no excluded nodes, so that a plan with other
    excluded nodes keeps its ranges.

    Raises:
        QuantizeError: If nothing can be quantized, calibration fails, or a replay lacks biases.
        RecipeError: If the plan was calibrated for another model, or names nodes that are not there.
    """
    check_nodes(model, plan.exclude, where="quantize.exclude")
    base = prepared(model, plan, samples)
    digest = digest_of_model(base)
    if plan.calibrated_for and plan.calibrated_for != digest:
        raise RecipeError(
            f"the ranges of the recipe were calibrated for model {plan.calibrated_for}, this one is {digest}: "
            "take quantize.calibrated_for and quantize.ranges out of the recipe to calibrate again"
        )
    if not plan.ranges:
        say(f"calibrating with {len(samples)} samples")
        plan = msgspec.structs.replace(plan, calibrated_for=digest, ranges=calibrate(base, plan, samples))
    result = _with_pairs(base, plan)
    if not plan.correct_bias:
        return Quantized(model=result, plan=plan)
    if biases is None:
        if not samples:
            raise QuantizeError("bias correction needs inputs or the biases of an earlier run: pass --inputs")
        say("correcting biases")
        biases = correct_biases(base, result, samples)
        corrected = _with_pairs(with_values(base, biases), plan)
        judged = samples[:_JUDGING_SAMPLES]
        if _noise(base, corrected, judged) > _HARM * _noise(base, result, judged):
            say("the corrected biases answer worse: quantizing without")
            plan = msgspec.structs.replace(plan, correct_bias=False, calibrated_for="", ranges=())
            return quantize_static(model, plan, samples, None, say)
        return Quantized(model=corrected, plan=plan, biases=biases)
    return Quantized(model=_with_pairs(with_values(base, biases), plan), plan=plan, biases=biases)


def _noise(base: Model, quantized: Model, samples: Sequence[Tensors]) -> float:
    """Power of what quantization adds to the float outputs, as a share of their own power."""
    truth, judged = Reference(base), Reference(quantized)
    noise = power = 0.0
    for sample in samples:
        want, have = truth.run(sample), judged.run(sample)
        for name, array in want.items():
            if array.dtype.kind == "f":
                noise += float(np.sum(np.square(have[name].astype(np.float64) - array)))
                power += float(np.sum(np.square(array.astype(np.float64))))
    return noise / power if power > 0 else 0.0


def prepared(model: Model, plan: Quantize, samples: Sequence[Tensors]) -> Model:
    """The model that ranges are found for: converted, equalized and with a bias wherever one may be corrected.

    Args:
        model: A normalised model.
        plan: How to quantize.
        samples: Only to check the conversion of an old opset.

    Raises:
        QuantizeError: If its opset is too old and cannot be converted.
    """
    base = at_least_opset(model, LEAST_OPSET, samples, mode="int8")
    if plan.equalize:
        base = equalize(base)
    return with_biases(base, everywhere=plan.correct_bias)


def _with_pairs(model: Model, plan: Quantize) -> Model:
    types = _VARIANTS[plan.variant]
    proto = onnx.shape_inference.infer_shapes(to_proto(model.ir))
    # Tells the quantizer that shapes are known, so that it does not write the model to a temporary file.
    entry = proto.metadata_props.add()
    entry.key, entry.value = "onnx.infer", "onnxruntime.quant"
    try:
        with _quiet():
            quantizer = QDQQuantizer(
                proto,
                per_channel=True,
                reduce_range=types.reduce_range,
                weight_qType=types.weight,
                activation_qType=types.activation,
                tensors_range={entry.tensor: _tensor_range(entry) for entry in plan.ranges},
                nodes_to_quantize=[],
                nodes_to_exclude=[*plan.exclude, *_unfit(model)],
                op_types_to_quantize=OPERATORS,
                extra_options={
                    "TensorQuantOverrides": _overrides(plan.ranges, types.activation),
                    "WeightSymmetric": True,
                },
            )
            quantizer.quantize_model()
    except Exception as error:
        raise QuantizeError(f"model {model.name!r} cannot be quantized: {first_line(error)}") from error
    result = quantizer.model.model
    if not any(node.op_type == "DequantizeLinear" for node in result.graph.node):
        raise nothing_to_quantize(model, "int8")
    return normalise(model.with_ir(from_proto(result)))


def _unfit(model: Model) -> list[str]:
    """Nodes that the quantizer gets wrong, or stops at."""
    names: list[str] = []
    for node in model.ir.graph:
        second, third = (constant_of(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2))
        # It lets the range of a Clip's output stand for the Clip itself, but a range always reaches to zero.
        beside_zero = (second is not None and second.size == 1 and second.item() > 0) or (
            third is not None and third.size == 1 and third.item() < 0
        )
        # It takes each bias for a row of channels.
        in_two_dimensions = third is not None and third.ndim != 1
        if (node.op_type == "Clip" and beside_zero) or (node.op_type == "Gemm" and in_two_dimensions):
            names.append(str(node.name))
    return names


def _tensor_range(entry: Range) -> TensorData:
    return TensorData(lowest=np.asarray(entry.low, np.float32), highest=np.asarray(entry.high, np.float32))


def _overrides(ranges: Sequence[Range], activation: QuantType) -> dict[str, list[dict[str, QuantType]]]:
    return {
        entry.tensor: [{"quant_type": _QUANT_TYPES[entry.dtype]}]
        for entry in ranges
        if _QUANT_TYPES[entry.dtype] != activation
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The quantizer logs a warning for every tensor that it leaves alone.
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
