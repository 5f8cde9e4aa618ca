"""A TFLite twin beside a model: packaged into the same bundle, for fleets of two runtimes.

`host.tflite` is imported late, so that packaging an ONNX file needs no LiteRT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.formats.bundle import decode_manifest, digest_of, encode_manifest
from host.bundle import BundleContent
from host.compress.recipe import Recipe
from host.errors import PackageError
from host.ingest import require_litert
from host.model import Ingested, Model, Origin
from host.passes.bind_shapes import Binding

if TYPE_CHECKING:
    from host.tflite.model import TfliteModel
    from host.tflite.twin import Twins

TWIN_TOLERANCES = (1e-4, 1e-3, 1e-2, 0.1, 0.5)
"""Relative errors of shards against the whole model: a bundle states the first that is no less than `TWIN_MARGIN` times
what the twin's answers differ by here, or the last."""

TWIN_MARGIN = 10
"""Other processors, and other cuts, add up differently."""

QUANTIZED_TWIN_COSINE = 0.9
"""Cosine to the source model that a quantized twin keeps."""


def check_twin(recipe: Recipe, *, sliced: bool) -> None:
    """Raise `PackageError` where what is done to the model does not go with a twin.

    Args:
        recipe: of the model: nothing that changes its tensors may be in it.
        sliced: whether layers are to be sliced.
    """
    if recipe.quantize.mode != "none" or recipe.prune or recipe.recover or recipe.wire != "float32":
        raise PackageError(
            "a twin holds the weights as they came, so the model keeps its own: leave out --quantize and --recipe"
        )
    if sliced:
        raise PackageError("layers that two runtimes share are not sliced: leave out --slice-above")


def read_twin(path: Path) -> TfliteModel:
    """Read a twin from a `.tflite` file.

    Raises:
        IngestError: the file cannot be read, or LiteRT is missing.
        UnsupportedModelError: it holds what stages cannot run.
    """
    require_litert(f"--twin {path}")
    from host.tflite.model import read_tflite

    return read_tflite(path)


def converted_twin(source: str, *, shapes: Mapping[str, Binding], inputs: str | None) -> TfliteModel:
    """Convert a source to its own twin; see `host.ingest.converted.to_tflite`.

    Raises:
        IngestError: the source cannot be read, or a converter is missing or fails.
        UnsupportedModelError: nothing converts such a source.
    """
    require_litert("--runtime both")
    from host.ingest.converted import to_tflite

    model = to_tflite(source, shapes=shapes, inputs=inputs).model
    origin = Origin(format="tflite", digest=digest_of(model.data), description=model.origin.description)
    return dataclasses.replace(model, origin=origin)


def partition_with_twin(
    model: Model, ingested: Ingested, twin: TfliteModel, *, max_shard_bytes: int, max_shards: int
) -> Twins:
    """Cut a model and its twin into the same shards; see `host.tflite.twin.partition_twins`.

    Args:
        model: as it is cut.
        ingested: its golden inputs and samples.
        twin: from `read_twin`.
        max_shard_bytes: the profile's limit.
        max_shards: how many shards are wanted at most.
    """
    from host.tflite.twin import partition_twins

    return partition_twins(
        model,
        twin,
        [golden.inputs for golden in ingested.golden],
        more=ingested.samples,
        max_shard_bytes=max_shard_bytes,
        max_shards=max_shards,
    )


def with_twin(content: BundleContent, twins: Twins) -> BundleContent:
    """Return a bundle with the shards of the twin as its second build, and tolerances that both keep.

    Both sources are named in the origin: its digest stays that of the model, whose answers are the golden ones.
    """
    manifest = content.manifest
    known = f"{manifest.origin.description}; " if manifest.origin.description else ""
    quantized = twins.quantized
    least = TWIN_MARGIN * twins.error
    tolerance = next((each for each in TWIN_TOLERANCES if each >= least), TWIN_TOLERANCES[-1])
    manifest = msgspec.structs.replace(
        manifest,
        origin=msgspec.structs.replace(manifest.origin, description=f"{known}{twins.description}"),
        builds=(twins.build,),
        tolerance=max(manifest.tolerance, tolerance),
        least_cosine=min(manifest.least_cosine, QUANTIZED_TWIN_COSINE) if quantized else manifest.least_cosine,
    )
    decode_manifest(encode_manifest(manifest))
    return dataclasses.replace(content, manifest=manifest)
