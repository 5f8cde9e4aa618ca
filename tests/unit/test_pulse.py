"""A connection is asked when it is quiet, and is dead when nothing comes back; never because we were slow ourselves."""

from edge.pulse import ANSWER_SECONDS, LOOK_SECONDS, QUIET_SECONDS, Pulse


class Link:
    """Looks at a pulse every `LOOK_SECONDS`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pulse = Pulse(self.now)
        self.received = self.taken = 1
        self.waiting = False

    def look(self) -> bool | None:
        self.now += LOOK_SECONDS
        return self.pulse.look(self.now, received=self.received, taken=self.taken, waiting=self.waiting)

    def until_said(self, limit_seconds: float = 60.0) -> tuple[bool, float]:
        began = self.now
        while self.now - began < limit_seconds:
            said = self.look()
            if said is not None:
                return said, self.now - began
        raise AssertionError("nothing was said")


def test_a_link_that_falls_silent_is_asked_and_found_dead_within_four_seconds() -> None:
    link = Link()
    link.look()
    asked, after = link.until_said()
    assert asked
    assert after <= QUIET_SECONDS + LOOK_SECONDS
    alive, later = link.until_said()
    assert not alive
    assert later == ANSWER_SECONDS
    assert after + later <= 4.0


def test_any_byte_is_an_answer() -> None:
    link = Link()
    for _ in range(10):
        assert link.until_said()[0]
        for _ in range(int(ANSWER_SECONDS / LOOK_SECONDS) - 1):
            assert link.look() is None
        link.received += 1
        assert link.look() is None


def test_a_link_on_which_something_comes_is_never_asked() -> None:
    link = Link()
    for _ in range(100):
        link.received += 1
        assert link.look() is None


def test_a_question_behind_a_long_queue_waits_until_the_queue_was_taken() -> None:
    link = Link()
    link.waiting = True
    for _ in range(200):
        link.taken += 1000
        assert link.look() is not False
    link.waiting = False
    said, after = link.until_said()
    if said:
        said, after = link.until_said()
    assert not said
    assert after <= ANSWER_SECONDS


def test_a_queue_of_which_nothing_is_taken_is_dead_too() -> None:
    link = Link()
    link.waiting = True
    assert link.until_said()[0]
    assert not link.until_said()[0]


def test_what_the_broker_takes_without_a_queue_is_no_answer() -> None:
    link = Link()
    link.taken += 1
    assert link.until_said()[0]
    for _ in range(int(ANSWER_SECONDS / LOOK_SECONDS) - 1):
        link.taken += 30
        assert link.look() is None
    assert link.look() is False


def test_a_process_that_stood_still_asks_before_it_judges() -> None:
    link = Link()
    link.now += 30.0
    said = [link.look() for _ in range(int(QUIET_SECONDS / LOOK_SECONDS) + 2)]
    assert True in said
    assert False not in said
    link.now += 30.0
    assert link.look() is None
    link.received += 2
    assert link.look() is None
