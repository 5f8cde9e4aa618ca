"""From a source, such as a file, to a model, its inputs and what it answers. One framework a module."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from host.dotted import DOTTED
from host.errors import IngestError, UnsupportedModelError
from host.model import Ingested
from host.passes.bind_shapes import Binding

_NO_SHAPES: Mapping[str, Binding] = {}
_TENSORFLOW = frozenset((".h5", ".hdf5", ".keras", ".pb"))
_UNSUPPORTED = {
    ".pt": "a PyTorch checkpoint holds no architecture; write a factory and pass package.module:factory",
    ".pth": "a PyTorch checkpoint holds no architecture; write a factory and pass package.module:factory",
    ".pt2": "exported PyTorch programs are not read yet; pass package.module:factory",
    ".safetensors": "safetensors hold no architecture; write a factory and pass package.module:factory",
    ".gguf": "GGUF files hold no graph; pass package.module:factory",
}


def is_tflite(source: str) -> bool:
    """Tell whether a source is a TFLite file, which `host.ingest.tflite` reads."""
    return Path(source).suffix.lower() == ".tflite"


def require_litert(source: str) -> None:
    """Raise `IngestError` where the package that reads and runs TFLite files is missing."""
    if find_spec("ai_edge_litert") is None:
        raise IngestError(f"{source}: ai-edge-litert is not installed: pip install 'shardwire[litert]'")


def is_tensorflow(path: Path) -> bool:
    """Tell whether a path is a TensorFlow model: the folder of a SavedModel, a Keras file, or a frozen graph."""
    return path.suffix.lower() in _TENSORFLOW or (path / "saved_model.pb").is_file()


def ingest(source: str, *, shapes: Mapping[str, Binding] = _NO_SHAPES, inputs: str | None = None) -> Ingested:
    """Read a model.

    Args:
        source: A path that ends in ``.onnx``; a TensorFlow model: the folder of a SavedModel, or a path that ends in
            ``.keras``, ``.h5``, ``.hdf5`` or ``.pb``; ``package.module:factory`` of a torch module; or
            ``efficientnet-lite0`` (also when empty), the default model.
        shapes: Sizes for dynamic dimensions, by dimension or input name.
        inputs: ``file.npz`` or ``package.module:callable`` with inputs for verification and calibration.

    Raises:
        IngestError: If the source or the inputs cannot be read, or a package is missing.
        UnsupportedModelError: If stages could not run the model.
    """
    if source in ("", "efficientnet-lite0"):
        if shapes or inputs is not None:
            raise IngestError("the default model brings its own inputs and shapes: leave out --shape and --inputs")
        from host.ingest.zoo import ingest_efficientnet_lite0

        return ingest_efficientnet_lite0()
    if is_tflite(source):
        raise UnsupportedModelError(f"{source}: this needs an ONNX or PyTorch model, not a TFLite file")
    path = Path(source)
    if is_tensorflow(path):
        from host.ingest.tensorflow import ingest_tensorflow

        return ingest_tensorflow(path, shapes=shapes, inputs=inputs)
    if reason := _UNSUPPORTED.get(path.suffix.lower()):
        raise UnsupportedModelError(f"{source}: {reason}")
    if path.suffix.lower() == ".onnx" or path.is_file():
        from host.ingest.onnx import ingest_onnx

        return ingest_onnx(path, shapes=shapes, inputs=inputs)
    if DOTTED.fullmatch(source):
        from host.ingest.torch import ingest_torch

        return ingest_torch(source, shapes=shapes, inputs=inputs)
    raise IngestError(
        f"{source!r} is no model: give a path that ends in .onnx, package.module:factory, or efficientnet-lite0"
    )
