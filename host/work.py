"""What one node does: what it reads, and how many multiply-accumulates it takes on the shapes that it meets."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

Shape = tuple[int, ...]


def node_reads(node: ir.Node) -> tuple[str, ...]:
    """Return every outer name that a node reads, those captured by its subgraphs included, each once."""
    names = {value.name: None for value in node.inputs if value is not None and value.name}
    for graph in subgraphs(node):
        names |= dict.fromkeys(_captured(graph))
    return tuple(str(name) for name in names)


def subgraphs(node: ir.Node) -> Iterable[ir.Graph]:
    """Give the bodies of a node, such as the branches of an `If`."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _captured(graph: ir.Graph) -> tuple[str, ...]:
    own = {value.name for value in graph.inputs} | set(graph.initializers)
    found: dict[str, None] = {}
    for node in graph:
        found |= dict.fromkeys(name for name in node_reads(node) if name not in own)
        own |= {value.name for value in node.outputs}
    found |= dict.fromkeys(str(value.name) for value in graph.outputs if value.name not in own)
    return tuple(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """A node with the shapes it met.

    Attributes:
        node: the node.
        made: shape of its first output.
        shape_of: shape by tensor name; `()` when unknown.
    """

    node: ir.Node
    made: Shape
    shape_of: Callable[[str], Shape]

    def taken(self, index: int) -> Shape:
        """Return the shape of the n-th input; `()` when it is absent or unknown."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return self.shape_of(str(value.name)) if value is not None and value.name else ()


def _elementwise(work: _Work) -> int:
    return math.prod(work.made)


def _conv(work: _Work) -> int:
    """Output elements × kernel elements an output channel: `[M, C/group, kH, kW]` gives C/group · kH · kW."""
    return math.prod(work.made) * math.prod(work.taken(1)[1:])


def _qlinear_conv(work: _Work) -> int:
    """Like `_conv`; the kernel is the fourth input."""
    return math.prod(work.made) * math.prod(work.taken(3)[1:])


def _conv_transpose(work: _Work) -> int:
    """Input elements × kernel elements an input channel: `[C, M/group, kH, kW]` gives M/group · kH · kW."""
    return math.prod(work.taken(0)) * math.prod(work.taken(1)[1:])


def _matmul(work: _Work) -> int:
    """Output elements × length of the contracted axis, the last of the left operand."""
    left = work.taken(0)
    return math.prod(work.made) * (left[-1] if left else 1)


def _fused_matmul(work: _Work) -> int:
    """Like `_matmul`; the left operand may be transposed."""
    left = work.taken(0)
    if work.node.attributes.get_int("transA", 0) and len(left) > 1:
        return math.prod(work.made) * left[-2]
    return _matmul(work)


def _matmul_nbits(work: _Work) -> int:
    """Output elements × K, the columns of the unpacked weights."""
    return math.prod(work.made) * work.node.attributes.get_int("K", 1)


def _gemm(work: _Work) -> int:
    left = work.taken(0)
    transposed = work.node.attributes.get_int("transA", 0)
    return math.prod(work.made) * (left[0 if transposed else -1] if left else 1)


def _attention(work: _Work) -> int:
    """Scores and their sum over the values: 2 × output elements × steps of the keys, `[batch, …, steps, width]`."""
    keys = work.taken(1)
    return math.prod(work.made) * (2 * keys[-2] if len(keys) >= 3 else 1)


def _packed_attention(work: _Work) -> int:
    """Projection of `[batch, steps, width]` by `[width, 3·hidden]`, then `_attention`, where it has weights."""
    source, weights, made = work.taken(0), work.taken(1), work.made
    if len(source) != 3 or len(weights) != 2 or len(made) != 3:
        return _attention(work)
    batch, steps, width = source
    return batch * steps * width * weights[1] + 2 * batch * steps * steps * made[-1]


def _einsum(work: _Work) -> int:
    """The product of the sizes of all letters; ellipses are not read and count as output elements."""
    equation = work.node.attributes.get_string("equation", "").replace(" ", "")
    sizes: dict[str, int] = {}
    for index, letters in enumerate(equation.partition("->")[0].split(",")):
        shape = work.taken(index)
        if len(shape) != len(letters):
            return math.prod(work.made)
        sizes |= dict(zip(letters, shape, strict=True))
    return math.prod(sizes.values())


def _recurrent(gates: int, *, hidden_axis: int = 2) -> Callable[[_Work], int]:
    """Gates × steps × batch × hidden × (input + hidden), for `X [steps, batch, input]`, `R [d, gates·h, h]`.

    Quantized weights are transposed: there the hidden size is axis 1 of `R [d, h, gates·h]`.
    """

    def count(work: _Work) -> int:
        source, recurrence = work.taken(0), work.taken(2)
        if len(source) != 3 or len(recurrence) != 3:
            return math.prod(work.made)
        steps, batch, width = source
        directions, hidden = recurrence[0], recurrence[hidden_axis]
        return directions * gates * steps * batch * hidden * (width + hidden)

    return count


_MACS: dict[str, Callable[[_Work], int]] = {
    "Conv": _conv,
    "FusedConv": _conv,
    "ConvInteger": _conv,
    "NhwcFusedConv": _conv,
    "QLinearConv": _qlinear_conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "FusedMatMul": _fused_matmul,
    "MatMulNBits": _matmul_nbits,
    "MatMulInteger": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "DynamicQuantizeMatMul": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "QGemm": _gemm,
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
    "DynamicQuantizeLSTM": _recurrent(4, hidden_axis=1),
    "Attention": _packed_attention,
    "QAttention": _packed_attention,
    "MultiHeadAttention": _attention,
    "Einsum": _einsum,
}
"""Operators whose work is more than one step an output element."""

_FREE = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Constant"))
"""Operators that move no data."""


def node_macs(node: ir.Node, shape_of: Callable[[str], Shape]) -> int:
    """Return the multiply-accumulates of one node; other operators count one a output element."""
    if node.op_type in _FREE:
        return 0
    made = shape_of(str(node.outputs[0].name)) if node.outputs and node.outputs[0].name else ()
    return _MACS.get(node.op_type, _elementwise)(_Work(node=node, made=made, shape_of=shape_of))
