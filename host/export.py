"""The way back: a bundle to one ONNX file, so that nobody is locked in."""

import os
import tempfile
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types
from onnx.external_data_helper import load_external_data_for_model

from edge.errors import BundleError
from edge.stage import compose
from host.bundle import OpenBundle
from host.errors import PackageError


def export_onnx(bundle: OpenBundle, target: Path) -> int:
    """Write the whole model, weights inside, and return its size in bytes.

    The graph is the one that was cut: optimised and, where the recipe says so, quantized.

    Raises:
        BundleError: a shard is malformed or does not hash to its name.
        PackageError: the shards are not ONNX, or the file cannot be written.
    """
    if bundle.manifest.shard_format != "onnx":
        raise PackageError(f"{bundle.folder}: its shards are TFLite models; only bundles of ONNX shards are exported")
    count = len(bundle.manifest.shards)
    for blob in bundle.manifest.blobs(0, count):
        bundle.read(blob)
    stage = compose(bundle.manifest, 0, count, read_blob=bundle.read, weights_folder=bundle.blobs_folder)
    try:
        model = onnx.load_model_from_string(stage.model)
    except DecodeError as error:
        raise BundleError(f"{bundle.folder}: the fragments do not join to a model") from error
    load_external_data_for_model(model, str(stage.weights_folder))
    model.graph.name = bundle.manifest.name
    data = model.SerializeToString(deterministic=True)
    try:
        _write(target, data)
    except OSError as error:
        raise PackageError(f"{target}: cannot be written ({error.strerror or error})") from error
    return len(data)


def _write(target: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)
