"""Which broker a coordinator names: the first that stands, for as long as it stands."""

from host.fleet.many_brokers import FOLLOW_SECONDS, GONE_SECONDS, ActiveBroker

T = 500.0


def standing(count: int = 3) -> ActiveBroker:
    active = ActiveBroker(count, now=T)
    for place in range(count):
        active.stands(place)
    return active


def test_the_first_that_stands_is_named() -> None:
    active = ActiveBroker(3, now=T)
    active.stands(2)
    active.stands(1)
    assert active.choose(T, leads=True) == 0, "it gets a moment"
    assert active.choose(T + GONE_SECONDS, leads=True) == 1


def test_it_is_kept_while_it_stands_even_when_an_earlier_one_comes_back() -> None:
    active = standing()
    active.gone(0, T)
    assert active.choose(T + GONE_SECONDS, leads=True) == 1
    active.stands(0)
    assert active.choose(T + 100, leads=True) == 1
    active.gone(1, T + 100)
    assert active.choose(T + 100 + GONE_SECONDS, leads=True) == 0


def test_a_short_absence_changes_nothing() -> None:
    active = standing()
    active.gone(0, T)
    assert active.choose(T + 0.5 * GONE_SECONDS, leads=True) == 0
    active.stands(0)
    active.gone(0, T + 5)
    assert active.choose(T + 5 + 0.5 * GONE_SECONDS, leads=True) == 0


def test_when_none_stands_the_last_is_kept() -> None:
    active = standing(2)
    active.gone(0, T)
    active.gone(1, T)
    assert active.choose(T + 60, leads=True) == 0


def test_who_does_not_lead_follows_who_does_while_it_is_heard() -> None:
    active = standing()
    active.named(2, T)
    assert active.choose(T, leads=False) == 2
    active.named(9, T)
    active.named(-1, T)
    assert active.choose(T + 0.5 * FOLLOW_SECONDS, leads=False) == 2
    active.gone(2, T + FOLLOW_SECONDS)
    assert active.choose(T + 2 * FOLLOW_SECONDS, leads=False) == 0


def test_who_leads_takes_nobodys_word() -> None:
    active = standing()
    active.named(2, T)
    assert active.choose(T, leads=True) == 0
