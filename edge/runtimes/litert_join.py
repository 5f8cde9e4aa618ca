"""Joining the sub-models of a stage into one: an interpreter each would cost every tensor a copy and every fusion.

A sub-model is a complete file, so that it can be loaded without this. Where the package brings its schema (a 32-bit
board's does not), neighbouring ones become one model with the same operators in the same order. Sub-models with bodies
of loops, or with a state, stand alone. Seen on x86: the same bits, and 1.0 to 1.1 of the CPU time of the model that was
never cut, where one interpreter a shard took 1.7 to 3.3.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from edge.formats.tensor import Array
from edge.runtimes.base import ModelPart

MAX_JOINED_BYTES = 256 << 20
"""Stages above this run their sub-models one by one: joining needs room for another copy of them for a moment."""

_ALIGNMENT = 16
_KEPT = (b"min_runtime_version", b"reduced_precision_support")
_IDENTIFIER = b"TFL3"


def join_parts(
    parts: Sequence[ModelPart], outputs: Collection[str], *, schema: Any, builder: Callable[[int], Any]
) -> tuple[ModelPart, ...]:
    """Join neighbouring sub-models.

    Args:
        parts: in order, from a bundle whose digests were checked.
        outputs: tensors that the stage gives.
        schema: the module `schema_py_generated`.
        builder: makes a `flatbuffers.Builder` of an initial size.

    Returns:
        Fewer parts that give the same; those that stand alone as they were.
    """
    if len(parts) < 2 or sum(len(part.model) for part in parts) > MAX_JOINED_BYTES:
        return tuple(parts)
    trees = [_plain(part, schema) for part in parts]
    joined: list[ModelPart] = []
    at = 0
    while at < len(parts):
        stop = at
        while stop < len(parts) and trees[stop] is not None:
            stop += 1
        if stop - at < 2:
            joined.append(parts[at])
            at += 1
            continue
        needed = set(outputs).union(*(part.inputs for part in parts[stop:]))
        joined.append(_Joint(schema, parts[at:stop], trees[at:stop]).part(needed, builder))
        at = stop
    return tuple(joined)


def _plain(part: ModelPart, schema: Any) -> Any:
    """Return the records of a sub-model, or None where it stands alone."""
    tree = schema.ModelT.InitFromPackedBuf(part.model, 0)
    alone = (schema.TensorType.RESOURCE, schema.TensorType.VARIANT)
    if len(tree.subgraphs) != 1:
        return None
    for tensor in tree.subgraphs[0].tensors:
        details = tensor.quantization.details if tensor.quantization is not None else None
        if tensor.isVariable or tensor.type in alone or details is not None:
            return None
    return tree


class _Joint:
    """The records of several sub-models under new numbers."""

    def __init__(self, schema: Any, parts: Sequence[ModelPart], trees: Sequence[Any]) -> None:
        self._schema = schema
        self._parts = parts
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[tuple[Any, ...], int] = {}
        self._code_records: list[Any] = []
        self._held: dict[bytes, int] = {}
        self._by_name: dict[str, int] = {}
        self._metadata = [entry for entry in trees[0].metadata or [] if entry.name in _KEPT]
        self._metadata_buffers = [trees[0].buffers[entry.buffer] for entry in self._metadata]
        self._inputs = tuple(dict.fromkeys(self._take(parts, trees)))

    def part(self, needed: Collection[str], builder: Callable[[int], Any]) -> ModelPart:
        """Write them as one model that gives the needed tensors."""
        made = dict.fromkeys(name for part in self._parts for name in part.outputs if name in needed)
        schema = self._schema
        buffers = [_Buffer(schema, b""), *(_Buffer(schema, data) for data in self._held)]
        for entry, buffer in zip(self._metadata, self._metadata_buffers, strict=True):
            entry.buffer = len(buffers)
            buffers.append(_Buffer(schema, b"" if buffer.data is None else buffer.data.tobytes()))
        tree = schema.ModelT(
            version=3,
            operatorCodes=self._code_records,
            subgraphs=[
                schema.SubGraphT(
                    tensors=self._tensors,
                    inputs=self._numbers(self._inputs),
                    outputs=self._numbers(made),
                    operators=self._operators,
                    name=b"main",
                )
            ],
            buffers=buffers,
            metadata=self._metadata or None,
        )
        writer = builder(sum(len(data) for data in self._held) + (1 << 16))
        writer.Finish(tree.Pack(writer), _IDENTIFIER)
        where = f"{self._parts[0].where} to {self._parts[-1].where}"
        return ModelPart(model=bytes(writer.Output()), inputs=self._inputs, outputs=tuple(made), where=where)

    def _take(self, parts: Sequence[ModelPart], trees: Sequence[Any]) -> Iterator[str]:
        """Number all records; yield the names of what no part before makes."""
        for part, tree in zip(parts, trees, strict=True):
            yield from (name for name in part.inputs if name not in self._by_name)
            main = tree.subgraphs[0]
            names = dict(zip(_ints(main.inputs), part.inputs, strict=True))
            names |= zip(_ints(main.outputs), part.outputs, strict=True)
            numbers = [
                self._tensor(tensor, tree.buffers[tensor.buffer].data, names.get(index))
                for index, tensor in enumerate(main.tensors)
            ]
            for record in main.operators:
                record.opcodeIndex = self._code(tree.operatorCodes[record.opcodeIndex])
                for field in ("inputs", "outputs", "intermediates"):
                    found = getattr(record, field)
                    if found is not None:
                        new = [-1 if index == -1 else numbers[index] for index in _ints(found)]
                        setattr(record, field, np.array(new, np.int32))
                self._operators.append(record)

    def _tensor(self, record: Any, data: Array | None, name: str | None) -> int:
        if name is not None and name in self._by_name:
            return self._by_name[name]
        record.buffer = 0 if data is None else self._held.setdefault(data.tobytes(), len(self._held) + 1)
        self._tensors.append(record)
        if name is not None:
            self._by_name[name] = len(self._tensors) - 1
        return len(self._tensors) - 1

    def _code(self, record: Any) -> int:
        key = (record.builtinCode, record.deprecatedBuiltinCode, record.customCode, record.version)
        if key not in self._codes:
            self._codes[key] = len(self._codes)
            self._code_records.append(record)
        return self._codes[key]

    def _numbers(self, names: Collection[str]) -> Array:
        return np.array([self._by_name[name] for name in names], np.int32)


class _Buffer:
    """A buffer of a model, its data where kernels want it."""

    def __init__(self, schema: Any, data: bytes) -> None:
        self._schema = schema
        self._data = data

    def Pack(self, builder: Any) -> Any:  # noqa: N802 - the generated code calls it so
        """Write it."""
        vector = None
        if self._data:
            builder.StartVector(1, len(self._data), _ALIGNMENT)
            builder.head -= len(self._data)
            builder.Bytes[builder.head : builder.head + len(self._data)] = self._data
            vector = builder.EndVector()
        self._schema.BufferStart(builder)
        if vector is not None:
            self._schema.BufferAddData(builder, vector)
        return self._schema.BufferEnd(builder)


def _ints(values: Any) -> list[int]:
    return [] if values is None else [int(value) for value in np.atleast_1d(values)]
