"""Quantize a TFLite model as a recipe says, or as a search finds, and measure what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from edge.formats.profile import DeviceProfile
from host.compress.pipeline import Say, silent
from host.compress.recipe import Recipe
from host.compress.report.records import Report
from host.compress.report.summary import Judge
from host.compress.search.search import Found, Wish
from host.compress.search.trial import TrialCache
from host.compress.search.workpiece import Material
from host.model import Tensors
from host.tflite.model import TfliteModel
from host.tflite.quantize_compress import TfliteCompressed, compress_tflite
from host.tflite.quantize_report import full_tflite_report, tflite_evaluations
from host.tflite.quantize_search import search_tflite
from host.tflite.reference import TfliteReference


def quantized_with_report(  # noqa: PLR0913 - all that a compression is made from, given by name
    model: TfliteModel,
    samples: Sequence[Tensors],
    material: Material,
    how: Recipe | Wish,
    *,
    profile: DeviceProfile,
    confidence: float = 0.95,
    cache: TrialCache | None = None,
    notes: Sequence[str] = (),
    say: Say = silent,
) -> tuple[TfliteCompressed, Report]:
    """Make a model smaller and tell what that cost.

    Args:
        model: The model.
        samples: Inputs that came with it, at least one; it is timed on the first.
        material: What it is calibrated with and judged on.
        how: A recipe, or what to search for.
        profile: Of the device.
        confidence: Of the intervals.
        cache: Where trials of a search are kept; nowhere when None.
        notes: Things the user should hear.
        say: Told each step as it begins.

    Raises:
        BudgetUnmetError: Nothing keeps the budget.
        UserError: The model, recipe or data does not allow it.
        RuntimeRefusedError: LiteRT cannot run what the recipe makes.
    """
    found: Found | None = None
    if isinstance(how, Recipe):
        compressed = compress_tflite(model, how, samples=material.calibration, say=say)
    else:
        compressed, found = search_tflite(model, samples, material, how, cache=cache, say=say)
    say("measuring the result")
    budget = how.budget if isinstance(how, Wish) else None
    metrics = budget.metrics if budget is not None else ()
    judge = Judge(TfliteReference(model), material.dataset, metrics=metrics, confidence=confidence)
    report = full_tflite_report(
        compressed,
        samples[0],
        profile=profile.id,
        evaluations=tflite_evaluations(judge, compressed),
        found=found,
        budget=str(budget) if budget is not None else None,
        notes=notes,
    )
    return compressed, report
