"""What a device remembers of epochs that ended there, and gives up or tells again; on a virtual clock."""

import msgspec
import pytest

from edge.formats.frame import FrameHeader
from edge.formats.message import Abandon, Block, Failed, FetchRequest, Ready
from edge.protocol.effects import BlobFailed
from edge.protocol.preparing import MAX_SETTLED
from edge.protocol.retained import MAX_DEPLOYMENTS
from edge.transport import Channel, MemoryBroker
from tests.tiny_bundle import TinyBundle, make_deployment, make_input, make_tiny_bundle
from tests.virtual_agent import TOPICS, Ear, VirtualAgent, prepare, serve

BUNDLE = make_tiny_bundle()
OTHER = make_tiny_bundle(seed=1)
FIRST = make_deployment(BUNDLE, ("pi-1", "pi-2"))
SECOND = make_deployment(OTHER, ("pi-1", "pi-2"), epoch="1-a-2")


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


def digests(bundle: TinyBundle, stage: int) -> set[str]:
    return {bundle.manifest_blob.digest, *(blob.digest for blob in bundle.manifest.blobs(stage, stage + 1))}


def test_a_commit_counts_more_than_an_abandon_before_it(agent: VirtualAgent, ear: Ear) -> None:
    prepare(agent, ear, FIRST)
    ear.say(TOPICS.command("pi-1"), Abandon(deployment="tiny", epoch="1-a-1", reason="no"))
    agent.pump()
    assert agent.stages == set()
    ear.serve(FIRST)
    agent.pump()
    assert agent.stages == {("tiny", "1-a-1", 0)}


def test_what_failed_is_not_forgotten_for_an_abandon_of_an_older_epoch(agent: VirtualAgent, ear: Ear) -> None:
    agent.hold_loads = True
    prepare(agent, ear, SECOND)
    agent.finish_load(refuse="no such operator")
    ear.say(TOPICS.command("pi-1"), Abandon(deployment="tiny", epoch="1-a-1", reason="late"))
    prepare(agent, ear, SECOND)
    assert agent.loads == []


def test_made_up_deployments_take_no_memory_for_ever(agent: VirtualAgent, ear: Ear) -> None:
    agent.hold_loads = True
    prepare(agent, ear, FIRST)
    agent.finish_load(refuse="no such operator")
    for index in range(MAX_SETTLED):
        ear.say(TOPICS.command("pi-1"), Abandon(deployment=f"made-up-{index}", epoch="1-a-1", reason="no"))
    prepare(agent, ear, FIRST)
    assert len(agent.loads) == 1, "the oldest is forgotten"


def test_of_many_deployments_only_those_of_this_device_are_remembered(agent: VirtualAgent, ear: Ear) -> None:
    others = make_deployment(BUNDLE, ("pi-8", "pi-9"))
    for index in range(MAX_DEPLOYMENTS + 5):
        ear.serve(msgspec.structs.replace(others, name=f"made-up-{index}"))
    serve(agent, ear, FIRST)
    ear.serve(msgspec.structs.replace(FIRST, epoch="1-a-2"))
    agent.pump()
    assert len(agent.saved) == MAX_DEPLOYMENTS + 2
    assert agent.stages == {("tiny", "1-a-1", 0), ("tiny", "1-a-2", 0)}


@pytest.mark.parametrize(("epoch", "answers"), [("1-a-9", 8), ("1-a-1", 4)])
def test_frames_that_are_only_turned_away_do_not_slow_down_blobs(
    agent: VirtualAgent, ear: Ear, epoch: str, answers: int
) -> None:
    serve(agent, ear, FIRST)
    ear.forget()
    header = FrameHeader(
        request_id="r",
        sender="boss",
        reply_to=TOPICS.result("boss"),
        ttl_ms=5000,
        deployment="tiny",
        epoch=epoch,
        stage=0,
    )
    ear.send_frame(header, {"x": make_input(0)})
    for index in range(8):
        request = FetchRequest(digest=BUNDLE.manifest_blob.digest, block=index, reply_to=TOPICS.blocks("boss"))
        ear.say(TOPICS.fetch("pi-1"), request)
    agent.pump()
    assert len(ear.messages(Block)) == answers


def test_the_same_epoch_told_with_other_words_costs_no_rollback(agent: VirtualAgent, ear: Ear) -> None:
    serve(agent, ear, FIRST)
    serve(agent, ear, SECOND)
    ear.serve(msgspec.structs.replace(SECOND, issued="2030-01-01T00:00:00Z"))
    agent.pump()
    agent.wait(10)
    assert set(agent.blobs) == digests(BUNDLE, 0) | digests(OTHER, 0)


def test_on_a_full_disk_what_serves_next_goes_before_what_served_before(agent: VirtualAgent, ear: Ear) -> None:
    serve(agent, ear, FIRST)
    serve(agent, ear, SECOND)
    agent.wait(10)
    ear.deaf = True
    prepare(agent, ear, make_deployment(OTHER, ("pi-2", "pi-1"), epoch="1-a-3"))
    lacking = next(iter(digests(OTHER, 1) - digests(OTHER, 0)))
    full = BlobFailed(digest=lacking, code="StoreError", reason="no space left")
    agent.feed(full)
    assert set(agent.blobs) == digests(OTHER, 0)
    assert ear.messages(Failed) == []
    agent.feed(full)
    assert [event.reason for event in ear.messages(Failed)] == ["no space left"]


def test_what_became_ready_while_nobody_could_hear_it_is_told_then(agent: VirtualAgent, ear: Ear) -> None:
    agent.hold_loads = True
    ear.serve(FIRST)
    agent.pump()
    agent.transport.cut(Channel.CONTROL)
    agent.finish_load()
    assert ear.messages(Ready) == []
    agent.transport.connect(Channel.CONTROL)
    agent.pump()
    assert [event.stage for event in ear.messages(Ready)] == [0]
