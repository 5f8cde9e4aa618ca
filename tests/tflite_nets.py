"""Small TFLite models, written record by record: each holds something that real models of the zoo lack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edge.formats.tensor import Array
from host.tflite.file import pack

Op = schema.BuiltinOperator
Type = schema.TensorType

_TYPES = {
    "float32": Type.FLOAT32,
    "float16": Type.FLOAT16,
    "int32": Type.INT32,
    "bool": Type.BOOL,
    "int8": Type.INT8,
    "uint8": Type.UINT8,
}


class Net:
    """A model in the making; tensors and operators are numbered as they come."""

    def __init__(self) -> None:
        self._buffers: list[Any] = [schema.BufferT()]
        self._codes: list[Any] = []
        self._subgraphs: list[Any] = []

    def graph(self, name: str = "main") -> Graph:
        """Begin the next subgraph; the first is the main one."""
        made = Graph(self, name)
        self._subgraphs.append(made.record)
        return made

    def buffer(self, data: Array | bytes) -> int:
        """Hold data; return the number of its buffer."""
        held = np.frombuffer(data if isinstance(data, bytes) else data.tobytes(), np.uint8)
        self._buffers.append(schema.BufferT(data=held))
        return len(self._buffers) - 1

    def code(self, kind: int | str, version: int) -> int:
        """Return the number of an operator code."""
        custom = isinstance(kind, str)
        number = Op.CUSTOM if custom else int(kind)
        name = kind.encode() if isinstance(kind, str) else None
        for index, code in enumerate(self._codes):
            if (code.builtinCode, code.customCode, code.version) == (number, name, version):
                return index
        self._codes.append(
            schema.OperatorCodeT(
                deprecatedBuiltinCode=min(number, 127), builtinCode=number, customCode=name, version=version
            )
        )
        return len(self._codes) - 1

    @property
    def tree(self) -> Any:
        """The records."""
        return schema.ModelT(
            version=3,
            operatorCodes=self._codes,
            subgraphs=self._subgraphs,
            buffers=self._buffers,
            description=b"",
        )

    @property
    def data(self) -> bytes:
        """The file."""
        return pack(self.tree).data


class Graph:
    """One subgraph of a `Net`."""

    def __init__(self, net: Net, name: str) -> None:
        self._net = net
        self.record = schema.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[], name=name.encode())

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: int = Type.FLOAT32,
        *,
        signature: Sequence[int] | None = None,
        variable: bool = False,
        scale: float | None = None,
    ) -> int:
        """Add a tensor; return its number."""
        quantization = None
        if scale is not None:
            quantization = schema.QuantizationParametersT(
                scale=np.array([scale], np.float32), zeroPoint=np.array([0], np.int64)
            )
        self.record.tensors.append(
            schema.TensorT(
                shape=np.array(shape, np.int32),
                shapeSignature=None if signature is None else np.array(signature, np.int32),
                type=kind,
                buffer=0,
                name=name.encode(),
                isVariable=variable,
                quantization=quantization,
                hasRank=True,
            )
        )
        return len(self.record.tensors) - 1

    def constant(self, name: str, value: Array) -> int:
        """Add a constant; return its number."""
        index = self.tensor(name, value.shape, _TYPES[value.dtype.name])
        self.record.tensors[index].buffer = self._net.buffer(value)
        return index

    def packed(self, name: str, shape: Sequence[int], kind: int, data: bytes, *, scale: float) -> int:
        """Add a constant of a type that numpy lacks; return its number."""
        index = self.tensor(name, shape, kind, scale=scale)
        self.record.tensors[index].buffer = self._net.buffer(data)
        return index

    def operator(
        self,
        kind: int | str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Any = None,
        *,
        version: int = 1,
        options_type: int = 0,
    ) -> None:
        """Add an operator."""
        self.record.operators.append(
            schema.OperatorT(
                opcodeIndex=self._net.code(kind, version),
                inputs=np.array(inputs, np.int32),
                outputs=np.array(outputs, np.int32),
                builtinOptions=options,
                builtinOptionsType=options_type,
            )
        )

    def ends(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Say what it takes and gives."""
        self.record.inputs = np.array(inputs, np.int32)
        self.record.outputs = np.array(outputs, np.int32)


def add(graph: Graph, left: int, right: int, made: int) -> None:
    """Add an ADD without an activation."""
    graph.operator(Op.ADD, [left, right], [made], schema.AddOptionsT(), options_type=schema.BuiltinOptions.AddOptions)


def dense(graph: Graph, source: int, weights: int, made: int) -> None:
    """Add a FULLY_CONNECTED without bias."""
    graph.operator(
        Op.FULLY_CONNECTED,
        [source, weights, -1],
        [made],
        schema.FullyConnectedOptionsT(),
        options_type=schema.BuiltinOptions.FullyConnectedOptions,
    )


def ladder(*, width: int = 32, rungs: int = 4) -> Net:
    """Fully connected layers with a ReLU behind each and a sum over two of them: several tensors alive at a cut."""
    rng = np.random.default_rng(7)
    net = Net()
    graph = net.graph()
    first = graph.tensor("x", [1, width])
    last, before = first, first
    for rung in range(rungs):
        weights = graph.constant(f"w{rung}", rng.standard_normal((width, width)).astype(np.float32))
        made, active, total = (graph.tensor(f"{name}{rung}", [1, width]) for name in ("y", "r", "s"))
        dense(graph, last, weights, made)
        graph.operator(Op.RELU, [made], [active])
        add(graph, active, before, total)
        last, before = total, active
    graph.ends([first], [last])
    return net


def counting() -> Net:
    """A variable that every run adds its input to; then a ReLU of the sum."""
    net = Net()
    graph = net.graph()
    given = graph.tensor("x", [1, 4])
    handle = graph.tensor("handle", [], Type.RESOURCE)
    held, total, active = (graph.tensor(name, [1, 4]) for name in ("held", "total", "active"))
    graph.operator(
        Op.CALL_ONCE,
        [],
        [],
        schema.CallOnceOptionsT(initSubgraphIndex=1),
        options_type=schema.BuiltinOptions.CallOnceOptions,
    )
    _open_variable(graph, handle)
    graph.operator(Op.READ_VARIABLE, [handle], [held])
    add(graph, given, held, total)
    graph.operator(Op.ASSIGN_VARIABLE, [handle, total], [])
    graph.operator(Op.RELU, [total], [active])
    graph.ends([given], [active])
    start = net.graph("start")
    handle = start.tensor("handle", [], Type.RESOURCE)
    zeros = start.constant("zeros", np.zeros((1, 4), np.float32))
    _open_variable(start, handle)
    start.operator(Op.ASSIGN_VARIABLE, [handle, zeros], [])
    start.ends([], [])
    return net


def _open_variable(graph: Graph, handle: int) -> None:
    graph.operator(
        Op.VAR_HANDLE,
        [],
        [handle],
        schema.VarHandleOptionsT(container=b"", sharedName=b"sum"),
        options_type=schema.BuiltinOptions.VarHandleOptions,
    )


def doubling(*, times: int = 3) -> Net:
    """A WHILE that doubles its input so many times, between two sums."""
    net = Net()
    graph = net.graph()
    given = graph.tensor("x", [1, 4])
    zero = graph.constant("zero", np.zeros((), np.int32))
    ones = graph.constant("ones", np.ones((1, 4), np.float32))
    raised, doubled, made = (graph.tensor(name, [1, 4]) for name in ("raised", "doubled", "made"))
    counted = graph.tensor("counted", [], Type.INT32)
    add(graph, given, ones, raised)
    graph.operator(
        Op.WHILE,
        [zero, raised],
        [counted, doubled],
        schema.WhileOptionsT(condSubgraphIndex=2, bodySubgraphIndex=3),
        options_type=schema.BuiltinOptions.WhileOptions,
    )
    add(graph, doubled, ones, made)
    graph.ends([given], [made])
    net.graph("unused").ends([], [])
    condition = net.graph("condition")
    count, _ = condition.tensor("i", [], Type.INT32), condition.tensor("x", [1, 4])
    most = condition.constant("most", np.array(times, np.int32))
    goes_on = condition.tensor("goes_on", [], Type.BOOL)
    condition.operator(Op.LESS, [count, most], [goes_on])
    condition.ends([count, 1], [goes_on])
    body = net.graph("body")
    count, value = body.tensor("i", [], Type.INT32), body.tensor("x", [1, 4])
    one = body.constant("one", np.ones((), np.int32))
    following, twice = body.tensor("j", [], Type.INT32), body.tensor("y", [1, 4])
    add(body, count, one, following)
    add(body, value, value, twice)
    body.ends([count, value], [following, twice])
    return net


def recurrent(*, width: int = 4, steps: int = 3) -> Net:
    """An LSTM over a sequence, whose states are variable tensors, and a ReLU of what it gives."""
    rng = np.random.default_rng(3)
    net = Net()
    graph = net.graph()
    given = graph.tensor("x", [1, steps, width])

    def matrix(name: str) -> int:
        return graph.constant(name, rng.standard_normal((width, width)).astype(np.float32))

    def vector(name: str) -> int:
        return graph.constant(name, rng.standard_normal(width).astype(np.float32))

    gates = "ifco"
    inputs = [given, *(matrix(f"w{gate}") for gate in gates), *(matrix(f"r{gate}") for gate in gates), -1, -1, -1]
    inputs += [*(vector(f"b{gate}") for gate in gates), -1, -1]
    inputs += [graph.tensor(name, [1, width], variable=True) for name in ("hidden", "cell")]
    inputs += [-1] * 4
    made, active = graph.tensor("made", [1, steps, width]), graph.tensor("active", [1, steps, width])
    graph.operator(
        Op.UNIDIRECTIONAL_SEQUENCE_LSTM,
        inputs,
        [made],
        schema.UnidirectionalSequenceLSTMOptionsT(fusedActivationFunction=schema.ActivationFunctionType.TANH),
        options_type=schema.BuiltinOptions.UnidirectionalSequenceLSTMOptions,
    )
    graph.operator(Op.RELU, [made], [active])
    graph.ends([given], [active])
    return net


def nibbles() -> Net:
    """A fully connected layer whose weights are int4 in the file: a DEQUANTIZE that reads a constant only."""
    net = Net()
    graph = net.graph()
    given = graph.tensor("x", [1, 8])
    packed = graph.packed("w4", [4, 8], Type.INT4, bytes(range(16)), scale=0.5)
    weights, made = graph.tensor("w", [4, 8]), graph.tensor("y", [1, 4])
    graph.operator(Op.DEQUANTIZE, [packed], [weights], version=6)
    dense(graph, given, weights, made)
    graph.ends([given], [made])
    return net


def any_batch() -> Net:
    """A fully connected layer for any number of rows."""
    rng = np.random.default_rng(5)
    net = Net()
    graph = net.graph()
    given = graph.tensor("x", [1, 4], signature=[-1, 4])
    weights = graph.constant("w", rng.standard_normal((4, 4)).astype(np.float32))
    made, active = (graph.tensor(name, [1, 4], signature=[-1, 4]) for name in ("y", "z"))
    dense(graph, given, weights, made)
    graph.operator(Op.RELU, [made], [active])
    graph.ends([given], [active])
    return net
