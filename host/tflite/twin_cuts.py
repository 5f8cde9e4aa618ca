"""Cutting two models of the same weights at the same places; pure.

A place of one model is a place of the other where every tensor that is alive has a partner there, and nothing else is
alive. Of all such places a longest chain that runs forward in both models is kept.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from host.tflite.twin_match import Pair

Cut = Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedCut:
    """A place where both models may be cut.

    Attributes:
        own, other: which cut of each model, counted from its inputs.
        partners: pairs by the name in the first model; one partner each, the same at every place.
    """

    own: int
    other: int
    partners: Mapping[str, Pair]


def common_cuts(own: Sequence[Cut], other: Sequence[Cut], pairs: Sequence[Pair]) -> tuple[SharedCut, ...]:
    """Return the places where both models may be cut, inputs first and outputs last.

    Args:
        own: cut sets of the first model; the first are its inputs, the last its outputs.
        other: of the second.
        pairs: partners; of inputs and outputs exactly those that are meant.

    Returns:
        At least both ends; empty where those have no partners.
    """
    classes = _classes(pairs)
    ends = [_Place(own=0, other=0), _Place(own=len(own) - 1, other=len(other) - 1)]
    places: dict[tuple[int, ...], list[int]] = {}
    for index in range(1, len(other) - 1):
        if (key := _key(other[index], classes, "other")) is not None:
            places.setdefault(key, []).append(index)
    inner = [
        _Place(own=index, other=place)
        for index in range(1, len(own) - 1)
        if (key := _key(own[index], classes, "own")) is not None
        for place in places.get(key, ())
    ]
    relation = {(pair.own, pair.other): pair for pair in pairs}
    chosen: dict[str, Pair] = {}
    found: dict[_Place, Mapping[str, Pair]] = {}
    # The ends first: what they pair is settled.
    for place in (*ends, *_longest(inner)):
        assigned = _assign(own[place.own], other[place.other], relation, chosen)
        if assigned is not None:
            chosen |= assigned
            found[place] = assigned
        elif place in ends:
            return ()
    return tuple(
        SharedCut(own=place.own, other=place.other, partners=found[place])
        for place in sorted(found, key=lambda place: place.own)
    )


Reads = Callable[[int, int], frozenset[str]]
"""Non-constant tensors that the layers between two cuts of a model read from before them."""


def with_equal_reads(commons: Sequence[SharedCut], own_reads: Reads, other_reads: Reads) -> tuple[SharedCut, ...]:
    """Leave out places until both models read the same tensors between each two.

    Routes are worked out from what the first model's shards read, whatever the runtime.
    """
    kept = list(commons)
    place = 0
    while place < len(kept) - 1:
        first, stop = kept[place], kept[place + 1]
        mine = {first.partners[name].other for name in own_reads(first.own, stop.own) if name in first.partners}
        if mine == other_reads(first.other, stop.other):
            place += 1
        elif place + 1 < len(kept) - 1:
            del kept[place + 1]
        elif place > 0:
            del kept[place]
            place -= 1
        else:
            break
    return tuple(kept)


def without(commons: Sequence[SharedCut], wrong: Sequence[int]) -> tuple[SharedCut, ...]:
    """Leave out one place of each layer that is wrong: the one after it, or before it where that is the end.

    Args:
        commons: inputs first, outputs last.
        wrong: layers between two places, by the index of the first.
    """
    last = len(commons) - 1
    gone = {index + 1 if index + 1 < last else index for index in wrong} - {0, last}
    return tuple(common for index, common in enumerate(commons) if index not in gone)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    own: int
    other: int


def _classes(pairs: Sequence[Pair]) -> dict[tuple[str, str], int]:
    """Number the classes of equal tensors; keys are (side, name)."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(key: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for pair in pairs:
        parent[root(("other", pair.other))] = root(("own", pair.own))
    numbers: dict[tuple[str, str], int] = {}
    return {key: numbers.setdefault(root(key), len(numbers)) for key in list(parent)}


def _key(cut: Cut, classes: Mapping[tuple[str, str], int], side: str) -> tuple[int, ...] | None:
    found = [classes.get((side, name)) for name in cut]
    return tuple(sorted(number for number in found if number is not None)) if None not in found else None


def _longest(places: Sequence[_Place]) -> list[_Place]:
    """Return a longest chain that runs strictly forward in both models."""
    ordered = sorted(places, key=lambda place: (place.own, -place.other))
    tails: list[int] = []
    chain: list[int] = []
    before: dict[int, int | None] = {}
    for index, place in enumerate(ordered):
        at = bisect_left(tails, place.other)
        before[index] = chain[at - 1] if at else None
        if at == len(tails):
            tails.append(place.other)
            chain.append(index)
        else:
            tails[at], chain[at] = place.other, index
    found: list[_Place] = []
    current = chain[-1] if chain else None
    while current is not None:
        found.append(ordered[current])
        current = before[current]
    return found[::-1]


def _assign(
    own: Cut, other: Cut, relation: Mapping[tuple[str, str], Pair], chosen: Mapping[str, Pair]
) -> dict[str, Pair] | None:
    """Give each tensor of a cut a partner of its own, keeping those that are settled; None where that cannot be.

    Both cuts are in order of production, so that of several equal tensors the first meets the first.
    """
    if len(own) != len(other):
        return None
    taken = {pair.other: name for name, pair in chosen.items()}
    free = [name for name in other if name not in taken]
    found: dict[str, Pair] = {}
    for name in own:
        if name in chosen:
            if chosen[name].other not in other:
                return None
            found[name] = chosen[name]
            continue
        partner = next((candidate for candidate in free if (name, candidate) in relation), None)
        if partner is None:
            return None
        free.remove(partner)
        found[name] = relation[name, partner]
    return found
