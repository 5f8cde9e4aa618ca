"""From a TFLite model and a recipe to the model that is cut: the whole of `host.compress.pipeline` that TFLite has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from host.compress.learned import Learned
from host.compress.pipeline import Say, silent
from host.compress.recipe import Recipe
from host.errors import IngestError, QuantizeError, RecipeError
from host.model import Tensors
from host.passes.transaction import PassOutcome
from host.tflite.model import TfliteModel
from host.tflite.quantize import quantize_tflite
from host.tflite.trial import try_out


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TfliteCompressed:
    """The model before cutting, and how it came about; named as in `host.compress.pipeline.Compressed`.

    Attributes:
        original: As it came, the reference for fidelity.
        model: Quantized, as it is cut.
        recipe: Decided, so that replaying it needs no data.
    """

    original: TfliteModel
    model: TfliteModel
    recipe: Recipe

    @property
    def learned(self) -> Learned:
        """Weights that data changed: none."""
        return Learned()

    @property
    def learned_bytes(self) -> bytes:
        """The same as a file."""
        return b""

    @property
    def outcomes(self) -> tuple[PassOutcome, ...]:
        """Of graph passes: there are none for TFLite, whose converters optimise."""
        return ()


def compress_tflite(
    model: TfliteModel, recipe: Recipe, *, samples: Sequence[Tensors] = (), say: Say = silent
) -> TfliteCompressed:
    """Quantize a model as a recipe says.

    Args:
        model: In fp32 or with weights in half precision; anything where the recipe quantizes nothing.
        recipe: Open or decided.
        samples: What calibration looks at; a decided recipe needs none.
        say: Told each step as it begins.

    Raises:
        QuantizeError: The model cannot be quantized so, or LiteRT has no kernels for what comes of it.
        RecipeError: The recipe asks for a step that TFLite models have not, or does not fit this one.
    """
    check_recipe(recipe)
    plan = recipe.quantize
    if plan.mode != "none":
        say(f"quantizing to {plan.mode}")
    found = quantize_tflite(model, plan, samples, say=say)
    if plan.mode != "none":
        check_runs(found.model, plan.mode)
    return TfliteCompressed(
        original=model, model=found.model, recipe=msgspec.structs.replace(recipe, quantize=found.plan)
    )


def check_runs(model: TfliteModel, mode: str) -> None:
    """Run a quantized model once in a process of its own.

    Raises:
        QuantizeError: LiteRT refuses it, or dies of it.
    """
    try:
        reason = try_out(model.data, where=model.name)
    except IngestError as error:
        raise QuantizeError(f"LiteRT does not run {mode} of the model: {error}") from error
    if reason:
        raise QuantizeError(f"LiteRT has no kernels for {mode} of model {model.name!r}: {reason}")


def check_recipe(recipe: Recipe) -> None:
    """Refuse the steps that change a graph or its weights.

    Raises:
        RecipeError: It has one; what to compress instead.
    """
    steps = {"prune": recipe.prune, "recover": recipe.recover, "learned": recipe.learned}
    if named := [name for name, steps_of in steps.items() if steps_of]:
        raise RecipeError(
            f"{named[0]}: pruning and recovery need the ONNX or PyTorch model; a .tflite file is quantized only: "
            "take these steps out of the recipe, or compress the model that it was converted from"
        )
    if recipe.wire != "float32":
        raise RecipeError(f"wire: tensors of a TFLite model travel as they are, not in {recipe.wire}: take it out")
