"""What a layer costs: multiply-accumulates, weight bytes and peak activation bytes."""

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from host.observe import Observed
from host.partition.layers import LayerNodes, Layers
from host.work import Shape, node_macs


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
