"""Sub-models: some consecutive operators of a TFLite model as a `.tflite` file of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from host.observe import Observed
from host.tflite.file import metadata_of, pack
from host.tflite.graph import TfliteGraph, subgraph_fields, unique_names
from host.tflite.layers import Working, find_working
from host.tflite.model import TfliteModel
from host.tflite.vectors import items

_NO_NAMES: Mapping[str, str] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class SubModel:
    """Some operators of a model as a file.

    Attributes:
        data: the file.
        inputs, outputs: names of the tensors that it takes and gives, in the order of its subgraph.
        weights: `(start, stop)` of the data of each constant in the file, ascending.
        made_bytes: what its constant-only operators make when it is loaded.
    """

    data: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[tuple[int, int], ...]
    made_bytes: int


def extract(
    model: TfliteModel,
    operators: range,
    *,
    working: Working | None = None,
    observed: Mapping[str, Observed] | None = None,
    names: Mapping[str, str] = _NO_NAMES,
) -> SubModel:
    """Write consecutive operators of a model as a file: with only the tensors, constants and codes that they use.

    Args:
        model: the whole.
        operators: which of its *working* operators (`host.tflite.layers`); the constant-only ones that they need go
            along.
        working: of the model, where it is known already.
        observed: the shapes of its tensors as they were seen, for those that are declared wrongly; None for the
            declared ones.
        names: other names for tensors that cross the border.

    Returns:
        The sub-model; equal for equal operators and constants, wherever in a model they stand.
    """
    graph = model.graph
    working = working or find_working(graph)
    chosen = working.operators[operators.start : operators.stop]
    behind = working.behind(chosen)
    before, after = working.alive[operators.start], working.alive[operators.stop]
    read = {index for each in working.taken[operators.start : operators.stop] for index in each}
    inputs = tuple(index for index in before if index in read)
    outputs = tuple(index for index in after if index not in before)
    written = _Writer(model, observed or {}, names).write(
        sorted(operator.index for operator in (*behind, *chosen)), inputs, outputs
    )
    packed = pack(written)
    return SubModel(
        data=packed.data,
        inputs=tuple(names.get(name, name) for name in graph.names(inputs)),
        outputs=tuple(names.get(name, name) for name in graph.names(outputs)),
        weights=packed.weights,
        made_bytes=sum(graph.tensors[index].size_bytes for operator in behind for index in operator.makes),
    )


def with_outputs(model: TfliteModel, outputs: Sequence[int]) -> bytes:
    """Return the model as a file that gives these tensors, by index, and no others."""
    main = copy.copy(model.tree.subgraphs[0])
    main.outputs = np.array(outputs, np.int32)
    tree = copy.copy(model.tree)
    tree.subgraphs = [main, *model.tree.subgraphs[1:]]
    return pack(tree).data


class _Writer:
    """Copies what operators use into a new tree and numbers it anew."""

    def __init__(self, model: TfliteModel, observed: Mapping[str, Observed], names: Mapping[str, str]) -> None:
        self._tree = model.tree
        self._graph: TfliteGraph = model.graph
        self._observed = observed
        self._names = names
        self._buffers: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        self._subgraphs: dict[int, int] = {}

    def write(self, operators: Sequence[int], inputs: Sequence[int], outputs: Sequence[int]) -> Any:
        main = self._subgraph(0, operators, inputs, outputs)
        others: list[Any] = []
        # Bodies may run further bodies, which are found while these are copied.
        while len(others) < len(self._subgraphs):
            number = list(self._subgraphs)[len(others)]
            body = self._tree.subgraphs[number]
            others.append(self._subgraph(number, range(len(body.operators)), items(body.inputs), items(body.outputs)))
        buffers = [schema.BufferT(), *(self._tree.buffers[number] for number in self._buffers)]
        metadata, added = metadata_of(self._tree, buffers)
        codes = [self._tree.operatorCodes[number] for number in self._codes]
        return schema.ModelT(
            version=3,
            operatorCodes=codes,
            subgraphs=[main, *others],
            buffers=[*buffers, *added],
            metadata=metadata or None,
        )

    def _subgraph(self, number: int, operators: Sequence[int], inputs: Sequence[int], outputs: Sequence[int]) -> Any:
        source = self._tree.subgraphs[number]
        names = [t.name for t in self._graph.tensors] if number == 0 else unique_names(source)
        records = [source.operators[index] for index in operators]
        used = {*inputs, *outputs}
        for record in records:
            used.update(items(record.inputs), items(record.outputs), items(record.intermediates))
            used.update(_block_tensors(source, record))
        places = {index: place for place, index in enumerate(sorted(used - {-1}))}
        tensors = [self._tensor(source, index, names[index], places, main=number == 0) for index in places]
        return schema.SubGraphT(
            tensors=tensors,
            inputs=_renumbered(inputs, places),
            outputs=_renumbered(outputs, places),
            operators=[self._operator(record, places) for record in records],
            name=source.name if number else b"main",
        )

    def _tensor(self, source: Any, index: int, name: str, places: Mapping[int, int], *, main: bool) -> Any:
        record = copy.copy(source.tensors[index])
        record.name = (self._names.get(name, name) if main else name).encode()
        holds = self._tree.buffers[record.buffer].data is not None
        record.buffer = self._buffers.setdefault(record.buffer, len(self._buffers) + 1) if holds else 0
        seen = self._observed.get(name) if main and not holds and not record.isVariable else None
        if seen is not None and seen.dtype and (seen.shape != items(record.shape) or None in seen.dims):
            record.shape = np.array(seen.shape, np.int32)
            record.shapeSignature = np.array([-1 if dim is None else dim for dim in seen.dims], np.int32)
        details = record.quantization.details if record.quantization is not None else None
        if details is not None and any(_is_index(details, field) for field in ("scales", "zeroPoints")):
            record.quantization = copy.copy(record.quantization)
            record.quantization.details = copy.copy(details)
            for field in ("scales", "zeroPoints"):
                if _is_index(details, field):
                    setattr(record.quantization.details, field, places[int(getattr(details, field))])
        return record

    def _operator(self, source: Any, places: Mapping[int, int]) -> Any:
        record = copy.copy(source)
        record.opcodeIndex = self._codes.setdefault(source.opcodeIndex, len(self._codes))
        record.inputs = _renumbered(items(source.inputs), places)
        record.outputs = _renumbered(items(source.outputs), places)
        if source.intermediates is not None:
            record.intermediates = _renumbered(items(source.intermediates), places)
        record.debugMetadataIndex = -1
        for options in ("builtinOptions", "builtinOptions2"):
            if getattr(source, options) is not None:
                setattr(record, options, copy.copy(getattr(source, options)))
        for field, called in subgraph_fields(source).items():
            numbers = [n if n == -1 else self._subgraphs.setdefault(n, len(self._subgraphs) + 1) for n in called]
            for options in (record.builtinOptions, record.builtinOptions2):
                old = getattr(options, field, None)
                if old is not None:
                    setattr(options, field, np.array(numbers, np.int32) if np.ndim(old) else numbers[0])
        return record


def _renumbered(indices: Sequence[int], places: Mapping[int, int]) -> Any:
    return np.array([-1 if index == -1 else places[index] for index in indices], np.int32)


def _is_index(details: Any, field: str) -> bool:
    value = getattr(details, field, None)
    return value is not None and not np.ndim(value) and int(value) >= 0


def _block_tensors(source: Any, record: Any) -> set[int]:
    """Tensors that hold the scales of blocks of the weights of an operator."""
    found: set[int] = set()
    for index in (*items(record.inputs), *items(record.outputs)):
        quantization = source.tensors[index].quantization if index >= 0 else None
        details = quantization.details if quantization is not None else None
        if details is not None:
            found.update(
                int(getattr(details, field)) for field in ("scales", "zeroPoints") if _is_index(details, field)
            )
    return found
