"""The agent's protocol: preparing, serving, draining and dropping epochs; on a virtual clock."""

import msgspec
import pytest

from edge.formats.bundle import Blob, digest_of, encode_manifest
from edge.formats.message import (
    Abandon,
    Dropped,
    Failed,
    Hello,
    Progress,
    Ready,
)
from edge.formats.plan import Deployment
from edge.protocol.effects import BlobFailed, BlobSpoiled, StageRefused
from edge.protocol.on_disk import OnDisk
from edge.transport import Channel, MemoryBroker
from tests.tiny_bundle import TinyBundle, make_deployment, make_tiny_bundle
from tests.virtual_agent import TOPICS, Ear, VirtualAgent, prepare, serve

BUNDLE = make_tiny_bundle()
OTHER = make_tiny_bundle(seed=1)
THIRD = make_tiny_bundle(seed=2)
FIRST = make_deployment(BUNDLE, ("pi-1", "pi-2"))
SECOND = make_deployment(OTHER, ("pi-1", "pi-2"), epoch="1-a-2")


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def ear(broker: MemoryBroker) -> Ear:
    return Ear(broker, BUNDLE, OTHER, THIRD)


@pytest.fixture
def agent(broker: MemoryBroker, ear: Ear) -> VirtualAgent:
    agent = VirtualAgent(broker)
    agent.start()
    return agent


def tombstone(epoch: str) -> Deployment:
    return Deployment(name="tiny", epoch=epoch, manifest=None, plan=None)


def digests(bundle: TinyBundle, stage: int) -> set[str]:
    return {bundle.manifest_blob.digest, *(blob.digest for blob in bundle.manifest.blobs(stage, stage + 1))}


class TestPreparing:
    def test_it_fetches_its_own_shards_only_loads_them_and_says_ready(self, agent: VirtualAgent, ear: Ear) -> None:
        prepare(agent, ear, FIRST)
        assert set(agent.blobs) == digests(BUNDLE, 0)
        ready = ear.messages(Ready)
        assert [(event.deployment, event.epoch, event.stage) for event in ready] == [("tiny", "1-a-1", 0)]
        assert ready[0].fetched_bytes == sum(len(data) for data in agent.blobs.values())

    def test_a_plan_without_it_is_none_of_its_business(self, agent: VirtualAgent, ear: Ear) -> None:
        prepare(agent, ear, make_deployment(BUNDLE, ("pi-8", "pi-9")))
        assert ear.asked == []
        assert ear.messages(Ready) == []

    def test_a_standby_prepares_too(self, agent: VirtualAgent, ear: Ear) -> None:
        assert FIRST.plan is not None
        stages = (
            msgspec.structs.replace(FIRST.plan.stages[0], device="pi-9", standbys=("pi-1",)),
            FIRST.plan.stages[1],
        )
        plan = msgspec.structs.replace(FIRST.plan, stages=stages)
        prepare(agent, ear, msgspec.structs.replace(FIRST, plan=plan))
        assert [event.stage for event in ear.messages(Ready)] == [0]

    def test_it_says_ready_again_when_it_is_asked_again(self, agent: VirtualAgent, ear: Ear) -> None:
        for _ in range(3):
            prepare(agent, ear, FIRST)
        assert len(ear.messages(Ready)) == 3
        assert len(ear.asked) == len(set(ear.asked))

    def test_it_is_not_ready_before_its_subscription_stands(self, agent: VirtualAgent, ear: Ear) -> None:
        agent.hold_loads = True
        prepare(agent, ear, FIRST)
        agent.transport.cut(Channel.DATA)
        agent.finish_load()
        assert ear.messages(Ready) == []
        agent.transport.connect(Channel.DATA)
        agent.pump()
        assert len(ear.messages(Ready)) == 1

    def test_an_older_epoch_is_ignored_and_a_newer_one_takes_its_place(self, agent: VirtualAgent, ear: Ear) -> None:
        prepare(agent, ear, SECOND)
        ear.forget()
        prepare(agent, ear, FIRST)
        assert ear.messages(Ready) == []
        newer = msgspec.structs.replace(FIRST, epoch="1-a-3")
        prepare(agent, ear, newer)
        assert [event.epoch for event in ear.messages(Dropped)] == ["1-a-2"]
        assert [event.epoch for event in ear.messages(Ready)] == ["1-a-3"]
        assert agent.stages == {("tiny", "1-a-3", 0)}

    def test_progress_is_told_twice_a_second_while_it_lasts(self, agent: VirtualAgent, ear: Ear) -> None:
        ear.deaf = True
        prepare(agent, ear, FIRST)
        agent.wait(2)
        assert 4 <= len(ear.messages(Progress)) <= 5
        assert {event.phase for event in ear.messages(Progress)} == {"fetching"}

    def test_a_stage_that_does_not_fit_is_refused_before_its_weights_are_fetched(
        self, broker: MemoryBroker, ear: Ear
    ) -> None:
        agent = VirtualAgent(broker, memory_bytes=120 << 20)
        agent.start()
        prepare(agent, ear, make_deployment(BUNDLE, ("pi-1", "pi-2"), memory_bytes=310 << 20))
        failed = ear.messages(Failed)
        assert [(event.code, event.reason) for event in failed] == [
            ("OutOfMemory", "stage 0 of tiny needs 310 MiB, this device has 120 MiB free")
        ]
        assert {request.digest for request in ear.asked} == {BUNDLE.manifest_blob.digest}

    def test_what_runs_already_counts_against_the_memory(self, broker: MemoryBroker, ear: Ear) -> None:
        agent = VirtualAgent(broker, memory_bytes=100 << 20)
        agent.start()
        serve(agent, ear, make_deployment(BUNDLE, ("pi-1", "pi-2"), memory_bytes=60 << 20))
        prepare(agent, ear, make_deployment(OTHER, ("pi-1", "pi-2"), memory_bytes=60 << 20, epoch="1-a-2"))
        assert [event.reason for event in ear.messages(Failed)] == [
            "stage 0 of tiny needs 60 MiB, this device has 40 MiB free"
        ]

    def test_so_does_what_the_system_has_left(self, agent: VirtualAgent, ear: Ear) -> None:
        agent.beat(free_memory_bytes=5 << 20)
        prepare(agent, ear, make_deployment(BUNDLE, ("pi-1", "pi-2"), memory_bytes=6 << 20))
        assert ear.messages(Failed)[0].reason == "stage 0 of tiny needs 6 MiB, this device has 5 MiB free"

    def test_a_bundle_for_a_newer_runtime_is_refused_by_name(self, agent: VirtualAgent, ear: Ear) -> None:
        needs = (msgspec.structs.replace(BUNDLE.manifest.runtimes[0], least_version="9.0"),)
        manifest = msgspec.structs.replace(BUNDLE.manifest, runtimes=needs)
        data = encode_manifest(manifest)
        blob = Blob(digest=digest_of(data), size_bytes=len(data))
        BUNDLE.blobs[blob.digest] = data
        prepare(agent, ear, msgspec.structs.replace(FIRST, manifest=blob))
        assert (
            ear.messages(Failed)[0].reason == "tiny needs onnxruntime 9.0 or newer, this device has onnxruntime 1.32.0"
        )

    def test_a_failure_is_told_again_and_not_tried_again(self, agent: VirtualAgent, ear: Ear) -> None:
        agent.hold_loads = True
        prepare(agent, ear, FIRST)
        agent.finish_load(refuse="no such operator")
        for _ in range(2):
            prepare(agent, ear, FIRST)
        assert [event.reason for event in ear.messages(Failed)] == ["no such operator"] * 3
        assert agent.loads == []

    def test_a_blob_that_nobody_gives_fails_the_epoch_with_the_reason(self, agent: VirtualAgent, ear: Ear) -> None:
        ear.deaf = True
        prepare(agent, ear, msgspec.structs.replace(FIRST, holders=("boss",)))
        agent.wait(60)
        failed = ear.messages(Failed)[0]
        assert failed.code == "TransportError"
        assert failed.reason.endswith("cannot be fetched: boss does not answer")

    def test_no_holder_is_blamed_while_the_connection_is_down(self, agent: VirtualAgent, ear: Ear) -> None:
        ear.deaf = True
        prepare(agent, ear, FIRST)
        agent.transport.cut(Channel.DATA)
        agent.wait(120, step=1)
        ear.deaf = False
        agent.transport.connect(Channel.DATA)
        agent.wait(10)
        assert ear.messages(Failed) == []
        assert len(ear.messages(Ready)) == 1

    def test_bytes_that_are_not_the_blob_are_fetched_from_the_next_holder(
        self, broker: MemoryBroker, agent: VirtualAgent
    ) -> None:
        wrong = {digest: data[::-1] for digest, data in BUNDLE.blobs.items()}
        liar = Ear(broker, with_blobs(BUNDLE, wrong), name="liar")
        truthful = Ear(broker, BUNDLE)
        manifest = msgspec.structs.replace(BUNDLE.manifest_blob, block_digests=b"")
        deployment = make_deployment(BUNDLE, ("pi-1", "pi-2"), holders=("liar", "boss"))
        prepare(agent, truthful, msgspec.structs.replace(deployment, manifest=manifest))
        agent.wait(10)
        assert len(truthful.messages(Ready)) == 1
        assert liar.asked

    def test_when_all_holders_give_other_bytes_the_epoch_fails(self, agent: VirtualAgent, ear: Ear) -> None:
        ear.deaf = True
        prepare(agent, ear, msgspec.structs.replace(FIRST, holders=("boss",)))
        agent.feed(BlobSpoiled(digest=BUNDLE.manifest_blob.digest))
        failed = ear.messages(Failed)[0]
        assert failed.code == "DigestMismatch"
        assert failed.reason.endswith("what its holders sent has another digest")

    def test_a_full_disk_fails_the_epoch(self, agent: VirtualAgent, ear: Ear) -> None:
        ear.deaf = True
        prepare(agent, ear, FIRST)
        agent.feed(BlobFailed(digest=BUNDLE.manifest_blob.digest, code="StoreError", reason="no space left"))
        assert [(event.code, event.reason) for event in ear.messages(Failed)] == [("StoreError", "no space left")]

    def test_a_blob_damaged_on_the_disk_is_fetched_again_once(self, agent: VirtualAgent, ear: Ear) -> None:
        agent.hold_loads = True
        prepare(agent, ear, FIRST)
        for _ in range(2):
            key = agent.loads.pop().key
            agent.feed(StageRefused(key=key, code="DigestMismatch", reason="changed"))
        assert [event.code for event in ear.messages(Failed)] == ["DigestMismatch"]

    def test_a_plan_that_does_not_end_where_the_bundle_ends_is_refused(self, agent: VirtualAgent, ear: Ear) -> None:
        assert FIRST.plan is not None
        plan = msgspec.structs.replace(FIRST.plan, stages=FIRST.plan.stages[:1])
        prepare(agent, ear, msgspec.structs.replace(FIRST, plan=plan))
        assert ear.messages(Failed)[0].reason == "plan of tiny does not end at the bundle's 2 shards"


class TestServing:
    def test_the_commit_is_kept_on_disk(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, FIRST)
        assert agent.saved == [FIRST]

    def test_a_restarted_agent_serves_from_its_disk_with_nobody_there(
        self, broker: MemoryBroker, agent: VirtualAgent, ear: Ear
    ) -> None:
        serve(agent, ear, FIRST)
        again = VirtualAgent(MemoryBroker(), boot=2, disk=OnDisk(serving=(FIRST,)), blobs=agent.blobs)
        again.start()
        assert again.stages == {("tiny", "1-a-1", 0)}

    def test_a_tombstone_found_at_the_start_costs_no_blob_of_what_is_served(
        self, agent: VirtualAgent, ear: Ear
    ) -> None:
        serve(agent, ear, FIRST)
        gone = msgspec.structs.replace(tombstone("1-a-9"), name="abc")
        held = dict(agent.blobs)
        again = VirtualAgent(MemoryBroker(), boot=2, disk=OnDisk(serving=(gone, FIRST)), blobs=agent.blobs)
        again.start()
        assert again.stages == {("tiny", "1-a-1", 0)}
        assert again.blobs == held

    def test_a_served_epoch_that_does_not_load_after_a_restart_keeps_its_blobs(
        self, agent: VirtualAgent, ear: Ear
    ) -> None:
        serve(agent, ear, FIRST)
        held = dict(agent.blobs)
        other = MemoryBroker()
        other_ear = Ear(other, BUNDLE)
        small = VirtualAgent(other, boot=2, memory_bytes=1, disk=OnDisk(serving=(FIRST,)), blobs=agent.blobs)
        small.start()
        other_ear.serve(FIRST)
        small.pump()
        assert small.stages == set()
        assert small.blobs == held

    def test_the_new_epoch_is_loaded_beside_the_old_which_then_drains(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, FIRST)
        prepare(agent, ear, SECOND)
        assert agent.stages == {("tiny", "1-a-1", 0), ("tiny", "1-a-2", 0)}
        ear.serve(SECOND)
        agent.pump()
        agent.wait(4.5)
        assert len(agent.stages) == 2
        agent.wait(1)
        assert agent.stages == {("tiny", "1-a-2", 0)}
        assert [event.epoch for event in ear.messages(Dropped)] == ["1-a-1"]

    def test_the_blobs_of_the_epoch_and_the_bundle_before_are_kept_and_those_before_them_dropped(
        self, agent: VirtualAgent, ear: Ear
    ) -> None:
        serve(agent, ear, FIRST)
        serve(agent, ear, SECOND)
        agent.wait(10)
        assert set(agent.blobs) == digests(BUNDLE, 0) | digests(OTHER, 0)
        serve(agent, ear, make_deployment(OTHER, ("pi-2", "pi-1"), epoch="1-a-3"))
        agent.wait(10)
        assert set(agent.blobs) == digests(BUNDLE, 0) | digests(OTHER, 0) | digests(OTHER, 1)
        serve(agent, ear, make_deployment(THIRD, ("pi-1", "pi-2"), epoch="1-a-4"))
        agent.wait(10)
        assert set(agent.blobs) == digests(OTHER, 1) | digests(THIRD, 0)

    def test_an_abandoned_epoch_leaves_the_old_one_serving(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, FIRST)
        prepare(agent, ear, SECOND)
        for _ in range(2):
            ear.say(TOPICS.command("pi-1"), Abandon(deployment="tiny", epoch="1-a-2", reason="probe failed"))
            agent.pump()
        assert agent.stages == {("tiny", "1-a-1", 0)}
        assert set(agent.blobs) == digests(BUNDLE, 0)
        assert [event.epoch for event in ear.messages(Dropped)] == ["1-a-2", "1-a-2"]

    def test_an_epoch_abandoned_while_it_loads_is_closed_when_it_is_loaded(self, agent: VirtualAgent, ear: Ear) -> None:
        agent.hold_loads = True
        prepare(agent, ear, FIRST)
        ear.say(TOPICS.command("pi-1"), Abandon(deployment="tiny", epoch="1-a-1", reason="too slow"))
        agent.pump()
        agent.finish_load()
        assert agent.stages == set()
        assert ear.messages(Ready) == []

    def test_an_abandoned_epoch_is_not_prepared_again(self, agent: VirtualAgent, ear: Ear) -> None:
        prepare(agent, ear, FIRST)
        ear.say(TOPICS.command("pi-1"), Abandon(deployment="tiny", epoch="1-a-1", reason="no"))
        agent.pump()
        ear.forget()
        prepare(agent, ear, FIRST)
        assert ear.messages(Ready) == []
        assert [event.epoch for event in ear.messages(Dropped)] == ["1-a-1"]

    def test_what_serves_cannot_be_abandoned(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, FIRST)
        ear.say(TOPICS.command("pi-1"), Abandon(deployment="tiny", epoch="1-a-1", reason="late"))
        agent.pump()
        assert agent.stages == {("tiny", "1-a-1", 0)}
        assert agent.logs == ["epoch 1-a-1 of tiny is serving: not abandoned"]

    def test_a_tombstone_drops_everything_and_is_remembered(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, FIRST)
        ear.serve(tombstone("1-a-2"))
        agent.pump()
        assert agent.stages == set()
        assert agent.blobs == {}
        assert agent.saved[-1] == tombstone("1-a-2")
        ear.serve(FIRST)
        agent.pump()
        assert agent.stages == set()

    def test_a_commit_that_was_not_prepared_here_is_prepared_then(self, agent: VirtualAgent, ear: Ear) -> None:
        ear.serve(FIRST)
        agent.pump()
        assert agent.stages == {("tiny", "1-a-1", 0)}

    def test_a_coordinator_that_comes_hears_what_is_ready(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, FIRST)
        ear.forget()
        ear.say(TOPICS.hello(), Hello(node="boss"))
        agent.wait(1.25)
        assert [event.epoch for event in ear.messages(Ready)] == ["1-a-1"]

    def test_two_deployments_live_beside_each_other(self, agent: VirtualAgent, ear: Ear) -> None:
        serve(agent, ear, FIRST)
        serve(agent, ear, make_deployment(OTHER, ("pi-2", "pi-1"), name="other"))
        assert agent.stages == {("tiny", "1-a-1", 0), ("other", "1-a-1", 1)}
        ear.serve(tombstone("1-a-2"))
        agent.pump()
        assert agent.stages == {("other", "1-a-1", 1)}
        assert set(agent.blobs) == digests(OTHER, 1)


def with_blobs(bundle: TinyBundle, blobs: dict[str, bytes]) -> TinyBundle:
    return TinyBundle(manifest=bundle.manifest, manifest_blob=bundle.manifest_blob, blobs=blobs, weights=bundle.weights)
