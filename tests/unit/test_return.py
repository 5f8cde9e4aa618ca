"""A device that works before and after others that run side by side: 1 + 2 + 1 on three; on a virtual clock."""

import msgspec
import numpy as np
import pytest

from edge.errors import InvalidInput, StageFailed
from edge.formats.message import Done, Failed, Ready
from edge.formats.plan import Deployment, Stage
from edge.protocol.effects import StageKey
from edge.protocol.intake import LEAST_QUEUE_BYTES
from edge.protocol.requests import InferenceResult
from edge.transport import MemoryBroker
from host.fleet.hops import hop_times
from host.planning.price import price_plan
from host.planning.workload import workload_of
from host.simulate.bundle import simulated_bundle
from host.simulate.fleet import Deployed, SimulatedFleet, Traffic
from host.simulate.network import Weather
from host.simulate.report import SimulationReport
from tests.simulated_fleets import device
from tests.tiny_bundle import make_deployment, make_diamond_bundle, make_input
from tests.virtual_agent import TOPICS, Ear, VirtualAgent
from tests.virtual_fleet import VirtualClient, VirtualFleet

BUNDLE = make_diamond_bundle()
DEVICES = ("pi-0", "pi-1", "pi-2", "pi-0")
DEPLOYMENT = make_deployment(BUNDLE, DEVICES, beside=(2,), window=2)
JOIN = TOPICS.run("pi-0", "tiny", "1-a-1", 3)


@pytest.fixture
def fleet() -> VirtualFleet:
    return VirtualFleet(BUNDLE, DEPLOYMENT)


def slots(fleet: VirtualFleet) -> dict[str, float]:
    return fleet.agents["pi-0"].session._intake._slots["tiny", "1-a-1"]


class TestRunning:
    def test_it_begins_the_others_go_on_and_it_joins_them(self, fleet: VirtualFleet) -> None:
        fleet.send(fleet.header())
        (frame,) = fleet.results()
        np.testing.assert_allclose(frame.tensors["y"], 5 * (make_input(1) + 1), rtol=1e-6)
        assert [(hop.stage, hop.device) for hop in frame.header.trace] == list(enumerate(DEVICES))
        assert {name: agent.ran for name, agent in fleet.agents.items()} == {
            "pi-0": ["r1", "r1"],
            "pi-1": ["r1"],
            "pi-2": ["r1"],
        }

    def test_what_it_let_in_has_left_when_it_answers_and_it_tells_nobody(self, fleet: VirtualFleet) -> None:
        for index in range(5 * DEPLOYMENT.window):
            fleet.send(fleet.header(f"r{index}"))
            assert slots(fleet) == {}
        assert len(fleet.results()) == 5 * DEPLOYMENT.window
        assert fleet.ear.messages(Done) == []

    def test_who_waits_at_its_door_comes_in_when_its_second_stage_answers(self, fleet: VirtualFleet) -> None:
        fleet.broker.holds = lambda publication: publication.topic == JOIN
        for index in range(3):
            fleet.send(fleet.header(f"r{index}"))
        assert [fleet.agents[name].ran for name in ("pi-0", "pi-1")] == [["r0", "r1"]] * 2
        fleet.broker.holds = lambda _publication: False
        for part in fleet.broker.held[0], fleet.broker.held[1]:
            fleet.broker.deliver(part)
        fleet.pump()
        assert [frame.header.request_id for frame in fleet.results()] == ["r0", "r2"]

    def test_a_second_stage_that_fails_frees_the_place_too(self, fleet: VirtualFleet) -> None:
        agent = fleet.agents["pi-0"]
        fleet.broker.holds = lambda publication: publication.topic == JOIN
        fleet.send(fleet.header("r1"))
        agent.hold_runs = True
        for part in fleet.broker.held:
            fleet.broker.deliver(part)
        agent.pump()
        assert list(slots(fleet)) == ["r1"]
        agent.fail_run(StageFailed("no memory"))
        assert slots(fleet) == {}

    def test_an_error_between_frees_it_from_afar(self, fleet: VirtualFleet) -> None:
        fleet.agents["pi-1"].hold_runs = True
        fleet.send(fleet.header("r1"))
        assert list(slots(fleet)) == ["r1"]
        fleet.agents["pi-1"].fail_run(InvalidInput("tensor 'a' is odd"))
        fleet.pump()
        assert slots(fleet) == {}

    def test_frames_to_itself_travel_through_the_broker_and_may_get_lost(self) -> None:
        row = make_deployment(BUNDLE, DEVICES, beside=(2,))
        fleet = VirtualFleet(BUNDLE, row)
        client = VirtualClient(fleet, BUNDLE)
        losses = iter([True, False])
        fleet.broker.holds = lambda publication: publication.topic == JOIN and next(losses, False)
        client.submit("r1")
        assert client.outcomes == {}
        client.wait(1.1)
        outcome = client.outcomes["r1"]
        assert isinstance(outcome, InferenceResult)
        assert (outcome.attempts, outcome.steps) == (2, ((0,), (1, 2), (3,)))
        assert slots(fleet) == {}

    def test_the_way_of_a_request_names_it_twice(self, fleet: VirtualFleet) -> None:
        client = VirtualClient(fleet, BUNDLE)
        client.submit("r1")
        outcome = client.outcomes["r1"]
        assert isinstance(outcome, InferenceResult)
        hops = hop_times(outcome)
        assert [hop.receiver for hop in hops] == ["pi-0", "pi-1", "pi-2", "pi-0", "client"]
        assert (hops[0].sender, hops[1].sender, hops[4].sender) == ("client", "pi-0", "pi-0")
        assert hops[3].sender in ("pi-1", "pi-2")

    def test_requests_at_its_door_do_not_displace_what_its_second_stage_joins(self) -> None:
        fleet = VirtualFleet(BUNDLE, make_deployment(BUNDLE, DEVICES, beside=(2,), window=3))
        intake = fleet.agents["pi-0"].session._intake
        intake.queue_limit_bytes = 0
        fleet.broker.holds = lambda publication: publication.topic == JOIN and b"pi-2" in publication.payload[:32]
        quarter = {"x": np.zeros(LEAST_QUEUE_BYTES // 4 // 4 - 4096, np.float32)}
        for index in range(4):
            fleet.send(fleet.header(f"r{index}"), quarter)
        assert fleet.errors() == []
        fleet.send(fleet.header("r4"), quarter)
        assert [code for code, _ in fleet.errors()] == ["busy"]
        assert (intake._joins.count(StageKey("tiny", "1-a-1", 3)), intake._joins.dropped) == (3, 0)


def stages_of(deployment: Deployment) -> tuple[Stage, ...]:
    assert deployment.plan is not None
    return deployment.plan.stages


def prepare(deployment: Deployment, *, memory_bytes: int = 1 << 30) -> tuple[VirtualAgent, Ear]:
    broker = MemoryBroker()
    ear = Ear(broker, BUNDLE)
    agent = VirtualAgent(broker, "pi-0", memory_bytes=memory_bytes)
    agent.hold_loads = True
    agent.start()
    ear.desire(deployment)
    agent.pump()
    return agent, ear


class TestPreparing:
    def test_it_loads_one_stage_after_the_other_and_is_ready_with_both(self) -> None:
        agent, ear = prepare(DEPLOYMENT)
        assert [job.key.stage for job in agent.loads] == [0]
        agent.finish_load()
        assert [job.key.stage for job in agent.loads] == [3]
        assert ear.messages(Ready) == []
        agent.finish_load()
        assert [event.stage for event in ear.messages(Ready)] == [0, 3]

    def test_a_second_stage_that_is_refused_takes_the_first_with_it(self) -> None:
        agent, ear = prepare(DEPLOYMENT)
        agent.finish_load()
        agent.finish_load(refuse="no such operator")
        assert [(event.stage, event.reason) for event in ear.messages(Failed)] == [(3, "no such operator")]
        assert agent.stages == set()
        assert agent.loads == []

    @pytest.mark.parametrize(("memory_bytes", "fits"), [(100 << 20, True), (99 << 20, False)])
    def test_it_needs_memory_for_both_together(self, memory_bytes: int, fits: bool) -> None:
        deployment = make_deployment(BUNDLE, DEVICES, beside=(2,), memory_bytes=50 << 20)
        agent, ear = prepare(deployment, memory_bytes=memory_bytes)
        assert bool(agent.loads) is fits
        reasons = [event.reason for event in ear.messages(Failed)]
        assert reasons == ([] if fits else ["stage 3 of tiny needs 50 MiB, this device has 49 MiB free"])

    def test_while_it_loads_both_nothing_else_gets_their_memory(self) -> None:
        deployment = make_deployment(BUNDLE, DEVICES, beside=(2,), memory_bytes=50 << 20)
        agent, ear = prepare(deployment, memory_bytes=120 << 20)
        other = make_deployment(BUNDLE, ("pi-0",), memory_bytes=50 << 20, name="other")
        ear.desire(other)
        agent.pump()
        assert [event.deployment for event in ear.messages(Failed)] == ["other"]

    def test_a_load_of_an_epoch_that_was_dropped_and_came_back_is_not_counted_twice(self) -> None:
        agent, ear = prepare(DEPLOYMENT)
        ear.desire(msgspec.structs.replace(DEPLOYMENT, epoch="1-a-2"))
        agent.pump()
        ear.serve(DEPLOYMENT)
        agent.pump()
        # What is being loaded of its first life is freed before the second begins.
        assert [(job.key.epoch, job.key.stage) for job in agent.loads] == [("1-a-1", 0), ("1-a-2", 0)]
        loaded = []
        while agent.loads:
            loaded.append((agent.loads[0].key.epoch, agent.loads[0].key.stage))
            agent.finish_load()
        assert (loaded.count(("1-a-1", 0)), loaded.count(("1-a-1", 3))) == (2, 1)
        ready = [(event.epoch, event.stage) for event in ear.messages(Ready)]
        assert ready.count(("1-a-1", 0)) == ready.count(("1-a-1", 3)) == 1


class TestInASimulatedFleet:
    DEVICES = tuple(device(name, [0.01] * 4) for name in DEVICES[:3])
    BUNDLE = simulated_bundle(BUNDLE.manifest)
    PLAN = price_plan(workload_of(BUNDLE.manifest), DEVICES, stages_of(DEPLOYMENT), window=8)

    def run(self, traffic: Traffic, weather: Weather | None = None) -> SimulationReport:
        served = Deployed(name="net", bundle=self.BUNDLE, plan=self.PLAN, window=8)
        return SimulatedFleet(self.DEVICES, [served], weather=weather, coordination="none").run(traffic)

    def test_the_times_are_the_plans(self) -> None:
        full, alone = self.run(Traffic(requests=200, window=8)), self.run(Traffic(requests=3, window=1))
        assert (full.whole, full.resent, self.PLAN.binds) == (True, 0, "compute of pi-0")
        assert full.throughput == pytest.approx(1 / self.PLAN.bottleneck_seconds, rel=0.05)
        assert alone.latency.p50 == pytest.approx(self.PLAN.latency_seconds, rel=0.05)

    def test_more_than_it_can_do_waits_and_is_done(self) -> None:
        assert self.run(Traffic(requests=200, window=24)).whole

    def test_no_request_is_lost_with_messages(self) -> None:
        report = self.run(Traffic(requests=200, window=12), Weather(loss=0.02, duplication=0.05, reordering=0.05))
        assert report.resent > 0
        assert report.whole, report.errors
