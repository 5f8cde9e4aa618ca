"""Putting the nodes of each branch next to each other, where the file has them mixed.

A walk from the outputs back, depth first, finishes one branch before it takes up the next. It changes nothing but the
order, so every node computes what it did; whether it is worth it, `host.planning.branches.worth` says.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from host.model import Model, copied
from host.work import node_reads


def depth_first(model: Model) -> Model | None:
    """Return the model with its nodes in depth-first order, or None where they are in that order."""
    nodes = tuple(model.ir.graph)
    order = _walk(nodes, [str(value.name) for value in model.ir.graph.outputs])
    if order == list(range(len(nodes))):
        return None
    graph = copied(model.ir)
    moved = tuple(graph.graph)
    graph.graph.remove(moved)
    graph.graph.extend(moved[index] for index in order)
    return model.with_ir(graph)


def _walk(nodes: Sequence[ir.Node], outputs: Sequence[str]) -> list[int]:
    maker = {str(value.name): index for index, node in enumerate(nodes) for value in node.outputs if value.name}
    needs = [[maker[name] for name in node_reads(node) if name in maker] for node in nodes]
    wanted = [maker[name] for name in outputs if name in maker]
    order: dict[int, None] = {}
    # What nobody reads comes last.
    for root in (*wanted, *range(len(nodes))):
        path = [root]
        while path:
            waiting = next((need for need in needs[path[-1]] if need not in order), None)
            if waiting is None:
                order.setdefault(path.pop())
            else:
                path.append(waiting)
    return list(order)
