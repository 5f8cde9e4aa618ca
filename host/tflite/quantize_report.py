"""The report of a compressed TFLite model, in the form that ONNX models have, too."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

import msgspec

from host.compress.report import records
from host.compress.report.records import Report
from host.compress.report.summary import (
    AS_RUN,
    Judge,
    candidates_of,
    machine,
    outcome_of,
    recipe_digest,
    sensitivities,
)
from host.compress.search.search import Found
from host.errors import RuntimeRefusedError
from host.model import Tensors
from host.tflite.quantize_compress import TfliteCompressed
from host.tflite.quantize_figures import measure_tflite
from host.tflite.reference import TfliteReference

OWN_KERNELS = "interpreter's own kernels"

_NO_TIMES = "LiteRT does not say how long single operators take: times are those of whole models."


def tflite_evaluations(judge: Judge, compressed: TfliteCompressed) -> tuple[records.Evaluation, ...]:
    """Measure a compressed model in the interpreter's own kernels, which are the same everywhere, and as it runs here.

    Args:
        judge: Of the original.
        compressed: The model.

    Raises:
        RuntimeRefusedError: LiteRT cannot run the model.
    """
    as_run = judge.evaluation(TfliteReference(compressed.model, mode="default"), AS_RUN)
    if compressed.recipe.quantize.mode == "none":
        return (as_run,)
    try:
        return (judge.evaluation(TfliteReference(compressed.model), OWN_KERNELS), as_run)
    except RuntimeRefusedError:
        # Some operators have a kernel in the delegate only.
        return (as_run,)


def litert_machine() -> records.Machine:
    """What figures of this process are measured on, where LiteRT ran the model."""
    return msgspec.structs.replace(machine(), onnxruntime="", litert=metadata.version("ai-edge-litert"))


def short_tflite_report(
    compressed: TfliteCompressed,
    *,
    profile: str,
    evaluations: Sequence[records.Evaluation] = (),
    notes: Sequence[str] = (),
) -> Report:
    """What every bundle's report says: accuracy and notes; nothing that takes long to measure."""
    return Report(
        model=compressed.original.name,
        source_digest=compressed.original.origin.digest,
        profile=profile,
        recipe=recipe_digest(compressed.recipe),
        machine=litert_machine(),
        evaluations=tuple(evaluations),
        notes=tuple(notes),
    )


def full_tflite_report(
    compressed: TfliteCompressed,
    sample: Tensors,
    *,
    profile: str,
    evaluations: Sequence[records.Evaluation],
    found: Found | None = None,
    budget: str | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """What `shardwire compress` writes: with costs, and what a search tried.

    Args:
        compressed: The result.
        sample: Input for figures and times.
        profile: Id of the device profile.
        evaluations: Accuracy of the result, by place.
        found: What the search found; None without one.
        budget: As the user wrote it.
        notes: Things the user should hear.
    """
    report = short_tflite_report(compressed, profile=profile, evaluations=evaluations, notes=(*notes, _NO_TIMES))
    names = [operator.name for operator in compressed.original.graph.operators]
    return msgspec.structs.replace(
        report,
        original=measure_tflite(compressed.original, sample, timed=True),
        result=measure_tflite(compressed.model, sample, timed=True),
        budget=budget,
        outcome=outcome_of(found, budget),
        candidates=candidates_of(found),
        sensitivity=sensitivities(found, names, compressed.recipe.quantize),
    )
