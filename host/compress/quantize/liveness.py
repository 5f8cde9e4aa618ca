"""Which tensors are alive between two nodes, and the stretch of graph from one such place to another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from host.errors import RuntimeRefusedError
from host.model import Model, Tensors, copied
from host.reference import Reference
from host.work import node_reads


@dataclass(frozen=True, kw_only=True, slots=True)
class Liveness:
    """A graph as a row of nodes, and what is alive between them.

    Attributes:
        nodes: Those that do not work on constants only, in topological order.
        cuts: ``len(nodes) + 1`` sets of names, in order of production: before each node and after the last. Constants
            and what is computed from constants only are in none.
    """

    nodes: tuple[ir.Node, ...]
    cuts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stretch:
    """The nodes between two places, as a model of its own.

    Attributes:
        graph: The model.
        reads: Tensors that it takes.
        writes: Tensors that it gives: those that are alive after it and were not before.
        keeps: Tensors that are alive after it; `reads` and older ones may be among them.
    """

    graph: ir.Model
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    keeps: tuple[str, ...]

    def loaded(self, tensors: Tensors) -> Reference:
        """The stretch in onnxruntime, in exact mode.

        Args:
            tensors: Something for each of `reads`; only the types are looked at.

        Raises:
            RuntimeRefusedError: If onnxruntime refuses it, or it reads something that is no dense tensor.
        """
        for value in self.graph.graph.inputs:
            found = tensors[str(value.name)]
            if not isinstance(found, np.ndarray):
                raise RuntimeRefusedError(f"tensor {value.name!r} is a sequence")
            value.type = ir.TensorType(ir.DataType.from_numpy(found.dtype))
            value.shape = None
        for value in self.graph.graph.outputs:
            value.type, value.shape = None, None
        return Reference(self.graph, mode="exact")


def liveness(graph: ir.Graph) -> Liveness:
    """Find what is alive between the nodes of a main graph.

    Args:
        graph: Its nodes in topological order.
    """
    constants = set(graph.initializers) - {str(value.name) for value in graph.inputs}
    nodes: list[ir.Node] = []
    reads: list[tuple[str, ...]] = []
    for node in graph:
        names = node_reads(node)
        if constants.issuperset(names):
            constants |= {str(value.name) for value in node.outputs if value.name}
        else:
            nodes.append(node)
            reads.append(tuple(name for name in names if name not in constants))
    last_read = {name: index for index, names in enumerate(reads) for name in names}
    last_read |= {str(value.name): len(nodes) for value in graph.outputs}
    alive = {str(value.name): None for value in graph.inputs}
    cuts = [tuple(alive)]
    for index, node in enumerate(nodes):
        alive |= {str(value.name): None for value in node.outputs if value.name}
        alive = {name: None for name in alive if last_read.get(name, -1) > index}
        cuts.append(tuple(alive))
    return Liveness(nodes=tuple(nodes), cuts=tuple(cuts))


def stretches(model: Model, ends: Iterable[str]) -> tuple[Stretch, ...]:
    """Divide a model after some of its nodes; what follows the last of them is left out.

    Args:
        model: A normalised model; it is not changed.
        ends: Names of nodes that compute something from the inputs.

    Returns:
        One stretch for each of ``ends``, in graph order. The first output of its last node is always written.
    """
    # The quantizer appends its pairs to the end.
    graph = copied(model.ir).graph
    graph.sort()
    found = liveness(graph)
    wanted = set(ends)
    result: list[Stretch] = []
    before: tuple[str, ...] = found.cuts[0]
    for index, node in enumerate(found.nodes):
        if node.name not in wanted:
            continue
        keeps = tuple(dict.fromkeys((*found.cuts[index + 1], str(node.outputs[0].name))))
        writes = tuple(name for name in keeps if name not in before)
        part = ir.convenience.extract(graph, list(before), list(writes))
        read = tuple(str(value.name) for value in part.inputs if value.uses())
        for value in [value for value in part.inputs if not value.uses()]:
            part.inputs.remove(value)
        part_model = ir.Model(part, ir_version=model.ir.ir_version)
        result.append(Stretch(graph=part_model, reads=read, writes=writes, keeps=keeps))
        before = keeps
    return tuple(result)
