"""When a client sends again what has no answer: later than answers usually take, also when a window of them queues."""

import pytest

from tests.request_harness import Harness, make_route


@pytest.fixture
def client() -> Harness:
    return Harness(make_route())


def test_resends_wait_three_times_what_answers_usually_take(client: Harness) -> None:
    for index in range(20):
        client.submit(f"r{index}")
        client.now += 2.0
        client.answer(client.sent[-1].header)
    sends = len(client.sent)
    client.submit("slow")
    client.wait(5.9)
    assert len(client.sent) == sends + 1
    client.wait(0.2)
    assert len(client.sent) == sends + 2


def test_until_as_many_were_answered_as_are_in_flight_resends_wait_three_times_what_the_plan_says_of_a_full_one() -> (
    None
):
    client = Harness(make_route(window=8, costs=(0.5, 1.0)))
    for index in range(8):
        client.submit(f"r{index}")
    client.wait(0.5)
    client.answer(client.sent[0].header)
    client.wait(3 * 5.0 - 0.6)
    assert client.attempts == [0] * 8, "the first answer had nobody before it"
    client.wait(0.2)
    assert client.attempts == [0] * 8 + [1] * 7


def test_once_a_request_was_answered_the_latency_of_the_plan_does_not_count() -> None:
    client = Harness(make_route(window=1000, costs=(0.5, 100.0)))
    client.submit("r1")
    client.now += 1.0
    client.answer(client.sent[-1].header)
    client.submit("slow")
    client.wait(3.1)
    assert client.attempts == [0, 0, 1]


def test_a_burst_after_single_requests_has_the_time_that_the_pipeline_needs_for_it() -> None:
    client = Harness(make_route(window=64, costs=(0.1, 0.2)))
    for index in range(100):
        client.submit(f"r{index}")
        client.now += 0.2
        client.answer(client.sent[-1].header)
    for index in range(64):
        client.submit(f"burst{index}")
    for index in range(64):
        client.wait(0.1)
        client.answer(client.sent[100 + index].header)
    assert client.attempts == [0] * 164


def test_a_new_plan_begins_with_what_it_says_itself(client: Harness) -> None:
    for index in range(4):
        client.submit(f"r{index}")
        client.answer(client.sent[-1].header)
    client.take(client.requests.set_route(make_route(epoch="1-a-2", costs=(1.0, 2.0)), client.now))
    client.submit("slow")
    client.wait(17.9)
    assert client.attempts == [0] * 5
    client.wait(0.2)
    assert client.attempts == [0] * 5 + [1]


@pytest.mark.parametrize(("answered", "resend_seconds"), [(0, 6.0), (1, 1.0)], ids=["first", "ambiguous"])
def test_only_an_answer_to_the_first_attempt_tells_what_answers_take(answered: int, resend_seconds: float) -> None:
    """Such an answer is known to be late, however often it was sent again; of the others nobody knows."""
    client = Harness(make_route(window=1))
    client.submit("r1")
    client.wait(2.0)
    assert client.attempts == [0, 1]
    client.answer(client.sent[answered].header)
    client.submit("r2")
    client.wait(resend_seconds - 0.1)
    assert client.attempts == [0, 1, 0]
    client.wait(0.2)
    assert client.attempts == [0, 1, 0, 1]
