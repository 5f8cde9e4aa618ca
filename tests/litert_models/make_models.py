"""Make the `.tflite` files of this folder: `python -m tests.litert_models.make_models`.

They are committed so that a device without flatbuffers and the schema can run the tests that load them. Each holds one
or a few operators; weights are from a seeded generator, and the same bytes come out each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # it ships no types
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from tests.litert_models import FOLDER

WIDTH = 16

_TYPES = {
    "float64": schema.TensorType.FLOAT64,
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "uint64": schema.TensorType.UINT64,
    "int64": schema.TensorType.INT64,
    "uint32": schema.TensorType.UINT32,
    "int32": schema.TensorType.INT32,
    "uint16": schema.TensorType.UINT16,
    "int16": schema.TensorType.INT16,
    "uint8": schema.TensorType.UINT8,
    "int8": schema.TensorType.INT8,
    "bool": schema.TensorType.BOOL,
    "string": schema.TensorType.STRING,
    "resource": schema.TensorType.RESOURCE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A tensor to be: with `data` a weight, with `scale` quantized, with `open_axis` of any size along that axis."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    data: npt.NDArray[Any] | None = None
    scale: float = 0.0
    zero_point: int = 0
    open_axis: int | None = None
    variable: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """An operator to be: its code, or its name when it is a custom one."""

    code: int | str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: Any = None
    kind: int = 0
    version: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """A graph to be."""

    tensors: Sequence[Tensor]
    operators: Sequence[Operator]
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()


def make_model(
    tensors: Sequence[Tensor],
    operators: Sequence[Operator],
    inputs: Sequence[str],
    outputs: Sequence[str],
    *more: Graph,
) -> bytes:
    """Return a model of one graph, or of several."""
    buffers, codes = [schema.BufferT()], []
    graphs = []
    for graph in (Graph(tensors=tensors, operators=operators, inputs=inputs, outputs=outputs), *more):
        place = {tensor.name: at for at, tensor in enumerate(graph.tensors)}
        nodes = []
        for operator in graph.operators:
            codes.append(_code(operator))
            nodes.append(
                schema.OperatorT(
                    opcodeIndex=len(codes) - 1,
                    inputs=[place.get(name, -1) for name in operator.inputs],
                    outputs=[place[name] for name in operator.outputs],
                    builtinOptionsType=operator.kind,
                    builtinOptions=operator.options,
                )
            )
        graphs.append(
            schema.SubGraphT(
                tensors=[_tensor(tensor, buffers) for tensor in graph.tensors],
                operators=nodes,
                inputs=[place[name] for name in graph.inputs],
                outputs=[place[name] for name in graph.outputs],
                name=b"main",
            )
        )
    model = schema.ModelT(version=3, operatorCodes=codes, subgraphs=graphs, buffers=buffers, description=b"")
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _code(operator: Operator) -> Any:
    custom = operator.code.encode() if isinstance(operator.code, str) else None
    code = schema.BuiltinOperator.CUSTOM if custom else operator.code
    return schema.OperatorCodeT(
        deprecatedBuiltinCode=min(code, 127), builtinCode=code, customCode=custom, version=operator.version
    )


def _tensor(tensor: Tensor, buffers: list[Any]) -> Any:
    record = schema.TensorT(
        shape=list(tensor.shape),
        type=_TYPES[tensor.dtype],
        name=tensor.name.encode(),
        buffer=0,
        hasRank=True,
        isVariable=tensor.variable,
    )
    if tensor.open_axis is not None:
        record.shapeSignature = [-1 if at == tensor.open_axis else dim for at, dim in enumerate(tensor.shape)]
    if tensor.scale:
        record.quantization = schema.QuantizationParametersT(scale=[tensor.scale], zeroPoint=[tensor.zero_point])
    if tensor.data is not None:
        record.buffer = len(buffers)
        buffers.append(schema.BufferT(data=np.frombuffer(tensor.data.tobytes(), np.uint8)))
    return record


_BUILTIN = schema.BuiltinOperator
_OPTIONS = schema.BuiltinOptions


def dense(source: str, weight: str, target: str, *, relu: bool = False) -> Operator:
    """Return a product with a weight of shape [outputs, inputs]."""
    activation = schema.ActivationFunctionType.RELU if relu else schema.ActivationFunctionType.NONE
    return Operator(
        code=_BUILTIN.FULLY_CONNECTED,
        inputs=(source, weight),
        outputs=(target,),
        options=schema.FullyConnectedOptionsT(fusedActivationFunction=activation),
        kind=_OPTIONS.FullyConnectedOptions,
    )


def _binary(code: int, kind: int, options: Any, names: tuple[str, str], target: str) -> Operator:
    return Operator(code=code, inputs=names, outputs=(target,), options=options, kind=kind)


def _row(name: str, dtype: str = "float32", **more: Any) -> Tensor:
    return Tensor(name=name, shape=(1, WIDTH), dtype=dtype, **more)


def make_models() -> dict[str, bytes]:
    """Return every file by its name."""
    rng = np.random.default_rng(0)
    w0, w1 = (
        Tensor(name=name, shape=(WIDTH, WIDTH), data=rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 4)
        for name in ("w0", "w1")
    )
    first, second = dense("x", "w0", "hidden", relu=True), dense("hidden", "w1", "y")
    x, hidden, y = _row("x"), _row("hidden"), _row("y")
    add = _binary(_BUILTIN.ADD, _OPTIONS.AddOptions, schema.AddOptionsT(), ("a", "b"), "sum")
    product = _binary(_BUILTIN.MUL, _OPTIONS.MulOptions, schema.MulOptionsT(), ("a", "b"), "product")
    wide = [Tensor(name=name, shape=(1, WIDTH), open_axis=0) for name in ("x", "y")]
    unknown = Operator(code="Frobnicate", inputs=("x",), outputs=("y",))
    future = Operator(code=_BUILTIN.RELU, inputs=("x",), outputs=("y",), version=99)
    return {
        "first": make_model([x, w0, hidden], [first], ["x"], ["hidden"]),
        "second": make_model([hidden, w1, y], [second], ["hidden"], ["y"]),
        "whole": make_model([x, w0, hidden, w1, y], [first, second], ["x"], ["y"]),
        "two_in_two_out": make_model(
            [_row("a"), _row("b"), _row("sum"), _row("product")], [add, product], ["b", "a"], ["product", "sum"]
        ),
        "open_batch": make_model([*wide, w0], [dense("x", "w0", "y")], ["x"], ["y"]),
        "remembers": _remembers(w0, w1),
        "counts": _counts(),
        "custom": make_model([x, y], [unknown], ["x"], ["y"]),
        "future": make_model([x, y], [future], ["x"], ["y"]),
        **_types(),
    }


def _types() -> dict[str, bytes]:
    """Return models of other types than floats."""
    back = Operator(code=_BUILTIN.DEQUANTIZE, inputs=("x",), outputs=("y",), version=2)
    invert = Operator(code=_BUILTIN.LOGICAL_NOT, inputs=("x",), outputs=("y",))
    add = Operator(
        code=_BUILTIN.ADD,
        inputs=("a", "b"),
        outputs=("sum",),
        options=schema.AddOptionsT(),
        kind=_OPTIONS.AddOptions,
        version=5,
    )
    flat = Operator(
        code=_BUILTIN.RESHAPE,
        inputs=("x", "shape"),
        outputs=("y",),
        options=schema.ReshapeOptionsT(newShape=[4]),
        kind=_OPTIONS.ReshapeOptions,
    )
    quantized = _row("x", "int8", scale=0.05, zero_point=-3)
    counts = [Tensor(name=name, shape=(), dtype="int64") for name in ("a", "b", "sum")]
    texts = [
        Tensor(name="x", shape=(2, 2), dtype="string"),
        Tensor(name="shape", shape=(1,), dtype="int32", data=np.array([4], np.int32)),
        Tensor(name="y", shape=(4,), dtype="string"),
    ]
    return {
        "quantized": make_model([quantized, _row("y")], [back], ["x"], ["y"]),
        "scalars": make_model(counts, [add], ["a", "b"], ["sum"]),
        "truth": make_model([_row("x", "bool"), _row("y", "bool")], [invert], ["x"], ["y"]),
        "text": make_model(texts, [flat], ["x"], ["y"]),
    }


def _remembers(weight: Tensor, back: Tensor) -> bytes:
    """Return a model whose state is a variable tensor."""
    rows = [Tensor(name=name, shape=(1, WIDTH)) for name in ("x", "y")]
    bias = Tensor(name="bias", shape=(WIDTH,), data=np.zeros(WIDTH, np.float32))
    state = Tensor(name="state", shape=(1, WIDTH), variable=True)
    operator = Operator(
        code=_BUILTIN.RNN,
        inputs=("x", weight.name, back.name, "bias", "state"),
        outputs=("y",),
        options=schema.RNNOptionsT(fusedActivationFunction=schema.ActivationFunctionType.TANH),
        kind=_OPTIONS.RNNOptions,
    )
    return make_model([*rows, weight, back, bias, state], [operator], ["x"], ["y"])


def _counts() -> bytes:
    """Return a model whose state is a resource: each run adds its input to what is kept, and gives that."""
    handle = Tensor(name="handle", shape=(), dtype="resource")
    rows = [Tensor(name=name, shape=(1, WIDTH)) for name in ("x", "kept", "sum")]
    get = Operator(
        code=_BUILTIN.VAR_HANDLE,
        inputs=(),
        outputs=("handle",),
        options=schema.VarHandleOptionsT(container=b"", sharedName=b"kept"),
        kind=_OPTIONS.VarHandleOptions,
    )

    def assign(value: str) -> Operator:
        return Operator(
            code=_BUILTIN.ASSIGN_VARIABLE,
            inputs=("handle", value),
            outputs=(),
            options=schema.AssignVariableOptionsT(),
            kind=_OPTIONS.AssignVariableOptions,
        )

    once = Operator(
        code=_BUILTIN.CALL_ONCE,
        inputs=(),
        outputs=(),
        options=schema.CallOnceOptionsT(initSubgraphIndex=1),
        kind=_OPTIONS.CallOnceOptions,
    )
    read = Operator(
        code=_BUILTIN.READ_VARIABLE,
        inputs=("handle",),
        outputs=("kept",),
        options=schema.ReadVariableOptionsT(),
        kind=_OPTIONS.ReadVariableOptions,
    )
    add = _binary(_BUILTIN.ADD, _OPTIONS.AddOptions, schema.AddOptionsT(), ("x", "kept"), "sum")
    zeros = Tensor(name="zeros", shape=(1, WIDTH), data=np.zeros((1, WIDTH), np.float32))
    first = Graph(tensors=[handle, zeros], operators=[get, assign("zeros")])
    return make_model([handle, *rows], [once, get, read, add, assign("sum")], ["x"], ["sum"], first)


def main() -> None:
    """Write them."""
    for name, data in make_models().items():
        (FOLDER / f"{name}.tflite").write_bytes(data)


if __name__ == "__main__":
    main()
