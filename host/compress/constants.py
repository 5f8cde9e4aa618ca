"""Read and add the constants of a graph that a quantization step edits."""

from __future__ import annotations

import onnx_ir as ir

from edge.formats.tensor import Array
from host.passes.unique_names import free_name


def constant_of(value: ir.Value | None) -> Array | None:
    """The data of an initializer that no input can override; None for anything else."""
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value.numpy()


def is_shared(value: ir.Value) -> bool:
    """Whether a constant is read more than once, or given out: changing it would change more than one place."""
    return len(value.uses()) != 1 or value.is_graph_output()


def taken_names(graph: ir.Model) -> set[str]:
    """Every name of a tensor in a model, subgraphs included."""
    names: set[str] = set()
    for part in graph.graphs():
        names.update(str(value.name) for value in (*part.inputs, *part.initializers.values()) if value.name)
        names.update(str(value.name) for node in part for value in node.outputs if value.name)
    return names


def add_constant(graph: ir.Model, name: str, array: Array, taken: set[str]) -> ir.Value:
    """Add an initializer to the main graph, in place.

    Args:
        graph: The model.
        name: Wanted name; a number is appended where it is taken.
        array: Its data.
        taken: From `taken_names`; the new name is added.
    """
    free = free_name(name, taken)
    tensor = ir.tensor(array, name=free)
    value = ir.Value(name=free, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.graph.register_initializer(value)
    return value


def set_constant(value: ir.Value, array: Array) -> None:
    """Give an initializer other data of the same type, in place."""
    value.const_value = ir.tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)


def own_constant(graph: ir.Model, node: ir.Node, index: int, taken: set[str]) -> ir.Value:
    """Make an input of a node a constant that nobody else reads, in place; a shared one is copied.

    Args:
        graph: The model.
        node: Its reader.
        index: Of the input, which is an initializer.
        taken: From `taken_names`.
    """
    value = node.inputs[index]
    array = constant_of(value)
    if value is None or array is None:
        raise ValueError(f"input {index} of node {node.name!r} is no constant")
    if not is_shared(value):
        return value
    copy = add_constant(graph, f"{node.name}_{value.name}", array.copy(), taken)
    node.replace_input_with(index, copy)
    return copy


def drop_unused_constants(graph: ir.Model) -> None:
    """Remove initializers of the main graph that nothing reads, in place."""
    for name, value in list(graph.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.graph.initializers[name]
