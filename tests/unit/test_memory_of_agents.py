"""What an agent does not forget: versions, dates, deaths, the cordon; and what it says when a broker forgets."""

import msgspec
import pytest

from edge.errors import Busy, StageFailed
from edge.formats.bundle import Blob, digest_of, encode_manifest
from edge.formats.frame import FrameHeader
from edge.formats.message import About, Cordon, Failed, Heartbeat, Hello, Lease, Metrics, Ready, Session, encode_message
from edge.formats.plan import Deployment, encode_deployment
from edge.protocol.marks import ForgetDeaths, Marks, natural_order
from edge.protocol.memory import FIT_SECONDS
from edge.protocol.on_disk import OnDisk
from edge.protocol.repair import Repair
from edge.transport import Channel, MemoryBroker
from tests.tiny_bundle import TinyBundle, make_deployment, make_input, make_tiny_bundle
from tests.virtual_agent import TOPICS, Ear, VirtualAgent, prepare, serve

BUNDLE = make_tiny_bundle()


def bundle(version: str, expires: str | None = None) -> TinyBundle:
    manifest = msgspec.structs.replace(BUNDLE.manifest, version=version, expires=expires)
    data = encode_manifest(manifest)
    blob = Blob(digest=digest_of(data), size_bytes=len(data))
    BUNDLE.blobs[blob.digest] = data
    return TinyBundle(manifest=manifest, manifest_blob=blob, blobs=BUNDLE.blobs, weights=BUNDLE.weights)


def plan_of(version: str, sequence: int, *, expires: str | None = None, issued: str = "") -> Deployment:
    deployment = make_deployment(bundle(version, expires), ("pi-1", "pi-2"), epoch=f"1-a-{sequence}")
    return msgspec.structs.replace(deployment, issued=issued)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def ear(broker: MemoryBroker) -> Ear:
    return Ear(broker, BUNDLE)


@pytest.fixture
def agent(broker: MemoryBroker, ear: Ear) -> VirtualAgent:
    agent = VirtualAgent(broker)
    agent.start()
    return agent


def failures(ear: Ear) -> list[tuple[str, str]]:
    return [(event.epoch, event.code) for event in ear.messages(Failed)]


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.9", "1.10"),
        ("1", "1.0.1"),
        ("2024-01-31", "2024-02-01"),
        ("v2", "v10"),
        ("v1.9", "2.0"),
        ("1.0", "1.1-rc1"),
        ("1.0-rc1", "1.0"),
        ("1.0-rc1", "1.0-rc2"),
        ("1.0-alpha.9", "1.0-beta.1"),
        ("1.0b2", "1.0"),
        ("1.0.dev3", "1.0a1"),
        ("1.0", "1.0.post1"),
        ("1.0.post1", "1.0.1"),
    ],
)
def test_versions_are_ordered_by_their_parts(older: str, newer: str) -> None:
    assert natural_order(older) < natural_order(newer)


def test_how_a_version_was_built_says_nothing_of_its_order() -> None:
    assert natural_order("1.0+pi.4") == natural_order("1.0+pc")


class TestVersions:
    def test_one_older_than_what_was_served_is_refused(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, plan_of("1.10", 1))
        prepare(agent, ear, plan_of("1.9", 2))
        assert failures(ear) == [("1-a-2", "Downgrade")]
        assert agent.stages == {("tiny", "1-a-1", 0)}
        assert agent.marks.versions == {"tiny tiny": "1.10"}

    def test_what_was_only_prepared_counts_for_nothing(self, agent: VirtualAgent, ear: Ear) -> None:
        prepare(agent, ear, plan_of("1.10", 1))
        prepare(agent, ear, plan_of("1.9", 2))
        assert failures(ear) == []

    def test_a_rollback_may_be_older_and_may_be_planned_again(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, plan_of("1.10", 1))
        serve(agent, ear, msgspec.structs.replace(plan_of("1.9", 2), rolls_back=True))
        serve(agent, ear, plan_of("1.9", 3))
        assert failures(ear) == []
        assert agent.marks.versions == {"tiny tiny": "1.10"}

    def test_it_is_remembered_and_what_serves_is_not_judged_after_a_restart(self, broker: MemoryBroker) -> None:
        marks = Marks(versions={"tiny tiny": "9"}, issued="2031-01-01T00:00:00Z")
        old = plan_of("1", 1, expires="2030-01-01")
        ear = Ear(broker, BUNDLE)
        agent = VirtualAgent(broker, disk=OnDisk(serving=(old,), marks=marks))
        agent.start()
        agent.wait(1)
        assert agent.stages == {("tiny", "1-a-1", 0)}
        prepare(agent, ear, plan_of("2", 2))
        assert failures(ear) == [("1-a-2", "Downgrade")]


class TestExpiry:
    def test_it_is_judged_by_the_newest_day_that_a_coordinator_told(self, agent: VirtualAgent, ear: Ear) -> None:
        prepare(agent, ear, plan_of("1", 1, expires="2030-05-01", issued="2030-05-01T23:00:00Z"))
        assert failures(ear) == []
        prepare(agent, ear, plan_of("1", 2, expires="2030-05-01", issued="2030-05-02T00:00:00Z"))
        prepare(agent, ear, plan_of("1", 3, expires="2030-05-01", issued="2029-01-01T00:00:00Z"))
        assert failures(ear) == [("1-a-2", "Expired"), ("1-a-3", "Expired")]
        assert agent.marks.issued.startswith("2030-05-02")

    def test_what_serves_goes_on_and_may_be_planned_again(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, plan_of("1", 1, expires="2030-05-01", issued="2030-05-01T00:00:00Z"))
        serve(agent, ear, plan_of("1", 2, expires="2030-05-01", issued="2031-01-01T00:00:00Z"))
        assert failures(ear) == []


class TestDeaths:
    @pytest.mark.parametrize(("deaths", "fit"), [(2, True), (3, False)])
    def test_an_epoch_that_killed_the_agent_three_times_is_not_loaded(
        self, broker: MemoryBroker, ear: Ear, deaths: int, *, fit: bool
    ) -> None:
        disk = OnDisk(serving=(plan_of("1", 1),), deaths={("tiny", "1-a-1"): deaths})
        agent = VirtualAgent(broker, disk=disk)
        agent.start()
        ear.say(TOPICS.hello(), Hello(node="boss", role="coordinator"))
        agent.wait(2)
        assert bool(ear.messages(Ready)) == fit
        assert ("1-a-1", "Unfit") in failures(ear) or fit

    def test_one_that_runs_for_long_is_forgiven(self, broker: MemoryBroker, ear: Ear) -> None:
        disk = OnDisk(serving=(plan_of("1", 1),), deaths={("tiny", "1-a-1"): 2})
        agent = VirtualAgent(broker, disk=disk)
        ear.forget()
        agent.start()
        agent.wait(FIT_SECONDS + 5, step=1)
        assert agent.forgiven == [ForgetDeaths(deployment="tiny", epoch="1-a-1")]


class TestCordon:
    def test_it_is_told_and_kept_on_the_disk(self, broker: MemoryBroker, agent: VirtualAgent, ear: Ear) -> None:
        ear.say(TOPICS.command("pi-1"), Cordon(cordoned=True))
        agent.pump()
        agent.wait(1.25)
        assert ear.messages(About)[-1].cordoned
        assert agent.marks.cordoned
        agent.transport.close()
        again = VirtualAgent(broker, boot=2, disk=OnDisk(marks=agent.marks))
        again.start()
        assert ear.messages(About)[-1].cordoned


def test_agents_do_not_answer_each_other(agent: VirtualAgent, ear: Ear) -> None:
    ear.forget()
    ear.say(TOPICS.hello(), Hello(node="pi-2", role="agent"))
    agent.wait(3)
    assert ear.messages(About) == []


class TestRepair:
    old, new = plan_of("1", 1), plan_of("1", 2)
    lease = Lease(coordinator="boss", term=3, session=Session(boot=1, connect=1))

    def reconnect(self, agent: VirtualAgent) -> None:
        agent.transport.cut(Channel.CONTROL)
        agent.transport.connect(Channel.CONTROL)
        agent.pump()

    def test_what_the_broker_lost_is_published_again_within_three_seconds(
        self, broker: MemoryBroker, agent: VirtualAgent, ear: Ear
    ) -> None:
        serve(agent, ear, self.new)
        ear.say(TOPICS.lease(), self.lease, retain=True)
        agent.pump()
        assert agent.marks.lease == self.lease
        broker.retained.clear()
        self.reconnect(agent)
        agent.wait(0.75)
        assert TOPICS.serving("tiny") not in broker.retained
        agent.wait(2.5)
        assert broker.retained[TOPICS.serving("tiny")] == encode_deployment(self.new)
        assert broker.retained[TOPICS.lease()] == encode_message(self.lease)

    def test_a_smaller_value_is_answered_by_ours(self, broker: MemoryBroker, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, self.new)
        ear.serve(self.old)
        agent.pump()
        agent.wait(2.25)
        assert broker.retained[TOPICS.serving("tiny")] == encode_deployment(self.new)

    def test_not_when_somebody_else_did_so_first(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, self.new)
        ear.serve(self.old)
        ear.serve(self.new)
        agent.pump()
        ear.forget()
        agent.wait(5)
        assert [event for event in ear.heard if event.topic == TOPICS.serving("tiny")] == []

    def test_a_tombstone_is_repaired_and_the_plans_of_others_are_not(
        self, broker: MemoryBroker, agent: VirtualAgent, ear: Ear
    ) -> None:
        gone = Deployment(name="gone", epoch="1-a-2", manifest=None, plan=None)
        ear.serve(gone)
        ear.serve(make_deployment(BUNDLE, ("pi-8", "pi-9"), name="others"))
        agent.pump()
        broker.retained.clear()
        self.reconnect(agent)
        agent.wait(5)
        assert broker.retained.get(TOPICS.serving("gone")) == encode_deployment(gone)
        assert TOPICS.serving("others") not in broker.retained

    def test_nodes_draw_other_times_and_each_the_same_ones_again(self) -> None:
        def due_at(seed: str) -> float:
            repair = Repair(seed=seed)
            repair.saw("topic", 1, 2, 0.0)
            return next(at / 100 for at in range(300) if repair.due(at / 100))

        times = {due_at(f"pi-{index}") for index in range(20)}
        assert len(times) > 10
        assert max(times) <= 2.01
        assert due_at("pi-1") == due_at("pi-1")


class TestSignsOfLife:
    def send(self, agent: VirtualAgent, ear: Ear, request_id: str) -> None:
        header = FrameHeader(
            request_id=request_id,
            sender="boss",
            reply_to=TOPICS.result("boss"),
            ttl_ms=60_000,
            deployment="tiny",
            epoch="1-a-1",
            stage=0,
        )
        ear.send_frame(header, {"x": make_input(0)})
        agent.pump()

    def test_metrics_come_every_five_seconds(self, agent: VirtualAgent, ear: Ear) -> None:
        for _ in range(11):
            agent.beat()
            agent.wait(1)
        assert len(ear.messages(Metrics)) == 3

    def test_they_count_what_ran_failed_and_was_refused(self, agent: VirtualAgent, ear: Ear) -> None:
        self.send(agent, ear, "too-early")
        agent.wait(2)
        serve(agent, ear, plan_of("1", 1))
        agent.hold_runs = True
        for request_id in ("good", "bad", "waits"):
            self.send(agent, ear, request_id)
        agent.finish_run()
        agent.fail_run(StageFailed("no"))
        agent.beat()
        metrics = ear.messages(Metrics)[-1]
        assert (metrics.frames_failed, metrics.refused, metrics.queued_frames) == (1, {"gone": 1}, 1)
        assert metrics.queued_bytes >= make_input(0).nbytes
        assert metrics.run_p50_seconds == pytest.approx(0.01)
        assert metrics.fetched_bytes > 0
        (load,) = ear.messages(Heartbeat)[-1].stages
        assert (load.frames, load.failed) == (2, 1)

    def test_an_error_that_is_not_the_stages_is_no_failure(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, plan_of("1", 1))
        agent.hold_runs = True
        self.send(agent, ear, "bad")
        agent.fail_run(Busy("full"))
        agent.beat()
        assert ear.messages(Metrics)[-1].frames_failed == 0
