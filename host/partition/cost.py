"""What a layer costs: multiply-accumulates, weight bytes and peak activation bytes."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from host.partition.layers import LayerNodes, Layers
from host.partition.observe import Observed

Shape = tuple[int, ...]


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


def _gemm(work: _Work) -> int:
    left = work.taken(0)
    transposed = work.node.attributes.get_int("transA", 0)
    return math.prod(work.made) * (left[0 if transposed else -1] if left else 1)


def _recurrent(gates: int) -> Callable[[_Work], int]:
    """Gates × steps × batch × hidden × (input + hidden), for `X [steps, batch, input]`, `R [d, gates·h, h]`."""

    def count(work: _Work) -> int:
        source, recurrence = work.taken(0), work.taken(2)
        if len(source) != 3 or len(recurrence) != 3:
            return math.prod(work.made)
        steps, batch, width = source
        directions, _, hidden = recurrence
        return directions * gates * steps * batch * hidden * (width + hidden)

    return count


_MACS: dict[str, Callable[[_Work], int]] = {
    "Conv": _conv,
    "FusedConv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": _qlinear_conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
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


def layer_macs(layer: LayerNodes, graph: ir.Graph, observed: Mapping[str, Observed]) -> int:
    """Return the multiply-accumulates of a layer, first run's shapes."""

    def shape_of(name: str) -> Shape:
        if name in observed:
            return observed[name].shape
        value = graph.initializers.get(name)
        if value is None or value.const_value is None:
            return ()
        return tuple(int(dim) for dim in value.const_value.shape)  # type: ignore[arg-type]  # constants are static

    return sum(node_macs(node, shape_of) for node in layer.nodes)


def constant_closure(names: Iterable[str], layers: Layers) -> tuple[str, ...]:
    """Return `names` and every constant they are computed from, each after the ones it needs."""
    found: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in found:
            return
        if name in layers.constant_nodes:
            for read in layers.constant_nodes[name].reads:
                visit(read)
        found[name] = None

    for name in names:
        visit(name)
    return tuple(found)


def constant_bytes(names: Iterable[str], graph: ir.Graph, layers: Layers) -> int:
    """Return what constants occupy once materialised: initializers and outputs of constant-only nodes."""
    total = 0
    nodes: dict[int, int] = {}
    for name in names:
        made = layers.constant_nodes.get(name)
        if made is not None:
            nodes[id(made)] = made.size_bytes
            continue
        tensor = graph.initializers[name].const_value
        total += tensor.nbytes if tensor is not None else 0
    return total + sum(nodes.values())


def peak_activation_bytes(layer: LayerNodes, entering: Iterable[str], observed: Mapping[str, Observed]) -> int:
    """Return the largest sum of tensors alive at once while the layer runs, its entering cut set included."""
    alive = {name: observed[name].size_bytes for name in entering}
    peak = sum(alive.values())
    for node in layer.nodes:
        alive |= {str(v.name): observed[str(v.name)].size_bytes for v in node.outputs if v.name}
        peak = max(peak, sum(alive.values()))
    return peak
