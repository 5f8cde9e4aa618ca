"""The names by which converters call the inputs and outputs of a `.tflite` file, which need not be those of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from host.errors import IngestError
from host.tflite.file import MAX_TFLITE_PARTS


def signature(data: bytes, *, where: str) -> tuple[dict[str, int], dict[str, int]]:
    """Tensor of the main subgraph by name of an input and of an output, of the first signature; empty without one.

    Args:
        data: A file that `host.tflite.file.unpack` has read.
        where: For messages.

    Raises:
        IngestError: The signature is damaged.
    """
    try:
        model: Any = schema.Model.GetRootAs(data, 0)
        if model.SignatureDefsLength() == 0:
            return {}, {}
        first = model.SignatureDefs(0)
        return _names(first.InputsLength(), first.Inputs), _names(first.OutputsLength(), first.Outputs)
    except Exception as error:
        # struct.error, IndexError, UnicodeDecodeError…: whatever a damaged offset leads to.
        raise IngestError(f"{where}: a damaged TFLite file: its signature cannot be read") from error


def _names(count: int, get: Callable[[int], Any]) -> dict[str, int]:
    if count > MAX_TFLITE_PARTS:
        raise ValueError("too many names")
    return {get(i).Name().decode(): int(get(i).TensorIndex()) for i in range(count)}
