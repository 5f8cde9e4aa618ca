"""Put together the report of a compression: what was done, what it cost, what was measured where."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

from edge.formats.bundle import digest_of
from host.compress.data.dataset import Dataset
from host.compress.judge.evaluate import Answers, Runner, answers, evaluate
from host.compress.pipeline import Compressed
from host.compress.prune.weights import compressed_bytes
from host.compress.recipe import PruneWeights, Quantize, Recipe, dump_recipe
from host.compress.report import records
from host.compress.report.histogram import histograms, zero_weights
from host.compress.report.layer_times import layer_times, operator_times
from host.compress.report.records import Report
from host.compress.search.search import Found
from host.compress.search.trial import Trial
from host.figures import measure
from host.model import Model, Tensors, weight_bytes
from host.passes.transaction import PassOutcome
from host.reference import RUNTIME_VERSION, Reference
from host.timing import node_times

UNFUSED = "unfused"
AS_RUN = "as run here"

_ISA_FLAGS = {"avx2": "avx2", "avx512f": "avx512", "avx512_vnni": "vnni", "avx_vnni": "vnni", "amx_int8": "amx"} | {
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "asimdhp": "fp16",
}
_HISTOGRAM_SAMPLES = 4
_TIMED_RUNS = 15


def default_metrics(outputs: Tensors) -> tuple[str, ...]:
    """What is measured without being asked: agreement with the original where an answer ranks classes, and cosine."""
    first = next((array for array in outputs.values() if array.dtype.kind == "f"), None)
    if first is None:
        return ()
    return ("agreement", "cosine", "snr") if first.ndim == 2 and first.shape[1] > 1 else ("cosine", "snr")


class Judge:
    """Measures models against one original on one dataset, whose answers are had once.

    Args:
        original: Normalised; runs with all graph optimisation off. Or whatever runs one of another format.
        dataset: What is asked.
        metrics: Names, beside those that fit the outputs anyway.
        confidence: Of the intervals.
    """

    def __init__(
        self, original: Model | Runner, dataset: Dataset, *, metrics: Sequence[str] = (), confidence: float = 0.95
    ) -> None:
        self._dataset, self._confidence = dataset, confidence
        runner = Reference(original) if isinstance(original, Model) else original
        self._truth: Answers = answers(runner, dataset)
        self._metrics = tuple(dict.fromkeys((*metrics, *default_metrics(self._truth[0]))))

    def evaluation(self, runner: Runner, where: str) -> records.Evaluation:
        """Measure one way of running a model."""
        found = evaluate(
            answers(runner, self._dataset), self._truth, self._dataset, self._metrics, confidence=self._confidence
        )
        return records.Evaluation(where=where, dataset=self._dataset.name, samples=found.samples, scores=found.scores)

    def both(self, compressed: Compressed) -> tuple[records.Evaluation, ...]:
        """Measure a compressed model unfused, where it is quantized, and as it runs here."""
        as_run = self.evaluation(Reference(compressed.model, mode="default"), AS_RUN)
        if compressed.recipe.quantize.mode == "none":
            return (as_run,)
        return (self.evaluation(Reference(compressed.unfused), UNFUSED), as_run)


def short_report(
    compressed: Compressed, *, profile: str, evaluations: Sequence[records.Evaluation] = (), notes: Sequence[str] = ()
) -> Report:
    """What every bundle's report says: passes, accuracy, notes; nothing that takes long to measure."""
    return Report(
        model=compressed.original.name,
        source_digest=compressed.original.origin.digest,
        profile=profile,
        recipe=recipe_digest(compressed.recipe),
        machine=machine(),
        passes=tuple(pass_row(outcome) for outcome in compressed.outcomes),
        evaluations=tuple(evaluations),
        notes=(*notes, *_sparsity(compressed)),
    )


def full_report(
    compressed: Compressed,
    samples: Sequence[Tensors],
    *,
    profile: str,
    evaluations: Sequence[records.Evaluation],
    found: Found | None = None,
    budget: str | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """What `shardwire compress` writes: with histograms, the time of every layer, and what a search tried.

    Args:
        compressed: The result.
        samples: Inputs for histograms and times.
        profile: Id of the device profile.
        evaluations: Accuracy of the result, by place.
        found: What the search found; None without one.
        budget: As the user wrote it.
        notes: Things the user should hear.
    """
    report = short_report(compressed, profile=profile, evaluations=evaluations, notes=notes)
    before = node_times(compressed.original, samples[:1], runs=_TIMED_RUNS)
    after = node_times(compressed.model, samples[:1], runs=_TIMED_RUNS)
    layers = layer_times(compressed.original, before, compressed.model, after)
    return Report(
        **{name: getattr(report, name) for name in report.__struct_fields__ if name not in _LATER},
        original=measure(compressed.original, samples[0], timed=True),
        result=measure(compressed.model, samples[0], timed=True),
        budget=budget,
        outcome=outcome_of(found, budget),
        candidates=candidates_of(found),
        sensitivity=sensitivities(
            found, [str(node.name) for node in compressed.shrunk.ir.graph], compressed.recipe.quantize
        ),
        histograms=histograms(compressed.shrunk, compressed.unfused, samples[:_HISTOGRAM_SAMPLES]),
        layers=layers,
        operators=operator_times(layers),
    )


def search_report(found: Found, *, profile: str, budget: str | None) -> Report:
    """What a search tried, where it found nothing that keeps the budget."""
    return Report(
        model=found.workpiece.name,
        source_digest=found.workpiece.source_digest,
        profile=profile,
        machine=machine(),
        budget=budget,
        outcome=outcome_of(found, budget),
        candidates=candidates_of(found),
    )


_LATER = ("original", "result", "budget", "outcome", "candidates", "sensitivity", "histograms", "layers", "operators")


def pass_row(outcome: PassOutcome) -> records.PassRow:
    """What a pass did, as a report says it."""
    return records.PassRow(
        name=outcome.name, kept=outcome.kept, reason=outcome.reason, before=outcome.before, after=outcome.after
    )


def report_beside(recipe_file: Path | None, recipe: Recipe, source_digest: str) -> Report | None:
    """The report that lies beside a recipe file, where it is of this very recipe and model; None otherwise.

    Raises:
        ReportError: It is no report.
    """
    path = recipe_file.with_name(records.REPORT_FILE) if recipe_file is not None else None
    if path is None or not path.is_file():
        return None
    found = records.decode_report(path.read_bytes(), where=str(path))
    return found if found.recipe == recipe_digest(recipe) and found.source_digest == source_digest else None


def recipe_digest(recipe: Recipe) -> str:
    """``sha256:…`` of the recipe as it is written."""
    return digest_of(dump_recipe(recipe).encode())


def summary_of(recipe: Recipe) -> str:
    """A recipe in one line."""
    plan = recipe.quantize
    parts = [type(step).__name__.removeprefix("Prune").lower() + _amount(step) for step in recipe.prune]
    parts += [way.method for way in recipe.recover]
    parts.append(f"{plan.mode} {plan.variant} {plan.calibration}" if plan.mode == "int8" else plan.mode)
    parts += ["equalized"] if plan.equalize else []
    parts += ["bias corrected"] if plan.correct_bias and plan.mode == "int8" else []
    parts += [f"{len(plan.exclude)} nodes in fp32"] if plan.exclude else []
    parts += [f"{len(plan.wider)} nodes in 8 bits"] if plan.wider else []
    return ", ".join(parts)


def machine() -> records.Machine:
    """What figures of this process are measured on."""
    name, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip() or name
            elif key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    except OSError:
        flags = set()
    return records.Machine(
        processor=name,
        isa=tuple(sorted({isa for flag, isa in _ISA_FLAGS.items() if flag in flags})),
        onnxruntime=RUNTIME_VERSION,
        system=f"{platform.system()} {platform.machine()}",
    )


def _amount(step: object) -> str:
    ratio = getattr(step, "ratio", None)
    return f" {ratio:.1%}".replace(".0%", "%") if ratio is not None else ""


def outcome_of(found: Found | None, budget: str | None) -> str:
    """What came of a budget, in one sentence; empty without one."""
    if found is None or budget is None:
        return ""
    if found.chosen is None:
        return f"None of {len(found.trials)} candidates keeps the budget."
    return f"{found.chosen.name} is the best of {len(found.trials)} candidates: {found.chosen.judgement}"


def candidates_of(found: Found | None) -> tuple[records.Candidate, ...]:
    """What a search tried, in order, under unique names."""
    return tuple(_candidates(found)) if found is not None else ()


def sensitivities(found: Found | None, nodes: Sequence[str], plan: Quantize) -> tuple[records.NodeSensitivity, ...]:
    """What a search found out about nodes, in the order given, and what each got in the end."""
    ranked = {entry.node: entry for entry in found.sensitivity} if found is not None else {}
    return tuple(
        records.NodeSensitivity(
            node=name,
            operator=ranked[name].operator,
            snr_db=ranked[name].snr_db,
            precision=_precision(plan, name),
        )
        for name in nodes
        if name in ranked
    )


def _candidates(found: Found) -> Iterable[records.Candidate]:
    names: dict[str, int] = {}
    for trial in found.trials:
        names[trial.name] = names.get(trial.name, 0) + 1
        unique = trial.name if names[trial.name] == 1 else f"{trial.name} ({names[trial.name]})"
        yield _candidate(trial, unique, found)


def _candidate(trial: Trial, name: str, found: Found) -> records.Candidate:
    costs = trial.costs
    return records.Candidate(
        name=name,
        summary=summary_of(trial.recipe),
        size_bytes=costs.size_bytes if costs is not None else None,
        predicted_seconds=costs.predicted_seconds if costs is not None else None,
        latency_seconds=costs.latency_seconds if costs is not None else None,
        latency_ratio=costs.latency_ratio if costs is not None else None,
        scores=trial.scores,
        judgement=trial.failure or str(trial.judgement),
        status=trial.judgement.status if trial.judgement is not None else "failed",
        on_front=any(trial is other for other in found.front),
        chosen=trial is found.chosen,
    )


def _precision(plan: Quantize, node: str) -> str:
    if node in plan.exclude:
        return "float32"
    return "int8" if node in plan.wider or plan.mode in ("int8-dynamic", "int8-weights") else plan.mode


def _sparsity(compressed: Compressed) -> tuple[str, ...]:
    steps = [step for step in compressed.recipe.prune if isinstance(step, PruneWeights)]
    if not steps:
        return ()
    zeros, weights = zero_weights(compressed.shrunk)
    return (
        records.sparsity_note(
            zeros=zeros,
            weights=weights,
            stored_bytes=weight_bytes(compressed.shrunk.ir),
            packed_bytes=compressed_bytes(compressed.shrunk),
            pattern=next((step.pattern for step in steps if step.pattern), None),
        ),
    )
