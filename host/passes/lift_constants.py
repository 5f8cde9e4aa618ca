"""Make every constant an initializer of the main graph, so that weights are found in one place.

1. Where a constant, a graph input or an outer value is given out by a graph, or a value is given out twice, an
   Identity node is put before the output, so that every output comes from a node of its own graph.
2. A Constant node of any graph becomes an initializer of the main graph, whatever attribute holds its value.
3. An initializer of a subgraph moves to the main graph.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from host.errors import UnsupportedModelError
from host.passes.unique_names import free_name

_ONNX = frozenset({"", "ai.onnx"})


def own_outputs(model: ir.Model) -> None:
    """Put an Identity node before every output that no node of its graph produces, in place.

    Outputs of the main graph keep their names, except where an input is given out under its own name.
    """
    taken = _taken(model)
    for graph in tuple(model.graphs()):
        seen: set[ir.Value] = set()
        for index, value in enumerate(tuple(graph.outputs)):
            if value in seen or not _made_here(value, graph):
                _pass_on(graph, index, taken, keep_name=graph is model.graph and value not in seen)
            seen.add(value)


def lift_constants(model: ir.Model) -> None:
    """Lift all constants of a model to its main graph, in place; the model has no functions."""
    own_outputs(model)
    taken = _taken(model)
    for graph in tuple(model.graphs()):
        for node in tuple(graph):
            if _is_constant(node):
                _lift_node(node, graph, model.graph, taken)
        if graph is model.graph:
            continue
        for value in tuple(graph.initializers.values()):
            if value.is_graph_input():
                continue
            name = value.name or "constant"
            graph.initializers.pop(name)
            taken.discard(name)
            value.name = free_name(name, _taken(model))
            taken.add(value.name)
            model.graph.register_initializer(value)


def _made_here(value: ir.Value, graph: ir.Graph) -> bool:
    producer = value.producer()
    return producer is not None and producer.graph is graph and not _is_constant(producer)


def _pass_on(graph: ir.Graph, index: int, taken: set[str], *, keep_name: bool) -> None:
    value = graph.outputs[index]
    name = value.name or "output"
    node = ir.node("Identity", inputs=[value])
    passed = node.outputs[0]
    passed.type = value.type
    if keep_name and not value.is_graph_input():
        value.name = free_name(f"{name}_constant", taken)
        passed.name = name
    else:
        passed.name = free_name(f"{name}_out", taken)
    graph.append(node)
    graph.outputs[index] = passed


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain in _ONNX


def _lift_node(node: ir.Node, graph: ir.Graph, main: ir.Graph, taken: set[str]) -> None:
    output = node.outputs[0]
    tensor = _tensor_of(node)
    # In a subgraph the name may be used in another branch as well; the first one to be lifted keeps it.
    name = output.name or "constant"
    if graph is not main or not output.name:
        name = free_name(name, taken)
    tensor.name = name
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.numpy().shape), const_value=tensor
    )
    main.register_initializer(value)
    output.replace_all_uses_with(value)
    graph.remove(node, safe=True)


def _tensor_of(node: ir.Node) -> ir.TensorProtocol:
    name, attribute = next(iter(node.attributes.items()))
    match name:
        case "value":
            # A fresh tensor: renaming the one in the attribute would reach the model this one was copied from.
            return ir.tensor(attribute.as_tensor().numpy(), dtype=attribute.as_tensor().dtype)
        case "value_int":
            return ir.tensor(np.asarray(attribute.as_int(), np.int64))
        case "value_ints":
            return ir.tensor(np.asarray(attribute.as_ints(), np.int64))
        case "value_float":
            return ir.tensor(np.asarray(attribute.as_float(), np.float32))
        case "value_floats":
            return ir.tensor(np.asarray(attribute.as_floats(), np.float32))
        case "value_string":
            return ir.StringTensor(np.asarray(attribute.as_string().encode(), np.object_))
        case "value_strings":
            return ir.StringTensor(np.asarray([text.encode() for text in attribute.as_strings()], np.object_))
        case _:
            raise UnsupportedModelError(
                f"Constant node {node.name!r} holds its value in {name!r}, which ONNX does not have"
            )


def _taken(model: ir.Model) -> set[str]:
    return {value.name for graph in model.graphs() for value in _values(graph) if value.name}


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)]
