"""Drop whole residual branches: ``y = x + f(x)`` becomes ``y = x``.

A branch can go if everything in it comes from ``x`` alone and goes nowhere else, and ``f(x)`` has the shape of ``x``.
Which ones go is decided greedily: of all that are left, the one without which the answers change least, again and
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx_ir as ir

from host.compress.constants import constant_of
from host.compress.prune.shapes import inferred_shapes
from host.compress.recipe import PruneBlocks
from host.errors import RecipeError, RuntimeRefusedError
from host.model import Graph, Model, Tensors, copied, distinct_sizes
from host.passes.normalise import normalise
from host.reference import Reference

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Block:
    """A residual branch that can go.

    Attributes:
        add: The node that adds it.
        skipped: What it is added to.
        nodes: How many nodes go with it.
    """

    add: ir.Node
    skipped: ir.Value
    nodes: int


def find_blocks(graph: Graph) -> tuple[Block, ...]:
    """The residual branches of a graph that can go, in graph order.

    Args:
        graph: Of a normalised model.
    """
    shapes = inferred_shapes(graph)
    found: list[Block] = []
    for node in graph.graph:
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx") or node.outputs[0].is_graph_output():
            continue
        first, second = node.inputs
        if first is None or second is None or first is second:
            continue
        for skipped, branch in ((first, second), (second, first)):
            if constant_of(skipped) is not None or constant_of(branch) is not None:
                continue
            if _differ(shapes.get(str(skipped.name)), shapes.get(str(branch.name))):
                continue
            inside = _branch(node, skipped, branch)
            if inside:
                found.append(Block(add=node, skipped=skipped, nodes=len(inside) + 1))
                break
    return tuple(found)


def decide(model: Model, step: PruneBlocks, samples: Sequence[Tensors], *, say: Say) -> PruneBlocks:
    """Choose the branches that go.

    Args:
        model: Optimised and normalised.
        step: How many; its ``blocks`` are decided anew.
        samples: Real inputs, at least one. The change of the answers is their mean relative squared error,
            ``Σ‖y − y₀‖² / Σ‖y₀‖²`` over samples for each output, then the mean over the outputs.
        say: Called with one line for each branch that goes.

    Returns:
        The step with its blocks, in the order in which they were chosen.

    Raises:
        RecipeError: If there are fewer branches, no samples, or the model does not run them.
    """
    if not samples:
        raise RecipeError("prune: which blocks to drop is decided on samples: give --inputs")
    try:
        reference = Reference(model)
        answers = reference.run_all(samples)
    except RuntimeRefusedError as error:
        raise RecipeError(f"prune: the model does not run the samples: {error}") from error
    chosen: list[str] = []
    sizes = distinct_sizes(samples)
    while len(chosen) < step.count:
        current = structure(model, msgspec.structs.replace(step, blocks=tuple(chosen)))
        ranked: list[tuple[float, int, str]] = []
        for index, block in enumerate(find_blocks(current.ir)):
            if _keeps_shape(current, block, sizes):
                name = str(block.add.name)
                shorter = structure(model, msgspec.structs.replace(step, blocks=(*chosen, name)))
                ranked.append((_change(Reference(shorter).run_all(samples), answers), index, name))
        if not ranked:
            raise RecipeError(
                f"prune: this model has {len(chosen)} residual blocks that can be dropped, not {step.count}: "
                "lower count"
            )
        change, _, name = min(ranked)
        say(f"prune: without the block that ends at {name} the answers change by {change:.3g}")
        chosen.append(name)
    return msgspec.structs.replace(step, blocks=tuple(chosen))


def structure(model: Model, step: PruneBlocks) -> Model:
    """Drop the branches that were decided. Looks at no data.

    Args:
        model: The one that the step was decided for.
        step: With its blocks; they go one after another.

    Returns:
        A new, normalised model; what is left keeps its names.

    Raises:
        RecipeError: If a name is not that of a residual sum of this model.
    """
    graph = copied(model.ir)
    for name in step.blocks:
        block = next((block for block in find_blocks(graph) if block.add.name == name), None)
        if block is None:
            raise RecipeError(f"prune: {name!r} is no residual sum of this model that can be dropped: decide again")
        ir.convenience.replace_all_uses_with(block.add.outputs[0], block.skipped)
        ir.passes.common.RemoveUnusedNodesPass()(graph)
    return normalise(model.with_ir(graph))


def _differ(left: Sequence[int | None] | None, right: Sequence[int | None] | None) -> bool:
    """Whether two shapes cannot be the same; what is unknown may be."""
    if left is None or right is None:
        return False
    return len(left) != len(right) or any(
        a is not None and b is not None and a != b for a, b in zip(left, right, strict=True)
    )


def _branch(add: ir.Node, skipped: ir.Value, branch: ir.Value) -> set[ir.Node]:
    """The nodes between ``skipped`` and the sum, or nothing if other tensors enter there or leave from there."""
    inside: set[ir.Node] = set()
    todo = [branch]
    reached = False
    while todo:
        value = todo.pop()
        if value is skipped:
            reached = True
            continue
        if constant_of(value) is not None:
            continue
        node = value.producer()
        if node is None or any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        ):
            return set()
        if node not in inside:
            inside.add(node)
            todo.extend(taken for taken in node.inputs if taken is not None)
    outward = any(
        value.is_graph_output() or any(use.node is not add and use.node not in inside for use in value.uses())
        for node in inside
        for value in node.outputs
    )
    return inside if reached and not outward else set()


def _keeps_shape(model: Model, block: Block, samples: Sequence[Tensors]) -> bool:
    """Whether the sum has the shape of what it would be replaced by, for each size of input."""
    names = [str(block.skipped.name), str(block.add.outputs[0].name)]
    inputs = {str(value.name) for value in model.ir.graph.inputs}
    reference = Reference(model, extra_outputs=[name for name in names if name not in inputs])
    for sample in samples:
        found = {**sample, **reference.run(sample, [name for name in names if name not in inputs])}
        if found[names[0]].shape != found[names[1]].shape:
            return False
    return True


def _change(found: Sequence[Tensors], expected: Sequence[Tensors]) -> float:
    shares: list[float] = []
    for name, first in expected[0].items():
        if first.dtype.kind != "f":
            continue
        error = sum(
            float(np.sum((f[name].astype(np.float64) - e[name]) ** 2)) for f, e in zip(found, expected, strict=True)
        )
        power = sum(float(np.sum(e[name].astype(np.float64) ** 2)) for e in expected)
        shares.append(error / power if power > 0 else float(error > 0))
    return float(np.mean(shares)) if shares else 0.0
