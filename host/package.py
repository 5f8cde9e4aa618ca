"""From a model file and a profile to a bundle: the whole way of the data on the workstation."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from edge.formats.bundle import (
    Blob,
    Compression,
    GoldenPair,
    Manifest,
    Origin,
    RuntimeNeed,
    decode_manifest,
    encode_manifest,
)
from edge.formats.frame import FrameHeader, encode_frame
from edge.formats.profile import DeviceProfile, load_profile
from edge.formats.topics import check_name
from host.bundle import BundleContent, OpenBundle, blob_of, check_target, write_bundle
from host.compare import cosine
from host.compress.data.inputs import own_samples
from host.compress.learned import load_learned
from host.compress.pipeline import Compressed, Say, compress, silent
from host.compress.recipe import Recipe, dump_recipe, load_recipe, recipe_for
from host.compress.report.records import Report, encode_report
from host.compress.report.summary import Judge, report_beside, short_report
from host.errors import PackageError
from host.ingest import ingest, is_tflite, require_litert
from host.ingest.inputs import input_specs
from host.model import Golden, Ingested, Model, Tensors
from host.partition.build import partition
from host.partition.shards import MAX_SHARDS
from host.parts import Answered, Parts
from host.passes.transaction import PassOutcome
from host.processing import processing_for, read_processing
from host.reference import Reference
from host.sign import signer
from host.streams import Streams, parse_buckets, parse_states, resolve
from host.twins import check_twin, converted_twin, partition_with_twin, read_twin, with_twin

if TYPE_CHECKING:
    from host.tflite.model import TfliteModel

FLOAT_TOLERANCE = 1e-4
"""Relative error of fp32 shards against the whole model, across processors."""

INT8_TOLERANCE = 0.25
"""Relative error of int8 shards against the whole model, across processors: kernels differ by a quantization step."""

INT4_TOLERANCE = 5e-2
"""The same for int4: its kernels round activations to 8 bits, each processor's in its own blocks."""

LEAST_RUNTIME = "1.22.0"
"""First onnxruntime that takes weights from a folder beside a model in memory."""

HALF_WIRE_TOLERANCE = 5e-3
"""The same where fp32 tensors travel in half precision, with its ten bits of fraction."""

_TOLERANCES = {
    "none": FLOAT_TOLERANCE,
    "float16": FLOAT_TOLERANCE,
    "int4": INT4_TOLERANCE,
    "int8": INT8_TOLERANCE,
    "int8-dynamic": INT8_TOLERANCE,
    "int8-weights": INT4_TOLERANCE,
}
_LEAST_COSINE = {"none": 0.9999, "float16": 0.999, "int8": 0.9, "int8-dynamic": 0.9, "int8-weights": 0.9, "int4": 0.8}
_PRUNED_SLACK = 0.05
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageRequest:
    """What to package, for which device, and where to.

    Attributes:
        source: a path that ends in `.onnx` or `.tflite`, `package.module:factory`, or empty for the default model.
        profile: profile id or path.
        target: folder of the bundle.
        twin: a TFLite file of the same weights, whose shards go into the bundle too; None for one runtime.
        quantize: a mode of `host.compress.recipe.MODES`, or None for what the profile prefers.
        recipe: recipe file, or None; a report beside it that tells how it was found goes into the bundle.
        shapes: sizes for dynamic dimensions.
        states: what a stream carries along, as `INPUT=OUTPUT`, see `host.streams`.
        buckets: dimensions that clients pad, as `INPUT:AXIS=SIZE,SIZE`, see `host.streams`.
        inputs: `file.npz` or `package.module:callable`.
        processing: TOML file of what is done before and after the model; None for what the source says.
        name: of the model in topics; from the source when None.
        version: orders updates.
        expires: ISO date, or None.
        max_shards: how many shards are wanted at most.
        slice_above_bytes: layers above this are sliced, so that slices may run side by side; None for only those that
            exceed the profile's limit.
        key: PEM file with the Ed25519 private key to sign with, or None.
        replace: whether a bundle at `target` may be replaced.
        convert_twin: whether the twin is made of the source by a converter.
        to_tflite: whether a source of another format is converted to TFLite first.
    """

    source: str
    profile: str
    target: Path
    twin: Path | None = None
    quantize: str | None = None
    recipe: Path | None = None
    shapes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    states: Sequence[str] = ()
    buckets: Sequence[str] = ()
    inputs: str | None = None
    processing: Path | None = None
    name: str | None = None
    version: str = "1.0.0"
    expires: str | None = None
    max_shards: int = MAX_SHARDS
    slice_above_bytes: int | None = None
    key: Path | None = None
    replace: bool = False
    convert_twin: bool = False
    to_tflite: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Packaged:
    """A bundle on disk and what was learnt on the way.

    Attributes:
        bundle: opened.
        outcomes: of every graph pass, in order; none of a TFLite model.
        report: what was measured.
        notes: things the user should hear.
    """

    bundle: OpenBundle
    outcomes: tuple[PassOutcome, ...]
    report: Report
    notes: tuple[str, ...]


def package(request: PackageRequest, *, say: Say = silent) -> Packaged:
    """Package a model for a device profile.

    Args:
        request: what, for whom, where to.
        say: told each step as it begins.

    Raises:
        ProfileError: the profile is unknown or malformed.
        UserError: the model, recipe, profile limit or target does not allow it; nothing is written.
    """
    profile = load_profile(request.profile)
    _check_request(request)
    if request.recipe is not None and request.quantize is not None:
        raise PackageError(f"--recipe {request.recipe} says how to quantize: leave out --quantize {request.quantize}")
    sign = signer(request.key) if request.key is not None else None
    if request.to_tflite or is_tflite(request.source):
        if _has_twin(request):
            raise PackageError("a twin goes with an ONNX or PyTorch model: that is the other one")
        require_litert(request.source)
        from host.tflite.package import tflite_parts

        parts = tflite_parts(request, profile, say=say)
    else:
        parts = _onnx_parts(request, profile, say)
    say(f"writing {request.target}")
    content = dataclasses.replace(_content(request, profile, parts), report=encode_report(parts.report), signer=sign)
    if parts.twins is not None:
        content = with_twin(content, parts.twins)
    bundle = write_bundle(content, request.target, replace=request.replace)
    return Packaged(bundle=bundle, outcomes=parts.outcomes, report=parts.report, notes=parts.notes)


def _onnx_parts(request: PackageRequest, profile: DeviceProfile, say: Say) -> Parts:
    recipe = load_recipe(request.recipe) if request.recipe else recipe_for(profile, quantize=_quantize(request))
    twin = _twin(request, recipe, say)
    say("reading the model")
    ingested = ingest(request.source, shapes=request.shapes, inputs=request.inputs)
    streams = _streams(request, ingested)
    ingested = dataclasses.replace(ingested, golden=streams.golden)
    learned = load_learned(request.recipe, recipe.learned) if request.recipe and recipe.learned else None
    compressed = compress(ingested, recipe, learned=learned, say=say)
    say("measuring")
    report = _report(request, profile, ingested, compressed)
    say("cutting into layers and shards")
    samples = [golden.inputs for golden in ingested.golden]
    limits = {"max_shard_bytes": profile.shard_limit_bytes, "max_shards": request.max_shards}
    twins = None if twin is None else partition_with_twin(compressed.model, ingested, twin, **limits)
    if twins is not None:
        cut = twins.partition
    else:
        cut = partition(compressed.model, samples, **limits, slice_above_bytes=request.slice_above_bytes)
    return Parts(
        name=ingested.model.name,
        origin=ingested.model.origin,
        partition=cut,
        runtimes=(RuntimeNeed(name="onnxruntime", least_version=LEAST_RUNTIME),),
        recipe=compressed.recipe,
        learned=compressed.learned_bytes,
        pairs=_golden(ingested.golden, compressed.model),
        streams=streams,
        tolerance=_tolerance(compressed.recipe),
        report=report,
        processing=ingested.processing,
        twins=twins,
        outcomes=compressed.outcomes,
        notes=ingested.notes,
    )


def _streams(request: PackageRequest, ingested: Ingested) -> Streams:
    states, buckets = parse_states(request.states), parse_buckets(request.buckets)
    if not states and not buckets:
        return Streams(states=(), buckets=(), golden=ingested.golden)
    specs = input_specs(ingested.model.ir)
    dims = {spec.name: spec.shape or (None,) * ingested.golden[0].inputs[spec.name].ndim for spec in specs}
    return resolve(states, buckets, ingested.golden, dims=dims, run=Reference(ingested.model, mode="exact").run)


def _has_twin(request: PackageRequest) -> bool:
    return request.convert_twin or request.twin is not None


def _twin(request: PackageRequest, recipe: Recipe, say: Say) -> TfliteModel | None:
    if not _has_twin(request):
        return None
    check_twin(recipe, sliced=request.slice_above_bytes is not None)
    if request.twin is not None:
        return read_twin(request.twin)
    say("converting the model to TFLite")
    return converted_twin(request.source, shapes=request.shapes, inputs=request.inputs)


def _quantize(request: PackageRequest) -> str | None:
    """Return the mode that is asked for; beside a twin it is none: what both share are the weights as they came."""
    return "none" if _has_twin(request) and request.quantize is None else request.quantize


def _check_request(request: PackageRequest) -> None:
    if request.name is not None:
        check_name(request.name, what="model name")
    if not _VERSION.fullmatch(request.version):
        raise PackageError(f"version {request.version!r}: use letters, digits, '.', '_' and '-', at most 64")
    if request.expires is not None and not _is_date(request.expires):
        raise PackageError(f"expiry {request.expires!r} is no date: give YYYY-MM-DD")
    check_target(request.target, replace=request.replace)
    if request.processing is not None:
        read_processing(request.processing)  # before the work begins; again when the outputs are known


def _is_date(text: str) -> bool:
    try:
        return _DATE.fullmatch(text) is not None and bool(date.fromisoformat(text))
    except ValueError:
        return False


def _content(request: PackageRequest, profile: DeviceProfile, parts: Parts) -> BundleContent:
    cut = parts.partition
    declared = processing_for(request.processing, parts.processing, inputs=cut.inputs, outputs=cut.outputs)
    blobs = {**cut.blobs, **declared.files}

    def store(data: bytes) -> Blob:
        blob = blob_of(data)
        blobs[blob.digest] = data
        return blob

    quantized = parts.recipe.quantize.mode
    manifest = Manifest(
        name=request.name or parts.name,
        version=request.version,
        origin=Origin(
            format=parts.origin.format,
            digest=parts.origin.digest,
            licence=parts.origin.licence or "unknown",
            description=parts.origin.description,
        ),
        profile=profile.id,
        max_shard_bytes=profile.shard_limit_bytes,
        compression=Compression(
            quantize=quantized,
            variant=parts.recipe.quantize.variant if quantized == "int8" else "",
            recipe=store(dump_recipe(parts.recipe).encode()),
            learned=store(parts.learned) if parts.learned else None,
        ),
        operators=cut.operators,
        runtimes=parts.runtimes,
        header=cut.header,
        inputs=cut.inputs,
        outputs=cut.outputs,
        tensors=cut.tensors,
        cuts=cut.cuts,
        layers=cut.layers,
        shards=cut.shards,
        golden=tuple(_stored(pair, store) for pair in parts.pairs),
        tolerance=parts.tolerance,
        least_cosine=_least_cosine(parts.recipe, parts.pairs),
        processing=declared.processing,
        expires=request.expires,
        states=parts.streams.states,
        buckets=parts.streams.buckets,
    )
    decode_manifest(encode_manifest(manifest))
    return BundleContent(
        manifest=manifest,
        blobs=blobs,
        tag=request.version,
        parameter_count=cut.parameter_count,
    )


def _report(request: PackageRequest, profile: DeviceProfile, ingested: Ingested, compressed: Compressed) -> Report:
    """The report that lies beside the recipe where it is of this very model, else what is measured now."""
    found = report_beside(request.recipe, compressed.recipe, ingested.model.origin.digest)
    if found is not None:
        return found
    judge = Judge(compressed.original, own_samples(ingested))
    return short_report(compressed, profile=profile.id, evaluations=judge.both(compressed), notes=ingested.notes)


def _golden(golden: Sequence[Golden], whole: Model) -> tuple[Answered, ...]:
    reference = Reference(whole, mode="exact")
    return tuple(
        Answered(inputs=pair.inputs, outputs=pair.outputs, whole=reference.run(pair.inputs)) for pair in golden
    )


def _stored(pair: Answered, store: Callable[[bytes], Blob]) -> GoldenPair:
    return GoldenPair(
        inputs=store(golden_frame(pair.inputs)),
        outputs=store(golden_frame(pair.outputs)),
        whole=store(golden_frame(pair.whole)),
    )


def _tolerance(recipe: Recipe) -> float:
    least = HALF_WIRE_TOLERANCE if recipe.wire == "float16" else FLOAT_TOLERANCE
    return max(least, _TOLERANCES[recipe.quantize.mode])


def _least_cosine(recipe: Recipe, pairs: Sequence[Answered]) -> float:
    """What every answer must keep of the source's.

    Where the recipe prunes, the source's own golden inputs say what can be asked for, less a little for other
    processors: how close a pruned model comes was decided before, by whoever accepted its recipe.
    """
    usual = _LEAST_COSINE[recipe.quantize.mode]
    if not recipe.prune:
        return usual
    found = min((cosine(pair.whole[name], pair.outputs[name]) for pair in pairs for name in pair.outputs), default=1.0)
    return min(usual, math.floor((found - _PRUNED_SLACK) * 100) / 100)


def golden_frame(tensors: Tensors) -> bytes:
    """Encode golden tensors as a frame whose header names no sender, epoch or time."""
    header = FrameHeader(
        kind="result", request_id="golden", sender="", reply_to="", ttl_ms=0, deployment="", epoch="", stage=0
    )
    return encode_frame(header, dict(sorted(tensors.items())))
