"""Which output channels of a graph must stay or go together, and what else shrinks with them.

The channels are followed from their producers through the table of rules. What a rule does not know stays: an unknown
operator, a graph output, a tensor that a subgraph captures. Channels that an operator ties (an element-wise sum, a
depthwise convolution, a gate) become one; producers that share such channels form a group.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from host.compress.prune.rules import RULES
from host.compress.prune.shapes import inferred_shapes
from host.compress.prune.tracing import KEPT, Count, Cut, Ids, Layout, Tracing
from host.compress.recipe import ChannelGroup
from host.errors import RecipeError
from host.model import Graph
from host.work import subgraphs

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """Producers whose channels are tied, the n-th of each to the n-th of the others.

    Attributes:
        nodes: Their names, in graph order.
        roots: The number of each output channel.
    """

    nodes: tuple[str, ...]
    roots: Ids

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.roots)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ties:
    """The channels of one graph.

    Attributes:
        groups: What can be pruned, in graph order.
        root: For each number, the one that stands for all that it is tied to; 0 for what must stay.
        cuts: Axes of constants that shrink with channels; their ``ids`` are roots.
        counts: Numbers in nodes that count channels; the same.
        layouts: Where the channels of a computed tensor are, by its name; the same.
    """

    groups: tuple[Group, ...]
    root: Ids
    cuts: tuple[Cut, ...]
    counts: tuple[Count, ...]
    layouts: dict[str, Layout]

    def stays(self, groups: Iterable[ChannelGroup]) -> Mask:
        """For each number, whether it stays.

        Args:
            groups: What was decided. Groups that are not named stay as they are.

        Raises:
            RecipeError: If a group is not one of this graph, or keeps a channel that it has not.
        """
        mask = np.ones(len(self.root), np.bool_)
        known = {group.nodes: group for group in self.groups}
        for chosen in groups:
            group = known.get(chosen.nodes)
            if group is None:
                raise RecipeError(
                    f"prune: {', '.join(map(repr, chosen.nodes))} is no group of tied channels of this model: decide "
                    "the groups again"
                )
            if chosen.keep[-1] >= group.size:
                raise RecipeError(
                    f"prune: the group of {chosen.nodes[0]!r} has {group.size} channels, and channel {chosen.keep[-1]} "
                    "should stay: decide the groups again"
                )
            mask[group.roots] = False
            mask[group.roots[list(chosen.keep)]] = True
        return mask


def find_ties(graph: Graph, *, exclude: Iterable[str] = ()) -> Ties:
    """Follow the channels of a graph.

    Args:
        graph: Of a normalised model; it is not changed.
        exclude: Names of nodes whose output channels all stay.

    Raises:
        RecipeError: If a name in ``exclude`` is no node's.
    """
    main = graph.graph
    refuse_unknown(graph, exclude)
    excluded = set(exclude)
    tracing = Tracing(inferred_shapes(graph), opset=main.opset_imports.get("", 0))
    for node in main:
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            tracing.give_up(node)
        else:
            rule(tracing, node)
        tracing.keep_all(_captured(node))
        if node.name in excluded:
            tracing.keep_all(node.outputs)
    tracing.keep_all(main.outputs)
    return _settled(tracing)


def refuse_unknown(graph: Graph, names: Iterable[str]) -> None:
    """Raise `RecipeError` for the first name that is no node's of the main graph."""
    known = {node.name for node in graph.graph}
    for name in names:
        if name not in known:
            raise RecipeError(f"prune: exclude: {name!r} is no node of this model; names are those after optimisation")


def _captured(node: ir.Node) -> list[ir.Value]:
    """Tensors that the subgraphs of a node use, those of outside among them."""
    found: list[ir.Value] = []
    for graph in subgraphs(node):
        found.extend(graph.outputs)
        for part in ir.traversal.RecursiveGraphIterator(graph):
            found.extend(value for value in part.inputs if value is not None)
    return found


def _settled(tracing: Tracing) -> Ties:
    """Form groups. One with a channel that must stay, stays as a whole; so does one that is tied crosswise."""
    root = tracing.roots()
    producers = [(str(node.name), root[ids]) for node, ids in tracing.made.items()]
    component = _components([ids for _, ids in producers])
    groups: list[Group] = []
    for label in sorted(set(component)):
        members = [producers[index] for index, found in enumerate(component) if found == label]
        roots = members[0][1]
        crosswise = len(np.unique(roots)) < len(roots) or any(not np.array_equal(ids, roots) for _, ids in members)
        if KEPT not in roots and not crosswise:
            groups.append(Group(nodes=tuple(name for name, _ in members), roots=roots))
    return Ties(
        groups=tuple(groups),
        root=root,
        cuts=tuple(
            Cut(node=cut.node, input=cut.input, axis=cut.axis, ids=root[cut.ids], role=cut.role) for cut in tracing.cuts
        ),
        counts=tuple(
            Count(node=count.node, input=count.input, index=count.index, ids=root[count.ids])
            for count in tracing.counts
        ),
        layouts={
            str(value.name): Layout(axis=layout.axis, rank=layout.rank, ids=root[layout.ids])
            for value, layout in tracing.layouts.items()
        },
    )


def _components(sets: list[Ids]) -> list[int]:
    """Label sets of numbers so that those that share one, directly or through others, have the same label."""
    labels = list(range(len(sets)))
    owner: dict[int, int] = {}
    for index, numbers in enumerate(sets):
        others = {labels[owner[n]] for n in set(numbers.tolist()) if n != KEPT and n in owner}
        if others:
            least = min(others | {index})
            labels = [least if label in others or at == index else label for at, label in enumerate(labels)]
        for number in set(numbers.tolist()):
            owner.setdefault(number, index)
    return labels
