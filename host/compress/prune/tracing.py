"""What is known while channels are followed through a graph: which axis of a tensor holds which channels.

Every output channel of a producer (Conv, Gemm, MatMul …) gets a number. A tensor's layout lists the numbers along its
channel axis; an operator's rule (`host.compress.prune.rules`) says how layouts go through it, which numbers it ties
together because they must stay or go as one, and which of its constants have an axis that follows them. Number 0 stands
for what must stay: to freeze a channel is to tie it to number 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edge.formats.tensor import Array
from host.compress.constants import constant_of, is_shared
from host.compress.prune.shapes import Shape

Ids = npt.NDArray[np.int64]
Role = Literal["makes", "reads", "follows"]

KEPT = 0
"""The number of everything that must stay."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layout:
    """Where the channels of a tensor are.

    Attributes:
        axis: Index of the axis that holds them, not negative.
        rank: Number of the tensor's axes.
        ids: Number of the channel at each position of that axis.
    """

    axis: int
    rank: int
    ids: Ids


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cut:
    """An axis of a constant that shrinks with channels.

    Attributes:
        node: The node that takes the constant.
        input: At which position.
        axis: Of the constant.
        ids: Number of the channel at each position of that axis.
        role: ``"makes"``: a producer's weight, along its outputs; ``"reads"``: a consumer's weight, along its inputs;
            ``"follows"``: anything else that has one value, or one filter, a channel.
    """

    node: ir.Node
    input: int
    axis: int
    ids: Ids
    role: Role


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Count:
    """A number in a node that says how many channels there are.

    Attributes:
        node: The node.
        input: Position of the constant that holds it; None for the attribute ``group``.
        index: Position within that constant.
        ids: The channels that are counted.
    """

    node: ir.Node
    input: int | None
    index: int
    ids: Ids


class Tracing:
    """Channels on their way through one graph. Rules read and write it.

    Args:
        shapes: Shape by tensor name.
        opset: Version of the default operator set.
    """

    def __init__(self, shapes: Mapping[str, Shape], *, opset: int) -> None:
        self.opset = opset
        self.layouts: dict[ir.Value, Layout] = {}
        self.cuts: list[Cut] = []
        self.counts: list[Count] = []
        self.made: dict[ir.Node, Ids] = {}
        self._shapes = shapes
        self._parents: list[int] = [KEPT]

    # -------------------------------------------------------------------------------------------------------- numbers
    def root(self, number: int) -> int:
        """The smallest number that a channel is tied to."""
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    def roots(self) -> Ids:
        """`root` of every number."""
        return np.array([self.root(number) for number in range(len(self._parents))], np.int64)

    def tie(self, left: Ids, right: Ids) -> None:
        """Say that channels must stay or go together, position by position."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            first, second = sorted((self.root(a), self.root(b)))
            self._parents[second] = first

    def freeze(self, ids: Ids) -> None:
        """Say that channels must stay."""
        self.tie(ids, np.full(len(ids), KEPT, np.int64))

    def _fresh(self, count: int) -> Ids:
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    # -------------------------------------------------------------------------------------------------------- reading
    def layout(self, value: ir.Value | None) -> Layout | None:
        """Where the channels of a tensor are; None if it has none that could go."""
        return self.layouts.get(value) if value is not None else None

    def shape(self, value: ir.Value | None) -> Shape | None:
        """The shape of a tensor; None if not even its rank is known."""
        return self._shapes.get(str(value.name)) if value is not None else None

    def own_weight(self, node: ir.Node, index: int) -> Array | None:
        """A node's constant input that no other node takes, or None."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or is_shared(value):
            return None
        return constant_of(value)

    # -------------------------------------------------------------------------------------------------------- writing
    def give_up(self, node: ir.Node) -> None:
        """Nothing is known of how the node treats channels: all that it takes must stay."""
        self.keep_all(node.inputs)

    def keep_all(self, values: Iterable[ir.Value | None]) -> None:
        """Freeze the channels of tensors."""
        for value in values:
            layout = self.layout(value)
            if layout is not None:
                self.freeze(layout.ids)

    def place(self, value: ir.Value, *, axis: int, rank: int, ids: Ids) -> None:
        """Note the layout of a computed tensor."""
        self.layouts[value] = Layout(axis=axis, rank=rank, ids=ids)

    def makes(self, node: ir.Node, index: int, axis: int, count: int) -> Ids:
        """Number the output channels of a producer and note the axis of its weight that they are."""
        ids = self._fresh(count)
        if count < 2:
            self.freeze(ids)
        self.made[node] = ids
        self.cuts.append(Cut(node=node, input=index, axis=axis, ids=ids, role="makes"))
        return ids

    def reads(self, node: ir.Node, index: int, axis: int, layout: Layout) -> None:
        """Note the axis of a consumer's weight that goes along the channels it takes."""
        weight = constant_of(node.inputs[index])
        if weight is None or weight.shape[axis] != len(layout.ids):
            self.freeze(layout.ids)
            return
        self.cuts.append(Cut(node=node, input=index, axis=axis, ids=layout.ids, role="reads"))

    def follows(self, node: ir.Node, index: int, axis: int, ids: Ids) -> None:
        """Note that an input has one value, or one filter, a channel; one that is computed freezes the channels."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return
        array = constant_of(value)
        if array is None or array.ndim <= axis or array.shape[axis] != len(ids):
            self.freeze(ids)
            return
        self.cuts.append(Cut(node=node, input=index, axis=axis, ids=ids, role="follows"))

    def counted(self, node: ir.Node, input_index: int | None, index: int, ids: Ids) -> None:
        """Note that a node says how many channels there are."""
        self.counts.append(Count(node=node, input=input_index, index=index, ids=ids))


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The input at a position; None if it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def numbers_of(node: ir.Node, index: int, attribute: str) -> list[int] | None:
    """Integers from a constant input, or from the attribute of older operator sets; None if absent or computed."""
    value = input_at(node, index)
    if value is not None:
        array = constant_of(value)
        return [int(number) for number in array.ravel()] if array is not None else None
    found = node.attributes.get(attribute)
    return [int(number) for number in found.as_ints()] if found is not None else None


def is_computed(node: ir.Node, index: int) -> bool:
    """Whether there is an input at a position and it is no constant."""
    value = input_at(node, index)
    return value is not None and constant_of(value) is None
