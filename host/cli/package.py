"""`shardwire package`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from host.cli.console import err, out, size_text, table
from host.compress.recipe import MODES
from host.compress.report.records import Evaluation
from host.dotted import DOTTED
from host.errors import PackageError
from host.ingest import is_tflite
from host.package import Packaged, PackageRequest, package
from host.partition.shards import MAX_SHARDS
from host.passes.transaction import NOTHING
from host.planning.branches import sections_of
from host.planning.workload import wire_bytes
from host.sign import signature_text


class _Runtime(StrEnum):
    ONNXRUNTIME = "onnxruntime"
    LITERT = "litert"
    BOTH = "both"


_Model = Annotated[
    str, typer.Argument(help="path.onnx, path.tflite, package.module:factory, or nothing for EfficientNet-Lite0.")
]
_Twin = Annotated[
    Path | None, typer.Option(help="TFLite file of the same weights: the bundle runs on ONNX Runtime and LiteRT.")
]
_For = Annotated[
    _Runtime | None,
    typer.Option(help="What shards are for; 'litert' and 'both' convert the model. Default: as the model comes."),
]
_States = Annotated[
    list[str] | None,
    typer.Option(help="An input that is the output of the request before, in a stream.", metavar="INPUT=OUTPUT"),
]
_Buckets = Annotated[
    list[str] | None,
    typer.Option(
        help="Sizes that clients pad a dimension to; @VALUE: with what; '->OUTPUT:AXIS': what is cut back.",
        metavar="INPUT:AXIS=SIZES",
    ),
]
_Inputs = Annotated[str | None, typer.Option(help="file.npz or package.module:callable, to verify and calibrate with.")]
_Processing = Annotated[
    Path | None, typer.Option(help="TOML file of what is done before and after the model.", metavar="FILE")
]
_Expires = Annotated[str | None, typer.Option(help="Date to write into the bundle as its expiry, YYYY-MM-DD.")]
_SliceAbove = Annotated[
    int | None,
    typer.Option(min=1, metavar="BYTES", help="Slice layers above this too; default: those above the limit."),
]


def command(
    model: _Model = "",
    profile: Annotated[str, typer.Option(help="Device profile: an id or a .toml file.")] = "rpi4",
    output: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the bundle.")] = None,
    twin: _Twin = None,
    runtime: _For = None,
    quantize: Annotated[str | None, typer.Option(help=f"{', '.join(MODES)}; default: the profile's choice.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Recipe file that reproduces a model bit for bit.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="NAME=SIZE binds a dynamic dimension.")] = None,
    state: _States = None,
    bucket: _Buckets = None,
    inputs: _Inputs = None,
    processing: _Processing = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the bundle.")] = None,
    version: Annotated[str, typer.Option(help="Version of the bundle; also its OCI tag.")] = "1.0.0",
    expires: _Expires = None,
    max_shards: Annotated[int, typer.Option(min=1, help="Join small layers to at most so many shards.")] = MAX_SHARDS,
    slice_above: _SliceAbove = None,
    key: Annotated[Path | None, typer.Option(help="Ed25519 private key (PEM) to sign the bundle with.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
) -> None:
    """Package a model."""
    if runtime is _Runtime.ONNXRUNTIME and (twin is not None or is_tflite(model)):
        raise PackageError("--runtime onnxruntime: a TFLite file is for LiteRT; leave out one of both")
    request = PackageRequest(
        source=model,
        profile=profile,
        target=output or Path("bundles") / f"{model_stem(model)}-{Path(profile).stem}",
        twin=twin,
        convert_twin=runtime is _Runtime.BOTH and twin is None,
        to_tflite=runtime is _Runtime.LITERT and not is_tflite(model),
        quantize=quantize,
        recipe=recipe,
        shapes=parse_shapes(shape or []),
        states=state or (),
        buckets=bucket or (),
        inputs=inputs,
        processing=processing,
        name=name,
        version=version,
        expires=expires,
        max_shards=max_shards,
        slice_above_bytes=slice_above,
        key=key,
        replace=force,
    )
    _report(_packaged(request))


def _packaged(request: PackageRequest) -> Packaged:
    with err.status("packaging") as status:

        def say(line: str) -> None:
            err.print(f"  {line}", style="dim")
            status.update(line)

        return package(request, say=say)


def model_stem(model: str) -> str:
    """Name of a folder for what is made of a model."""
    if not model:
        return "efficientnet-lite0"
    return model.rpartition(":")[2] if DOTTED.fullmatch(model) else Path(model).stem


def parse_shapes(words: list[str]) -> dict[str, int | tuple[int, ...]]:
    """Parse `batch=1` and `input=1x3x224x224`.

    Raises:
        PackageError: a word of another form.
    """
    shapes: dict[str, int | tuple[int, ...]] = {}
    for word in words:
        name, _, size = word.rpartition("=")
        sizes = size.replace(",", "x").split("x")
        if not name or not all(part.isdecimal() and 0 < int(part) < 1 << 31 for part in sizes):
            raise PackageError(f"--shape {word!r}: expected NAME=SIZE, such as batch=1 or image=1x3x224x224")
        numbers = tuple(int(part) for part in sizes)
        shapes[name] = numbers[0] if len(numbers) == 1 else numbers
    return shapes


def _report(result: Packaged) -> None:
    manifest = result.bundle.manifest
    largest = max(shard.size_bytes for shard in manifest.shards)
    for note in result.notes:
        err.print(f"note: {note}")
    for outcome in result.outcomes:
        if not outcome.kept and outcome.reason != NOTHING:
            err.print(f"note: pass {outcome.name} was left out: {outcome.reason}")
    rows = table("", "")
    rows.add_row("bundle", str(result.bundle.folder))
    rows.add_row("digest", result.bundle.artefact_digest)
    rows.add_row("profile", manifest.profile)
    compression = manifest.compression
    rows.add_row("weights", f"{compression.quantize} {compression.variant}".strip())
    rows.add_row("runtimes", ", ".join(need.name for need in manifest.needs))
    rows.add_row("layers", str(len(manifest.layers)))
    rows.add_row("shards", str(len(manifest.shards)))
    rows.add_row("largest shard", f"{size_text(largest)} of {size_text(manifest.max_shard_bytes)} allowed")
    if sections := sections_of(manifest, wire_bytes(manifest)):
        where = ", ".join(f"{section.first}-{section.stop - 1}" for section in sections[:8])
        more = f" and {len(sections) - 8} more places" if len(sections) > 8 else ""
        rows.add_row("may run side by side", f"branches in shards {where}{more}")
    for found in manifest.formats:
        size = sum(blob.size_bytes for blob in manifest.in_format(found).blobs(0, len(manifest.shards)))
        rows.add_row(f"shards in all, {found}" if manifest.builds else "shards in all", size_text(size))
    for evaluation in result.report.evaluations:
        rows.add_row(f"fidelity, {evaluation.where}", _fidelity_text(evaluation))
    rows.add_row("signature", signature_text(result.bundle))
    out.print(rows)


def _fidelity_text(evaluation: Evaluation) -> str:
    figures = ", ".join(f"{score.metric} {score.value:.4g}" for score in evaluation.scores)
    return f"{figures}; {evaluation.samples} inputs of {evaluation.dataset}"
