"""What a `.tflite` tree says, checked: its tensors and operators under unique names.

The runtime trusts a file: an index out of range, a buffer that is too short or a body that calls itself ends the
process. So everything that it would follow is followed here first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edge.formats.tensor import MAX_NAME_LENGTH
from host.errors import IngestError, UnsupportedModelError
from host.tflite.checks import BITS, DENSE, TYPE_NAMES, check_subgraph
from host.tflite.vectors import items

_OPERATOR_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
_CUSTOM = schema.BuiltinOperator.CUSTOM
_SUBGRAPH_FIELDS = (
    "bodySubgraphIndex",
    "condSubgraphIndex",
    "comparatorSubgraphIndex",
    "calledComputations",
    "updateComputationSubgraphIndex",
    "branchSubgraphIndices",
    "subgraph",
    "thenSubgraphIndex",
    "elseSubgraphIndex",
    "initSubgraphIndex",
    "decompositionSubgraphIndex",
)
"""Options that name subgraphs; the schema has no others."""

_RANDOM = frozenset(("RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL"))


@dataclass(frozen=True, kw_only=True, slots=True)
class TfliteTensor:
    """One tensor of the main subgraph.

    Attributes:
        index: in the subgraph.
        name: unique in the model.
        type: as the schema calls it, such as `FLOAT32` or `RESOURCE`.
        dtype: a key of `DTYPES`, or empty for what the codec does not carry.
        shape: as declared.
        dims: the same, None where it is open.
        constant: whether the file holds its value.
        size_bytes: of its value; of the data in the file for a constant.
        variable: whether operators keep a state in it from run to run.
    """

    index: int
    name: str
    type: str
    dtype: str
    shape: tuple[int, ...]
    dims: tuple[int | None, ...]
    constant: bool
    size_bytes: int
    variable: bool

    @property
    def is_dynamic(self) -> bool:
        """Whether some dimension is open."""
        return None in self.dims


@dataclass(frozen=True, kw_only=True, slots=True)
class TfliteOperator:
    """One operator of the main subgraph.

    Attributes:
        index: in the subgraph.
        name: unique in the model: that of its first output where it has one.
        kind: as the schema calls it, such as `CONV_2D`; of a custom operator its own name.
        version: of the operator.
        custom: whether the schema does not know it.
        reads: tensors, constants included, without absent ones.
        makes: tensors.
        calls: subgraphs that it runs, those that they run included.
        resources: names of the variables and tables that it touches, itself or in a subgraph.
    """

    index: int
    name: str
    kind: str
    version: int
    custom: bool
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    calls: tuple[int, ...]
    resources: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TfliteGraph:
    """The main subgraph.

    Attributes:
        tensors, operators: by index.
        inputs, outputs: tensors; an output that stands twice counts once.
        used: `(kind, version, custom)` of every operator of the model, subgraphs included, sorted.
        types: of all tensors of the model, subgraphs included.
    """

    tensors: tuple[TfliteTensor, ...]
    operators: tuple[TfliteOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    used: tuple[tuple[str, int, bool], ...]
    types: frozenset[str]

    def tensor(self, name: str) -> TfliteTensor:
        """Return the tensor of that name.

        Raises:
            KeyError: there is none.
        """
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(name)

    def names(self, tensors: Iterable[int]) -> tuple[str, ...]:
        """Return the names of tensors."""
        return tuple(self.tensors[index].name for index in tensors)


def read_graph(tree: Any, *, where: str) -> TfliteGraph:
    """Check a tree and return its main subgraph.

    Args:
        tree: from `host.tflite.file.unpack`.
        where: for messages.

    Raises:
        IngestError: an index, a length or the order of the operators is wrong.
        UnsupportedModelError: random operators, or operators that the schema does not know.
    """
    if not tree.subgraphs or not tree.subgraphs[0].operators:
        raise IngestError(f"{where}: a TFLite file without operators: there is nothing to run")
    kinds = [_kind(code, where) for code in tree.operatorCodes]
    calls = [_calls(tree, index, where) for index in range(len(tree.subgraphs))]
    closed = _closure(calls, where)
    for index, graph in enumerate(tree.subgraphs):
        place = where if index == 0 else f"{where}: subgraph {index}"
        check_subgraph(tree, graph, kinds, place)
    used = {kinds[operator.opcodeIndex] for graph in tree.subgraphs for operator in graph.operators}
    if random := sorted(kind for kind, _, _ in used if kind in _RANDOM):
        raise UnsupportedModelError(
            f"{where}: it does not answer the same input the same way twice: it holds {random[0]}; "
            "make the random values an input"
        )
    main = tree.subgraphs[0]
    names = unique_names(main)
    touched = [_own_resources(graph, kinds) for graph in tree.subgraphs]
    tensors = tuple(_tensor(tree, record, index, names[index]) for index, record in enumerate(main.tensors))
    return TfliteGraph(
        tensors=tensors,
        operators=tuple(
            _operator(record, index, kinds, names, closed, touched) for index, record in enumerate(main.operators)
        ),
        inputs=tuple(int(index) for index in main.inputs),
        outputs=tuple(dict.fromkeys(int(index) for index in main.outputs)),
        used=tuple(sorted(used)),
        types=frozenset(TYPE_NAMES[record.type] for graph in tree.subgraphs for record in graph.tensors),
    )


def unique_names(graph: Any) -> tuple[str, ...]:
    """Return a name for each tensor of a subgraph: its own as far as that is one, and no name twice.

    An empty name becomes `tensor_<index>`, one that is too long loses its end, and one that another tensor before it
    has gets `#<index>`.
    """
    taken: set[str] = set()
    names = []
    for index, tensor in enumerate(graph.tensors):
        own = (tensor.name or b"").decode("utf-8", "replace")
        own = "".join(letter if letter.isprintable() else "_" for letter in own)[: MAX_NAME_LENGTH - 16]
        name = own or f"tensor_{index}"
        if name in taken:
            name = f"{name}#{index}"
        while name in taken:  # a file may hold `a`, `a#2` and `a` again
            name += "_"
        taken.add(name)
        names.append(name)
    return tuple(names)


def subgraph_fields(operator: Any) -> dict[str, tuple[int, ...]]:
    """Return the options of an operator that name subgraphs, by field: options, or those of the second kind."""
    found: dict[str, tuple[int, ...]] = {}
    for options in (operator.builtinOptions, operator.builtinOptions2):
        for field in _SUBGRAPH_FIELDS if options is not None else ():
            value = getattr(options, field, None)
            if value is not None:
                found[field] = tuple(int(index) for index in np.atleast_1d(value))
    return found


def kind_of(tree: Any, operator: Any) -> str:
    """Return what an operator of a checked tree is, as `TfliteOperator.kind`."""
    return _kind(tree.operatorCodes[operator.opcodeIndex], "")[0]


def _kind(code: Any, where: str) -> tuple[str, int, bool]:
    number = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
    if number == _CUSTOM:
        return (code.customCode or b"").decode("utf-8", "replace")[:MAX_NAME_LENGTH], int(code.version), True
    if number not in _OPERATOR_NAMES:
        raise UnsupportedModelError(f"{where}: builtin operator {number} is newer than this release of ai-edge-litert")
    return _OPERATOR_NAMES[number], int(code.version), False


def _calls(tree: Any, index: int, where: str) -> list[tuple[int, ...]]:
    """Which subgraphs each operator of a subgraph names."""
    found = []
    for place, operator in enumerate(tree.subgraphs[index].operators):
        called = tuple(dict.fromkeys(number for each in subgraph_fields(operator).values() for number in each))
        # An absent body is written as -1 (a composite without a decomposition).
        called = tuple(number for number in called if number != -1)
        if wrong := [number for number in called if not 0 < number < len(tree.subgraphs)]:
            raise IngestError(f"{where}: operator {place} calls subgraph {wrong[0]} of {len(tree.subgraphs)}")
        found.append(called)
    return found


def _closure(calls: list[list[tuple[int, ...]]], where: str) -> list[tuple[int, ...]]:
    """Return, for each operator of the main subgraph, all subgraphs that it may run, in the order of their calls."""
    inner: dict[int, tuple[int, ...]] = {}
    below = [tuple(dict.fromkeys(number for called in graph for number in called)) for graph in calls]
    state = [0] * len(calls)  # 1: being visited, 2: done
    for root in range(len(calls)):
        stack = [root]
        while stack:
            index = stack[-1]
            if state[index] == 0:
                state[index] = 1
            waiting = [number for number in below[index] if state[number] != 2]
            if any(state[number] == 1 for number in waiting):
                raise IngestError(f"{where}: subgraph {index} calls itself")
            if waiting:
                stack.append(waiting[0])
                continue
            state[index] = 2
            inner[index] = tuple(dict.fromkeys(n for number in below[index] for n in (number, *inner[number])))
            stack.pop()
    return [tuple(dict.fromkeys(n for number in called for n in (number, *inner[number]))) for called in calls[0]]


def _own_resources(graph: Any, kinds: Sequence[tuple[str, int, bool]]) -> frozenset[str]:
    return frozenset(name for operator in graph.operators for name in _resources(operator, kinds))


def _resources(operator: Any, kinds: Sequence[tuple[str, int, bool]]) -> Iterable[str]:
    """Names of the variables and tables that an operator opens; others reach them through its output only."""
    kind = kinds[operator.opcodeIndex][0]
    options = operator.builtinOptions
    if kind == "VAR_HANDLE":
        container = getattr(options, "container", None) or b""
        shared = getattr(options, "sharedName", None) or b""
        yield f"variable {container.decode('utf-8', 'replace')}/{shared.decode('utf-8', 'replace')}"
    elif kind == "HASHTABLE":
        yield f"table {int(getattr(options, 'tableId', 0) or 0)}"


def _operator(
    record: Any,
    index: int,
    kinds: Sequence[tuple[str, int, bool]],
    names: Sequence[str],
    closed: Sequence[tuple[int, ...]],
    touched: Sequence[frozenset[str]],
) -> TfliteOperator:
    kind, version, custom = kinds[record.opcodeIndex]
    makes = items(record.outputs)
    return TfliteOperator(
        index=index,
        name=names[makes[0]] if makes else f"{kind}_{index}",
        kind=kind,
        version=version,
        custom=custom,
        reads=tuple(dict.fromkeys(read for read in items(record.inputs) if read >= 0)),
        makes=makes,
        calls=closed[index],
        resources=frozenset(_resources(record, kinds)).union(*(touched[number] for number in closed[index])),
    )


def _tensor(tree: Any, record: Any, index: int, name: str) -> TfliteTensor:
    shape = items(record.shape)
    signature = items(record.shapeSignature)
    dims = tuple(None if size < 0 else size for size in (signature if len(signature) == len(shape) else shape))
    kind = TYPE_NAMES[record.type]
    data = tree.buffers[record.buffer].data
    held = 0 if data is None else len(data)
    constant = not record.isVariable and (held > 0 or (0 in shape and not signature))
    size = held or (math.prod(max(dim, 0) for dim in shape) * BITS.get(record.type, 0) + 7) // 8
    return TfliteTensor(
        index=index,
        name=name,
        type=kind,
        dtype=kind.lower() if kind.lower() in DENSE and record.sparsity is None else "",
        shape=shape,
        dims=dims,
        constant=constant,
        size_bytes=size,
        variable=bool(record.isVariable),
    )
