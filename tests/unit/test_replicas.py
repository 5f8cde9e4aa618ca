"""Several devices run one stage: they share the load, a silent one is passed over; on a virtual clock."""

from collections import Counter
from itertools import pairwise

import msgspec
import pytest

from edge.formats.message import Done
from edge.formats.plan import Deployment
from edge.protocol.runners import FORGET_SECONDS, MAX_UNTAKEN, SILENT_SECONDS, FrameKey, Runners, meeting_place
from edge.transport import Channel
from tests.tiny_bundle import make_deployment, make_diamond_bundle, make_tiny_bundle
from tests.virtual_agent import TOPICS
from tests.virtual_fleet import VirtualClient, VirtualFleet

BUNDLE = make_tiny_bundle()
DIAMOND = make_diamond_bundle()
SECOND_TWICE = make_deployment(BUNDLE, ("pi-0", "pi-1"), replicas={1: ("pi-2",)})
FIRST_THRICE = make_deployment(BUNDLE, ("pi-0", "pi-1"), replicas={0: ("pi-2", "pi-3")}, window=7)


def ran(fleet: VirtualFleet, *names: str) -> list[int]:
    return [len(fleet.agents[name].ran) for name in names]


class TestOfAnInnerStage:
    def test_all_of_them_prepare_it(self) -> None:
        fleet = VirtualFleet(BUNDLE, SECOND_TWICE)
        assert [agent.stages for agent in fleet.agents.values()] == [{("tiny", "1-a-1", at)} for at in (0, 1, 1)]

    def test_they_take_turns(self) -> None:
        fleet = VirtualFleet(BUNDLE, SECOND_TWICE)
        for index in range(8):
            fleet.send(fleet.header(f"r{index}"))
        assert len(fleet.results()) == 8
        assert ran(fleet, "pi-0", "pi-1", "pi-2") == [8, 4, 4]
        # Each sender begins with another of them, by a digest of both names.
        assert fleet.agents["pi-1"].ran == ["r1", "r3", "r5", "r7"]

    def test_a_silent_one_is_passed_over_and_tried_again_a_few_seconds_later(self) -> None:
        fleet = VirtualFleet(BUNDLE, SECOND_TWICE)
        fleet.agents["pi-2"].transport.cut(Channel.DATA)
        for index in range(10):
            fleet.send(fleet.header(f"r{index}"))
        assert len(fleet.results()) == 9
        assert ran(fleet, "pi-1", "pi-2") == [9, 0]
        fleet.agents["pi-2"].transport.connect(Channel.DATA)
        fleet.wait(FORGET_SECONDS)
        for index in range(10, 20):
            fleet.send(fleet.header(f"r{index}"))
        assert len(fleet.results()) == 19
        assert ran(fleet, "pi-1", "pi-2") == [14, 5]

    def test_the_request_that_the_silent_one_lost_is_answered_by_the_other(self) -> None:
        fleet = VirtualFleet(BUNDLE, SECOND_TWICE)
        fleet.agents["pi-2"].transport.cut(Channel.DATA)
        client = VirtualClient(fleet, BUNDLE)
        for index in range(4):
            client.submit(f"r{index}")
        assert set(client.outcomes) == {"r1", "r2", "r3"}
        client.wait(1.1)
        assert set(client.outcomes) == {"r0", "r1", "r2", "r3"}
        assert not [outcome for outcome in client.outcomes.values() if isinstance(outcome, Exception)]


class TestOfTheFirstStage:
    def test_the_client_gives_them_frames_in_turn(self) -> None:
        fleet = VirtualFleet(BUNDLE, FIRST_THRICE)
        client = VirtualClient(fleet, BUNDLE)
        for index in range(9):
            client.submit(f"r{index}")
        assert len(client.outcomes) == 9
        assert ran(fleet, "pi-0", "pi-2", "pi-3") == [3, 3, 3]

    def test_each_lets_in_its_share_of_the_window(self) -> None:
        fleet = VirtualFleet(BUNDLE, FIRST_THRICE)
        agent = fleet.agents["pi-2"]
        agent.hold_runs = True
        for index in range(7):
            fleet.send(fleet.header(f"r{index}"), device="pi-2")
        assert [job.frame.header.request_id for job in agent.runs] == ["r0", "r1", "r2"]
        assert fleet.errors() == [("busy", "tiny has 3 requests in its pipeline and as many at its door")]

    def test_the_slot_is_freed_where_the_request_was_let_in(self) -> None:
        fleet = VirtualFleet(BUNDLE, FIRST_THRICE)
        fleet.send(fleet.header("r1"), device="pi-3")
        done = [event for event in fleet.ear.heard if event.topic == TOPICS.ack("pi-3") and b"done" in event.payload]
        assert len(done) == 1
        assert fleet.ear.messages(Done) == [Done(node="pi-1", request_id="r1", attempt=0)]

    def test_of_a_request_that_was_sent_again_every_slot_is_freed(self) -> None:
        fleet = VirtualFleet(BUNDLE, msgspec.structs.replace(FIRST_THRICE, window=3))
        fleet.agents["pi-1"].hold_runs = True
        fleet.broker.holds = lambda publication: publication.topic == TOPICS.run("pi-1", "tiny", "1-a-1", 1)
        fleet.send(fleet.header("r1"), device="pi-0")
        fleet.broker.holds = lambda _publication: False
        fleet.send(fleet.header("r1", attempt=1), device="pi-2")
        fleet.agents["pi-1"].finish_run()
        fleet.pump()
        fleet.agents["pi-0"].hold_runs = True
        fleet.send(fleet.header("r2"), device="pi-0")
        assert [job.frame.header.request_id for job in fleet.agents["pi-0"].runs] == ["r2"]

    def test_a_resend_goes_to_another(self) -> None:
        fleet = VirtualFleet(BUNDLE, FIRST_THRICE)
        for name in ("pi-0", "pi-2"):
            fleet.agents[name].transport.cut(Channel.DATA)
        client = VirtualClient(fleet, BUNDLE)
        client.submit("r1")
        client.wait(1.1)
        client.wait(2.1)
        assert set(client.outcomes) == {"r1"}
        assert ran(fleet, "pi-0", "pi-2", "pi-3") == [0, 0, 1]

    def test_a_silent_one_costs_the_requests_that_were_on_their_way_and_no_more(self) -> None:
        fleet = VirtualFleet(BUNDLE, FIRST_THRICE)
        fleet.agents["pi-2"].transport.cut(Channel.DATA)
        client = VirtualClient(fleet, BUNDLE)
        for index in range(20):
            client.submit(f"r{index}")
        assert len(client.outcomes) == 19
        client.wait(1.1)
        assert len(client.outcomes) == 20


class TestOfAJoin:
    DEPLOYMENT: Deployment = make_deployment(
        DIAMOND, ("pi-0", "pi-1", "pi-2", "pi-3"), beside=(2,), replicas={1: ("pi-5",), 3: ("pi-6", "pi-7")}
    )

    def test_the_parts_of_each_request_meet_and_all_of_them_get_some(self) -> None:
        fleet = VirtualFleet(DIAMOND, self.DEPLOYMENT)
        for index in range(30):
            fleet.send(fleet.header(f"r{index}"))
        assert len(fleet.results()) == 30
        assert sum(ran(fleet, "pi-3", "pi-6", "pi-7")) == 30
        assert min(ran(fleet, "pi-3", "pi-6", "pi-7")) >= 3
        assert ran(fleet, "pi-1", "pi-5", "pi-2") == [15, 15, 30]

    def test_it_has_room_for_what_all_runners_of_the_first_stage_let_in(self) -> None:
        runners = ("pi-0", "pi-4", "pi-5", "pi-6")
        fleet = VirtualFleet(
            DIAMOND,
            make_deployment(
                DIAMOND, ("pi-0", "pi-1", "pi-2", "pi-3"), beside=(2,), replicas={0: runners[1:]}, window=1
            ),
        )
        fleet.broker.holds = lambda publication: b"pi-2" in publication.payload[:32]
        for runner in runners:
            fleet.send(fleet.header(f"of-{runner}"), device=runner)
        fleet.broker.holds = lambda _publication: False
        for part in fleet.broker.held:
            fleet.broker.deliver(part)
        fleet.pump()
        assert len(fleet.results()) == len(runners)

    def test_another_attempt_may_meet_elsewhere(self) -> None:
        devices = ("pi-3", "pi-6", "pi-7")
        assert len({meeting_place(devices, "r1", attempt) for attempt in range(8)}) > 1


# ----------------------------------------------------------------------------------------------------- who gets what


def key(index: int) -> FrameKey:
    return FrameKey(f"r{index}", 0, 1)


def test_the_one_with_the_fewest_untaken_frames_is_chosen() -> None:
    runners = Runners()
    first, second = (runners.choose(("a", "b"), key(index), 0.0) for index in range(2))
    assert (first, second) == ("a", "b")
    runners.taken("b", key(1))
    assert [runners.choose(("a", "b"), key(index), 0.0) for index in (2, 3, 4)] == ["b", "a", "b"]
    assert (runners.untaken("a", 0.0), runners.untaken("b", 0.0)) == (2, 2)


def test_who_took_another_frame_or_answers_for_another_changes_nothing() -> None:
    runners = Runners()
    assert runners.choose(("a", "b"), key(0), 0.0) == "a"
    runners.taken("b", key(0))
    runners.taken("a", key(7))
    assert runners.untaken("a", 0.0) == 1


def test_a_frame_sent_again_counts_where_it_was_sent_last() -> None:
    runners = Runners()
    assert runners.choose(("a", "b"), key(0), 0.0) == "a"
    assert runners.choose(("a", "b"), key(0), 0.0, avoid="a") == "b"
    assert (runners.untaken("a", 0.0), runners.untaken("b", 0.0)) == (0, 1)


def test_an_untaken_frame_is_forgotten() -> None:
    runners = Runners()
    runners.choose(("a", "b"), key(0), 10.0)
    assert runners.untaken("a", 10.0 + FORGET_SECONDS - 0.01) == 1
    assert runners.untaken("a", 10.0 + FORGET_SECONDS) == 0


def test_what_is_remembered_is_bounded() -> None:
    runners = Runners()
    for index in range(MAX_UNTAKEN + 100):
        runners.choose(("a", "b"), key(index), 0.0)
    assert runners.untaken("a", 0.0) + runners.untaken("b", 0.0) == MAX_UNTAKEN


@pytest.mark.parametrize("count", [2, 3, 7])
def test_meeting_places_are_spread(count: int) -> None:
    devices = tuple(f"pi-{index}" for index in range(count))
    places = Counter(meeting_place(devices, f"request-{index}", 0) for index in range(2000))
    assert min(places.values()) > 0.8 * 2000 / count


def test_one_that_stays_silent_is_tried_with_single_frames_and_ever_less_often() -> None:
    runners = Runners()
    tries = []
    for index in range(4000):
        now = index / 20
        # Bursts of eight, of which only `a` takes its frames.
        chosen = [runners.choose(("a", "b"), FrameKey(f"r{index}-{place}", 0, 1), now) for place in range(8)]
        tries += [now] * chosen.count("b")
        for place, device in enumerate(chosen):
            if device == "a":
                runners.taken("a", FrameKey(f"r{index}-{place}", 0, 1))
    early = [at for at in tries if at < SILENT_SECONDS]
    assert 4 <= len(early) <= 8, "at first nobody knows"
    pauses = [after - before for before, after in pairwise(tries[len(early) - 1 :])]
    assert pauses == pytest.approx([5, 10, 20, 35, 35, 35, 35], abs=0.11)


def test_one_that_came_back_takes_its_share_at_once() -> None:
    runners = Runners()
    for index in range(4):
        runners.taken("a", key(index)) if runners.choose(("a", "b"), key(index), 0.0) == "a" else None
    now = FORGET_SECONDS
    assert [runners.choose(("a", "b"), key(index), now) for index in (10, 11, 12)] == ["b", "a", "a"]
    for device, index in (("b", 10), ("a", 11), ("a", 12)):
        runners.taken(device, key(index))
    assert [runners.choose(("a", "b"), key(index), now) for index in (13, 14, 15, 16)] == ["b", "a", "b", "a"]
