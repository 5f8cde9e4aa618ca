"""The agent's protocol: standbys, keepers, holders, swaps and canaries; on a virtual clock."""

import msgspec
import pytest

from edge.formats.bundle import Blob, GoldenPair, digest_of, encode_manifest
from edge.formats.canary import Canary
from edge.formats.frame import FrameHeader
from edge.formats.message import Abandon, Dropped, Failed, Fetched, Hello, Kept, Ready, Session, State, Swap
from edge.formats.plan import Deployment, Holding, encode_deployment
from edge.protocol.effects import BlobFailed
from edge.protocol.local_epoch import holders_of, stages_of
from edge.protocol.on_disk import OnDisk
from edge.transport import MemoryBroker
from tests.tiny_bundle import TinyBundle, make_deployment, make_input, make_tiny_bundle
from tests.virtual_agent import TOPICS, Ear, VirtualAgent, prepare

BUNDLE = make_tiny_bundle()
OTHER = make_tiny_bundle(seed=1)
MIB = 1 << 20


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def ear(broker: MemoryBroker) -> Ear:
    return Ear(broker, BUNDLE, OTHER)


@pytest.fixture
def agent(broker: MemoryBroker, ear: Ear) -> VirtualAgent:
    agent = VirtualAgent(broker)
    agent.start()
    return agent


def with_stage(deployment: Deployment, index: int, **changes: object) -> Deployment:
    assert deployment.plan is not None
    stages = list(deployment.plan.stages)
    stages[index] = msgspec.structs.replace(stages[index], **changes)
    return msgspec.structs.replace(deployment, plan=msgspec.structs.replace(deployment.plan, stages=tuple(stages)))


def serve(agent: VirtualAgent, ear: Ear, deployment: Deployment) -> None:
    prepare(agent, ear, deployment)
    ear.serve(deployment)
    agent.pump()
    agent.wait(1)


def header(request_id: str) -> FrameHeader:
    return FrameHeader(
        request_id=request_id,
        sender="boss",
        reply_to=TOPICS.result("boss"),
        ttl_ms=60_000,
        deployment="tiny",
        epoch="1-a-1",
        stage=0,
    )


def digests(bundle: TinyBundle, *stages: int) -> set[str]:
    return {
        bundle.manifest_blob.digest,
        *(blob.digest for stage in stages for blob in bundle.manifest.blobs(stage, stage + 1)),
    }


def golden_bundle() -> TinyBundle:
    """Return the tiny bundle with a golden pair, whose blobs are of no meaning here."""
    made = make_tiny_bundle(seed=5)
    blobs = dict(made.blobs)
    pieces = {}
    for name in ("inputs", "outputs", "whole"):
        data = name.encode()
        blobs[digest_of(data)] = data
        pieces[name] = Blob(digest=digest_of(data), size_bytes=len(data))
    manifest = msgspec.structs.replace(made.manifest, golden=(GoldenPair(**pieces),))
    data = encode_manifest(manifest)
    blob = Blob(digest=digest_of(data), size_bytes=len(data))
    blobs[blob.digest] = data
    return TinyBundle(manifest=manifest, manifest_blob=blob, blobs=blobs, weights=made.weights)


class TestStandbys:
    def test_a_device_loads_its_own_stage_before_those_that_it_stands_by_for(
        self, agent: VirtualAgent, ear: Ear
    ) -> None:
        deployment = with_stage(make_deployment(BUNDLE, ("pi-2", "pi-1")), 0, standbys=("pi-1",))
        assert [stage.index for stage in stages_of(deployment, "pi-1")] == [1, 0]
        serve(agent, ear, deployment)
        assert agent.stages == {("tiny", "1-a-1", 0), ("tiny", "1-a-1", 1)}
        assert sorted(event.stage for event in ear.messages(Ready)) == [0, 1]

    def test_its_own_stage_answers_before_the_others_are_loaded(self, agent: VirtualAgent, ear: Ear) -> None:
        agent.hold_loads = True
        serve(agent, ear, with_stage(make_deployment(BUNDLE, ("pi-1", "pi-2")), 1, standbys=("pi-1",)))
        agent.finish_load()
        ear.send_frame(header("r-1"), {"x": make_input(0)})
        agent.pump()
        assert (agent.ran, [job.key.stage for job in agent.loads], ear.messages(Ready)) == (["r-1"], [1], [])

    def test_the_memory_of_all_its_stages_counts_together(self, broker: MemoryBroker, ear: Ear) -> None:
        agent = VirtualAgent(broker, memory_bytes=100 * MIB)
        agent.start()
        both = make_deployment(BUNDLE, ("pi-2", "pi-1"), memory_bytes=60 * MIB)
        prepare(agent, ear, with_stage(both, 0, standbys=("pi-1",)))
        assert [(event.code, event.stage) for event in ear.messages(Failed)] == [("OutOfMemory", 1)]
        assert ear.messages(Failed)[0].reason == "stage 0 of tiny needs 60 MiB, this device has 40 MiB free"

    def test_frames_go_to_a_standby_while_the_runner_is_away(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, with_stage(make_deployment(BUNDLE, ("pi-1", "pi-2")), 1, standbys=("pi-3",)))
        for online, expected in ((True, "pi-2"), (False, "pi-3")):
            state = State(node="pi-2", role="agent", online=online, session=Session(boot=1, connect=1))
            ear.say(TOPICS.state("pi-2"), state, retain=True)
            ear.send_frame(header(f"r-{online}"), {"x": make_input(0)})
            agent.pump()
            assert len(ear.frames(TOPICS.run(expected, "tiny", "1-a-1", 1))) == 1


class TestKeepers:
    def test_a_keeper_fetches_once_the_epoch_serves_and_loads_nothing(self, agent: VirtualAgent, ear: Ear) -> None:
        deployment = with_stage(make_deployment(BUNDLE, ("pi-8", "pi-9")), 1, keepers=("pi-1",))
        prepare(agent, ear, deployment)
        agent.wait(1)
        assert ear.asked == []
        ear.serve(deployment)
        agent.pump()
        agent.wait(1)
        assert (set(agent.blobs), agent.stages) == (digests(BUNDLE, 1), set())
        assert ear.messages(Kept) == [Kept(deployment="tiny", epoch="1-a-1", stages=(1,))]

    def test_devices_of_stage_0_keep_the_golden_inputs_and_whole_answers(self, broker: MemoryBroker) -> None:
        bundle = golden_bundle()
        ear = Ear(broker, bundle)
        agent = VirtualAgent(broker)
        agent.start()
        serve(agent, ear, make_deployment(bundle, ("pi-1", "pi-2")))
        golden = {bundle.manifest.golden[0].inputs.digest, bundle.manifest.golden[0].whole.digest}
        assert set(agent.blobs) == digests(bundle, 0) | golden
        assert [(event.stages, event.golden) for event in ear.messages(Kept)] == [((0,), False), ((0,), True)]

    def test_a_runner_may_keep_another_stage_too(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, with_stage(make_deployment(BUNDLE, ("pi-2", "pi-1")), 0, keepers=("pi-1",)))
        assert set(agent.blobs) == digests(BUNDLE, 0, 1)
        assert agent.stages == {("tiny", "1-a-1", 1)}
        assert [event.stages for event in ear.messages(Kept)] == [(1,), (0, 1)]

    def test_a_coordinator_that_comes_hears_what_is_kept(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, make_deployment(BUNDLE, ("pi-1", "pi-2")))
        ear.forget()
        ear.say(TOPICS.hello(), Hello(node="boss", role="coordinator"))
        agent.wait(2)
        assert [event.stages for event in ear.messages(Kept)] == [(0,)]

    def test_what_cannot_be_had_is_tried_again_and_nothing_fails(self, agent: VirtualAgent, ear: Ear) -> None:
        ear.deaf = True
        ear.serve(with_stage(make_deployment(BUNDLE, ("pi-8", "pi-9")), 1, keepers=("pi-1",)))
        agent.pump()
        agent.wait(60)
        assert ear.messages(Failed) == []
        ear.deaf = False
        agent.wait(60)
        assert [event.stages for event in ear.messages(Kept)] == [(1,)]

    def test_what_can_be_had_does_not_wait_for_what_cannot(self, agent: VirtualAgent, ear: Ear) -> None:
        ear.serve(with_stage(make_deployment(BUNDLE, ("pi-8", "pi-9")), 1, keepers=("pi-1",)))
        agent.wait(0.5)
        ear.deaf = True  # the manifest has come
        agent.wait(0.5)
        lost = min(digests(BUNDLE, 1) - set(agent.blobs))
        agent.feed(BlobFailed(digest=lost, code="TransportError", reason="nobody has it"))
        ear.deaf = False
        agent.wait(10)
        assert digests(BUNDLE, 1) - set(agent.blobs) == {lost}
        agent.wait(60)
        assert [event.stages for event in ear.messages(Kept)] == [(1,)]

    def test_after_a_restart_it_still_keeps_them(self, agent: VirtualAgent, ear: Ear) -> None:
        deployment = with_stage(make_deployment(BUNDLE, ("pi-8", "pi-9")), 1, keepers=("pi-1",))
        serve(agent, ear, deployment)
        other = MemoryBroker()
        heard = Ear(other, BUNDLE)
        again = VirtualAgent(other, boot=2, disk=OnDisk(serving=(deployment,)), blobs=agent.blobs)
        again.start()
        again.wait(1)
        assert (heard.asked, [event.stages for event in heard.messages(Kept)]) == ([], [(1,)])
        assert set(again.blobs) == digests(BUNDLE, 1)

    def test_a_tombstone_lets_them_go(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, with_stage(make_deployment(BUNDLE, ("pi-8", "pi-9")), 1, keepers=("pi-1",)))
        ear.serve(Deployment(name="tiny", epoch="1-a-2", manifest=None, plan=None))
        agent.pump()
        assert agent.blobs == {}


class TestHolders:
    deployment = msgspec.structs.replace(
        make_deployment(BUNDLE, ("pi-1", "pi-2")),
        holders=("boss",),
        holdings=(
            Holding(node="pi-3", first_shard=1, stop_shard=2),
            Holding(node="pi-1", first_shard=0, stop_shard=2),
            Holding(node="pi-4", first_shard=0, stop_shard=1, golden=True),
        ),
    )

    def test_a_blob_is_asked_of_those_whose_shards_need_it_then_of_the_deployments_holders(self) -> None:
        graph = BUNDLE.manifest.shards[1].graph.digest
        assert holders_of(self.deployment, BUNDLE.manifest, graph, "pi-1") == ("pi-3", "boss")

    def test_everybody_who_holds_something_has_the_manifest(self) -> None:
        assert holders_of(self.deployment, None, "", "pi-1") == ("pi-3", "pi-4", "boss")

    def test_a_new_device_fetches_from_its_neighbours_when_the_host_is_gone(
        self, broker: MemoryBroker, agent: VirtualAgent
    ) -> None:
        neighbour = Ear(broker, BUNDLE, name="pi-4")
        neighbour.desire(msgspec.structs.replace(self.deployment, holders=()))
        agent.pump()
        agent.wait(30)
        assert [event.stage for event in neighbour.messages(Ready)] == [0]


class TestSwaps:
    first = make_deployment(BUNDLE, ("pi-1", "pi-2"), memory_bytes=60 * MIB)
    second = with_stage(
        make_deployment(OTHER, ("pi-1", "pi-2"), memory_bytes=60 * MIB, epoch="1-a-2"), 0, swaps=("pi-1",)
    )

    @pytest.fixture
    def agent(self, broker: MemoryBroker, ear: Ear) -> VirtualAgent:
        agent = VirtualAgent(broker, memory_bytes=100 * MIB)
        agent.start()
        serve(agent, ear, self.first)
        return agent

    def swap(self, agent: VirtualAgent, ear: Ear) -> None:
        ear.say(TOPICS.command("pi-1"), Swap(deployment="tiny", epoch="1-a-2"))
        agent.pump()

    def test_it_fetches_says_so_and_goes_on_serving(self, agent: VirtualAgent, ear: Ear) -> None:
        prepare(agent, ear, self.second)
        assert ear.messages(Fetched) == [Fetched(deployment="tiny", epoch="1-a-2")]
        assert agent.stages == {("tiny", "1-a-1", 0)}

    def test_on_the_command_the_old_epoch_makes_room_before_the_new_one_is_loaded(
        self, agent: VirtualAgent, ear: Ear
    ) -> None:
        prepare(agent, ear, self.second)
        agent.hold_loads = True
        self.swap(agent, ear)
        assert (agent.stages, [(job.key.epoch, job.must_run) for job in agent.loads]) == (set(), [("1-a-2", True)])
        self.swap(agent, ear)
        agent.finish_load()
        assert [event.epoch for event in ear.messages(Ready)] == ["1-a-1", "1-a-2"]
        ear.serve(self.second)
        agent.pump()
        assert agent.stages == {("tiny", "1-a-2", 0)}
        assert [event.epoch for event in ear.messages(Dropped)] == ["1-a-1"]

    def test_the_old_epoch_is_loaded_again_when_the_new_one_fails(self, agent: VirtualAgent, ear: Ear) -> None:
        prepare(agent, ear, self.second)
        agent.hold_loads = True
        self.swap(agent, ear)
        agent.finish_load(refuse="does not run on zeros")
        agent.finish_load()
        assert agent.stages == {("tiny", "1-a-1", 0)}
        assert [event.epoch for event in ear.messages(Failed)] == ["1-a-2"]
        assert [event.epoch for event in ear.messages(Ready)] == ["1-a-1", "1-a-1"]

    @pytest.mark.parametrize("loading", [True, False], ids=["while it loads", "when it is ready"])
    def test_and_when_it_is_abandoned(self, agent: VirtualAgent, ear: Ear, *, loading: bool) -> None:
        prepare(agent, ear, self.second)
        agent.hold_loads = True
        self.swap(agent, ear)
        if not loading:
            agent.finish_load()
        ear.say(TOPICS.command("pi-1"), Abandon(deployment="tiny", epoch="1-a-2", reason="probe failed"))
        agent.pump()
        # Never both at once: the old one waits until the new one is freed.
        assert [job.key.epoch for job in agent.loads] == ["1-a-2" if loading else "1-a-1"]
        while agent.loads:
            agent.finish_load()
        assert agent.stages == {("tiny", "1-a-1", 0)}

    def test_a_commit_without_the_command_swaps_too(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, self.second)
        assert agent.stages == {("tiny", "1-a-2", 0)}

    def test_an_abandoned_swap_that_never_began_changes_nothing(self, agent: VirtualAgent, ear: Ear) -> None:
        prepare(agent, ear, self.second)
        ear.say(TOPICS.command("pi-1"), Abandon(deployment="tiny", epoch="1-a-2", reason="no"))
        agent.pump()
        assert agent.stages == {("tiny", "1-a-1", 0)}


class TestCanaries:
    first = make_deployment(BUNDLE, ("pi-1", "pi-2"))
    second = msgspec.structs.replace(make_deployment(OTHER, ("pi-1", "pi-2"), epoch="1-a-2"), canary=Canary(share=0.1))

    def try_out(self, agent: VirtualAgent, ear: Ear, payload: Deployment | None) -> None:
        data = encode_deployment(payload) if payload is not None else b""
        ear.say(TOPICS.canary("tiny"), data, retain=True)
        agent.pump()

    def test_it_stays_while_a_newer_epoch_is_prepared(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, self.first)
        prepare(agent, ear, self.second)
        self.try_out(agent, ear, self.second)
        prepare(agent, ear, msgspec.structs.replace(self.first, epoch="1-a-3"))
        agent.wait(70, step=1)
        assert {key.epoch for key in agent.stages} == {"1-a-1", "1-a-2", "1-a-3"}

    def test_a_device_that_comes_back_prepares_it(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, self.first)
        self.try_out(agent, ear, self.second)
        assert {key.epoch for key in agent.stages} == {"1-a-1", "1-a-2"}

    def test_it_is_dropped_when_its_topic_is_emptied(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, self.first)
        self.try_out(agent, ear, self.second)
        self.try_out(agent, ear, None)
        assert {key.epoch for key in agent.stages} == {"1-a-1"}
        assert [event.epoch for event in ear.messages(Dropped)] == ["1-a-2"]

    def test_but_not_when_it_serves_by_then(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, self.first)
        self.try_out(agent, ear, self.second)
        ear.serve(msgspec.structs.replace(self.second, canary=None))
        agent.pump()
        self.try_out(agent, ear, None)
        agent.wait(10)
        assert {key.epoch for key in agent.stages} == {"1-a-2"}

    def test_a_newer_commit_ends_it(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, self.first)
        self.try_out(agent, ear, self.second)
        serve(agent, ear, msgspec.structs.replace(self.first, epoch="1-a-3"))
        agent.wait(10)
        assert {key.epoch for key in agent.stages} == {"1-a-3"}
        self.try_out(agent, ear, self.second)
        assert {key.epoch for key in agent.stages} == {"1-a-3"}
