"""Cuts: where a model may be divided, and what is alive there.

1. Constant-only nodes (the quantizer hoists weight-dequantize nodes to the front of the file) are set aside: they
   belong to whoever reads them.
2. The other nodes keep their topological order. Between two of them is a place to cut; its cut set is every tensor
   made before it and needed after it, names that `If` and `Loop` bodies capture included.
3. A place is no legal cut inside a DequantizeLinear -> op -> QuantizeLinear group, or where a live value is not a dense
   tensor of a codec dtype.
4. A layer is what lies between two neighbouring legal cuts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx_ir as ir

from host.errors import UnsupportedModelError
from host.model import Model
from host.observe import Observed
from host.work import node_reads

_DEQUANTIZE = "DequantizeLinear"
_QUANTIZE = "QuantizeLinear"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstantNode:
    """A node that reads constants only.

    Attributes:
        node: the node.
        reads: names of constants.
        size_bytes: of its outputs once computed.
    """

    node: ir.Node
    reads: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerNodes:
    """The nodes between two neighbouring cuts.

    Attributes:
        nodes: in topological order.
        reads: non-constant tensors that they take from before the layer.
        constants: initializers and outputs of constant nodes that they read.
    """

    nodes: tuple[ir.Node, ...]
    reads: tuple[str, ...]
    constants: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layers:
    """A model divided at every legal cut.

    Attributes:
        layers: in order.
        cuts: `len(layers) + 1` cut sets; the first are the inputs, the last the outputs.
        constant_nodes: by each of their outputs, in an order in which each may use the ones before it.
    """

    layers: tuple[LayerNodes, ...]
    cuts: tuple[tuple[str, ...], ...]
    constant_nodes: dict[str, ConstantNode]


def find_layers(model: Model, observed: Mapping[str, Observed]) -> Layers:
    """Divide a model at every legal cut.

    Args:
        model: normalised and fused; its nodes in topological order.
        observed: from `observe`.

    Raises:
        UnsupportedModelError: an input or output is no tensor that can travel, or an output is a constant.
    """
    graph = model.ir.graph
    _check_borders(graph, observed)
    outputs = tuple(str(value.name) for value in graph.outputs)
    constant_nodes, live = _set_constants_aside(graph, set(outputs), observed)
    constants = set(graph.initializers) | constant_nodes.keys()
    reads = [tuple(name for name in node_reads(node) if name not in constants) for node in live]
    cuts = _cut_sets([str(value.name) for value in graph.inputs], live, reads, outputs)
    illegal = _inside_quantize_groups(live)
    places = [
        place
        for place in range(1, len(live))
        if place not in illegal and all(observed[name].can_travel for name in cuts[place])
    ]
    bounds = [0, *places, len(live)]
    return Layers(
        layers=tuple(_layer(live[a:b], reads[a:b], constants) for a, b in pairwise(bounds)),
        cuts=tuple(cuts[place] for place in bounds),
        constant_nodes=constant_nodes,
    )


def joined(layers: Layers, bounds: Sequence[int]) -> Layers:
    """Return the same model divided at some of its cuts only.

    Args:
        layers: of the model.
        bounds: the cuts that stay, ascending; the first is 0, the last the number of layers.
    """
    found = []
    for first, stop in pairwise(bounds):
        run = layers.layers[first:stop]
        nodes = tuple(node for layer in run for node in layer.nodes)
        made = {str(value.name) for node in nodes for value in node.outputs}
        found.append(
            LayerNodes(
                nodes=nodes,
                reads=tuple(dict.fromkeys(name for layer in run for name in layer.reads if name not in made)),
                constants=tuple(dict.fromkeys(name for layer in run for name in layer.constants)),
            )
        )
    cuts = tuple(layers.cuts[bound] for bound in bounds)
    return Layers(layers=tuple(found), cuts=cuts, constant_nodes=layers.constant_nodes)


def _check_borders(graph: ir.Graph, observed: Mapping[str, Observed]) -> None:
    if not len(graph):
        raise UnsupportedModelError("the model has no nodes: there is nothing to run")
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            if value.name in graph.initializers:
                raise UnsupportedModelError(f"{kind} {value.name!r} is a constant: remove it from the {kind}s")
            if not observed[str(value.name)].can_travel:
                raise UnsupportedModelError(
                    f"{kind} {value.name!r} is {value.type}: only dense tensors of numbers and bool can travel"
                )


def _set_constants_aside(
    graph: ir.Graph, outputs: set[str], observed: Mapping[str, Observed]
) -> tuple[dict[str, ConstantNode], list[ir.Node]]:
    constants = set(graph.initializers)
    aside: dict[str, ConstantNode] = {}
    live: list[ir.Node] = []
    for node in graph:
        names = [str(value.name) for value in node.outputs if value.name]
        reads = node_reads(node)
        if constants.issuperset(reads) and outputs.isdisjoint(names):
            size = sum(observed[name].size_bytes for name in names)
            aside |= dict.fromkeys(names, ConstantNode(node=node, reads=reads, size_bytes=size))
            constants.update(names)
        else:
            live.append(node)
    if not live:
        raise UnsupportedModelError("the model computes nothing from its inputs")
    return aside, live


def _cut_sets(
    inputs: list[str], live: list[ir.Node], reads: list[tuple[str, ...]], outputs: tuple[str, ...]
) -> list[tuple[str, ...]]:
    """Return the cut set before each node and after the last, in order of production."""
    last_read = {name: index for index, names in enumerate(reads) for name in names}
    last_read |= dict.fromkeys(outputs, len(live))
    alive = dict.fromkeys(inputs)
    cuts = [tuple(alive)]
    for index, node in enumerate(live):
        alive |= dict.fromkeys(str(value.name) for value in node.outputs if value.name)
        alive = {name: None for name in alive if last_read.get(name, -1) > index}
        cuts.append(tuple(alive))
    cuts[-1] = outputs
    return cuts


def _inside_quantize_groups(live: list[ir.Node]) -> set[int]:
    """Return the places that would tear a remaining DequantizeLinear -> op -> QuantizeLinear group apart."""
    position = {str(value.name): index for index, node in enumerate(live) for value in node.outputs}
    inside: set[int] = set()
    for node in live:
        if node.op_type in (_DEQUANTIZE, _QUANTIZE):
            continue
        made_by = [position[str(v.name)] for v in node.inputs if v is not None and v.name in position]
        first = [place for place in made_by if live[place].op_type == _DEQUANTIZE]
        last = [
            user_place
            for value in node.outputs
            for user, _ in value.uses()
            if user.op_type == _QUANTIZE and (user_place := position.get(str(user.outputs[0].name))) is not None
        ]
        if first and last:
            inside.update(range(min(first) + 1, max(last) + 1))
    return inside


def _layer(nodes: list[ir.Node], reads: list[tuple[str, ...]], constants: set[str]) -> LayerNodes:
    made = {str(value.name) for node in nodes for value in node.outputs}
    outer = dict.fromkeys(name for names in reads for name in names if name not in made)
    used = dict.fromkeys(name for node in nodes for name in node_reads(node) if name in constants)
    return LayerNodes(nodes=tuple(nodes), reads=tuple(outer), constants=tuple(used))
