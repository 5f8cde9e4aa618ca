"""Stages side by side: a frame goes to each, and the stage after them waits for all; on a virtual clock."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.errors import InvalidInput
from edge.formats.frame import Frame, Hop
from edge.formats.message import Done, Failed
from edge.formats.tensor import Array
from edge.protocol.intake import LEAST_QUEUE_BYTES
from edge.transport import MemoryBroker, Publication
from tests.tiny_bundle import make_deployment, make_diamond_bundle, make_input
from tests.virtual_agent import TOPICS, Ear, VirtualAgent
from tests.virtual_fleet import VirtualClient, VirtualFleet

BUNDLE = make_diamond_bundle()
DEVICES = ("pi-0", "pi-1", "pi-2", "pi-3")
DEPLOYMENT = make_deployment(BUNDLE, DEVICES, beside=(2,))
JOIN = TOPICS.run("pi-3", "tiny", "1-a-1", 3)


@pytest.fixture
def fleet() -> VirtualFleet:
    return VirtualFleet(BUNDLE, DEPLOYMENT)


def to_the_join(publication: Publication) -> bool:
    return publication.topic == JOIN


def held_parts(fleet: VirtualFleet, *request_ids: str) -> dict[str, list[Publication]]:
    """Run requests up to the join; return the two parts of each, which nobody has."""
    fleet.broker.holds = to_the_join
    parts: dict[str, list[Publication]] = {}
    for request_id in request_ids:
        fleet.send(fleet.header(request_id))
        parts[request_id], fleet.broker.held = fleet.broker.held, []
    fleet.broker.holds = lambda _publication: False
    return parts


def deliver(fleet: VirtualFleet, *parts: Publication) -> None:
    for part in parts:
        fleet.broker.deliver(part)
        fleet.pump()


class TestDiamond:
    def test_the_two_in_the_middle_run_and_the_last_joins_them(self, fleet: VirtualFleet) -> None:
        fleet.send(fleet.header())
        (frame,) = fleet.results()
        np.testing.assert_allclose(frame.tensors["y"], 5 * (make_input(1) + 1), rtol=1e-6)
        assert [(hop.stage, hop.device) for hop in frame.header.trace] == list(enumerate(DEVICES))
        assert (frame.header.part, frame.header.parts) == (0, 1)
        assert [agent.ran for agent in fleet.agents.values()] == [["r1"]] * 4

    def test_what_leaves_a_stage_twice_is_counted_twice(self, fleet: VirtualFleet) -> None:
        fleet.send(fleet.header())
        nbytes = make_input(1).nbytes
        assert [hop.sent_bytes for hop in fleet.results()[0].header.trace] == [2 * nbytes, nbytes, nbytes, nbytes]
        assert fleet.results()[0].header.trace[3].received_bytes > 2 * nbytes

    def test_each_part_says_which_it_is_and_carries_only_what_is_read(self, fleet: VirtualFleet) -> None:
        fleet.send(fleet.header())
        parts = fleet.ear.frames(JOIN)
        assert [(frame.header.part, frame.header.parts, list(frame.tensors)) for frame in parts] == [
            (0, 2, ["b"]),
            (1, 2, ["c"]),
        ]

    @pytest.mark.parametrize("order", [*permutations((0, 1)), (0, 0, 1), (1, 1, 1, 0), (0, 1, 0, 1)], ids=str)
    def test_parts_come_in_any_order_and_twice(self, fleet: VirtualFleet, order: tuple[int, ...]) -> None:
        parts = held_parts(fleet, "r1")["r1"]
        fleet.agents["pi-3"].hold_runs = True
        deliver(fleet, *(parts[place] for place in order))
        (job,) = fleet.agents["pi-3"].runs
        assert sorted(job.frame.tensors) == ["b", "c"]
        assert [hop.stage for hop in job.frame.header.trace] == [0, 1, 2]

    def test_parts_of_several_requests_do_not_mix(self, fleet: VirtualFleet) -> None:
        parts = held_parts(fleet, "r1", "r2")
        deliver(fleet, parts["r1"][0], parts["r2"][1])
        assert fleet.results() == []
        deliver(fleet, parts["r2"][0], parts["r1"][1])
        assert [frame.header.request_id for frame in fleet.results()] == ["r2", "r1"]

    def test_every_part_is_acknowledged_and_an_observer_hears_of_the_whole(self, fleet: VirtualFleet) -> None:
        fleet.broker.holds = to_the_join
        fleet.send(fleet.header(observer=TOPICS.ack("cam")))
        assert [ack.stage for ack in fleet.ear.taken(TOPICS.ack("cam"))] == [0, 1, 2]
        for part, sender, seen in zip(fleet.broker.held, ("pi-1", "pi-2"), ([], [3]), strict=True):
            fleet.ear.forget()
            deliver(fleet, part)
            assert [(ack.node, ack.stage) for ack in fleet.ear.taken(TOPICS.ack(sender))] == [("pi-3", 3)]
            assert [ack.stage for ack in fleet.ear.taken(TOPICS.ack("cam"))] == seen

    def test_the_time_left_is_the_least_of_all_parts(self, fleet: VirtualFleet) -> None:
        slow, quick = held_parts(fleet, "r1")["r1"]
        fleet.agents["pi-3"].hold_runs = True
        deliver(fleet, quick)
        fleet.agents["pi-3"].now += 2.0
        deliver(fleet, slow)
        (job,) = fleet.agents["pi-3"].runs
        # 10 ms in each of two stages, and two seconds of waiting for the other.
        assert job.frame.header.ttl_ms == 10_000 - 20 - 2000

    def test_the_last_stage_frees_the_slot_at_the_first(self, fleet: VirtualFleet) -> None:
        fleet.send(fleet.header())
        assert fleet.ear.messages(Done) == [Done(node="pi-3", request_id="r1", attempt=0)]


class TestRepair:
    def test_a_part_of_a_resend_stands_in_for_one_that_was_lost(self, fleet: VirtualFleet) -> None:
        first = held_parts(fleet, "r1")["r1"]
        fleet.broker.holds = to_the_join
        fleet.send(fleet.header("r1", attempt=1))
        again, fleet.broker.held = fleet.broker.held, []
        fleet.broker.holds = lambda _publication: False
        deliver(fleet, first[0], again[1])
        (frame,) = fleet.results()
        np.testing.assert_allclose(frame.tensors["y"], 5 * (make_input(1) + 1), rtol=1e-6)
        assert frame.header.attempt == 1
        assert [hop.stage for hop in frame.header.trace] == [0, 1, 2, 3]

    def test_a_client_that_hears_nothing_sends_again_and_has_one_outcome(self, fleet: VirtualFleet) -> None:
        client = VirtualClient(fleet, BUNDLE)
        losses = iter([True, False])
        fleet.broker.holds = lambda publication: to_the_join(publication) and next(losses, False)
        client.submit("r1")
        assert client.outcomes == {}
        client.wait(1.1)
        outcome = client.outcomes["r1"]
        assert not isinstance(outcome, Exception)
        assert outcome.attempts == 2
        assert outcome.steps == ((0,), (1, 2), (3,))
        assert fleet.agents["pi-3"].ran == ["r1"]

    def test_while_a_request_runs_here_its_parts_are_only_acknowledged(self, fleet: VirtualFleet) -> None:
        fleet.agents["pi-3"].hold_runs = True
        fleet.send(fleet.header("r1"))
        fleet.send(fleet.header("r1", attempt=1))
        assert len(fleet.agents["pi-3"].runs) == 1
        assert len(fleet.ear.taken(TOPICS.ack("pi-1"))) == 2

    def test_a_stage_that_fails_answers_once_and_what_the_other_made_expires(self, fleet: VirtualFleet) -> None:
        fleet.agents["pi-1"].hold_runs = True
        fleet.send(fleet.header("r1", ttl_ms=3000))
        fleet.agents["pi-1"].fail_run(InvalidInput("tensor 'a' is odd"))
        fleet.pump()
        assert fleet.errors() == [("invalid-input", "tensor 'a' is odd")]
        assert fleet.results() == []
        assert waiting(fleet) == 1
        fleet.wait(2.75)
        assert waiting(fleet) == 1
        fleet.wait(0.5)
        assert waiting(fleet) == 0


def waiting(fleet: VirtualFleet) -> int:
    """Requests of which the join has parts."""
    key = next(iter(fleet.agents["pi-3"].stages))
    return fleet.agents["pi-3"].session._intake._joins.count(key)


class TestBounds:
    @pytest.mark.parametrize(
        ("changes", "tensors"),
        [
            ({"part": 0, "parts": 1}, {"b": make_input(1)}),
            ({"part": 0, "parts": 3}, {"b": make_input(1)}),
            ({"part": 2, "parts": 2}, {"b": make_input(1)}),
            ({"part": -1, "parts": 2}, {"b": make_input(1)}),
            ({"part": 0, "parts": 0}, {"b": make_input(1)}),
            ({"part": 0, "parts": 2}, {"c": make_input(1)}),
            ({"part": 0, "parts": 2}, {"b": make_input(1), "c": make_input(1)}),
            ({"part": 1, "parts": 2}, {}),
        ],
        ids=str,
    )
    def test_a_part_that_does_not_fit_the_route_is_refused(
        self, fleet: VirtualFleet, changes: dict[str, Any], tensors: dict[str, Array]
    ) -> None:
        fleet.send(fleet.header(stage=3, sender="pi-1", **changes), tensors, device="pi-3")
        assert waiting(fleet) == 0
        assert len(fleet.agents["pi-3"].logs) == 1
        assert fleet.ear.taken(TOPICS.ack("pi-1")) == []

    def test_parts_are_refused_where_nothing_is_joined(self, fleet: VirtualFleet) -> None:
        fleet.send(fleet.header(parts=2))
        assert fleet.agents["pi-0"].logs[-1].endswith("dropped: frame: 2 parts for stage 0, which joins 1")
        assert fleet.agents["pi-0"].ran == []

    def test_the_oldest_goes_where_more_than_two_windows_wait(self, fleet: VirtualFleet) -> None:
        for index in range(9):
            header = fleet.header(f"r{index}", stage=3, parts=2, sender="pi-1", trace=hops(0, 1))
            fleet.send(header, {"b": make_input(1)}, device="pi-3")
        assert waiting(fleet) == 2 * DEPLOYMENT.window == 8
        for index in (0, 8):
            header = fleet.header(f"r{index}", stage=3, part=1, parts=2, sender="pi-2", trace=hops(0, 2))
            fleet.send(header, {"c": make_input(1)}, device="pi-3")
        assert [frame.header.request_id for frame in fleet.results()] == ["r8"]

    def test_the_oldest_goes_where_parts_take_more_than_the_queue_may(self) -> None:
        fleet = VirtualFleet(BUNDLE, DEPLOYMENT)
        intake = fleet.agents["pi-3"].session._intake
        intake.queue_limit_bytes = 0
        size = LEAST_QUEUE_BYTES // 5
        for index in range(7):
            header = fleet.header(f"r{index}", stage=3, parts=2, sender="pi-1")
            fleet.send(header, {"b": np.zeros(size // 4, np.float32)}, device="pi-3")
        assert waiting(fleet) == 4
        assert size * 4 < intake._joins.held_bytes <= LEAST_QUEUE_BYTES

    def test_what_waits_for_an_epoch_that_is_dropped_goes_with_it(self, fleet: VirtualFleet) -> None:
        header = fleet.header("r1", stage=3, parts=2, sender="pi-1", ttl_ms=10**9)
        fleet.send(header, {"b": make_input(1)}, device="pi-3")
        key = next(iter(fleet.agents["pi-3"].stages))
        fleet.ear.serve(msgspec.structs.replace(DEPLOYMENT, epoch="1-a-2", plan=None, manifest=None))
        fleet.wait(0.25)
        assert fleet.agents["pi-3"].session._intake._joins.count(key) == 0


def hops(*stages: int) -> tuple[Hop, ...]:
    return tuple(
        Hop(stage=stage, device=f"pi-{stage}", queued_seconds=0, run_seconds=0, received_bytes=0, sent_bytes=0)
        for stage in stages
    )


def test_a_plan_whose_sides_read_from_each_other_is_refused_by_the_devices() -> None:
    broker = MemoryBroker()
    ear = Ear(broker, BUNDLE)
    agent = VirtualAgent(broker, "pi-1")
    agent.start()
    ear.desire(make_deployment(BUNDLE, DEVICES, beside=(1,)))
    agent.pump()
    failed = ear.messages(Failed)
    assert [event.reason for event in failed] == ["plan: the first and the last step must have one stage each"]


def test_a_run_that_takes_all_inputs_answers_like_one_in_line() -> None:
    """The same shards in a row give the same answer: steps only change who sends what."""
    answers: list[Array] = []
    for beside in ((), (2,)):
        row = VirtualFleet(BUNDLE, make_deployment(BUNDLE, DEVICES, beside=beside))
        for agent in row.agents.values():
            agent.run = forwarding(agent.run)
        row.send(row.header())
        answers.append(row.results()[0].tensors["y"])
    np.testing.assert_array_equal(answers[0], answers[1])


def forwarding(run: Callable[[Frame], dict[str, Array]]) -> Callable[[Frame], dict[str, Array]]:
    """Give what came beside what was made, as stages in a row forward it."""
    return lambda frame: {**frame.tensors, **run(frame)}
