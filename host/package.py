"""From a model file and a profile to a bundle: the whole way of the data on the workstation."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

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
from host.compress.report.records import REPORT_FILE, Report, decode_report, encode_report
from host.compress.report.summary import Judge, recipe_digest, short_report
from host.errors import PackageError
from host.ingest import ingest
from host.model import Ingested, Model, Tensors
from host.partition.build import Partition, partition
from host.partition.shards import MAX_SHARDS
from host.reference import Reference
from host.sign import signer

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
}
_LEAST_COSINE = {"none": 0.9999, "float16": 0.999, "int8": 0.9, "int8-dynamic": 0.9, "int4": 0.8}
_PRUNED_SLACK = 0.05
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageRequest:
    """What to package, for which device, and where to.

    Attributes:
        source: a path that ends in `.onnx`, `package.module:factory`, or empty for the default model.
        profile: profile id or path.
        target: folder of the bundle.
        quantize: a mode of `host.compress.recipe.MODES`, or None for what the profile prefers.
        recipe: recipe file, or None; a report beside it that tells how it was found goes into the bundle.
        shapes: sizes for dynamic dimensions.
        inputs: `file.npz` or `package.module:callable`.
        name: of the model in topics; from the source when None.
        version: orders updates.
        expires: ISO date, or None.
        max_shards: how many shards are wanted at most.
        slice_above_bytes: layers above this are sliced, so that slices may run side by side; None for only those that
            exceed the profile's limit.
        key: PEM file with the Ed25519 private key to sign with, or None.
        replace: whether a bundle at `target` may be replaced.
    """

    source: str
    profile: str
    target: Path
    quantize: str | None = None
    recipe: Path | None = None
    shapes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    inputs: str | None = None
    name: str | None = None
    version: str = "1.0.0"
    expires: str | None = None
    max_shards: int = MAX_SHARDS
    slice_above_bytes: int | None = None
    key: Path | None = None
    replace: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Packaged:
    """A bundle on disk and what was learnt on the way.

    Attributes:
        bundle: opened.
        compressed: the model and how it came about.
        report: what was measured.
        notes: things the user should hear.
    """

    bundle: OpenBundle
    compressed: Compressed
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
    recipe = load_recipe(request.recipe) if request.recipe else recipe_for(profile, quantize=request.quantize)
    sign = signer(request.key) if request.key is not None else None
    say("reading the model")
    ingested = ingest(request.source, shapes=request.shapes, inputs=request.inputs)
    learned = load_learned(request.recipe, recipe.learned) if request.recipe and recipe.learned else None
    compressed = compress(ingested, recipe, learned=learned, say=say)
    say("measuring")
    report = _report(request, profile, ingested, compressed)
    say("cutting into layers and shards")
    samples = [golden.inputs for golden in ingested.golden]
    parts = partition(
        compressed.model,
        samples,
        max_shard_bytes=profile.shard_limit_bytes,
        max_shards=request.max_shards,
        slice_above_bytes=request.slice_above_bytes,
    )
    say(f"writing {request.target}")
    content = dataclasses.replace(
        _content(request, profile, ingested, compressed, parts), report=encode_report(report), signer=sign
    )
    bundle = write_bundle(content, request.target, replace=request.replace)
    return Packaged(bundle=bundle, compressed=compressed, report=report, notes=ingested.notes)


def _check_request(request: PackageRequest) -> None:
    if request.name is not None:
        check_name(request.name, what="model name")
    if not _VERSION.fullmatch(request.version):
        raise PackageError(f"version {request.version!r}: use letters, digits, '.', '_' and '-', at most 64")
    if request.expires is not None and not _is_date(request.expires):
        raise PackageError(f"expiry {request.expires!r} is no date: give YYYY-MM-DD")
    check_target(request.target, replace=request.replace)


def _is_date(text: str) -> bool:
    try:
        return _DATE.fullmatch(text) is not None and bool(date.fromisoformat(text))
    except ValueError:
        return False


def _content(
    request: PackageRequest, profile: DeviceProfile, ingested: Ingested, compressed: Compressed, parts: Partition
) -> BundleContent:
    blobs = dict(parts.blobs)

    def store(data: bytes) -> Blob:
        blob = blob_of(data)
        blobs[blob.digest] = data
        return blob

    quantized = compressed.recipe.quantize.mode
    pairs = _golden(ingested, compressed.model)
    origin = ingested.model.origin
    manifest = Manifest(
        name=request.name or ingested.model.name,
        version=request.version,
        origin=Origin(
            format=origin.format,
            digest=origin.digest,
            licence=origin.licence or "unknown",
            description=origin.description,
        ),
        profile=profile.id,
        max_shard_bytes=profile.shard_limit_bytes,
        compression=Compression(
            quantize=quantized,
            variant=compressed.recipe.quantize.variant if quantized == "int8" else "",
            recipe=store(dump_recipe(compressed.recipe).encode()),
            learned=store(compressed.learned_bytes) if compressed.learned_bytes else None,
        ),
        operators=parts.operators,
        runtimes=(RuntimeNeed(name="onnxruntime", least_version=LEAST_RUNTIME),),
        header=parts.header,
        inputs=parts.inputs,
        outputs=parts.outputs,
        tensors=parts.tensors,
        cuts=parts.cuts,
        layers=parts.layers,
        shards=parts.shards,
        golden=tuple(_stored(pair, store) for pair in pairs),
        tolerance=_tolerance(compressed.recipe),
        least_cosine=_least_cosine(compressed.recipe, pairs),
        preprocess=ingested.preprocess,
        labels=ingested.classes,
        expires=request.expires,
    )
    decode_manifest(encode_manifest(manifest))
    return BundleContent(
        manifest=manifest,
        blobs=blobs,
        tag=request.version,
        parameter_count=parts.parameter_count,
    )


def _report(request: PackageRequest, profile: DeviceProfile, ingested: Ingested, compressed: Compressed) -> Report:
    """The report that lies beside the recipe where it is of this very model, else what is measured now."""
    path = request.recipe.with_name(REPORT_FILE) if request.recipe is not None else None
    if path is not None and path.is_file():
        found = decode_report(path.read_bytes(), where=str(path))
        if found.recipe == recipe_digest(compressed.recipe) and found.source_digest == ingested.model.origin.digest:
            return found
    judge = Judge(compressed.original, own_samples(ingested))
    return short_report(compressed, profile=profile.id, evaluations=judge.both(compressed), notes=ingested.notes)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answered:
    """A golden input with what the source and the compressed whole answer."""

    inputs: Tensors
    outputs: Tensors
    whole: Tensors


def _golden(ingested: Ingested, whole: Model) -> tuple[_Answered, ...]:
    reference = Reference(whole, mode="exact")
    return tuple(
        _Answered(inputs=golden.inputs, outputs=golden.outputs, whole=reference.run(golden.inputs))
        for golden in ingested.golden
    )


def _stored(pair: _Answered, store: Callable[[bytes], Blob]) -> GoldenPair:
    return GoldenPair(
        inputs=store(golden_frame(pair.inputs)),
        outputs=store(golden_frame(pair.outputs)),
        whole=store(golden_frame(pair.whole)),
    )


def _tolerance(recipe: Recipe) -> float:
    least = HALF_WIRE_TOLERANCE if recipe.wire == "float16" else FLOAT_TOLERANCE
    return max(least, _TOLERANCES[recipe.quantize.mode])


def _least_cosine(recipe: Recipe, pairs: Sequence[_Answered]) -> float:
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
