"""From a model and a budget or recipe to a compressed model, the recipe that reproduces it, and the proof.

A *compression* is a folder: ``model.onnx`` or ``model.tflite``, ``recipe.toml`` and, where data changed weights,
``recipe.safetensors``; ``report.json`` and, where its packages are installed, ``report.html``.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.formats.profile import DeviceProfile, load_profile
from host import staging
from host.compress.data.dataset import Dataset, load_dataset
from host.compress.data.inputs import Sampled, inputs_of, own_samples
from host.compress.emulate.emulator import Emulator
from host.compress.judge.budget import Budget
from host.compress.learned import SUFFIX, load_learned
from host.compress.pipeline import Compressed, Say, Training, compress, silent
from host.compress.recipe import Recipe, Recover, dump_recipe, load_recipe, recipe_for
from host.compress.recover import Lesson, Progress
from host.compress.report.page import html_report
from host.compress.report.records import REPORT_FILE, Evaluation, Report, encode_report
from host.compress.report.summary import Judge, full_report
from host.compress.request import RECIPE, CompressRequest, check_request
from host.compress.search.search import Found, Wish, search
from host.compress.search.trial import TrialCache, default_cache_folder
from host.compress.search.workpiece import Material
from host.errors import DatasetError, PackageError
from host.ingest import ingest, require_litert
from host.ingest.inputs import InputSpec, input_specs
from host.model import Ingested, to_bytes
from host.oci import write_file

if TYPE_CHECKING:
    from edge.formats.processing import Processing
    from host.tflite.quantize_compress import TfliteCompressed

CALIBRATION_SAMPLES = 128
"""Taken from the data, and never judged on, where a model comes without inputs of its own."""

LEAST_OWN_SAMPLES = 32
"""A model that comes with fewer calibrates with a part of the data, unless it was told which."""

EMULATED_SAMPLES = 64
"""An emulated processor answers some hundred times slower than a real one."""

LEAST_TRAINING_SAMPLES = 256
"""With fewer, training may learn them by heart, and the report says so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compression:
    """A compression on disk.

    Attributes:
        folder: Where it is.
        compressed: The model.
        report: What was measured.
    """

    folder: Path
    compressed: Compressed | TfliteCompressed
    report: Report


def compress_model(request: CompressRequest, *, say: Say = silent, progress: Progress | None = None) -> Compression:
    """Compress a model and write the result.

    Args:
        request: What, how, where to.
        say: Told each step as it begins.
        progress: Told about each batch of training.

    Raises:
        BudgetUnmetError: Nothing keeps the budget; nothing is written.
        UserError: The model, data, recipe or target does not allow it; nothing is written.
    """
    profile = load_profile(request.profile)
    check_request(request)
    budget = Budget.parse(request.budget) if request.budget is not None else None
    recipe = (
        load_recipe(request.recipe)
        if request.recipe
        else recipe_for(profile, request.quantize, tflite=request.is_tflite)
    )
    make = _from_tflite if request.is_tflite else _from_graph
    compressed, report = make(request, profile, recipe, budget, say, progress)
    say(f"writing {request.target}")
    _write(request, compressed, report)
    return Compression(folder=request.target, compressed=compressed, report=report)


def _from_graph(
    request: CompressRequest,
    profile: DeviceProfile,
    recipe: Recipe,
    budget: Budget | None,
    say: Say,
    progress: Progress | None,
) -> tuple[Compressed, Report]:
    """Compress what ONNX Runtime runs."""
    say("reading the model")
    ingested = ingest(request.source, shapes=request.shapes, inputs=request.inputs)
    specs = input_specs(ingested.model.ir)
    material = _material(request, ingested, specs, ingested.processing, budget, progress)
    emulator = _emulator(request, profile, say)
    found: Found | None = None
    if budget is not None:
        cache = TrialCache(default_cache_folder() if request.cached else None)
        compressed, found = search(ingested, material, _wish(request, budget, profile), cache=cache, say=say)
    else:
        compressed = _by_recipe(request, ingested, recipe, material, say)
    say("measuring the result")
    report = full_report(
        compressed,
        material.calibration,
        profile=profile.id,
        evaluations=_evaluations(request, compressed, material, budget, emulator, say),
        found=found,
        budget=request.budget,
        notes=(*_input_notes(ingested, material), *material.dataset.notes, *_training_notes(request, material)),
    )
    return compressed, report


def _from_tflite(
    request: CompressRequest,
    profile: DeviceProfile,
    recipe: Recipe,
    budget: Budget | None,
    say: Say,
    progress: Progress | None,
) -> tuple[TfliteCompressed, Report]:
    """Quantize what LiteRT runs."""
    # Late: compressing an ONNX model needs none of LiteRT.
    require_litert(request.source)
    from host.ingest.tflite import ingest_tflite, tflite_specs
    from host.tflite.quantize_run import quantized_with_report

    say("reading the model")
    ingested = ingest_tflite(Path(request.source), shapes=request.shapes, inputs=request.inputs)
    specs = tflite_specs(ingested.model.graph, where=request.source)
    material = _material(request, ingested, specs, ingested.processing, budget, progress)
    return quantized_with_report(
        ingested.model,
        [golden.inputs for golden in ingested.golden],
        material,
        recipe if budget is None else _wish(request, budget, profile),
        profile=profile,
        confidence=request.confidence,
        cache=TrialCache(default_cache_folder() if request.cached else None),
        notes=(*_input_notes(ingested, material), *material.dataset.notes),
        say=say,
    )


def material_for(ingested: Sampled, dataset: Dataset | None, *, own_inputs: bool) -> Material:
    """What a model is calibrated with and judged on, without a common sample.

    Args:
        ingested: The model.
        dataset: To judge on. When None, the model's holdout, else a half of its samples; where these are too few to
            share, all of them are for both, and the name of the dataset says so.
        own_inputs: Whether its samples were given to calibrate with; many samples are used for that anyway.
    """
    own = ingested.samples
    if dataset is None and (ingested.holdout or len(own) < LEAST_OWN_SAMPLES):
        return Material(dataset=own_samples(ingested), calibration=own, training=Training())
    if dataset is None:
        first, rest = Dataset.held(own, name="the model's own samples").split(min(CALIBRATION_SAMPLES, len(own) // 2))
        return Material(dataset=rest, calibration=tuple(inputs_of(first)), training=Training())
    if own_inputs or len(own) >= LEAST_OWN_SAMPLES or len(dataset) < 2:
        return Material(dataset=dataset, calibration=own, training=Training())
    first, rest = dataset.split(min(CALIBRATION_SAMPLES, max(1, len(dataset) // 4)))
    return Material(dataset=rest, calibration=inputs_of(first), training=Training())


def _material(
    request: CompressRequest,
    ingested: Sampled,
    specs: tuple[InputSpec, ...],
    processing: Processing,
    budget: Budget | None,
    progress: Progress | None,
) -> Material:
    def opened(source: str) -> Dataset:
        return load_dataset(source, specs=specs, preprocess=processing.photo, labels=processing.classes)

    dataset = opened(request.data) if request.data is not None else None
    material = material_for(ingested, dataset, own_inputs=request.inputs is not None)
    if budget is not None and budget.needs_labels and material.dataset.label(0) is None:
        raise DatasetError(
            f"{material.dataset.where(0)} has no label, which {budget} needs; agreement, cosine and snr need none"
        )
    if request.training is None:
        return Material(
            dataset=material.dataset, calibration=material.calibration, training=Training(progress=progress)
        )
    taught = opened(request.training)
    classes = [label for label in taught.classes if label is not None]
    lesson = Lesson(
        labels=classes if len(classes) == len(taught) else None,
        augment=request.augment,
        threads=request.threads,
        checkpoint=_unfinished_folder() if request.cached else None,
    )
    return Material(
        dataset=material.dataset,
        calibration=material.calibration,
        training=Training(samples=inputs_of(taught), lesson=lesson, progress=progress),
    )


def _unfinished_folder() -> Path | None:
    """Where training goes on after an interruption; a cache that cannot be written only costs time."""
    folder = default_cache_folder() / "unfinished"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder


def _wish(request: CompressRequest, budget: Budget, profile: DeviceProfile) -> Wish:
    return Wish(
        budget=budget,
        profile=profile,
        recover=_recovery(request),
        objective=request.objective,
        ratios=request.ratios,
        confidence=request.confidence,
        thorough=request.thorough,
    )


def _recovery(request: CompressRequest) -> tuple[Recover, ...]:
    """Least squares repair is part of pruning; training comes on top where there is data for it."""
    return () if request.training is None else (Recover(method="distill", epochs=request.epochs),)


def _input_notes(ingested: Sampled, material: Material) -> tuple[str, ...]:
    """What reading the model had to say about its inputs, unless the data took their place."""
    return tuple(ingested.notes) if material.calibration is ingested.samples else ()


def _training_notes(request: CompressRequest, material: Material) -> tuple[str, ...]:
    count = len(material.training.samples)
    if request.training is None or count >= LEAST_TRAINING_SAMPLES:
        return ()
    return (
        f"{request.training} holds {count} samples to train on; below {LEAST_TRAINING_SAMPLES} it may learn by heart",
    )


def _by_recipe(
    request: CompressRequest, ingested: Ingested, recipe: Recipe, material: Material, say: Say
) -> Compressed:
    learned = load_learned(request.recipe, recipe.learned) if request.recipe is not None and recipe.learned else None
    return compress(
        ingested,
        recipe,
        samples=material.calibration,
        training=material.training,
        learned=learned,
        say=say,
        measured=True,
    )


def _emulator(request: CompressRequest, profile: DeviceProfile, say: Say) -> Emulator | None:
    if request.measure_on is None:
        return None
    emulator = Emulator.for_profile(profile)
    emulator.prepare_root(say)
    return emulator


def _evaluations(
    request: CompressRequest,
    compressed: Compressed,
    material: Material,
    budget: Budget | None,
    emulator: Emulator | None,
    say: Say,
) -> tuple[Evaluation, ...]:
    metrics = budget.metrics if budget is not None else ()
    judge = Judge(compressed.original, material.dataset, metrics=metrics, confidence=request.confidence)
    found = judge.both(compressed)
    if emulator is None:
        return found
    part = material.dataset.take(EMULATED_SAMPLES)
    say(f"asking an emulated {emulator.cpu} for {len(part)} answers")
    elsewhere = Judge(compressed.original, part, metrics=metrics, confidence=request.confidence)
    with emulator.runner(compressed.model) as runner:
        return (*found, elsewhere.evaluation(runner, f"aarch64 ({emulator.cpu}), emulated"))


def _write(request: CompressRequest, compressed: Compressed | TfliteCompressed, report: Report) -> None:
    recipe = dump_recipe(compressed.recipe)
    name, data = _file(compressed)
    files = {
        name: data,
        RECIPE: recipe.encode(),
        REPORT_FILE: encode_report(report),
    }
    if compressed.learned_bytes:
        files[str(Path(RECIPE).with_suffix(SUFFIX))] = compressed.learned_bytes
    if all(importlib.util.find_spec(name) is not None for name in ("matplotlib", "jinja2")):
        files["report.html"] = html_report(report, recipe=recipe).encode()
    try:
        request.target.parent.mkdir(parents=True, exist_ok=True)
        with staging.staged(request.target) as folder:
            for path, content in files.items():
                write_file(folder / path, content)
    except OSError as error:
        raise PackageError(f"{request.target}: cannot be written ({error.strerror or error})") from error


def _file(compressed: Compressed | TfliteCompressed) -> tuple[str, bytes]:
    """Name and content of the model's file."""
    if isinstance(compressed, Compressed):
        return "model.onnx", to_bytes(compressed.model.ir)
    return "model.tflite", compressed.model.data
