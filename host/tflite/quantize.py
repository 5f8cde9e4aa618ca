"""Quantize a TFLite model by ai-edge-quantizer. The only user of that package.

Ranges are found here, not by the quantizer, so that a recipe can hold them and give the same bytes again without data.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from edge.formats.bundle import digest_of
from edge.formats.tensor import Array
from host.compress.quantize.calibrate import ranges_of
from host.compress.quantize.quantized import Say, silent
from host.compress.recipe import Quantize
from host.errors import IngestError, QuantizeError, RecipeError
from host.model import Tensors
from host.reference import first_line
from host.tflite.layers import find_working
from host.tflite.model import TfliteModel, tflite_model
from host.tflite.quantize_prepare import Plain, plain
from host.tflite.quantize_recipes import COMPUTING, WEIGHTED, rules
from host.tflite.reference import TfliteReference

VARIANT: Final = "s8s8"
"""The only one that TFLite has kernels for: signed activations, signed weights, a scale for each output channel."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TfliteQuantized:
    """A quantized model and how to make it again without data.

    Attributes:
        model: The model; the one that was given where the plan quantizes nothing.
        plan: Decided: with the ranges that were used, where the mode has any.
    """

    model: TfliteModel
    plan: Quantize


def quantize_tflite(
    model: TfliteModel, plan: Quantize, samples: Sequence[Tensors], *, say: Say = silent
) -> TfliteQuantized:
    """Quantize a model; see `TfliteQuantizer.quantize`."""
    return TfliteQuantizer(model).quantize(plan, samples, say=say)


class TfliteQuantizer:
    """Quantizes one model in as many ways as are asked for.

    Args:
        model: In fp32 or with weights in half precision.
    """

    def __init__(self, model: TfliteModel) -> None:
        self.model = model
        self._plain: Plain | None = None

    def quantize(self, plan: Quantize, samples: Sequence[Tensors], *, say: Say = silent) -> TfliteQuantized:
        """Quantize the model; its inputs and outputs stay in fp32.

        Args:
            plan: What to do. With ranges, they are used as they are.
            samples: Real inputs to calibrate with; only open plans for ``int8`` need any.
            say: Told each step as it begins.

        Raises:
            QuantizeError: The model is quantized already, nothing in it can be quantized, or calibration fails.
            RecipeError: The plan names operators that are not there, asks for what TFLite has not, or was calibrated
                for another model.
        """
        _check(plan)
        plan = msgspec.structs.replace(plan, variant=VARIANT)
        model = self.model
        if plan.mode == "none":
            return TfliteQuantized(model=model, plan=plan)
        if self._plain is None:
            self._plain = plain(model)
        if not quantized_operators(model, plan):
            raise QuantizeError(f"model {model.name!r} has no operator that {plan.mode} can hold: use --quantize none")
        if plan.mode == "int8":
            plan = _calibrated(model, plan, samples, say)
        data = self._plain.restored(_quantized(model, self._plain, plan))
        try:
            made = tflite_model(data, name=model.name, origin=model.origin)
        except IngestError as error:
            raise QuantizeError(f"model {model.name!r}: {plan.mode} gives a file with a fault: {error}") from error
        return TfliteQuantized(model=made, plan=plan)


def quantized_operators(model: TfliteModel, plan: Quantize) -> tuple[tuple[str, str], ...]:
    """Name and kind of the operators that a plan quantizes and that lose something by it, in order."""
    kinds = COMPUTING if plan.mode == "int8" else WEIGHTED
    return tuple(
        (operator.name, operator.kind)
        for operator in find_working(model.graph).operators
        if operator.kind in kinds and operator.makes and operator.name not in plan.exclude
    )


def _check(plan: Quantize) -> None:
    for field in ("equalize", "correct_bias"):
        if getattr(plan, field):
            raise RecipeError(
                f"quantize.{field}: this step needs the ONNX or PyTorch model; ai-edge-quantizer, which quantizes "
                "TFLite models, has none of it: leave it out"
            )


def _calibrated(model: TfliteModel, plan: Quantize, samples: Sequence[Tensors], say: Say) -> Quantize:
    """The plan with ranges for every tensor that static quantization may touch."""
    digest = digest_of(model.data)
    if plan.calibrated_for and plan.calibrated_for != digest:
        raise RecipeError(
            f"the ranges of the recipe were calibrated for model {plan.calibrated_for}, this one is {digest}: "
            "take quantize.calibrated_for and quantize.ranges out of the recipe to calibrate again"
        )
    if plan.ranges:
        return plan
    if not samples:
        raise QuantizeError("calibration needs inputs: pass --inputs")
    say(f"calibrating with {len(samples)} samples")
    ranges = ranges_of(_Inside(model), float_tensors(model), plan, samples)
    return msgspec.structs.replace(plan, calibrated_for=digest, ranges=ranges)


def float_tensors(model: TfliteModel) -> tuple[str, ...]:
    """Names of the fp32 tensors of the main subgraph that runs compute or take in, in the order of the operators."""
    graph = model.graph
    made = (index for operator in find_working(graph).operators for index in operator.makes)
    tensors = (graph.tensors[index] for index in dict.fromkeys((*graph.inputs, *made)))
    return tuple(tensor.name for tensor in tensors if tensor.type == "FLOAT32")


class _Inside:
    """A model whose answers are all of its tensors."""

    def __init__(self, model: TfliteModel) -> None:
        self._reference = TfliteReference(model, inner=True)

    def run(self, inputs: Tensors) -> Mapping[str, Array]:
        return self._reference.run_all(inputs)


def require_quantizer() -> Any:
    """The quantizer's class, which is loaded late: reading and running TFLite models does without.

    Raises:
        QuantizeError: The package is missing.
    """
    try:
        from ai_edge_quantizer.quantizer import Quantizer
    except ImportError as error:
        raise QuantizeError(
            f"quantizing a TFLite model needs ai-edge-quantizer ({first_line(error)}): pip install 'shardwire[tflite]'"
        ) from error
    return Quantizer


def _quantized(model: TfliteModel, base: Plain, plan: Quantize) -> bytes:
    """Run the quantizer."""
    quantizer = require_quantizer()
    recipe = rules(plan, model.graph, outputs=base.outputs, halves=base.halves)
    ranges = _statistics(model, base, plan) if plan.mode == "int8" else None
    # It draws bars and warns about what is meant so.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = quantizer(bytearray(base.data), recipe).quantize(
                ranges, enable_progress_bar=False, enable_progress_report=False
            )
        except Exception as error:
            raise QuantizeError(
                f"model {model.name!r}: ai-edge-quantizer cannot make {plan.mode} of it: {first_line(error)}; "
                "exclude the operator by name, or choose another mode"
            ) from error
    return bytes(found.quantized_model)


def _statistics(model: TfliteModel, base: Plain, plan: Quantize) -> dict[str, dict[str, Any]]:
    """The ranges as the quantizer keeps them, each extreme an array of the tensor's rank."""
    ranges = {entry.tensor: entry for entry in plan.ranges}
    found: dict[str, dict[str, Any]] = {}
    for own, name in base.names.items():
        entry = ranges.get(name) if own.startswith("t") else None
        if entry is not None:
            shape = (1,) * len(model.graph.tensors[int(own[1:])].shape)
            found[own] = {
                "min": np.full(shape, entry.low, np.float32),
                "max": np.full(shape, entry.high, np.float32),
            }
    return found
