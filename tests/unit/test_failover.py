"""Senders go over to others by themselves when a device is away; on a virtual clock."""

import msgspec
import pytest

from edge.errors import Poison
from edge.formats.canary import Canary
from edge.formats.message import Session, State, Taken, encode_message
from edge.formats.plan import Deployment
from edge.protocol.requests import FAILOVER_SECONDS, InferenceResult, Route
from edge.protocol.runners import FrameKey, Runners, meeting_place
from tests.request_harness import BUNDLE, Harness
from tests.tiny_bundle import make_deployment
from tests.virtual_agent import TOPICS
from tests.virtual_fleet import VirtualFleet


def say(device: str, *, online: bool, boot: int = 1, connect: int = 1) -> State:
    return State(node=device, role="agent", online=online, session=Session(boot=boot, connect=connect))


def plan(
    *,
    epoch: str = "1-a-1",
    standbys: dict[int, tuple[str, ...]] | None = None,
    devices: tuple[str, ...] = ("pi-1", "pi-2"),
    canary: Canary | None = None,
) -> Route:
    deployment: Deployment = make_deployment(BUNDLE, devices, epoch=epoch)
    assert deployment.plan is not None
    stages = tuple(
        msgspec.structs.replace(stage, standbys=(standbys or {}).get(stage.index, ()))
        for stage in deployment.plan.stages
    )
    changed = msgspec.structs.replace(deployment.plan, stages=stages)
    return Route(deployment=msgspec.structs.replace(deployment, plan=changed, canary=canary), manifest=BUNDLE.manifest)


def start(route: Route) -> Harness:
    client = Harness(route)
    for device in sorted(client.requests.watching()):
        tell(client, say(device, online=True))
    return client


def tell(client: Harness, *states: State) -> None:
    for state in states:
        client.take(client.requests.state(state, client.now))


def receivers(client: Harness) -> list[str]:
    return [send.topic.split("/")[3] for send in client.sent]


class TestOfRunners:
    def choose(
        self, runners: Runners, devices: tuple[str, ...] = ("a", "b"), standbys: tuple[str, ...] = ()
    ) -> set[str]:
        keys = [FrameKey(f"r{index}", 0, 1) for index in range(6)]
        return {runners.choose(devices, key, 0.0, standbys=standbys) for key in keys}

    def test_one_that_is_away_gets_nothing_while_another_is_there(self) -> None:
        runners = Runners()
        runners.state(say("a", online=False))
        assert self.choose(runners) == {"b"}
        runners.state(say("a", online=True, connect=2))
        assert self.choose(runners) == {"a", "b"}

    def test_standbys_get_nothing_while_a_runner_is_there_and_everything_when_none_is(self) -> None:
        runners = Runners()
        assert self.choose(runners, ("a",), standbys=("s", "t")) == {"a"}
        runners.state(say("a", online=False))
        assert self.choose(runners, ("a",), standbys=("s", "t")) == {"s", "t"}
        runners.state(say("s", online=False))
        runners.state(say("t", online=False))
        assert len(self.choose(runners, ("a",), standbys=("s", "t"))) > 0

    def test_the_last_will_of_an_older_session_says_nothing(self) -> None:
        runners = Runners()
        runners.state(say("a", online=True, connect=2))
        assert runners.state(say("a", online=False, connect=1)) is None
        assert not runners.is_away("a")

    def test_all_senders_meet_where_somebody_is(self) -> None:
        first, second = Runners("x"), Runners("y")
        for runners in (first, second):
            runners.state(say("a", online=False))
        places = [
            {sender.meet(("a", "b", "c"), f"r{index}", 0, standbys=("s",)) for sender in (first, second)}
            for index in range(20)
        ]
        assert {place for (place,) in places} == {"b", "c"}

    def test_a_join_moves_to_the_standby_when_its_device_is_away(self) -> None:
        runners = Runners()
        assert runners.meet(("a",), "r1", 0, standbys=("s",)) == "a"
        runners.state(say("a", online=False))
        assert runners.meet(("a",), "r1", 0, standbys=("s",)) == "s"

    def test_another_attempt_of_a_join_goes_to_the_standby(self) -> None:
        assert [meeting_place(("a",), "r1", attempt, standbys=("s",)) for attempt in range(3)] == ["a", "s", "a"]

    def test_who_left_the_attempt_before_untaken_is_not_asked_again(self) -> None:
        runners = Runners()
        assert runners.choose(("a",), FrameKey("r1", 0, 1), 0.0, standbys=("s",)) == "a"
        assert runners.choose(("a",), FrameKey("r1", 1, 1), 0.5, standbys=("s",)) == "s"


class TestOfAClient:
    def test_it_hears_the_states_of_all_devices_of_its_plans_and_of_no_other(self) -> None:
        client = Harness(plan(standbys={1: ("pi-9",)}))
        assert client.requests.watching() == {"pi-1", "pi-2", "pi-9"}

    @pytest.mark.parametrize("dead", ["pi-1", "pi-2"])
    def test_what_was_in_flight_goes_to_the_standby_at_once(self, dead: str) -> None:
        client = start(plan(standbys={0: ("pi-8",), 1: ("pi-9",)}))
        client.submit("r1")
        client.now = 0.2
        tell(client, say(dead, online=False))
        client.wait(FAILOVER_SECONDS)
        assert client.attempts == [0, 1]
        assert receivers(client) == ["pi-1", "pi-8" if dead == "pi-1" else "pi-1"]

    def test_the_death_of_one_that_had_no_part_in_it_changes_nothing(self) -> None:
        client = start(plan(standbys={1: ("pi-9",)}))
        client.submit("r1")
        tell(client, say("pi-9", online=False))
        client.wait(0.5)
        assert client.attempts == [0]

    def test_without_anybody_for_a_stage_it_waits_for_the_newer_plan_and_sends_at_once(self) -> None:
        client = start(plan())
        client.submit("r1")
        tell(client, say("pi-2", online=False))
        client.wait(0.5)
        assert client.attempts == [0]
        client.take(client.requests.set_route(plan(epoch="1-a-2", devices=("pi-1", "pi-3")), client.now))
        client.wait(FAILOVER_SECONDS)
        assert [(send.header.epoch, send.header.attempt) for send in client.sent] == [("1-a-1", 0), ("1-a-2", 1)]

    def test_what_was_in_flight_in_an_epoch_that_is_merely_replaced_is_not_sent_again_early(self) -> None:
        client = start(plan())
        client.submit("r1")
        client.wait(0.5)
        client.take(client.requests.set_route(plan(epoch="1-a-2"), client.now))
        client.wait(0.49)
        assert client.attempts == [0]
        client.answer(client.sent[0].header)
        assert isinstance(client.outcomes["r1"], InferenceResult)

    @pytest.mark.parametrize(
        ("dead", "after", "attempts"), [("pi-2", 0.9, [0, 1]), ("pi-2", 0.05, [0]), ("", 0.9, [0])]
    )
    def test_a_plan_without_a_device_tells_that_a_silent_one_is_gone(
        self, dead: str, after: float, attempts: list[int]
    ) -> None:
        client = start(plan())
        client.submit("r0")
        client.wait(0.1)
        client.answer(client.sent[0].header)
        client.sent.clear()
        client.submit("r1")
        client.wait(after)
        devices = ("pi-1", "pi-3" if dead else "pi-2")
        client.take(client.requests.set_route(plan(epoch="1-a-2", devices=devices), client.now))
        client.wait(FAILOVER_SECONDS)
        assert client.attempts == attempts

    def test_when_the_device_is_back_what_it_lost_is_sent_again_at_once(self) -> None:
        client = start(plan())
        client.submit("r1")
        tell(client, say("pi-2", online=False))
        client.wait(0.3)
        tell(client, say("pi-2", online=True, boot=2))
        client.wait(FAILOVER_SECONDS)
        assert client.attempts == [0, 1]

    def test_a_restart_that_nobody_saw_the_end_of_counts_too(self) -> None:
        client = start(plan())
        client.submit("r1")
        tell(client, say("pi-2", online=True, boot=2))
        client.wait(FAILOVER_SECONDS)
        assert client.attempts == [0, 1]

    def test_a_frame_that_a_silent_device_does_not_take_goes_elsewhere_long_before_the_answer_is_overdue(self) -> None:
        slow = plan(standbys={0: ("pi-8",)})
        assert slow.deployment.plan is not None
        long = msgspec.structs.replace(slow.deployment.plan, latency_seconds=20.0)
        client = start(Route(deployment=msgspec.structs.replace(slow.deployment, plan=long), manifest=slow.manifest))
        client.submit("r0")
        client.requests.taken(Taken(node="pi-1", request_id="r0", attempt=0, stage=0), 0.01)
        client.wait(2.0)
        client.submit("r1")
        client.wait(1.01)
        assert receivers(client) == ["pi-1", "pi-1", "pi-8"]

    def test_an_outage_of_a_minute_does_not_use_up_the_attempts(self) -> None:
        client = start(plan())
        client.submit("r1", deadline_seconds=300.0)
        client.requests.disconnected()
        client.wait(60.0)
        assert client.attempts == [0]
        client.take(client.requests.reconnected(client.now))
        client.wait(0.3)
        assert client.attempts == [0, 1]
        tell(client, say("pi-2", online=False))
        client.wait(60.0)
        sends = len(client.sent)
        tell(client, say("pi-2", online=True, boot=2))
        client.wait(FAILOVER_SECONDS)
        assert len(client.sent) == sends + 1
        client.answer(client.sent[-1].header)
        assert isinstance(client.outcomes["r1"], InferenceResult)

    def test_a_plan_that_is_gone_is_asked_for_again_but_not_all_the_time(self) -> None:
        client = start(plan())
        for index in range(3):
            client.submit(f"r{index}")
            client.refuse(client.sent[-1].header, "gone")
        assert client.asked == ["tiny"]


class TestOfAnAgent:
    """A stage whose runner is away is run by its standby, without anybody's word."""

    def fleet(self) -> VirtualFleet:
        return VirtualFleet(BUNDLE, plan(devices=("pi-0", "pi-1"), standbys={1: ("pi-2",)}).deployment)

    def ran(self, fleet: VirtualFleet) -> list[int]:
        return [len(fleet.agents[name].ran) for name in ("pi-1", "pi-2")]

    def test_the_standby_is_idle_while_the_runner_is_there(self) -> None:
        fleet = self.fleet()
        for index in range(3):
            fleet.send(fleet.header(f"r{index}"))
        assert self.ran(fleet) == [3, 0]

    def test_it_runs_what_comes_while_the_runner_is_away_and_no_longer(self) -> None:
        fleet = self.fleet()
        fleet.ear.say(TOPICS.state("pi-1"), encode_message(say("pi-1", online=False, boot=7)))
        fleet.pump()
        for index in range(3):
            fleet.send(fleet.header(f"r{index}"))
        assert self.ran(fleet) == [0, 3]
        fleet.ear.say(TOPICS.state("pi-1"), encode_message(say("pi-1", online=True, boot=8)))
        fleet.pump()
        fleet.send(fleet.header("r3"))
        assert self.ran(fleet) == [1, 3]
        assert len(fleet.results()) == 4


class TestOfPoison:
    """Two devices may die of one input before it is held; then the one that knows is asked."""

    def test_what_was_in_flight_through_two_that_died_is_held(self) -> None:
        client = start(plan(devices=("pi-1",), standbys={0: ("pi-8", "pi-9")}))
        client.submit("bad")
        for _ in range(2):
            tell(client, say(receivers(client)[-1], online=False))
            client.wait(FAILOVER_SECONDS)
        assert len(set(receivers(client))) == 2
        client.wait(2.0)
        assert len(client.sent) == 2

    def test_one_that_comes_back_says_whether_it_was_this_request(self) -> None:
        client = start(plan(devices=("pi-1",), standbys={0: ("pi-8", "pi-9")}))
        client.submit("bad")
        for _ in range(2):
            tell(client, say(receivers(client)[-1], online=False))
            client.wait(FAILOVER_SECONDS)
        tell(client, say("pi-1", online=True, boot=2))
        client.wait(0.3)
        assert receivers(client)[-1] == "pi-1"
        client.refuse(client.sent[-1].header, "poison")
        assert isinstance(client.outcomes["bad"], Poison)

    def test_when_nobody_comes_back_it_is_sent_alone_and_to_nobody_after_a_third_death(self) -> None:
        client = start(plan(devices=("pi-1",), standbys={0: ("pi-8", "pi-9")}))
        client.submit("bad")
        for _ in range(2):
            tell(client, say(receivers(client)[-1], online=False))
            client.wait(FAILOVER_SECONDS)
        client.wait(6.0)
        third = receivers(client)[-1]
        assert len(set(receivers(client))) == 3
        tell(client, say(third, online=False))
        client.take(
            client.requests.set_route(plan(epoch="1-a-2", devices=("pi-5",), standbys={0: ("pi-6",)}), client.now)
        )
        client.wait(30.0)
        assert len(set(receivers(client))) == 3
        assert isinstance(client.outcomes["bad"], Poison)

    def test_one_that_comes_back_and_takes_it_did_not_die_of_it(self) -> None:
        client = start(plan(devices=("pi-1",), standbys={0: ("pi-8", "pi-9")}))
        client.submit("fine")
        for _ in range(2):
            tell(client, say(receivers(client)[-1], online=False))
            client.wait(FAILOVER_SECONDS)
        tell(client, say("pi-1", online=True, boot=2))
        client.wait(0.3)
        client.requests.taken(Taken(node="pi-1", request_id="fine", attempt=2, stage=0), client.now)
        assert [death.device for death in client.requests._pending["fine"].deaths] == [receivers(client)[1]]

    def test_a_link_that_was_cut_is_no_death(self) -> None:
        client = start(plan(devices=("pi-1",), standbys={0: ("pi-8", "pi-9")}))
        client.submit("fine")
        for connect in range(2, 8):
            tell(client, say("pi-1", online=False, connect=connect - 1))
            client.wait(FAILOVER_SECONDS)
            tell(client, say("pi-1", online=True, connect=connect))
            client.wait(FAILOVER_SECONDS)
        assert client.outcomes == {}
        client.answer(client.sent[-1].header)
        assert isinstance(client.outcomes["fine"], InferenceResult)
