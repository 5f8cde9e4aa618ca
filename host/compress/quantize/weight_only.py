"""Weights in blocks of 4 or 8 bits: MatMulNBits for products, GatherBlockQuantized for embeddings.

Activations stay float. Each block of consecutive weights along the input axis has a scale and a zero point of its own,
so that a block whose weights are all of one sign loses no level: asymmetric, because it costs half a byte a block and
is closer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edge.formats.tensor import Array
from host.compress.constants import add_constant, constant_of, drop_unused_constants, taken_names
from host.compress.quantize.dynamic import Product, product_of, replace_node
from host.compress.quantize.quantized import Quantized, Say, check_nodes, nothing_to_quantize
from host.compress.recipe import Quantize
from host.model import Model, Tensors, copied
from host.passes.normalise import normalise
from host.passes.unique_names import free_name

DOMAIN = "com.microsoft"
ACCURACY_LEVEL = 4
"""Of MatMulNBits: activations are rounded to 8 bits inside the kernel, the only fast way on processors."""

_NARROW, _WIDE = 4, 8
# A smaller matrix has more bytes in scales and nodes than it saves.
LEAST_WEIGHTS = 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Blocks:
    """A matrix whose rows are quantized in blocks.

    Attributes:
        numbers: Shape ``[rows, blocks, block size]``, uint8; padded with zero points.
        scales: Shape ``[rows, blocks]``, float32.
        zero_points: Shape ``[rows, blocks]``, uint8.
    """

    numbers: Array
    scales: Array
    zero_points: Array

    def dequantized(self, columns: int) -> Array:
        """The matrix that they stand for, shape ``[rows, columns]``, float32."""
        wide = (self.numbers.astype(np.float32) - self.zero_points[..., None]) * self.scales[..., None]
        rows: Array = wide.reshape(wide.shape[0], -1)[:, :columns]
        return rows


def in_blocks(matrix: Array, block_size: int, bits: int) -> Blocks:
    """Quantize each row in blocks, round to nearest, asymmetric; zero is exact.

    Args:
        matrix: Shape ``[rows, columns]``, float32.
        block_size: Columns that share a scale; the last block may be short.
        bits: Of each number, at most 8.
    """
    rows, columns = matrix.shape
    count = -(-columns // block_size)
    padded = np.zeros((rows, count * block_size), np.float64)
    padded[:, :columns] = matrix
    blocks = padded.reshape(rows, count, block_size)
    low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
    levels = (1 << bits) - 1
    scales = ((high - low) / levels).astype(np.float32)
    scales[scales == 0] = 1.0
    zero_points = np.clip(np.rint(-low / scales), 0, levels)
    numbers = np.clip(np.rint(blocks / scales[..., None]) + zero_points[..., None], 0, levels)
    return Blocks(numbers=numbers.astype(np.uint8), scales=scales, zero_points=zero_points.astype(np.uint8))


def quantize_weights(
    model: Model,
    plan: Quantize,
    samples: Sequence[Tensors],
    biases: Mapping[str, Array] | None,
    say: Say,
) -> Quantized:
    """Replace products by constant matrices, and lookups in constant tables, with their 4-bit or 8-bit forms.

    1. MatMul and Gemm by a constant matrix become MatMulNBits, and an Add for a bias. Nodes that the plan calls wider
       get 8 bits; in mode ``int8-weights`` all do.
    2. Gather of rows of a constant fp32 table becomes GatherBlockQuantized, if the plan wants embeddings too; a wider
       one becomes an 8-bit table with a scale for each row.
    3. Matrices of fewer than 256 weights, and excluded nodes, stay as they are.

    Args:
        model: A normalised model; it is not changed.
        plan: Its block size, embeddings, excluded and wider nodes matter.
        samples: Not looked at.
        biases: Not looked at.
        say: Not told anything.

    Raises:
        QuantizeError: If there is no such operator.
        RecipeError: If an excluded or wider node does not exist.
    """
    del samples, biases, say
    check_nodes(model, plan.exclude, where="quantize.exclude")
    check_nodes(model, plan.wider, where="quantize.wider")
    graph = copied(model.ir)
    edit = _Edit(graph, plan)
    changed = 0
    for node in list(graph.graph):
        if node.name in plan.exclude:
            continue
        product = product_of(node)
        if product is not None and product.weight.size >= LEAST_WEIGHTS:
            edit.replace_product(product)
        elif plan.embeddings and _is_embedding(node):
            edit.replace_gather(node)
        else:
            continue
        changed += 1
    if not changed:
        raise nothing_to_quantize(model, plan.mode)
    graph.graph.opset_imports[DOMAIN] = 1
    drop_unused_constants(graph)
    graph.graph.sort()
    return Quantized(model=normalise(model.with_ir(graph)), plan=plan)


def _is_embedding(node: ir.Node) -> bool:
    if node.domain or node.op_type != "Gather":
        return False
    axis = node.attributes.get("axis")
    table = constant_of(node.inputs[0])
    if table is None or table.ndim != 2 or table.dtype != np.float32 or table.size < LEAST_WEIGHTS:
        return False
    return constant_of(node.inputs[1]) is None and (axis is None or int(axis.value) in (0, -table.ndim))


class _Edit:
    def __init__(self, graph: ir.Model, plan: Quantize) -> None:
        self._graph = graph
        self._plan = plan
        self._taken = taken_names(graph)
        self._constants: dict[str, ir.Value] = {}

    def replace_product(self, product: Product) -> None:
        node = product.node
        bits = self._bits(node)
        size = self._plan.block_size
        inputs, outputs = product.weight.shape
        key = f"{_name(node.inputs[1])}/{bits}/{[(a.name, a.value) for a in node.attributes.values()]}"
        weight, scales, zeros = self._product_constants(key, product, bits)
        numbers = {
            "K": inputs, "N": outputs, "bits": bits, "block_size": size, "accuracy_level": ACCURACY_LEVEL,
        }  # fmt: skip
        attributes = {name: ir.AttrInt64(name, number) for name, number in numbers.items()}
        result = self._insert(node, DOMAIN, "MatMulNBits", [node.inputs[0], weight, scales, zeros], attributes)
        bias = product.added
        if product.bias is not None:
            bias = self._constant(f"{key}/{_name(node.inputs[2])}/bias", f"{node.name}_bias", product.bias)
        if bias is not None:
            result = self._insert(node, "", "Add", [result, bias])
        replace_node(self._graph, node, result)

    def _product_constants(self, key: str, product: Product, bits: int) -> tuple[ir.Value, ir.Value, ir.Value]:
        name = _name(product.node.inputs[1])
        if f"{key}/weight" not in self._constants:
            blocks = in_blocks(product.weight.T, self._plan.block_size, bits)
            self._constant(f"{key}/weight", f"{name}_q{bits}", _packed(blocks.numbers, bits))
            self._constant(f"{key}/scales", f"{name}_scales", blocks.scales)
            self._constant(f"{key}/zeros", f"{name}_zero_points", _packed(blocks.zero_points, bits))
        found = self._constants
        return found[f"{key}/weight"], found[f"{key}/scales"], found[f"{key}/zeros"]

    def replace_gather(self, node: ir.Node) -> None:
        table = constant_of(node.inputs[0])
        if table is None:
            return
        wide = self._bits(node) == _WIDE
        replace_node(self._graph, node, self._wide_gather(node, table) if wide else self._narrow_gather(node, table))

    def _narrow_gather(self, node: ir.Node, table: Array) -> ir.Value:
        name = _name(node.inputs[0])
        size = self._plan.block_size
        if f"{name}/table" not in self._constants:
            blocks = in_blocks(table, size, _NARROW)
            numbers = blocks.numbers.reshape(table.shape[0], -1)[:, : table.shape[1]]
            # The type of four bits and not packed bytes: older releases of onnxruntime know only that here.
            self._constant(f"{name}/table", f"{name}_q4", np.ascontiguousarray(numbers).astype(ml_dtypes.uint4))
            self._constant(f"{name}/scales", f"{name}_scales", blocks.scales)
            self._constant(f"{name}/zeros", f"{name}_zero_points", blocks.zero_points.astype(ml_dtypes.uint4))
        table_value, scales, zeros = (self._constants[f"{name}/{part}"] for part in ("table", "scales", "zeros"))
        numbers_of = {"gather_axis": 0, "quantize_axis": 1, "block_size": size}
        attributes = {key: ir.AttrInt64(key, number) for key, number in numbers_of.items()}
        return self._insert(
            node, DOMAIN, "GatherBlockQuantized", [table_value, node.inputs[1], scales, zeros], attributes
        )

    def _wide_gather(self, node: ir.Node, table: Array) -> ir.Value:
        name = _name(node.inputs[0])
        scale = np.abs(table).max(axis=1, keepdims=True).astype(np.float64) / 127
        scale[scale == 0] = 1.0
        rounded = np.clip(np.rint(table / scale), -127, 127).astype(np.int8)
        numbers = self._constant(f"{name}/wide", f"{name}_q8", rounded)
        scales = self._constant(f"{name}/rows", f"{name}_row_scales", scale.astype(np.float32))
        rows = self._insert(node, "", "Gather", [numbers, node.inputs[1]])
        row_scales = self._insert(node, "", "Gather", [scales, node.inputs[1]])
        cast = self._insert(node, "", "Cast", [rows], {"to": ir.AttrInt64("to", int(ir.DataType.FLOAT))})
        return self._insert(node, "", "Mul", [cast, row_scales])

    def _bits(self, node: ir.Node) -> int:
        return _WIDE if self._plan.mode == "int8-weights" or node.name in self._plan.wider else _NARROW

    def _constant(self, key: str, name: str, array: Array) -> ir.Value:
        # Readers of one matrix share what it became.
        if key not in self._constants:
            self._constants[key] = add_constant(self._graph, name, array, self._taken)
        return self._constants[key]

    def _insert(
        self,
        before: ir.Node,
        domain: str,
        kind: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, ir.Attr] | None = None,
    ) -> ir.Value:
        result = ir.Value(name=free_name(f"{before.outputs[0].name}_{kind}", self._taken))
        node = ir.Node(domain, kind, inputs, attributes or {}, outputs=[result], name=f"{result.name}_node")
        self._graph.graph.insert_before(before, node)
        return result


def _name(value: ir.Value | None) -> str:
    return str(value.name) if value is not None else ""


def _packed(numbers: Array, bits: int) -> Array:
    """Numbers of 4 bits two to a byte along the last axis, the first in the low half; those of 8 bits as they are."""
    if bits == _WIDE:
        return numbers
    if numbers.shape[-1] % 2:
        numbers = np.concatenate([numbers, np.zeros_like(numbers[..., :1])], axis=-1)
    packed: Array = numbers[..., 0::2] | (numbers[..., 1::2] << 4)
    return packed
