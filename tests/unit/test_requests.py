"""Every request of a client has exactly one outcome, whatever happens; on a virtual clock."""

import math

import msgspec
import numpy as np
import pytest

from edge.errors import DeadlineExceeded, InvalidInput, Poison, RequestError, StageFailed
from edge.formats.frame import FrameHeader
from edge.formats.message import Taken
from edge.formats.plan import MAX_STAGES
from edge.protocol.latencies import LEAST_RESEND_SECONDS
from edge.protocol.requests import MAX_ATTEMPTS, InferenceResult, Route, Settle
from tests.request_harness import Harness, make_route
from tests.tiny_bundle import make_input


@pytest.fixture
def client() -> Harness:
    return Harness(make_route())


def test_a_request_goes_to_the_first_stage_with_everything_the_protocol_needs(client: Harness) -> None:
    client.submit("r1", deadline_seconds=2.5, observe=True)
    send = client.sent[0]
    assert send.topic == "shardwire/default/run/pi-1/tiny/1-a-1/0"
    assert send.header == FrameHeader(
        request_id="r1",
        sender="cam",
        reply_to="shardwire/default/result/cam",
        ttl_ms=2500,
        deployment="tiny",
        epoch="1-a-1",
        stage=0,
        observer="shardwire/default/ack/cam",
    )
    np.testing.assert_array_equal(send.tensors["x"], make_input(1))


def test_the_first_valid_result_wins_and_later_ones_are_dropped(client: Harness) -> None:
    client.submit("r1")
    client.now = 0.2
    client.answer(client.sent[0].header)
    client.answer(client.sent[0].header)
    client.refuse(client.sent[0].header, "poison")
    result = client.outcomes["r1"]
    assert isinstance(result, InferenceResult)
    assert (result.latency_seconds, result.attempts, result.epoch) == (0.2, 1, "1-a-1")
    assert client.requests.next_wake() >= 30.0


@pytest.mark.parametrize(
    ("request_id", "deployment"), [("other", "tiny"), ("r1", "other")], ids=["request", "deployment"]
)
def test_what_nobody_waits_for_is_dropped(client: Harness, request_id: str, deployment: str) -> None:
    client.submit("r1")
    client.answer(msgspec.structs.replace(client.sent[0].header, request_id=request_id, deployment=deployment))
    assert client.outcomes == {}


def test_only_a_window_of_requests_is_in_flight_and_the_rest_follow_in_order() -> None:
    client = Harness(make_route(window=2))
    for index in range(4):
        client.submit(f"r{index}")
    assert [send.header.request_id for send in client.sent] == ["r0", "r1"]
    client.answer(client.sent[1].header)
    client.answer(client.sent[0].header)
    assert [send.header.request_id for send in client.sent] == ["r0", "r1", "r2", "r3"]


def test_silence_is_answered_by_another_attempt_each_time_later(client: Harness) -> None:
    client.submit("r1", deadline_seconds=1000.0)
    client.wait(LEAST_RESEND_SECONDS - 0.01)
    assert client.attempts == [0]
    client.wait(0.02)
    assert client.attempts == [0, 1]
    client.wait(2 * LEAST_RESEND_SECONDS)
    assert client.attempts == [0, 1, 2]


def test_there_are_at_most_eight_attempts_and_then_the_deadline(client: Harness) -> None:
    client.submit("r1", deadline_seconds=500.0)
    client.wait(499.0)
    assert client.attempts == list(range(MAX_ATTEMPTS))
    assert client.outcomes == {}
    client.wait(2.0)
    outcome = client.outcomes["r1"]
    assert isinstance(outcome, DeadlineExceeded)
    assert str(outcome) == "no answer from tiny within 500 s (sent 8 times; the last word was 'timeout')"


def test_a_late_result_of_an_earlier_attempt_still_counts(client: Harness) -> None:
    client.submit("r1")
    client.wait(1.5)
    assert len(client.sent) == 2
    client.answer(client.sent[0].header)
    assert isinstance(client.outcomes["r1"], InferenceResult)


def test_the_time_left_shrinks_with_every_send(client: Harness) -> None:
    client.submit("r1", deadline_seconds=10.0)
    client.wait(3.5)
    assert [send.header.ttl_ms for send in client.sent] == [10_000, 9_000, 7_000]


def test_a_deadline_ends_a_request_that_was_never_sent() -> None:
    client = Harness()
    client.submit("r1", deadline_seconds=1.0)
    client.wait(1.0)
    assert str(client.outcomes["r1"]) == "no answer from tiny within 1 s (sent 0 times)"


def test_busy_is_no_attempt_and_waits_as_long_as_it_is_told(client: Harness) -> None:
    client.submit("r1")
    client.refuse(client.sent[0].header, "busy", retry_after_ms=300)
    client.wait(0.29)
    assert client.attempts == [0]
    client.wait(0.02)
    assert client.attempts == [0, 0]
    for _ in range(20):
        client.refuse(client.sent[-1].header, "busy", retry_after_ms=10)
        client.wait(0.02)
    assert set(client.attempts) == {0}


def test_a_stage_that_fails_is_tried_again_as_another_attempt(client: Harness) -> None:
    client.submit("r1")
    client.refuse(client.sent[0].header, "stage-failed")
    client.wait(0.11)
    assert client.attempts == [0, 1]
    client.refuse(client.sent[0].header, "stage-failed")
    client.wait(0.5)
    assert client.attempts == [0, 1], "an error of an attempt that was replaced must not count"


def test_a_stage_that_fails_twice_in_the_same_way_is_believed(client: Harness) -> None:
    client.submit("r1")
    client.refuse(client.sent[0].header, "stage-failed")
    client.wait(0.11)
    client.refuse(client.sent[1].header, "stage-failed")
    assert type(client.outcomes["r1"]) is StageFailed
    assert str(client.outcomes["r1"]) == "pi-1: why"


@pytest.mark.parametrize(("code", "kind"), [("poison", Poison), ("invalid-input", InvalidInput)])
def test_a_final_error_is_the_outcome(client: Harness, code: str, kind: type[RequestError]) -> None:
    client.submit("r1")
    client.refuse(client.sent[0].header, code)
    assert type(client.outcomes["r1"]) is kind
    assert str(client.outcomes["r1"]) == "pi-1: why"


def test_an_error_of_a_newer_release_is_final_and_told(client: Harness) -> None:
    client.submit("r1")
    client.refuse(client.sent[0].header, "something-new")
    assert type(client.outcomes["r1"]) is RequestError


def test_a_request_that_met_a_dead_epoch_goes_to_the_new_one_as_soon_as_it_is_known(client: Harness) -> None:
    client.submit("r1")
    client.refuse(client.sent[0].header, "gone")
    client.take(client.requests.set_route(make_route(epoch="1-a-2"), client.now))
    assert client.sent[-1].topic == "shardwire/default/run/pi-1/tiny/1-a-2/0"
    assert client.attempts == [0, 0]


def test_gone_without_a_newer_plan_is_asked_again_a_little_later(client: Harness) -> None:
    client.submit("r1")
    client.refuse(client.sent[0].header, "gone")
    assert len(client.sent) == 1
    client.wait(0.3)
    assert client.attempts == [0, 0]


def test_an_older_plan_never_replaces_a_newer_one(client: Harness) -> None:
    client.take(client.requests.set_route(make_route(epoch="1-a-2"), 0.0))
    client.take(client.requests.set_route(make_route(epoch="1-a-1"), 0.0))
    route = client.requests.route("tiny")
    assert route is not None
    assert route.deployment.epoch == "1-a-2"


def test_a_result_of_a_wrong_shape_is_not_an_answer(client: Harness) -> None:
    client.submit("r1")
    client.answer(client.sent[0].header, {"y": np.zeros((1, 2), np.float32)})
    assert client.outcomes == {}
    client.wait(0.2)
    assert client.attempts == [0, 1]


def test_another_attempt_prefers_another_replica() -> None:
    route = make_route()
    plan = route.deployment.plan
    assert plan is not None
    first = msgspec.structs.replace(plan.stages[0], standbys=("pi-9",))
    plan = msgspec.structs.replace(plan, stages=(first, plan.stages[1]))
    deployment = msgspec.structs.replace(route.deployment, plan=plan)
    client = Harness(Route(deployment=deployment, manifest=route.manifest))
    client.submit("r1")
    client.wait(1.1)
    assert [send.topic.split("/")[3] for send in client.sent] == ["pi-1", "pi-9"]


def test_after_a_cut_what_was_in_flight_is_sent_again_soon(client: Harness) -> None:
    client.submit("r1")
    client.now = 0.5
    client.take(client.requests.reconnected(client.now))
    client.wait(0.2)
    assert client.attempts == [0, 1]


def test_a_cancelled_request_frees_its_place() -> None:
    client = Harness(make_route(window=1))
    client.submit("r1")
    client.submit("r2")
    client.take(client.requests.cancel("r1", 0.0))
    assert [send.header.request_id for send in client.sent] == ["r1", "r2"]
    client.answer(client.sent[0].header)
    assert client.outcomes == {}


def test_the_client_sees_when_each_stage_took_the_frame(client: Harness) -> None:
    client.submit("r1", observe=True)
    for stage, at in ((0, 0.1), (1, 0.3)):
        client.requests.taken(Taken(node="d", request_id="r1", attempt=0, stage=stage), at)
    client.requests.taken(Taken(node="d", request_id="r1", attempt=5, stage=1), 0.4)
    client.requests.taken(Taken(node="d", request_id="unknown", attempt=0, stage=1), 0.4)
    client.answer(client.sent[0].header)
    result = client.outcomes["r1"]
    assert isinstance(result, InferenceResult)
    assert result.taken_seconds == (0.1, 0.3)


def test_nothing_pending_means_nothing_to_wake_for(client: Harness) -> None:
    assert client.requests.next_wake() == math.inf


def test_a_removed_deployment_keeps_its_requests_until_it_returns(client: Harness) -> None:
    client.submit("r1")
    client.requests.remove_route("tiny")
    client.wait(5.0)
    assert len(client.sent) == 1
    assert client.outcomes == {}
    client.take(client.requests.set_route(make_route(epoch="1-a-2"), client.now))
    client.wait(0.5)
    assert client.sent[-1].header.epoch == "1-a-2"


def test_settle_is_what_a_caller_gets(client: Harness) -> None:
    client.submit("r1", deadline_seconds=1.0)
    actions = client.requests.tick(2.0)
    assert [type(action) for action in actions] == [Settle]


def test_acks_of_stages_that_no_plan_has_are_not_kept(client: Harness) -> None:
    client.submit("r1")
    for stage in (-1, MAX_STAGES, 10**9):
        client.requests.taken(Taken(node="pi-1", request_id="r1", attempt=0, stage=stage), client.now)
    assert client.requests._pending["r1"].taken == {}


def test_the_deadlines_of_requests_that_were_answered_do_not_pile_up(client: Harness) -> None:
    client.submit("slow", deadline_seconds=50.0)
    for index in range(2000):
        client.submit(f"r{index}", deadline_seconds=86_400.0)
        client.take(client.requests.cancel(f"r{index}", client.now))
    assert len(client.requests._deadlines) < 1000
    assert len(client.requests._resends) < 1000
    client.wait(60)
    assert isinstance(client.outcomes["slow"], DeadlineExceeded)


def test_what_has_backed_off_from_an_old_plan_is_sent_to_the_new_one_soon() -> None:
    harness = Harness(make_route())
    harness.submit("r1", deadline_seconds=600.0)
    harness.wait(16.0)  # 1 s, 2 s, 4 s and 8 s: the next would be 16 s after that
    before = len(harness.sent)
    harness.take(harness.requests.set_route(make_route(epoch="1-a-2"), harness.now))
    harness.wait(1.0)
    assert [action.header.epoch for action in harness.sent[before:]] == ["1-a-2"]
