"""Which broker of a list a node uses, by what it has seen of them and heard of the coordinator."""

import pytest

from edge.broker_choice import BRIEF_SECONDS, UNHEARD_SECONDS, BrokerChoice

T = 1000.0


def standing(count: int = 2) -> BrokerChoice:
    choice = BrokerChoice(count, now=T)
    choice.connected(T)
    return choice


def test_it_begins_with_the_first() -> None:
    assert BrokerChoice(3, now=T).current == 0


def test_a_broker_that_is_gone_briefly_is_waited_for() -> None:
    choice = standing()
    choice.failed(T + 5)
    choice.failed(T + 5 + 0.9 * BRIEF_SECONDS)
    assert choice.current == 0
    choice.connected(T + 6)
    choice.failed(T + 9)
    assert choice.current == 0, "the time begins anew"


def test_a_broker_that_stays_away_is_left_for_the_next_and_so_on_around() -> None:
    choice = standing(3)
    now, seen = T, []
    for _ in range(4):
        choice.failed(now)
        choice.failed(now + BRIEF_SECONDS)
        seen.append(choice.current)
        now += BRIEF_SECONDS
    assert seen == [1, 2, 0, 1]


def test_a_single_broker_is_tried_for_ever() -> None:
    choice = standing(1)
    for second in range(100):
        choice.failed(T + second)
    assert choice.current == 0
    assert choice.places_to_look(T + 1000) == ()


def test_the_coordinator_names_the_broker_to_use() -> None:
    choice = standing(3)
    choice.heard(0, T + 1)
    assert choice.current == 0
    choice.heard(2, T + 2)
    assert choice.current == 2


@pytest.mark.parametrize("named", [-1, 2, 99])
def test_a_broker_that_is_not_in_the_list_is_not_gone_to(named: int) -> None:
    choice = standing()
    choice.heard(named, T + 1)
    assert choice.current == 0


def test_a_named_broker_that_cannot_be_reached_is_left_alone_for_a_while() -> None:
    choice = standing()
    choice.heard(1, T + 1)
    choice.failed(T + 1 + BRIEF_SECONDS)
    assert choice.current == 0
    choice.connected(T + 3)
    choice.heard(1, T + 4)
    assert choice.current == 0
    choice.heard(1, T + 20)
    assert choice.current == 1


def test_while_a_coordinator_is_heard_nobody_looks_around() -> None:
    choice = standing()
    for second in range(60):
        choice.heard(0, T + second)
        assert choice.places_to_look(T + second + 0.9) == ()


def test_without_a_coordinator_the_others_are_looked_at_more_and_more_rarely_and_nothing_moves() -> None:
    choice = standing(3)
    looked = [second for second in range(600) if choice.places_to_look(T + second) == (1, 2)]
    assert looked[0] == UNHEARD_SECONDS
    assert len(looked) <= 10
    assert choice.current == 0


def test_where_a_coordinator_was_found_it_goes_to_the_broker_that_is_named() -> None:
    choice = standing(3)
    assert choice.places_to_look(T + UNHEARD_SECONDS) == (1, 2)
    choice.found(2, T + UNHEARD_SECONDS + 1)
    assert choice.current == 2


def test_a_node_that_is_not_connected_does_not_look_around() -> None:
    choice = standing()
    choice.failed(T + 1)
    assert choice.places_to_look(T + 100) == ()
