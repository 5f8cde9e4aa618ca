"""Join two matrix products in a row into one: ``(x·A + a)·B + b = x·(A·B) + (a·B + b)``.

1. MatMul or Gemm by a constant matrix, then, maybe after an Add of a constant row, another: one product is left.
2. The first has no other reader; nothing stands between them.
3. Only where it pays: the new weights are no larger than those that go. Two products through a bottleneck stay two.
4. A bias that is left over goes into the second Gemm, into the Add after the second MatMul, or into a new Add.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge.formats.tensor import Array
from host.passes.neighbours import (
    add_constant,
    constant,
    freed_elements,
    graph_of,
    is_absent,
    is_standard,
    remove_made_for,
    set_inputs,
    sole_maker,
)
from host.passes.rewriting import at_every_node


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Linear:
    """``x·weights + bias``.

    Attributes:
        weights: ``[inputs, outputs]``, float64.
        bias: ``[outputs]``, float64, or None.
        dtype: Of the weights in the model.
        nodes: That compute it, the last one first.
    """

    weights: Array
    bias: Array | None
    dtype: np.dtype[np.generic]
    nodes: tuple[ir.Node, ...]


def _fuse(node: ir.Node, main: ir.Graph) -> bool:
    second = _product(node)
    first = _before(node) if second is not None else None
    if second is None or first is None or first.dtype != second.dtype:
        return False
    if first.weights.shape[1] != second.weights.shape[0]:
        return False
    weights = first.weights @ second.weights
    moved = None if first.bias is None else first.bias @ second.weights
    after = _bias_after(node) if moved is not None and node.op_type == "MatMul" else None
    bias = second.bias if moved is None else moved + (0 if second.bias is None else second.bias)
    if after is not None and bias is not None:
        bias = bias + after[1]
    gone = (*first.nodes, node, *([] if after is None else [after[0]]))
    size = weights.size + (0 if bias is None else bias.size)
    if size > freed_elements(*gone) or weights.size > first.weights.size + second.weights.size:
        return False
    made, made_bias = weights.astype(first.dtype), None if bias is None else bias.astype(first.dtype)
    if not np.isfinite(made).all() or (made_bias is not None and not np.isfinite(made_bias).all()):
        return False
    _write(node, main, first, made, made_bias, None if after is None else after[0])
    return True


def _write(
    node: ir.Node,
    main: ir.Graph,
    first: _Linear,
    weights: Array,
    bias: Array | None,
    after: ir.Node | None,
) -> None:
    source = first.nodes[-1].inputs[0]
    is_matrix = node.op_type == "Gemm" or first.nodes[-1].op_type == "Gemm"
    named = node.inputs[1]
    values = [source, add_constant(main, named, weights)]
    if bias is None:
        set_inputs(node, *values)
    elif is_matrix and after is None:
        set_inputs(node, *values, add_constant(main, named, bias))
        node.op_type = "Gemm"
    else:
        set_inputs(node, *values)
        row = add_constant(main, named, bias)
        if after is not None:
            set_inputs(after, node.outputs[0], row)
        else:
            _add_after(node, row)
    node.attributes.clear()
    remove_made_for(node, *first.nodes)


def _add_after(node: ir.Node, row: ir.Value) -> None:
    product = node.outputs[0]
    added = ir.node("Add", inputs=[product, row])
    total = added.outputs[0]
    product.replace_all_uses_with(total, replace_graph_outputs=True)
    added.replace_input_with(0, product)
    total.name, total.type, product.name = product.name, product.type, f"{product.name}_product"
    graph_of(node).insert_after(node, added)


def _product(node: ir.Node) -> _Linear | None:
    weights = constant(node, 1)
    if weights is None or weights.ndim != 2 or not is_standard(node):
        return None
    matrix = weights.astype(np.float64)
    if node.op_type == "MatMul":
        return _Linear(weights=matrix, bias=None, dtype=weights.dtype, nodes=(node,))
    if node.op_type != "Gemm" or node.attributes.get_int("transA", 0) != 0:
        return None
    matrix = matrix.T if node.attributes.get_int("transB", 0) != 0 else matrix
    matrix = matrix * node.attributes.get_float("alpha", 1.0)
    bias: Array | None = None
    if not is_absent(node, 2):
        bias = _row(constant(node, 2), matrix.shape[1], rank=2)
        if bias is None:
            return None
        bias = bias * node.attributes.get_float("beta", 1.0)
    return _Linear(weights=matrix, bias=bias, dtype=weights.dtype, nodes=(node,))


def _before(node: ir.Node) -> _Linear | None:
    """The product that makes the node's first input, an Add in between included."""
    if (maker := sole_maker(node, 0, ("MatMul", "Gemm"))) is not None:
        return _product(maker)
    added = sole_maker(node, 0, ("Add",))
    if added is None:
        return None
    for index in (0, 1):
        maker = sole_maker(added, index, ("MatMul",))
        product = None if maker is None else _product(maker)
        if product is not None:
            row = _row(constant(added, 1 - index), product.weights.shape[1], rank=1)
            if row is not None:
                return _Linear(weights=product.weights, bias=row, dtype=product.dtype, nodes=(added, *product.nodes))
    return None


def _bias_after(node: ir.Node) -> tuple[ir.Node, Array] | None:
    """The Add of a constant row that alone reads the node."""
    value = node.outputs[0]
    uses = value.uses()
    if value.is_graph_output() or len(uses) != 1:
        return None
    use = next(iter(uses))
    weights = node.inputs[1]
    if use.node.op_type != "Add" or use.node.graph is not node.graph or weights is None or weights.const_value is None:
        return None
    row = _row(constant(use.node, 1 - use.idx), weights.const_value.numpy().shape[1], rank=1)
    return None if row is None else (use.node, row)


def _row(array: Array | None, width: int, *, rank: int) -> Array | None:
    """A constant as one row of ``width`` float64 numbers; None where it is none, or of a higher rank."""
    if (
        array is None
        or array.ndim > rank
        or array.size not in (1, width)
        or array.shape[-1:] not in ((), (1,), (width,))
    ):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (width,))


fuse_linears = at_every_node(_fuse)
