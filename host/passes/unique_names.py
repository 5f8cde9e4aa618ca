"""Give every tensor and every node a name that no other one has, across all subgraphs.

Fragments of a model are joined by name, and of two equal names the later one silently wins.

1. Inputs and outputs of the main graph keep their names.
2. Otherwise the first to use a name keeps it; the next ones get ``_1``, ``_2`` … appended.
3. A node without a name is called after its operator and its first output.
4. A name longer than 200 characters is cut.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

_LONGEST = 200


def unique_names(model: ir.Model) -> None:
    """Make names unique model-wide, in place; the model has no functions."""
    public = set(model.graph.inputs) | set(model.graph.outputs)
    used = {value.name for value in public if value.name}
    others = [value for graph in model.graphs() for value in _values(graph) if value not in public]
    wanted = [(value, free_name(_base(value.name, "tensor"), used)) for value in others]
    changed = [(value, name) for value, name in wanted if value.name != name]
    # Two steps, because a name may move from one initializer to another.
    for index, (value, _) in enumerate(changed):
        value.name = f"\0{index}"
    for value, name in changed:
        value.name = name
    nodes: set[str] = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        first = next((value.name for value in node.outputs if value.name), "")
        node.name = free_name(_base(node.name, f"{node.op_type}_{first}"), nodes)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        for value in node.outputs:
            # An output without a name is one that the node need not compute.
            if value.name or value.uses():
                yield value


def _base(name: str | None, otherwise: str) -> str:
    return (name or otherwise)[:_LONGEST]


def free_name(name: str, used: set[str]) -> str:
    """Return a name that is not used yet, as close to `name` as can be, and note it as used."""
    free, count = name, 0
    while free in used:
        count += 1
        free = f"{name}_{count}"
    used.add(free)
    return free
