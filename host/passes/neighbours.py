"""What passes over neighbouring nodes ask and do: who makes a value for one reader, constants, swapping two nodes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from edge.formats.tensor import Array
from host.errors import PassError
from host.passes.unique_names import free_name


def sole_maker(node: ir.Node, index: int, operators: Iterable[str]) -> ir.Node | None:
    """The node that makes the n-th input, if it is one of these operators, in the same graph, and for nobody else."""
    value = node.inputs[index] if index < len(node.inputs) else None
    maker = value.producer() if value is not None else None
    if value is None or maker is None or maker.graph is not node.graph or maker.op_type not in operators:
        return None
    if value.is_graph_output() or len(value.uses()) != 1 or _gives_more(maker):
        return None
    return maker


def is_standard(node: ir.Node) -> bool:
    """Whether an operator is one of ONNX itself, with one output that anybody wants."""
    return node.domain in ("", "ai.onnx") and not _gives_more(node)


def constant(node: ir.Node, index: int) -> Array | None:
    """The floating-point constant that is the n-th input; None for anything else."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    array: Array = value.const_value.numpy()
    return array if array.dtype.kind == "f" else None


def is_absent(node: ir.Node, index: int) -> bool:
    """Whether the n-th input is left out."""
    return index >= len(node.inputs) or node.inputs[index] is None


def freed_elements(*nodes: ir.Node) -> int:
    """Elements of the constants that only these nodes read, which go when they do."""
    values = {value for node in nodes for value in node.inputs if value is not None and value.is_initializer()}
    return sum(
        value.const_value.size
        for value in values
        if value.const_value is not None and all(use.node in nodes for use in value.uses())
    )


def add_constant(main: ir.Graph, like: ir.Value | None, array: Array) -> ir.Value:
    """Register a new constant in the main graph.

    Args:
        main: The main graph.
        like: The value that it is made from and named after.
        array: Its value.
    """
    name = free_name(f"{like.name if like is not None else 'weight'}_merged", set(main.initializers))
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(list(array.shape)), const_value=tensor)
    main.register_initializer(value)
    return value


def graph_of(node: ir.Node) -> ir.Graph | ir.Function:
    """The graph that a node is in.

    Raises:
        PassError: If it is in none, because a pass removed it before.
    """
    if node.graph is None:
        raise PassError(f"node {node.name!r} is in no graph any more")
    return node.graph


def set_inputs(node: ir.Node, *values: ir.Value | None) -> None:
    """Give a node exactly these inputs."""
    node.resize_inputs(len(values))
    for index, value in enumerate(values):
        node.replace_input_with(index, value)


def remove_made_for(node: ir.Node, *makers: ir.Node) -> None:
    """Remove nodes that only made values for this one, the last maker first; the node no longer reads them."""
    graph = graph_of(node)
    for maker in makers:
        graph.remove(maker, safe=True)


def swap(first: ir.Node, second: ir.Node) -> None:
    """Let ``second`` go before ``first``, whose only reader it is; both work on their first input."""
    graph = graph_of(second)
    source, inner, outer = first.inputs[0], first.outputs[0], second.outputs[0]
    second.replace_input_with(0, source)
    outer.replace_all_uses_with(inner, replace_graph_outputs=True)
    inner.name, outer.name = outer.name, inner.name
    inner.type, outer.type = outer.type, None
    inner.shape, outer.shape = outer.shape, None
    first.replace_input_with(0, outer)
    graph.remove(first)
    graph.insert_after(second, first)


def _gives_more(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
