"""Where the time of a request went, by the client's clock alone."""

from __future__ import annotations

import pytest

from edge.formats.frame import Hop
from edge.protocol.requests import InferenceResult
from host.fleet.hops import hop_times


def stage(index: int, queued: float, run: float) -> Hop:
    return Hop(
        stage=index, device=f"pi-{index}", queued_seconds=queued, run_seconds=run, received_bytes=1, sent_bytes=1
    )


def result(*taken: float | None, attempts: int = 1) -> InferenceResult:
    return InferenceResult(
        outputs={},
        trace=(stage(0, 0.01, 0.1), stage(1, 0.02, 0.2)),
        latency_seconds=0.5,
        taken_seconds=taken,
        attempts=attempts,
        epoch="1-a-1",
    )


def test_a_hop_is_what_lies_between_two_arrivals_less_what_the_stage_kept() -> None:
    hops = hop_times(result(0.03, 0.2))
    assert [(hop.sender, hop.receiver) for hop in hops] == [("client", "pi-0"), ("pi-0", "pi-1"), ("pi-1", "client")]
    assert [hop.seconds for hop in hops] == pytest.approx([0.03, 0.06, 0.08])


def test_the_hops_and_the_stages_add_up_to_the_latency() -> None:
    answered = result(0.03, 0.2)
    kept = sum(hop.queued_seconds + hop.run_seconds for hop in answered.trace)
    assert sum(hop.seconds or 0.0 for hop in hop_times(answered)) + kept == pytest.approx(answered.latency_seconds)


def test_an_ack_that_came_late_takes_nothing_from_the_hops_after_it() -> None:
    late = result(0.2, 0.29)  # stage 0 kept it for 0.11, so it had it at 0.17 at the latest
    assert [hop.seconds for hop in hop_times(late)] == pytest.approx([0.17, 0.0, 0.0])


@pytest.mark.parametrize(
    ("taken", "known"),
    [((0.03, None), [True, False, False]), ((None, 0.2), [False, False, True]), ((), [False, False, False])],
)
def test_where_an_ack_is_missing_its_two_hops_are_unknown(taken: tuple[float | None, ...], known: list[bool]) -> None:
    assert [hop.seconds is not None for hop in hop_times(result(*taken))] == known


def test_after_a_resend_nothing_is_claimed() -> None:
    assert [hop.seconds for hop in hop_times(result(0.03, 0.2, attempts=2))] == [None, None, None]


def side_by_side(*taken: float | None, steps: tuple[tuple[int, ...], ...] = ((0,), (1, 2), (3,))) -> InferenceResult:
    return InferenceResult(
        outputs={},
        trace=(stage(0, 0.0, 0.1), stage(1, 0.0, 0.3), stage(2, 0.0, 0.1), stage(3, 0.0, 0.1)),
        latency_seconds=0.8,
        taken_seconds=taken,
        attempts=1,
        epoch="1-a-1",
        steps=steps,
    )


def test_stages_side_by_side_get_their_frames_from_the_same_and_the_last_of_them_is_waited_for() -> None:
    hops = hop_times(side_by_side(0.05, 0.2, 0.21, 0.6))
    assert [(hop.sender, hop.receiver) for hop in hops] == [
        ("client", "pi-0"),
        ("pi-0", "pi-1"),
        ("pi-0", "pi-2"),
        ("pi-1", "pi-3"),
        ("pi-3", "client"),
    ]
    assert [hop.seconds for hop in hops] == pytest.approx([0.05, 0.05, 0.06, 0.1, 0.1])


def test_where_an_ack_of_one_of_them_is_missing_the_hop_after_the_join_is_unknown() -> None:
    hops = hop_times(side_by_side(0.05, 0.2, None, 0.6))
    assert [hop.seconds is not None for hop in hops] == [True, True, False, False, True]


def test_without_the_steps_of_the_plan_stages_are_taken_to_follow_each_other() -> None:
    hops = hop_times(side_by_side(0.05, 0.2, 0.21, 0.6, steps=((0,), (1,))))
    assert [hop.sender for hop in hops] == ["client", "pi-0", "pi-1", "pi-2", "pi-3"]
