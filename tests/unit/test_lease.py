"""Who coordinates: claims, terms, and stepping aside."""

from __future__ import annotations

from edge.formats.message import Lease, Session
from host.fleet.lease import HEAR_SECONDS, LOOK_SECONDS, SETTLE_SECONDS, STALL_SECONDS, VACANT, LeaseKeeper, outranks
from host.fleet.roster import SILENT_SECONDS

_SESSION = Session(boot=1, connect=1)


def keeper(node: str = "b") -> LeaseKeeper:
    return LeaseKeeper(node=node, session=_SESSION, now=0.0)


def lease(term: int, coordinator: str = "a") -> Lease:
    return Lease(coordinator=coordinator, term=term, session=_SESSION)


def test_without_a_lease_a_newcomer_claims_the_first_term_after_listening() -> None:
    new = keeper()
    assert new.claim(LOOK_SECONDS - 0.1) is None
    claimed = new.claim(LOOK_SECONDS)
    assert claimed == lease(1, "b")
    assert new.holds(LOOK_SECONDS)
    assert new.claim(LOOK_SECONDS + 60) is None, "a held lease is not claimed again"


def test_a_living_coordinator_is_left_alone() -> None:
    new = keeper()
    new.saw(lease(4), 0.1)
    for second in range(1, 60):
        new.heard("a", float(second))
        assert new.claim(float(second)) is None
    assert new.other == "a"


def test_after_three_silent_heartbeats_the_next_term_is_claimed_and_waits_two_more() -> None:
    new = keeper()
    new.saw(lease(4), 0.0)
    assert new.claim(SILENT_SECONDS) is None
    assert new.claim(SILENT_SECONDS + 0.1) == lease(5, "b")
    assert not new.holds(SILENT_SECONDS + SETTLE_SECONDS)
    assert new.holds(SILENT_SECONDS + SETTLE_SECONDS + 0.2)


def test_a_coordinator_that_signed_off_is_followed_at_once() -> None:
    new = keeper()
    new.saw(lease(4), 0.0)
    new.left("a")
    assert new.claim(0.1) == lease(5, "b")
    assert new.holds(0.1)


def test_a_vacant_lease_is_taken_at_once_and_its_term_counts() -> None:
    new = keeper()
    new.saw(lease(7, VACANT), 0.0)
    assert new.claim(0.0) == lease(8, "b")


def test_a_lease_from_an_earlier_life_under_the_same_name_is_superseded() -> None:
    new = keeper("a")
    new.saw(lease(3), 0.0)
    assert new.claim(0.0) == lease(4)


def test_of_two_claims_of_one_term_the_greater_name_wins() -> None:
    first, second = keeper("a"), keeper("b")
    ours, theirs = first.claim(LOOK_SECONDS), second.claim(LOOK_SECONDS)
    assert ours is not None
    assert theirs is not None
    assert not first.saw(theirs, 1.1)
    assert second.saw(ours, 1.1), "the broker shows a smaller one: ours is published again"
    assert not first.holds(10.0)
    assert second.holds(10.0)
    assert outranks(theirs, ours)


def test_a_lease_given_back_outranks_the_one_that_was_held() -> None:
    holder = keeper()
    held = holder.claim(LOOK_SECONDS)
    vacant = holder.give_back()
    assert held is not None
    assert vacant == lease(2, VACANT)
    assert outranks(vacant, held)
    assert not holder.holds(100.0)
    assert holder.give_back() is None


def test_a_term_that_was_seen_elsewhere_is_passed() -> None:
    holder = keeper()
    holder.claim(LOOK_SECONDS)
    holder.need_term(9)
    assert holder.claim(2.0) == lease(9, "b")
    assert holder.holds(2.0)


def test_who_was_stopped_listens_before_it_acts_again() -> None:
    holder = keeper()
    holder.claim(LOOK_SECONDS)
    assert holder.may_go_on(LOOK_SECONDS)
    woken = LOOK_SECONDS + STALL_SECONDS + 30.0
    assert holder.claim(woken) is None
    assert not holder.holds(woken)
    assert not holder.may_go_on(woken)
    holder.saw(lease(2), woken + 0.5)
    assert not holder.holds(woken + 2 * HEAR_SECONDS)
    assert not holder.may_go_on(woken + 2 * HEAR_SECONDS), "another has it, whoever that is"
    holder.heard("a", woken + 0.6)
    assert holder.may_go_on(woken + 0.7), "to end what it had begun"


def test_who_was_stopped_and_missed_nothing_goes_on() -> None:
    holder = keeper()
    holder.claim(LOOK_SECONDS)
    woken = LOOK_SECONDS + STALL_SECONDS + 30.0
    holder.claim(woken)
    assert holder.claim(woken + HEAR_SECONDS) is None
    assert holder.holds(woken + HEAR_SECONDS)


def test_who_was_stopped_while_it_stood_by_takes_nobody_for_silent() -> None:
    new = keeper()
    new.saw(lease(4), 0.0)
    new.heard("a", 0.1)
    new.claim(0.2)
    assert new.claim(60.0) is None
    new.heard("a", 60.1)
    assert new.claim(62.0) is None


def test_who_found_its_broker_again_listens_first() -> None:
    holder = keeper()
    holder.claim(LOOK_SECONDS)
    holder.reconnected(2.0)
    assert not holder.holds(2.0 + HEAR_SECONDS / 2)
    assert holder.holds(2.0 + HEAR_SECONDS)
