"""Dynamic int8: MatMul and Gemm multiply 8-bit numbers whose scale is found anew for each input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge.formats.tensor import Array
from host.compress.constants import add_constant, constant_of, drop_unused_constants, taken_names
from host.compress.quantize.quantized import Quantized, Say, at_least_opset, check_nodes, nothing_to_quantize
from host.compress.recipe import Quantize
from host.model import Model, Tensors, copied
from host.passes.normalise import normalise
from host.passes.unique_names import free_name

# DynamicQuantizeLinear came with opset 11.
LEAST_OPSET = 11

_FULL_RANGE = 127
# The sums of two products of 8 by 7 bits fit the 16 bits that AVX2 adds them in.
_REDUCED_RANGE = 63
_UNSIGNED_ZERO = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """A MatMul or Gemm by a constant matrix.

    Attributes:
        node: The operator.
        weight: What multiplies from the right, shape ``[inputs, outputs]``, float32; a Gemm's alpha is in it.
        bias: What is added, beta in it, or None.
        added: A Gemm's C when it is no constant and so stays an input, else None.
    """

    node: ir.Node
    weight: Array
    bias: Array | None = None
    added: ir.Value | None = None


def product_of(node: ir.Node) -> Product | None:
    """Read a node as a product by a constant matrix; None if it is none, or transposes what varies."""
    if node.domain or node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return None
    weight = constant_of(node.inputs[1])
    if node.inputs[0] is None or weight is None or weight.ndim != 2 or weight.dtype != np.float32 or not weight.size:
        return None
    if node.op_type == "MatMul":
        return Product(node=node, weight=weight)
    if _number(node, "transA", 0):
        return None
    weight = weight.T if _number(node, "transB", 0) else weight
    weight = (np.float32(_number(node, "alpha", 1)) * weight).astype(np.float32)
    beta = np.float32(_number(node, "beta", 1))
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is None or beta == 0:
        return Product(node=node, weight=weight)
    bias = constant_of(given)
    if bias is None:
        return Product(node=node, weight=weight, added=given) if beta == 1 else None
    return Product(node=node, weight=weight, bias=(beta * bias).astype(np.float32))


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return float(attribute.value) if attribute is not None else float(default)


def quantize_dynamic(
    model: Model,
    plan: Quantize,
    samples: Sequence[Tensors],
    biases: Mapping[str, Array] | None,
    say: Say,
) -> Quantized:
    """Replace MatMul and Gemm by constant matrices with DynamicQuantizeLinear and MatMulInteger.

    Weights are symmetric and scaled per output channel; their type and range follow the plan's variant. Readers of one
    tensor share its quantization. Embeddings and everything else stay in fp32, and no calibration is needed.

    Args:
        model: A normalised model; it is not changed.
        plan: Its variant and excluded nodes matter.
        samples: Only to check the conversion of an old opset.
        biases: Not looked at.
        say: Not told anything.

    Raises:
        QuantizeError: If there is no such operator.
        RecipeError: If an excluded node does not exist.
    """
    del biases, say
    check_nodes(model, plan.exclude, where="quantize.exclude")
    graph = copied(at_least_opset(model, LEAST_OPSET, samples, mode="int8-dynamic").ir)
    excluded = set(plan.exclude)
    products = [p for node in graph.graph if node.name not in excluded and (p := product_of(node)) is not None]
    if not products:
        raise nothing_to_quantize(model, "int8-dynamic")
    edit = _Edit(graph, plan)
    for product in products:
        edit.replace(product)
    drop_unused_constants(graph)
    graph.graph.sort()
    return Quantized(model=normalise(model.with_ir(graph)), plan=plan)


class _Edit:
    def __init__(self, graph: ir.Model, plan: Quantize) -> None:
        self._graph = graph
        self._plan = plan
        self._taken = taken_names(graph)
        self._quantized: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._weights: dict[tuple[ir.Value | None, str], tuple[ir.Value, ir.Value, ir.Value]] = {}

    def replace(self, product: Product) -> None:
        node = product.node
        data = node.inputs[0]
        if data is None:
            return
        if data not in self._quantized:
            # One after another, so that the outputs stand in the order of the operator.
            outputs = [self._value(f"{data.name}_{part}") for part in ("quantized", "scale", "zero_point")]
            self._insert(node, "DynamicQuantizeLinear", [data], outputs)
            self._quantized[data] = (outputs[0], outputs[1], outputs[2])
        quantized, scale, zero_point = self._quantized[data]
        weight, weight_scale, weight_zero_point = self._weight(product)
        name = str(node.outputs[0].name)
        summed, converted, factor = (self._value(f"{name}_{part}") for part in ("int32", "float", "scale"))
        self._insert(node, "MatMulInteger", [quantized, weight, zero_point, weight_zero_point], [summed])
        self._insert(node, "Cast", [summed], [converted], {"to": ir.AttrInt64("to", int(ir.DataType.FLOAT))})
        self._insert(node, "Mul", [scale, weight_scale], [factor])
        bias = product.added
        if product.bias is not None:
            bias = add_constant(self._graph, f"{node.name}_bias", product.bias, self._taken)
        scaled = self._value(f"{name}_scaled")
        self._insert(node, "Mul", [converted, factor], [scaled])
        result = scaled
        if bias is not None:
            result = self._value(f"{name}_biased")
            self._insert(node, "Add", [scaled, bias], [result])
        replace_node(self._graph, node, result)

    def _weight(self, product: Product) -> tuple[ir.Value, ir.Value, ir.Value]:
        source = product.node.inputs[1]
        # A Gemm and a MatMul may read one matrix in different ways.
        key = (source, repr([(a.name, a.value) for a in product.node.attributes.values()]))
        if key not in self._weights:
            name = str(source.name) if source is not None else "weight"
            quantized, scale, zero = per_channel(product.weight, self._plan)
            self._weights[key] = (
                add_constant(self._graph, f"{name}_quantized", quantized, self._taken),
                add_constant(self._graph, f"{name}_scale", scale, self._taken),
                add_constant(self._graph, f"{name}_zero_point", zero, self._taken),
            )
        return self._weights[key]

    def _value(self, name: str) -> ir.Value:
        return ir.Value(name=free_name(name, self._taken))

    def _insert(
        self,
        before: ir.Node,
        kind: str,
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        attributes: Mapping[str, ir.Attr] | None = None,
    ) -> None:
        node = ir.Node("", kind, inputs, attributes or {}, outputs=outputs, name=f"{outputs[0].name}_{kind}")
        self._graph.graph.insert_before(before, node)


def per_channel(weight: Array, plan: Quantize) -> tuple[Array, Array, Array]:
    """Quantize a matrix symmetrically, with one scale for each column.

    Args:
        weight: Shape ``[inputs, outputs]``.
        plan: Its variant gives type and range.

    Returns:
        The numbers, shape ``[inputs, outputs]``, their scales and their zero points, both ``[outputs]``.
    """
    largest = _REDUCED_RANGE if plan.variant == "u8s8-reduce-range" else _FULL_RANGE
    scale = np.abs(weight).max(axis=0).astype(np.float64) / largest
    scale[scale == 0] = 1.0
    rounded = np.clip(np.rint(weight / scale), -largest, largest)
    if plan.variant == "u8u8":
        zero = np.full(weight.shape[1], _UNSIGNED_ZERO, np.uint8)
        return (rounded + _UNSIGNED_ZERO).astype(np.uint8), scale.astype(np.float32), zero
    return rounded.astype(np.int8), scale.astype(np.float32), np.zeros(weight.shape[1], np.int8)


def replace_node(graph: ir.Model, node: ir.Node, result: ir.Value) -> None:
    """Let another value stand for a node's first output, under its name, and remove the node, in place."""
    old = node.outputs[0]
    name = old.name
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    if result.type is None:
        result.type, result.shape = old.type, old.shape
    graph.graph.remove(node, safe=True)
    result.name = name
