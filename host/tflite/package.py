"""From a TFLite file, or a model that is converted to one, to the parts of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge.formats.profile import DeviceProfile
from host.compress.data.dataset import Dataset
from host.compress.judge.evaluate import answers, evaluate
from host.compress.pipeline import Say
from host.compress.recipe import Recipe, load_recipe, recipe_for
from host.compress.report.records import Evaluation, Report
from host.compress.report.summary import AS_RUN, default_metrics, recipe_digest, report_beside
from host.errors import PackageError, RecipeError
from host.ingest.tflite import IngestedTflite, ingest_tflite
from host.parts import Answered, Parts
from host.streams import Streams, parse_buckets, parse_states, resolve
from host.tflite.build import partition_tflite, runtimes_of
from host.tflite.model import TfliteModel
from host.tflite.quantize_report import litert_machine
from host.tflite.reference import TfliteReference

if TYPE_CHECKING:
    from host.package import PackageRequest

FLOAT_TOLERANCE = 1e-3
"""Relative error of floating point shards against the whole, across processors and between the two sets of kernels of
LiteRT: they sum in another order, and detectors end in steep sigmoids."""

QUANTIZED_TOLERANCE = 0.25
"""The same for quantized shards, whose kernels differ by a quantization step."""


def tflite_parts(request: PackageRequest, profile: DeviceProfile, *, say: Say) -> Parts:
    """Read, quantize and cut a TFLite model.

    Args:
        request: what to package.
        profile: for which device.
        say: told each step as it begins.

    Raises:
        UserError: the model, the recipe or the profile's limit does not allow it.
    """
    if request.twin is not None:
        raise PackageError(f"--twin {request.twin}: it goes beside an ONNX or PyTorch model, not beside a TFLite one")
    if request.slice_above_bytes is not None:
        raise PackageError("--slice-above: TFLite operators are not sliced: leave it out")
    recipe = _recipe(request, profile)
    say("reading the model")
    ingested = _ingested(request)
    streams = _streams(request, ingested)
    model, recipe = _quantized(ingested, recipe, say)
    say("measuring")
    report = _report(request, profile, ingested, model, recipe)
    say("cutting into layers and shards")
    partition = partition_tflite(
        model,
        [golden.inputs for golden in streams.golden],
        max_shard_bytes=profile.shard_limit_bytes,
        max_shards=request.max_shards,
    )
    whole = TfliteReference(model, mode="default")
    is_quantized = recipe.quantize.mode not in ("none", "float16") or any(
        tensor.type in ("INT8", "UINT8", "INT16") for tensor in model.graph.tensors
    )
    return Parts(
        name=model.name,
        origin=model.origin,
        partition=partition,
        runtimes=runtimes_of(model.graph),
        recipe=recipe,
        pairs=tuple(
            Answered(inputs=pair.inputs, outputs=pair.outputs, whole=whole.run(pair.inputs)) for pair in streams.golden
        ),
        streams=streams,
        tolerance=QUANTIZED_TOLERANCE if is_quantized else FLOAT_TOLERANCE,
        report=report,
        processing=ingested.processing,
        notes=ingested.notes,
    )


def _recipe(request: PackageRequest, profile: DeviceProfile) -> Recipe:
    if request.recipe is None:
        return recipe_for(profile, quantize=request.quantize, tflite=True)
    recipe = load_recipe(request.recipe)
    if recipe.prune or recipe.recover or recipe.learned or recipe.wire != "float32":
        raise RecipeError(
            f"{request.recipe}: TFLite models are quantized only; prune, recover and wire need an ONNX or PyTorch one"
        )
    return recipe


def _ingested(request: PackageRequest) -> IngestedTflite:
    if not request.to_tflite:
        return ingest_tflite(Path(request.source), shapes=request.shapes, inputs=request.inputs)
    from host.ingest.converted import to_tflite

    return to_tflite(request.source, shapes=request.shapes, inputs=request.inputs)


def _streams(request: PackageRequest, ingested: IngestedTflite) -> Streams:
    states, buckets = parse_states(request.states), parse_buckets(request.buckets)
    if not states and not buckets:
        return Streams(states=(), buckets=(), golden=ingested.golden)
    graph = ingested.model.graph
    dims = {graph.tensors[index].name: graph.tensors[index].dims for index in graph.inputs}
    run = TfliteReference(ingested.model, mode="default").run
    return resolve(states, buckets, ingested.golden, dims=dims, run=run)


def _quantized(ingested: IngestedTflite, recipe: Recipe, say: Say) -> tuple[TfliteModel, Recipe]:
    if recipe.quantize.mode == "none":
        return ingested.model, recipe
    from host.tflite.quantize_compress import compress_tflite

    made = compress_tflite(ingested.model, recipe, samples=ingested.samples, say=say)
    return made.model, made.recipe


def _report(
    request: PackageRequest, profile: DeviceProfile, ingested: IngestedTflite, model: TfliteModel, recipe: Recipe
) -> Report:
    """The report beside the recipe, or what the model answers against the source as it came, both as they run here."""
    beside = report_beside(request.recipe, recipe, ingested.model.origin.digest)
    if beside is not None:
        return beside
    if ingested.holdout:
        dataset = Dataset.held(ingested.holdout, groups=ingested.holdout_groups or None, name="the model's own samples")
    else:
        dataset = Dataset.held(ingested.samples, name="the samples that it was calibrated with")
    truth = answers(TfliteReference(ingested.model, mode="default"), dataset)
    metrics = default_metrics(truth[0])
    found = evaluate(answers(TfliteReference(model, mode="default"), dataset), truth, dataset, metrics)
    return Report(
        model=model.name,
        source_digest=model.origin.digest,
        profile=profile.id,
        recipe=recipe_digest(recipe),
        machine=litert_machine(),
        evaluations=(Evaluation(where=AS_RUN, dataset=dataset.name, samples=found.samples, scores=found.scores),),
        notes=ingested.notes,
    )
