"""Static int8 quantization: quantize-dequantize pairs around every operator that can run on 8 bits."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from host.compare import compare
from host.compress.calibrate import calibrate
from host.compress.recipe import Range, Recipe, Variant
from host.errors import QuantizeError, RecipeError, RuntimeRefusedError
from host.model import Model, Tensors, distinct_sizes, from_proto, to_bytes, to_proto
from host.passes.normalise import normalise
from host.passes.transaction import TOLERANCE_FP32
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
    reduce_range: bool


_VARIANTS: dict[Variant, _Types] = {
    "u8s8-reduce-range": _Types(activation=QuantType.QUInt8, weight=QuantType.QInt8, reduce_range=True),
    "u8s8": _Types(activation=QuantType.QUInt8, weight=QuantType.QInt8, reduce_range=False),
    "s8s8": _Types(activation=QuantType.QInt8, weight=QuantType.QInt8, reduce_range=False),
}
_QUANT_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


def quantize(model: Model, recipe: Recipe, samples: Sequence[Tensors]) -> tuple[Model, Recipe]:
    """Quantize a model.

    Args:
        model: The optimised, normalised model.
        recipe: What to do; with ranges, they are used as they are and ``samples`` are not looked at.
        samples: Real inputs for calibration.

    Returns:
        The quantized model, its pairs not yet fused, and the recipe with the ranges used. Both are as they were if
        the recipe quantizes nothing.

    Raises:
        QuantizeError: If nothing in the model can be quantized, or calibration fails.
        RecipeError: If the recipe was calibrated for another model.
    """
    if recipe.quantize.mode == "none":
        return model, recipe
    digest = f"sha256:{hashlib.sha256(to_bytes(model.ir)).hexdigest()}"
    plan = recipe.quantize
    if plan.calibrated_for and plan.calibrated_for != digest:
        raise RecipeError(
            f"the ranges of the recipe were calibrated for model {plan.calibrated_for}, this one is {digest}: "
            "take quantize.calibrated_for and quantize.ranges out of the recipe to calibrate again"
        )
    nodes = {node.name for node in model.ir.graph}
    if unknown := [name for name in plan.exclude if name not in nodes]:
        raise RecipeError(f"quantize.exclude: the model has no node {unknown[0]!r}")
    base = _at_least_opset(model, samples)
    if not plan.ranges:
        ranges = calibrate(base, plan, samples)
        recipe = msgspec.structs.replace(
            recipe, quantize=msgspec.structs.replace(plan, calibrated_for=digest, ranges=ranges)
        )
    return _quantized(base, recipe), recipe


def _quantized(model: Model, recipe: Recipe) -> Model:
    plan = recipe.quantize
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
                nodes_to_exclude=list(plan.exclude),
                op_types_to_quantize=OPERATORS,
                extra_options={"TensorQuantOverrides": _overrides(plan.ranges, types.activation)},
            )
            quantizer.quantize_model()
    except Exception as error:
        raise QuantizeError(f"model {model.name!r} cannot be quantized: {first_line(error)}") from error
    result = quantizer.model.model
    if not any(node.op_type == "DequantizeLinear" for node in result.graph.node):
        raise QuantizeError(f"model {model.name!r} has no operator that int8 can hold: use --quantize none")
    return normalise(model.with_ir(from_proto(result)))


def _tensor_range(entry: Range) -> TensorData:
    return TensorData(lowest=np.asarray(entry.low, np.float32), highest=np.asarray(entry.high, np.float32))


def _overrides(ranges: Sequence[Range], activation: QuantType) -> dict[str, list[dict[str, QuantType]]]:
    return {
        entry.tensor: [{"quant_type": _QUANT_TYPES[entry.dtype]}]
        for entry in ranges
        if _QUANT_TYPES[entry.dtype] != activation
    }


def _at_least_opset(model: Model, samples: Sequence[Tensors]) -> Model:
    if model.ir.opset_imports.get("", LEAST_OPSET) >= LEAST_OPSET:
        return model
    try:
        converted = onnx.version_converter.convert_version(to_proto(model.ir), LEAST_OPSET)
        candidate = normalise(model.with_ir(from_proto(converted)))
        after = Reference(candidate)
    except RuntimeRefusedError as error:
        raise _cannot_convert(model, str(error)) from error
    except Exception as error:
        raise _cannot_convert(model, first_line(error)) from error
    before = Reference(model)
    for sample in distinct_sizes(samples):
        if fault := compare(after.run(sample), before.run(sample), tolerance=TOLERANCE_FP32):
            raise _cannot_convert(model, fault)
    return candidate


def _cannot_convert(model: Model, reason: str) -> QuantizeError:
    return QuantizeError(
        f"model {model.name!r} has opset {model.ir.opset_imports.get('')}, int8 needs {LEAST_OPSET}, and it cannot be "
        f"converted ({reason}): export it again with opset {LEAST_OPSET} or later, or use --quantize none"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The quantizer logs a warning for every tensor that it leaves alone.
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
