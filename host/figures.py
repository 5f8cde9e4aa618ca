"""What a graph costs, in the numbers that a report compares before and after a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import onnx_ir as ir

    from host.model import Model, Tensors
    from host.trace import NodeRun, SeenTensor
    from host.work import Shape

# Enough for a median within a few percent, and short beside the passes; small models take more rounds in no time, and
# need them, because whatever else the machine does lasts longer than their runs.
_TIMED_ROUNDS = 15
_SMALL_ROUNDS = 151
_SMALL_SECONDS = 1e-3

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})


class GraphFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of one graph for one input.

    Attributes:
        nodes: Operators, those of subgraphs included.
        macs: Multiply-accumulates of one run.
        weight_bytes: Bytes of all constants.
        peak_activation_bytes: Largest sum of computed tensors and inputs that are alive at once, in graph order.
        latency_seconds: Median CPU time of one run on one thread of this machine, as devices run it; None where it was
            not measured.
    """

    nodes: int
    macs: int
    weight_bytes: int
    peak_activation_bytes: int
    latency_seconds: float | None = None


def measure(model: Model, sample: Tensors, *, timed: bool) -> GraphFigures:
    """Take the figures of a graph as it stands.

    Work and sizes come from one profiled run with all optimisations off, so they hold for the branches that the sample
    took and the iterations that it made. What is computed from constants alone counts neither as work nor as
    activations (a runtime computes it once, at load), and conversions to and from quantized numbers are no work: a
    graph in quantize-dequantize form counts the operators between.

    Args:
        model: A normalised model.
        sample: One input.
        timed: Whether to measure the latency too.

    Raises:
        RuntimeRefusedError: If onnxruntime refuses the model or the sample.
    """
    # Late: a report is read where neither onnx nor onnxruntime is installed.
    from host.model import node_count, weight_bytes
    from host.trace import traced

    (run,) = traced(model, [sample])
    graph = model.ir.graph
    constants = _with_computed(graph, set(graph.initializers))
    sizes = {name: array.nbytes for name, array in sample.items()}
    macs = _macs(model.ir, run, sample, constants, sizes)
    return GraphFigures(
        nodes=node_count(model.ir),
        macs=macs,
        weight_bytes=weight_bytes(model.ir),
        peak_activation_bytes=_peak(graph, sizes, constants),
        latency_seconds=_latency(model, sample) if timed else None,
    )


def _latency(model: Model, sample: Tensors) -> float:
    from host.timing import cpu_times

    (time,) = cpu_times({"": model}, [sample], rounds=_TIMED_ROUNDS)
    if time.seconds < _SMALL_SECONDS:
        (time,) = cpu_times({"": model}, [sample], rounds=_SMALL_ROUNDS)
    return time.seconds


def _with_computed(graph: ir.Graph, constants: set[str]) -> set[str]:
    """These names, and what the graph and the bodies of its nodes compute from them alone."""
    from host.work import node_reads, subgraphs

    constants = set(constants)
    for node in graph:
        # A node that reads nothing makes a constant too.
        if constants.issuperset(node_reads(node)):
            constants |= {value.name for value in node.outputs if value.name}
        for body in subgraphs(node):
            constants = _with_computed(body, constants)
    return constants


def _macs(model: ir.Model, run: Iterable[NodeRun], sample: Tensors, constants: set[str], sizes: dict[str, int]) -> int:
    """Sum the work of all node runs; notes the largest size of every tensor in ``sizes``."""
    from host.model import all_nodes
    from host.work import node_macs

    nodes = {node.name: node for node in all_nodes(model)}
    weights: dict[str, Shape] = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            weights[name] = tuple(int(dim) for dim in value.const_value.shape)  # type: ignore[arg-type]  # constants are static
    shapes = weights | {name: array.shape for name, array in sample.items()}
    macs = 0
    for seen in run:
        node = nodes.get(seen.name)
        # Onnxruntime adds casts of its own for types that it has no kernel for.
        if node is None or node.op_type != seen.operator:
            continue
        met = _named(node.outputs, seen.outputs, {})
        # Nodes make everything except what enters a body, such as the state of a Loop: its readers tell.
        entering = {v.name for v in node.inputs if v is not None and v.is_graph_input() and v.name not in sample}
        met |= {name: tensor for name, tensor in _named(node.inputs, seen.inputs, weights).items() if name in entering}
        for name, tensor in met.items():
            shapes[name] = tensor.shape
            sizes[name] = max(sizes.get(name, 0), math.prod(tensor.shape) * tensor.item_bytes)
        made = {value.name for value in node.outputs if value.name}
        if node.op_type not in _CONVERSIONS and not made <= constants:
            macs += node_macs(node, lambda name: shapes.get(name, ()))
    return macs


def _named(
    values: Iterable[ir.Value | None], seen: tuple[SeenTensor, ...], weights: Mapping[str, Shape]
) -> dict[str, SeenTensor]:
    """Match tensors with names, which the profile does not say.

    Weights that the runtime packed are missing there, and so is what is no dense tensor: then nothing is certain.
    """
    found: dict[str, SeenTensor] = {}
    rest = list(seen)
    for name in [str(value.name) for value in values if value is not None and value.name]:
        if name in weights and (not rest or rest[0].shape != weights[name]):
            continue
        if not rest:
            return {}
        found[name] = rest.pop(0)
    return {} if rest else found


def _peak(graph: ir.Graph, sizes: Mapping[str, int], constants: set[str]) -> int:
    """Largest sum of tensors alive at once: each from its producer to its last reader, the bodies of nodes included."""
    from host.work import node_reads, subgraphs

    nodes = [node for node in graph if not {v.name for v in node.outputs if v.name} <= constants]
    last_read = {name: index for index, node in enumerate(nodes) for name in node_reads(node)}
    last_read |= {str(value.name): len(nodes) for value in graph.outputs}
    alive = {str(value.name) for value in graph.inputs}
    peak = sum(sizes.get(name, 0) for name in alive)
    for index, node in enumerate(nodes):
        inside = max((_peak(body, sizes, constants) for body in subgraphs(node)), default=0)
        alive |= {str(value.name) for value in node.outputs if value.name}
        peak = max(peak, inside + sum(sizes.get(name, 0) for name in alive))
        alive = {name for name in alive if last_read.get(name, -1) > index}
    return peak
