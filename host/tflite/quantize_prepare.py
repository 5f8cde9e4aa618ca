"""What the quantizer is given: a model with weights in fp32, under names that no pattern can mistake.

1. Many files hold their weights in half precision, some of them packed as sparse, behind operators that unpack them at
   load. The quantizer looks for constants and would leave all of them as they are.
2. Many have activations as operators of their own. LiteRT's fast kernels do not take those in 8 bits, and each would
   end a run of fast ones: they become part of what they follow. (BlazeFace in int8 took 3.6 times as long as in fp32
   with them, 0.7 times without.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edge.formats.tensor import Array
from host.errors import QuantizeError
from host.reference import first_line
from host.tflite.file import pack, unpack
from host.tflite.graph import unique_names
from host.tflite.model import TfliteModel
from host.tflite.vectors import items, items_of

UNPACKING = frozenset({"DENSIFY", "DEQUANTIZE"})
"""Kinds of operators that make a constant from a constant."""

_INTEGERS = frozenset(
    {
        schema.TensorType.INT2,
        schema.TensorType.INT4,
        schema.TensorType.UINT4,
        schema.TensorType.INT8,
        schema.TensorType.UINT8,
        schema.TensorType.INT16,
    }
)
_FUSIBLE = frozenset({"ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "DIV", "FULLY_CONNECTED", "MUL", "SUB"})
_ACTIVATIONS = {
    "RELU": schema.ActivationFunctionType.RELU,
    "RELU_N1_TO_1": schema.ActivationFunctionType.RELU_N1_TO_1,
    "RELU6": schema.ActivationFunctionType.RELU6,
}
_OWN = re.compile(r"(?:s\d+)?t\d+")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plain:
    """A model as the quantizer wants it.

    Attributes:
        data: The file, with the tensors, in their order, and the operators that are left of the model.
        names: What its tensors are called in the model, by their names here: ``t7`` is tensor 7 of the main subgraph,
            ``s2t7`` that of subgraph 2.
        ends: Names of the inputs, then of the outputs of the model.
        outputs: The tensor that an operator makes here, by its first one in the model, where that is another.
        halves: Whether weights were in half precision.
    """

    data: bytes
    names: Mapping[str, str]
    ends: tuple[str, ...]
    outputs: Mapping[int, int]
    halves: bool

    def restored(self, data: bytes) -> bytes:
        """Give the tensors of what the quantizer made of `data` their names back, and write the file anew.

        A tensor that it put in is named after the one that it stands for. Where it put one in at an end of the model,
        that one gets the name.

        Raises:
            QuantizeError: It has other inputs or outputs.
        """
        tree = unpack(data, where="the quantized model")
        for graph in tree.subgraphs:
            for tensor in graph.tensors:
                given = (tensor.name or b"").decode("utf-8", "replace")
                own = _OWN.match(given)
                if own is not None and own.group() in self.names:
                    tensor.name = (self.names[own.group()] + given[own.end() :]).encode()
        main = tree.subgraphs[0]
        ends = [*items(main.inputs), *items(main.outputs)]
        if len(ends) != len(self.ends):
            raise QuantizeError(f"the quantized model has {len(ends)} inputs and outputs, not {len(self.ends)}")
        given_ends = dict(zip(ends, self.ends, strict=True))
        for index, tensor in enumerate(main.tensors):
            if index not in given_ends and tensor.name.decode() in self.ends:
                tensor.name += b"_quantized"
        for index, name in given_ends.items():
            main.tensors[index].name = name.encode()
        return pack(tree).data


def plain(model: TfliteModel) -> Plain:
    """Unpack the weights of a model and rename its tensors.

    Raises:
        QuantizeError: It holds quantized numbers already.
    """
    tree = unpack(model.data, where=model.name)
    if _is_quantized(tree):
        raise QuantizeError(f"model {model.name!r} is quantized already: use --quantize none, or give the float model")
    # Old files name an operator in a field that the quantizer does not read.
    for code in tree.operatorCodes:
        code.builtinCode = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
    names: dict[str, str] = {}
    for number, graph in enumerate(tree.subgraphs):
        for index, (tensor, name) in enumerate(zip(graph.tensors, unique_names(graph), strict=True)):
            own = f"t{index}" if number == 0 else f"s{number}t{index}"
            names[own] = name if number == 0 else (tensor.name or b"").decode("utf-8", "replace")
            tensor.name = own.encode()
    halves = any(
        tensor.type == schema.TensorType.FLOAT16 and tree.buffers[tensor.buffer].data is not None
        for tensor in tree.subgraphs[0].tensors
    )
    outputs = _fuse_activations(tree, model)
    _unpack_weights(tree, model)
    _drop_unused(tree)
    # It walks them without looking whether there are any.
    tree.signatureDefs = []
    main = tree.subgraphs[0]
    ends = tuple(names[f"t{index}"] for index in (*items(main.inputs), *items(main.outputs)))
    return Plain(data=pack(tree).data, names=names, ends=ends, outputs=outputs, halves=halves)


def _is_quantized(tree: Any) -> bool:
    return any(
        tensor.type in _INTEGERS and tensor.quantization is not None and items_of(tensor.quantization.scale).size
        for graph in tree.subgraphs
        for tensor in graph.tensors
    )


def _fuse_activations(tree: Any, model: TfliteModel) -> dict[int, int]:
    """Let operators of the main subgraph clamp what they make, where nothing else reads it before an activation."""
    main, graph = tree.subgraphs[0], model.graph
    readers: dict[int, int] = dict.fromkeys(graph.outputs, 2)
    for operator in graph.operators:
        for index in operator.reads:
            readers[index] = readers.get(index, 0) + 1
    makers = {operator.makes[0]: operator for operator in graph.operators if len(operator.makes) == 1}
    moved: dict[int, int] = {}
    for operator in graph.operators:
        maker = makers.get(operator.reads[0]) if operator.kind in _ACTIVATIONS and operator.reads else None
        if maker is None or maker.kind not in _FUSIBLE or readers[maker.makes[0]] > 1:
            continue
        record = main.operators[maker.index]
        if record.builtinOptions is not None and not int(record.builtinOptions.fusedActivationFunction):
            record.builtinOptions.fusedActivationFunction = _ACTIVATIONS[operator.kind]
            record.outputs = np.array(operator.makes, np.int32)
            moved[maker.makes[0]] = operator.makes[0]
    gone = set(moved.values())
    main.operators = [
        record
        for record, operator in zip(main.operators, graph.operators, strict=True)
        if not (operator.kind in _ACTIVATIONS and operator.makes[0] in gone)
    ]
    return moved


def _unpack_weights(tree: Any, model: TfliteModel) -> None:
    """Put what operators make of constants alone in place of these operators, in the main subgraph."""
    main = tree.subgraphs[0]
    constant = {tensor.index for tensor in model.graph.tensors if tensor.constant}
    unpacking = []
    for operator in model.graph.operators:
        if operator.kind in UNPACKING and constant.issuperset(operator.reads):
            unpacking.append(operator.index)
            constant.update(operator.makes)
    if not unpacking:
        return
    made = sorted({index for place in unpacking for index in model.graph.operators[place].makes})
    for index, value in _values(model, unpacking, made).items():
        data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        tree.buffers.append(schema.BufferT(data=data))
        main.tensors[index].buffer = len(tree.buffers) - 1
    made_by = set(made)
    main.operators = [operator for operator in main.operators if made_by.isdisjoint(items(operator.outputs))]


def _values(model: TfliteModel, operators: list[int], made: list[int]) -> dict[int, Array]:
    """Run the unpacking operators alone, and return what they make by tensor."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    part = unpack(model.data, where=model.name)
    part.subgraphs = part.subgraphs[:1]
    main = part.subgraphs[0]
    main.operators = [main.operators[index] for index in operators]
    main.inputs, main.outputs = np.empty(0, np.int32), np.array(made, np.int32)
    try:
        # Delegates would keep the unpacked weights to themselves.
        interpreter = Interpreter(
            model_content=pack(part).data,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            num_threads=1,
        )
        interpreter.allocate_tensors()
        interpreter.invoke()
        return {index: np.array(interpreter.get_tensor(index)) for index in made}
    except (RuntimeError, ValueError) as error:
        raise QuantizeError(f"model {model.name!r}: its weights cannot be unpacked: {first_line(error)}") from error


def _drop_unused(tree: Any) -> None:
    """Empty the buffers of tensors that nothing reads any more."""
    used: set[int] = {entry.buffer for entry in tree.metadata or []}
    for graph in tree.subgraphs:
        seen = {*items(graph.inputs), *items(graph.outputs)}
        for operator in graph.operators:
            seen |= {*items(operator.inputs), *items(operator.outputs), *items(operator.intermediates)}
        for index, tensor in enumerate(graph.tensors):
            if index in seen:
                used.add(tensor.buffer)
            else:
                # What is left of it must not be taken for a sparse tensor without its numbers.
                tensor.sparsity = None
    for index, buffer in enumerate(tree.buffers):
        if index not in used:
            buffer.data = None
