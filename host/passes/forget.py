"""Forget what a graph says about itself and need not: shapes that may be stale, texts, and accidental order.

1. Declared shapes and types of inner tensors go, and shapes of outputs: a runtime trusts them, and they may lie.
   Inputs keep theirs, outputs and constants their dtype.
2. Doc strings and metadata go: exports put absolute paths of the exporting machine there.
3. Initializers are ordered by first use, attributes and opset imports by name, so that equal models are equal bytes.
"""

from __future__ import annotations

import onnx_ir as ir


def forget_shapes(model: ir.Model) -> None:
    """Drop declared shapes and types of everything that a node computes, in place."""
    for graph in model.graphs():
        given_out = set(graph.outputs)
        for node in graph:
            for value in node.outputs:
                value.shape = None
                if value not in given_out or graph is not model.graph:
                    value.type = None


def forget_texts(model: ir.Model) -> None:
    """Drop doc strings and metadata of the model and all in it, in place."""
    model.doc_string = None
    model.metadata_props.clear()
    model.producer_name = model.producer_version = None
    model.domain = None
    model.model_version = None
    model.graph.name = "main"
    for graph in model.graphs():
        graph.doc_string = None
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            _silence(value)
        for node in graph:
            node.doc_string = None
            node.metadata_props.clear()
            for value in node.outputs:
                _silence(value)


def canonical_order(model: ir.Model) -> None:
    """Order what has no meaning in its order, in place."""
    main = model.graph
    used: dict[str, ir.Value] = {}
    for node in ir.traversal.RecursiveGraphIterator(main):
        for value in node.inputs:
            if value is not None and value.name and main.initializers.get(value.name) is value:
                used.setdefault(value.name, value)
        attributes = sorted(node.attributes.items())
        node.attributes.clear()
        node.attributes.update(attributes)
    rest = {name: value for name, value in sorted(main.initializers.items()) if name not in used}
    main.initializers.clear()
    for value in (*used.values(), *rest.values()):
        main.register_initializer(value)
    imports = sorted(main.opset_imports.items())
    main.opset_imports.clear()
    main.opset_imports.update(imports)


def _silence(value: ir.Value) -> None:
    value.doc_string = None
    value.metadata_props.clear()
    tensor = value.const_value
    if tensor is not None and tensor.doc_string:
        value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
