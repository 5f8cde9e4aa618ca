"""Cuts of a TFLite model: where it may be divided, and what is alive there.

1. Operators that read constants only (DEQUANTIZE of float16 weights, DENSIFY) are set aside: they belong to whoever
   reads them. Operators that nobody needs are left out.
2. The other operators, the *working* ones, keep their order. Between two of them is a place to cut; its cut set is
   every tensor made before it and needed after it.
3. A place is no legal cut where a live value is not a dense tensor of a codec dtype (variables, tables, strings, int4),
   or between two operators that touch one variable or table, handles to which need not be the same tensor.
4. A layer is what lies between two neighbouring legal cuts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from host.errors import PartitionError, UnsupportedModelError
from host.observe import Observed
from host.tflite.graph import TfliteGraph, TfliteOperator


@dataclass(frozen=True, kw_only=True, slots=True)
class Working:
    """The operators of a model, those of constants set aside.

    Attributes:
        operators: that work on inputs, in order.
        aside: operators that read constants only, by each tensor that they make.
        constants: tensors in the file, and those that operators aside make.
        taken: what each operator reads that is neither constant nor a state of its own.
        alive: the tensors before each operator, and at the end, in the order in which they are made; the first are
            the inputs, the last the outputs, in the order of the model.
    """

    operators: tuple[TfliteOperator, ...]
    aside: Mapping[int, TfliteOperator]
    constants: frozenset[int]
    taken: tuple[tuple[int, ...], ...]
    alive: tuple[tuple[int, ...], ...]

    def reads(self, operator: TfliteOperator, graph: TfliteGraph) -> tuple[int, ...]:
        """Return what an operator reads that is neither constant nor a state of its own."""
        return tuple(i for i in operator.reads if i not in self.constants and not graph.tensors[i].variable)

    def behind(self, operators: Iterable[TfliteOperator]) -> tuple[TfliteOperator, ...]:
        """Return the operators aside that these need, each after those that it needs itself."""
        found: dict[int, TfliteOperator] = {}
        waiting = [read for operator in operators for read in operator.reads]
        while waiting:
            operator = self.aside.get(waiting.pop())
            if operator is not None and operator.index not in found:
                found[operator.index] = operator
                waiting.extend(operator.reads)
        return tuple(found[index] for index in sorted(found))


@dataclass(frozen=True, kw_only=True, slots=True)
class TfliteLayers:
    """A model divided at cuts.

    Attributes:
        working: its operators.
        bounds: how many working operators lie before each cut, from 0 to all of them.
        cuts: the names alive at each; the first are the inputs, the last the outputs.
    """

    working: Working
    bounds: tuple[int, ...]
    cuts: tuple[tuple[str, ...], ...]

    @property
    def layers(self) -> tuple[tuple[TfliteOperator, ...], ...]:
        """The operators of each layer."""
        return tuple(self.working.operators[first:stop] for first, stop in pairwise(self.bounds))


def find_working(graph: TfliteGraph) -> Working:
    """Set operators aside that read constants only, and leave out those that nobody needs.

    Raises:
        UnsupportedModelError: nothing works on the inputs, or an output is a constant.
    """
    constants = {tensor.index for tensor in graph.tensors if tensor.constant}
    for index in graph.inputs:
        constants.discard(index)
    aside: dict[int, TfliteOperator] = {}
    live: list[TfliteOperator] = []
    for operator in _needed(graph):
        keeps_state = operator.resources or any(graph.tensors[i].variable for i in operator.reads)
        pure = bool(operator.reads) and not keeps_state and not operator.calls
        if pure and constants.issuperset(operator.reads):
            aside |= dict.fromkeys(operator.makes, operator)
            constants.update(operator.makes)
        else:
            live.append(operator)
    if not live:
        raise UnsupportedModelError("the model has no operators that read its inputs: there is nothing to run")
    if fixed := [index for index in graph.outputs if index in constants]:
        name = graph.tensors[fixed[0]].name
        raise UnsupportedModelError(f"output {name!r} is a constant: remove it from the outputs")
    taken = tuple(
        tuple(i for i in operator.reads if i not in constants and not graph.tensors[i].variable) for operator in live
    )
    return Working(
        operators=tuple(live),
        aside=aside,
        constants=frozenset(constants),
        taken=taken,
        alive=_alive(graph, live, taken),
    )


def _needed(graph: TfliteGraph) -> list[TfliteOperator]:
    """Leave out what no output depends on; operators that touch variables or run subgraphs without outputs stay."""
    wanted = set(graph.outputs)
    kept: list[TfliteOperator] = []
    for operator in reversed(graph.operators):
        acts = bool(operator.resources) or not operator.makes
        if acts or not wanted.isdisjoint(operator.makes):
            kept.append(operator)
            wanted.update(operator.reads)
    return kept[::-1]


def _alive(
    graph: TfliteGraph, operators: Sequence[TfliteOperator], taken: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    last: dict[int, int] = {index: place for place, each in enumerate(taken) for index in each}
    last |= dict.fromkeys(graph.outputs, len(operators))
    alive: dict[int, None] = dict.fromkeys(graph.inputs)
    found = [tuple(alive)]
    for place, operator in enumerate(operators):
        alive |= dict.fromkeys(operator.makes)
        alive = {index: None for index in alive if last.get(index, -1) > place}
        found.append(tuple(alive))
    found[-1] = graph.outputs
    return tuple(found)


def find_layers(
    graph: TfliteGraph, observed: Mapping[str, Observed], *, cuts: Collection[int] | None = None
) -> TfliteLayers:
    """Divide a model at every legal cut.

    Args:
        graph: of the model.
        observed: every tensor that is alive somewhere, by name.
        cuts: the only places to divide it at, each as the number of working operators before it; None for all.

    Raises:
        UnsupportedModelError: an input or output is no tensor that can travel, or an output is a constant.
        PartitionError: one of `cuts` is not legal.
    """
    for kind, indices in (("input", graph.inputs), ("output", graph.outputs)):
        for index in indices:
            tensor = graph.tensors[index]
            if not tensor.dtype or not observed[tensor.name].can_travel:
                raise UnsupportedModelError(
                    f"{kind} {tensor.name!r} is of type {tensor.type}: only dense tensors of numbers can travel"
                )
    working = find_working(graph)
    sets = working.alive
    held = _inside_states(graph, working.operators)
    count = len(working.operators)
    legal = [
        place
        for place in range(1, count)
        if place not in held and all(observed[graph.tensors[index].name].can_travel for index in sets[place])
    ]
    if cuts is not None:
        if wrong := sorted(set(cuts) - set(legal) - {0, count}):
            raise PartitionError(f"the model cannot be divided before working operator {wrong[0]}")
        legal = [place for place in legal if place in cuts]
    bounds = (0, *legal, count)
    return TfliteLayers(working=working, bounds=bounds, cuts=tuple(graph.names(sets[place]) for place in bounds))


def _inside_states(graph: TfliteGraph, operators: Sequence[TfliteOperator]) -> frozenset[int]:
    """Places between the first and the last operator that touch one variable, table or state."""
    spans: dict[object, list[int]] = {}
    for place, operator in enumerate(operators):
        keys = [*operator.resources, *(index for index in operator.reads if graph.tensors[index].variable)]
        for key in keys:
            spans.setdefault(key, []).append(place)
    return frozenset(place for span in spans.values() for place in range(span[0] + 1, span[-1] + 1))
