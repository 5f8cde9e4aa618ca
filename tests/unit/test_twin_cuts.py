"""Two models are cut where both may be cut and the same tensors are alive."""

from collections.abc import Iterable

from host.tflite.twin_cuts import common_cuts, with_equal_reads, without
from host.tflite.twin_match import Pair


def pair(own: str, other: str) -> Pair:
    return Pair(own=own, other=other, axes=(), error=0.0)


def pairs(*texts: str) -> tuple[Pair, ...]:
    return tuple(pair(*text.split("=")) for text in texts)


def cuts(*texts: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(text.split()) for text in texts)


def places(own: Iterable[tuple[str, ...]], other: Iterable[tuple[str, ...]], *texts: str) -> list[tuple[int, int]]:
    return [(common.own, common.other) for common in common_cuts(tuple(own), tuple(other), pairs(*texts))]


def test_cuts_are_common_where_every_tensor_has_a_partner_and_nothing_else_is_alive() -> None:
    own = cuts("x", "a", "a b", "b c", "y")
    other = cuts("X", "A", "A B", "B C D", "C", "Y")
    assert places(own, other, "x=X", "a=A", "b=B", "c=C", "y=Y") == [(0, 0), (1, 1), (2, 2), (4, 5)]


def test_without_partners_of_inputs_or_outputs_there_is_nothing() -> None:
    assert places(cuts("x", "a", "y"), cuts("X", "A", "Y"), "x=X", "a=A") == []
    assert places(cuts("x", "a", "y"), cuts("X", "A", "Y"), "a=A", "y=Y") == []


def test_models_that_share_no_inner_cut_are_one_layer() -> None:
    assert places(cuts("x", "a", "y"), cuts("X", "B", "Y"), "x=X", "y=Y") == [(0, 0), (2, 2)]


def test_the_order_within_a_cut_does_not_count() -> None:
    assert places(cuts("x", "a b", "y"), cuts("X", "B A", "Y"), "x=X", "a=A", "b=B", "y=Y") == [(0, 0), (1, 1), (2, 2)]


def test_a_chain_runs_forward_in_both_models() -> None:
    """Branches in another order: only one of both is kept."""
    own = cuts("x", "a", "b", "c", "y")
    other = cuts("X", "B", "C", "A", "Y")
    assert places(own, other, "x=X", "a=A", "b=B", "c=C", "y=Y") == [(0, 0), (2, 1), (3, 2), (4, 4)]


def test_equal_tensors_meet_in_their_order() -> None:
    own, other = cuts("x", "a b", "y"), cuts("X", "A B", "Y")
    every = pairs("x=X", "a=A", "a=B", "b=A", "b=B", "y=Y")
    partners = common_cuts(own, other, every)[1].partners
    assert {name: found.other for name, found in partners.items()} == {"a": "A", "b": "B"}


def test_a_tensor_keeps_its_partner_at_every_cut() -> None:
    """`a` and its double are held at different places: `a` went to A, so B cannot stand for it later."""
    own = cuts("x", "a", "a c", "y")
    other = cuts("X", "A", "B C", "Y")
    assert places(own, other, "x=X", "a=A", "a=B", "c=C", "y=Y") == [(0, 0), (1, 1), (3, 3)]


def test_zeros_in_many_places_do_not_break_the_chain() -> None:
    own = cuts("x", "z", "a", "y")
    other = cuts("X", "Z", "A", "Q", "Y")
    assert places(own, other, "x=X", "z=Z", "z=Q", "a=A", "y=Y") == [(0, 0), (1, 1), (2, 2), (3, 4)]


def test_layers_that_read_different_tensors_are_joined() -> None:
    own, other = cuts("x", "a b", "b c", "y"), cuts("X", "A B", "B C", "Y")
    commons = common_cuts(own, other, pairs("x=X", "a=A", "b=B", "c=C", "y=Y"))
    mine = {(0, 1): "x", (1, 2): "a", (2, 3): "b c", (0, 3): "x", (1, 3): "a b"}
    theirs = {(0, 1): "X", (1, 2): "A B", (2, 3): "B C", (0, 3): "X", (1, 3): "A B"}
    kept = with_equal_reads(
        commons,
        lambda first, stop: frozenset(mine[first, stop].split()),
        lambda first, stop: frozenset(theirs[first, stop].split()),
    )
    assert [common.own for common in kept] == [0, 1, 3]


def test_a_wrong_layer_costs_the_place_after_it_and_the_last_the_one_before() -> None:
    commons = common_cuts(cuts("x", "a", "b", "y"), cuts("X", "A", "B", "Y"), pairs("x=X", "a=A", "b=B", "y=Y"))
    assert [common.own for common in without(commons, [0])] == [0, 2, 3]
    assert [common.own for common in without(commons, [2])] == [0, 1, 3]
    assert [common.own for common in without(commons[:1] + commons[-1:], [0])] == [0, 3]
