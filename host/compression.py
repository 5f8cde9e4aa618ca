"""From a model and a budget or recipe to a compressed model, the recipe that reproduces it, and the proof.

A *compression* is a folder: ``model.onnx``, ``recipe.toml`` and, where data changed weights, ``recipe.safetensors``;
``report.json`` and, where its packages are installed, ``report.html``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edge.formats.profile import DeviceProfile, load_profile
from host import staging
from host.compress.data.dataset import Dataset, load_dataset
from host.compress.data.inputs import inputs_of, own_samples
from host.compress.emulate.emulator import Emulator
from host.compress.judge.budget import Budget
from host.compress.learned import SUFFIX, load_learned
from host.compress.pipeline import Compressed, Say, Training, compress, silent
from host.compress.recipe import Recipe, Recover, dump_recipe, load_recipe, recipe_for
from host.compress.recover import Lesson, Progress
from host.compress.report.page import html_report
from host.compress.report.records import REPORT_FILE, Evaluation, Report, encode_report
from host.compress.report.summary import Judge, full_report
from host.compress.search.candidates import PRUNE_RATIOS
from host.compress.search.front import Objective
from host.compress.search.proving import Material
from host.compress.search.search import Found, Wish, search
from host.compress.search.trial import TrialCache, default_cache_folder
from host.errors import DatasetError, PackageError
from host.ingest import ingest
from host.ingest.inputs import input_specs
from host.model import Ingested, to_bytes
from host.oci import write_file

CALIBRATION_SAMPLES = 128
"""Taken from the data, and never judged on, where a model comes without inputs of its own."""

LEAST_OWN_SAMPLES = 32
"""A model that comes with fewer calibrates with a part of the data, unless it was told which."""

EMULATED_SAMPLES = 64
"""An emulated processor answers some hundred times slower than a real one."""

LEAST_TRAINING_SAMPLES = 256
"""With fewer, training may learn them by heart, and the report says so."""

RECIPE = "recipe.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressRequest:
    """What to compress, how, and where to.

    Attributes:
        source: As for `host.package.PackageRequest`.
        profile: Profile id or path.
        target: Folder of the compression.
        budget: What must be kept; None applies the recipe as it is.
        recipe: Recipe file; None with a budget.
        quantize: Mode, where there is neither budget nor recipe; what the profile prefers when None.
        data: Dataset to judge on; the model's own samples when None.
        training: Dataset to recover on after pruning; None leaves training out of a search.
        inputs: Samples to calibrate with.
        shapes: Sizes for dynamic dimensions.
        ratios: Shares of channels that a search tries to prune.
        epochs: Of training after pruning.
        augment: Whether training shifts and mirrors images.
        threads: For training; with one the same machine gives the same bytes.
        objective: What the best is measured by.
        confidence: Of the intervals.
        thorough: Whether a search goes on after the first idea that keeps the budget.
        measure_on: ``aarch64``: judge the result on an emulated processor of the profile, too.
        cached: Whether trials are kept for the next search.
        replace: Whether a compression at `target` may be replaced.
    """

    source: str
    profile: str
    target: Path
    budget: str | None = None
    recipe: Path | None = None
    quantize: str | None = None
    data: str | None = None
    training: str | None = None
    inputs: str | None = None
    shapes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    ratios: tuple[float, ...] = PRUNE_RATIOS
    epochs: int = 5
    augment: bool = False
    threads: int = 1
    objective: Objective = "balanced"
    confidence: float = 0.95
    thorough: bool = False
    measure_on: Literal["aarch64"] | None = None
    cached: bool = True
    replace: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Compression:
    """A compression on disk.

    Attributes:
        folder: Where it is.
        compressed: The model.
        report: What was measured.
    """

    folder: Path
    compressed: Compressed
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
    _check(request)
    budget = Budget.parse(request.budget) if request.budget is not None else None
    recipe = load_recipe(request.recipe) if request.recipe is not None else recipe_for(profile, request.quantize)
    say("reading the model")
    ingested = ingest(request.source, shapes=request.shapes, inputs=request.inputs)
    material = _material(request, ingested, progress)
    if budget is not None and budget.needs_labels and material.dataset.label(0) is None:
        raise DatasetError(
            f"{material.dataset.where(0)} has no label, which {budget} needs; agreement, cosine and snr need none"
        )
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
    say(f"writing {request.target}")
    _write(request, compressed, report)
    return Compression(folder=request.target, compressed=compressed, report=report)


def material_for(ingested: Ingested, dataset: Dataset | None, *, own_inputs: bool) -> Material:
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


def _check(request: CompressRequest) -> None:
    if request.budget is not None and (request.recipe is not None or request.quantize is not None):
        raise PackageError("a budget decides by itself how to compress: leave out --recipe and --quantize")
    if request.recipe is not None and request.quantize is not None:
        raise PackageError(f"--recipe {request.recipe} says how to quantize: leave out --quantize {request.quantize}")
    if request.budget is not None and request.data is None and Budget.parse(request.budget).needs_labels:
        raise PackageError(f"--budget {request.budget!r} needs labelled data to judge on: pass --data")
    for option, source, use in (
        ("--inputs", request.inputs, "calibrated"),
        ("--train-data", request.training, "trained"),
    ):
        if source is not None and request.data is not None and _is_same(source, request.data):
            raise PackageError(
                f"{option} {source} is --data, too: what is {use} with is no proof; give other samples or leave it out"
            )
    if request.training is not None and importlib.util.find_spec("torch") is None:
        raise PackageError("--train-data needs torch: pip install 'shardwire[torch]', or leave it out")
    staging.check_target(request.target, marker=RECIPE, what="compression", replace=request.replace)


def _material(request: CompressRequest, ingested: Ingested, progress: Progress | None) -> Material:
    def opened(source: str) -> Dataset:
        return load_dataset(
            source, specs=input_specs(ingested.model.ir), preprocess=ingested.preprocess, labels=ingested.labels
        )

    dataset = opened(request.data) if request.data is not None else None
    material = material_for(ingested, dataset, own_inputs=request.inputs is not None)
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


def _input_notes(ingested: Ingested, material: Material) -> tuple[str, ...]:
    """What reading the model had to say about its inputs, unless the data took their place."""
    return ingested.notes if material.calibration is ingested.samples else ()


def _training_notes(request: CompressRequest, material: Material) -> tuple[str, ...]:
    count = len(material.training.samples)
    if request.training is None or count >= LEAST_TRAINING_SAMPLES:
        return ()
    return (
        f"{request.training} holds {count} samples to train on; below {LEAST_TRAINING_SAMPLES} it may learn by heart",
    )


def _is_same(first: str, second: str) -> bool:
    """Whether two options name one file, folder or function."""
    return first == second or Path(first).resolve() == Path(second).resolve()


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


def _write(request: CompressRequest, compressed: Compressed, report: Report) -> None:
    recipe = dump_recipe(compressed.recipe)
    files = {
        "model.onnx": to_bytes(compressed.model.ir),
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
            for name, data in files.items():
                write_file(folder / name, data)
    except OSError as error:
        raise PackageError(f"{request.target}: cannot be written ({error.strerror or error})") from error
