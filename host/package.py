"""From a model file and a profile to a bundle: the whole way of the data on the workstation."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import msgspec

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
from host.compress.measure import Fidelity, fidelity
from host.compress.quantize import quantize
from host.compress.recipe import Recipe, dump_recipe, load_recipe, recipe_for
from host.errors import PackageError
from host.ingest import ingest
from host.model import Ingested, Model, Tensors
from host.partition.build import Partition, partition
from host.partition.shards import MAX_SHARDS
from host.passes.fuse import fuse
from host.passes.normalise import normalise
from host.passes.optimise import optimize
from host.passes.transaction import PassOutcome
from host.reference import Reference
from host.sign import signer

FLOAT_TOLERANCE = 1e-4
"""Relative error of fp32 shards against the whole model, across processors."""

INT8_TOLERANCE = 0.25
"""Relative error of int8 shards against the whole model, across processors: kernels differ by a quantization step."""

LEAST_RUNTIME = "1.22.0"
"""First onnxruntime that takes weights from a folder beside a model in memory."""

_LEAST_COSINE = {"none": 0.9999, "int8": 0.9}
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")

Say = Callable[[str], None]


def _silent(line: str) -> None:
    del line


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageRequest:
    """What to package, for which device, and where to.

    Attributes:
        source: a path that ends in `.onnx`, `package.module:factory`, or empty for the default model.
        profile: profile id or path.
        target: folder of the bundle.
        quantize: `int8`, `none`, or None for what the profile prefers.
        recipe: recipe file, or None.
        shapes: sizes for dynamic dimensions.
        inputs: `file.npz` or `package.module:callable`.
        name: of the model in topics; from the source when None.
        version: orders updates.
        expires: ISO date, or None.
        max_shards: how many shards are wanted at most.
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
    key: Path | None = None
    replace: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Compressed:
    """The model before cutting, and how true it stayed.

    Attributes:
        model: fused, as it is cut.
        recipe: complete, so that replaying it needs no calibration.
        outcomes: of every pass, in order.
        unfused: fidelity to the source with all graph optimisation off, before fusing; None without quantization.
        as_run: fidelity to the source as devices run it.
    """

    model: Model
    recipe: Recipe
    outcomes: tuple[PassOutcome, ...]
    unfused: Fidelity | None
    as_run: Fidelity


@dataclass(frozen=True, kw_only=True, slots=True)
class Packaged:
    """A bundle on disk and what was learnt on the way.

    Attributes:
        bundle: opened.
        compressed: the model and its fidelity.
        notes: things the user should hear.
    """

    bundle: OpenBundle
    compressed: Compressed
    notes: tuple[str, ...]


def package(request: PackageRequest, *, say: Say = _silent) -> Packaged:
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
    compressed = compress(ingested, recipe, say=say)
    say("cutting into layers and shards")
    samples = [golden.inputs for golden in ingested.golden]
    parts = partition(
        compressed.model, samples, max_shard_bytes=profile.shard_limit_bytes, max_shards=request.max_shards
    )
    say(f"writing {request.target}")
    content = _content(request, profile, ingested, compressed, parts)
    bundle = write_bundle(dataclasses.replace(content, signer=sign), request.target, replace=request.replace)
    return Packaged(bundle=bundle, compressed=compressed, notes=ingested.notes)


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


def compress(ingested: Ingested, recipe: Recipe, *, say: Say = _silent) -> Compressed:
    """Optimise, quantize and fuse a model as a recipe says.

    Raises:
        UserError: the model or recipe does not allow it.
    """
    say("optimising")
    normal = normalise(ingested.model)
    small, first = optimize(normal, ingested.samples)
    unfused: Fidelity | None = None
    evidence = ingested.holdout or ingested.samples
    if recipe.quantize.mode != "none":
        say(f"quantizing to {recipe.quantize.mode} with {len(ingested.samples)} samples")
        small, recipe = quantize(small, recipe, ingested.samples)
        unfused = fidelity(normal, small, evidence, mode="exact")
    say("fusing")
    fused, second = fuse(small, ingested.samples)
    as_run = fidelity(normal, fused, evidence, mode="default")
    return Compressed(model=fused, recipe=recipe, outcomes=(*first, *second), unfused=unfused, as_run=as_run)


def _content(
    request: PackageRequest, profile: DeviceProfile, ingested: Ingested, compressed: Compressed, parts: Partition
) -> BundleContent:
    blobs = dict(parts.blobs)

    def store(data: bytes) -> Blob:
        blob = blob_of(data)
        blobs[blob.digest] = data
        return blob

    quantized = compressed.recipe.quantize.mode
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
            variant=compressed.recipe.quantize.variant if quantized != "none" else "",
            recipe=store(dump_recipe(compressed.recipe).encode()),
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
        golden=_golden(ingested, compressed.model, store),
        tolerance=FLOAT_TOLERANCE if quantized == "none" else INT8_TOLERANCE,
        least_cosine=_LEAST_COSINE[quantized],
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
        report=_report(compressed),
    )


def _report(compressed: Compressed) -> bytes:
    """Encode what was measured: fidelity to the source and the outcome of every pass."""
    return msgspec.json.encode(
        {
            "format": "1.0",
            "fidelity_unfused": compressed.unfused,
            "fidelity_as_run": compressed.as_run,
            "passes": compressed.outcomes,
        },
        order="sorted",
    )


def _golden(ingested: Ingested, whole: Model, store: Callable[[bytes], Blob]) -> tuple[GoldenPair, ...]:
    reference = Reference(whole, mode="exact")
    return tuple(
        GoldenPair(
            inputs=store(golden_frame(golden.inputs)),
            outputs=store(golden_frame(golden.outputs)),
            whole=store(golden_frame(reference.run(golden.inputs))),
        )
        for golden in ingested.golden
    )


def golden_frame(tensors: Tensors) -> bytes:
    """Encode golden tensors as a frame whose header names no sender, epoch or time."""
    header = FrameHeader(
        kind="result", request_id="golden", sender="", reply_to="", ttl_ms=0, deployment="", epoch="", stage=0
    )
    return encode_frame(header, dict(sorted(tensors.items())))
