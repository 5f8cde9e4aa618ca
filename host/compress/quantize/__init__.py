"""Make weights and activations smaller numbers, in one of several ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edge.formats.tensor import Array
from host.compress.quantize.dynamic import quantize_dynamic
from host.compress.quantize.half import quantize_half
from host.compress.quantize.quantized import Quantized, Say, silent
from host.compress.quantize.static import quantize_static
from host.compress.quantize.weight_only import quantize_weights
from host.compress.recipe import Mode, Quantize
from host.model import Model, Tensors

Quantizer = Callable[[Model, Quantize, Sequence[Tensors], Mapping[str, Array] | None, Say], Quantized]


def _as_it_is(
    model: Model, plan: Quantize, samples: Sequence[Tensors], biases: Mapping[str, Array] | None, say: Say
) -> Quantized:
    del samples, biases, say
    return Quantized(model=model, plan=plan)


QUANTIZERS: Mapping[Mode, Quantizer] = {
    "int8": quantize_static,
    "int8-dynamic": quantize_dynamic,
    "int8-weights": quantize_weights,
    "int4": quantize_weights,
    "float16": quantize_half,
    "none": _as_it_is,
}
"""What does the work of each mode."""


def quantize(
    model: Model,
    plan: Quantize,
    samples: Sequence[Tensors],
    *,
    biases: Mapping[str, Array] | None = None,
    say: Say = silent,
) -> Quantized:
    """Quantize a model.

    Args:
        model: The optimised, normalised model; it is not changed.
        plan: What to do. With ranges, they are used as they are.
        samples: Real inputs for calibration and bias correction; none are needed for a decided plan whose ``biases``
            are given.
        biases: Corrected biases of an earlier run, by initializer name, for a replay.
        say: Told each step as it begins.

    Returns:
        The quantized model, the decided plan and the corrected biases. The model is as it was if the plan quantizes
        nothing.

    Raises:
        QuantizeError: If nothing in the model can be quantized, or calibration fails.
        RecipeError: If the plan names nodes that are not there, or was calibrated for another model.
    """
    return QUANTIZERS[plan.mode](model, plan, samples, biases, say)
