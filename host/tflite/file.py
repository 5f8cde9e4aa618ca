"""`.tflite` files as trees of records: read with bounds, and written so that equal trees give equal bytes.

A file is unpacked by Python code that cannot read outside of it, and everything that runs later is written again from
the tree: no interpreter ever sees an offset that came from outside. What the records *say* is checked in
`host.tflite.graph`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # it ships no types
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edge.formats.tensor import Array
from host.errors import IngestError, UnsupportedModelError

MAX_TFLITE_BYTES = 2**31 - 1
"""Size of a `.tflite` file; what one flatbuffer can hold."""

MAX_TFLITE_RECORDS = 1 << 18
"""Tensors, operators, buffers, subgraphs and operator codes of one file together."""

MAX_TFLITE_PARTS = 1 << 12
"""Entries of one small table, such as the dimensions of a sparse tensor or the inputs of a signature."""

BUFFER_ALIGNMENT = 16
"""What runtimes expect of constants, in bytes."""

KEPT_METADATA = frozenset((b"min_runtime_version", b"reduced_precision_support"))
"""Metadata that changes how a runtime computes; the rest is for people and tools."""

_IDENTIFIER = b"TFL3"
_VERSION = 3
_LARGE_OFFSET = 1  # below, `Buffer.offset` and its like say that the data is inside the flatbuffer


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A `.tflite` file.

    Attributes:
        data: the file.
        weights: `(start, stop)` of the data of each buffer that is not empty, ascending.
    """

    data: bytes
    weights: tuple[tuple[int, int], ...]


class _AlignedBuffer:
    """A `BufferT` whose data starts at a multiple of `BUFFER_ALIGNMENT`, which the generated code forgets."""

    def __init__(self, data: Array, places: list[tuple[int, int]]) -> None:
        self._data = data
        self._places = places

    def Pack(self, builder: Any) -> Any:  # noqa: N802  # the generated code calls it so
        vector = None
        if self._data.size:
            size = int(self._data.size)
            builder.StartVector(1, size, BUFFER_ALIGNMENT)
            start = builder.head - size
            builder.head = start
            builder.Bytes[start : start + size] = memoryview(self._data.tobytes())
            self._places.append((int(builder.Offset()), size))
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def pack(tree: Any) -> Packed:
    """Write a tree as a file.

    Args:
        tree: a `ModelT`; its buffers hold their data inside (`BufferT.data` as an array of uint8, or None).

    Returns:
        The file, equal for equal trees.
    """
    places: list[tuple[int, int]] = []
    buffers = tree.buffers
    total = sum(0 if buffer.data is None else len(buffer.data) for buffer in buffers)
    builder: Any = flatbuffers.Builder(total + (1 << 16))
    tree.buffers = [
        _AlignedBuffer(np.empty(0, np.uint8) if buffer.data is None else buffer.data, places) for buffer in buffers
    ]
    try:
        builder.Finish(tree.Pack(builder), _IDENTIFIER)
    finally:
        tree.buffers = buffers
    data = bytes(builder.Output())
    starts = sorted((len(data) - offset, size) for offset, size in places)
    return Packed(data=data, weights=tuple((start, start + size) for start, size in starts))


def unpack(data: bytes, *, where: str) -> Any:
    """Read a file into a tree of records, `ModelT` and below, with all data of buffers inside.

    Signatures and metadata that change no answer are left out.

    Args:
        data: the file.
        where: for messages.

    Raises:
        IngestError: it is no `.tflite` file, or a damaged one.
        UnsupportedModelError: its weights are in another file.
    """
    if len(data) < 16 or data[4:8] != _IDENTIFIER:
        raise IngestError(f"{where}: not a TFLite file: it does not begin with {_IDENTIFIER.decode()}")
    try:
        tree = _tree(data)
    except Exception as error:
        # struct.error, ValueError, IndexError, TypeError, UnicodeDecodeError…: whatever a damaged offset leads to.
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise IngestError(f"{where}: a damaged TFLite file: {reason}") from error
    if tree.version != _VERSION:
        raise IngestError(f"{where}: a TFLite file of version {tree.version}; only version {_VERSION} is known")
    if any(tensor.externalBuffer for graph in tree.subgraphs for tensor in graph.tensors):
        raise UnsupportedModelError(f"{where}: its weights are in another file; save the model as one file")
    return tree


def _tree(data: bytes) -> Any:
    model = schema.Model.GetRootAs(data, 0)
    _check_counts(model)
    tree = schema.ModelT(version=int(model.Version()), description=b"")
    tree.operatorCodes = _each(model.OperatorCodesLength(), model.OperatorCodes, schema.OperatorCodeT.InitFromObj)
    tree.subgraphs = _each(model.SubgraphsLength(), model.Subgraphs, schema.SubGraphT.InitFromObj)
    for graph in tree.subgraphs:
        graph.tensors, graph.operators = graph.tensors or [], graph.operators or []
        if None in graph.tensors or None in graph.operators:
            raise ValueError("a tensor or operator is missing")
        for operator in graph.operators:
            _pull_in_options(operator, data)
    tree.buffers = [_buffer(model.Buffers(index), data) for index in range(model.BuffersLength())]
    found = _each(model.MetadataLength(), model.Metadata, schema.MetadataT.InitFromObj)
    tree.metadata = [entry for entry in found if entry.name in KEPT_METADATA and 0 <= entry.buffer < len(tree.buffers)]
    return tree


def _each(count: int, get: Callable[[int], Any], unpack_one: Callable[[Any], Any]) -> list[Any]:
    return [unpack_one(get(index)) for index in range(count)]


def _check_counts(model: Any) -> None:
    """Offsets may all point at one table, so that a small file unpacks to a large tree: count first."""
    counts = [model.OperatorCodesLength(), model.SubgraphsLength(), model.BuffersLength(), model.MetadataLength()]
    if sum(counts) > MAX_TFLITE_RECORDS:
        raise ValueError(f"{sum(counts)} records are more than {MAX_TFLITE_RECORDS}")
    total = sum(counts)
    for index in range(model.SubgraphsLength()):
        graph = model.Subgraphs(index)
        total += graph.TensorsLength() + graph.OperatorsLength()
        if total > MAX_TFLITE_RECORDS:
            raise ValueError(f"{total} records are more than {MAX_TFLITE_RECORDS}")
        for place in range(graph.TensorsLength()):
            tensor = graph.Tensors(place)
            sparsity = tensor.Sparsity()
            _check_part(tensor.VariantTensorsLength(), "variants of a tensor")
            _check_part(sparsity.DimMetadataLength() if sparsity is not None else 0, "dimensions of a sparse tensor")


def _check_part(count: int, what: str) -> None:
    if count > MAX_TFLITE_PARTS:
        raise ValueError(f"{count} {what} are more than {MAX_TFLITE_PARTS}")


def _buffer(buffer: Any, data: bytes) -> Any:
    offset, size = int(buffer.Offset()), int(buffer.Size())
    if offset > _LARGE_OFFSET:
        return schema.BufferT(data=_outside(data, offset, size) if size else None)
    return schema.BufferT(data=buffer.DataAsNumpy() if buffer.DataLength() else None)


def _pull_in_options(operator: Any, data: bytes) -> None:
    """Options of a custom operator may stand behind the flatbuffer; write them inside it."""
    if operator.largeCustomOptionsOffset > _LARGE_OFFSET:
        size = int(operator.largeCustomOptionsSize)
        operator.customOptions = _outside(data, int(operator.largeCustomOptionsOffset), size)
    operator.largeCustomOptionsOffset = operator.largeCustomOptionsSize = 0


def _outside(data: bytes, offset: int, size: int) -> Array:
    if offset + size > len(data):
        raise ValueError(f"data at {offset} of {size} bytes lies behind the end of the file")
    return np.frombuffer(data, np.uint8, size, offset)


def metadata_of(tree: Any, buffers: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return the metadata of `tree` that sub-models keep, numbered after `buffers`, and the buffers it adds."""
    kept = [entry for entry in tree.metadata or [] if entry.name in KEPT_METADATA]
    added = [tree.buffers[entry.buffer] for entry in kept]
    return [schema.MetadataT(name=entry.name, buffer=len(buffers) + place) for place, entry in enumerate(kept)], added
