"""An agent outlives everything that anybody may publish, and goes on answering."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.client import Client
from edge.formats.bundle import Blob
from edge.formats.frame import FrameHeader, encode_frame
from edge.formats.message import Abandon, Block, Failed, FetchRequest, Hello, Session
from edge.formats.packet import split
from edge.formats.plan import encode_deployment
from edge.formats.tensor import Array
from edge.formats.topics import Topics
from host.broker import RunningBroker
from tests.agents import AgentProcess, running_agents
from tests.tiny_bundle import TinyCoordinator, make_deployment, make_input, make_tiny_bundle, tiny_coordinator

BUNDLE = make_tiny_bundle()
TOPICS = Topics(fleet="default")
FIRST = make_deployment(BUNDLE, ("pi-1",))
RUN = TOPICS.run("pi-1", "tiny", "1-a-1", 0)


@pytest.fixture
def agent(broker: RunningBroker, tmp_path: Path) -> Iterator[AgentProcess]:
    with running_agents(broker.url, tmp_path, "pi-1") as (running,):
        yield running


@pytest.fixture
def coordinator(broker: RunningBroker) -> Iterator[TinyCoordinator]:
    with tiny_coordinator(broker.url, BUNDLE) as running:
        yield running


@pytest.fixture
def client(broker: RunningBroker) -> Iterator[Client]:
    with Client.connect(broker.url) as connected:
        yield connected


def check(client: Client) -> None:
    result = client.infer("tiny", {"x": make_input(1)})
    np.testing.assert_allclose(result.outputs["y"], BUNDLE.answer(make_input(1)), atol=1e-5)


def make_header(**changes: Any) -> FrameHeader:
    header = FrameHeader(
        request_id="raw",
        sender="cam",
        reply_to=TOPICS.result("cam"),
        ttl_ms=1000,
        deployment="tiny",
        epoch="1-a-1",
        stage=0,
    )
    return msgspec.structs.replace(header, **changes)


def packets(frame: bytes) -> list[bytes]:
    return list(split(frame, sender="cam", session=Session(boot=1, connect=1), sequence=1))


GOOD = encode_frame(make_header(), {"x": make_input(0)})
DEPLOYMENT = encode_deployment(FIRST)
GARBAGE = [
    b"",
    b"\0",
    b"\xff" * 50,
    b"{}",
    b"[]",
    b"null",
    b"\x80",
    b"SP\x01",
    b"SWF1",
    bytes(70_000),
    GOOD,
    DEPLOYMENT,
]


def test_garbage_on_every_topic_that_an_agent_hears(
    agent: AgentProcess, coordinator: TinyCoordinator, client: Client
) -> None:
    coordinator.deploy(FIRST)
    check(client)
    topics = [
        TOPICS.state("pi-1"),
        TOPICS.command("pi-1"),
        TOPICS.hello(),
        TOPICS.lease(),
        TOPICS.desired("tiny"),
        TOPICS.serving("tiny"),
        TOPICS.serving("no.name"),
        TOPICS.fetch("pi-1"),
        TOPICS.blocks("pi-1"),
        TOPICS.ack("pi-1"),
        RUN,
        f"{TOPICS.any_run('pi-1')[:-2]}",
        f"{RUN}/more",
        TOPICS.run("pi-1", "tiny", "x" * 100, 0),
    ]
    for topic in topics:
        for payload in GARBAGE:
            coordinator.publish(topic, payload)
    check(client)
    assert agent.process.poll() is None
    assert "Traceback" not in agent.said()


@pytest.mark.parametrize(
    "tensors",
    [
        {"x": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 384), np.float64)},
        {"y": np.zeros((1, 384), np.float32)},
        {},
        {"x": np.zeros((1, 384), np.float32), "y": np.zeros(1, np.int8)},
    ],
    ids=["shape", "dtype", "name", "nothing", "too much"],
)
def test_a_frame_with_wrong_tensors_is_answered_and_runs_nothing(
    agent: AgentProcess,
    coordinator: TinyCoordinator,
    client: Client,
    tensors: dict[str, Array],
) -> None:
    coordinator.deploy(FIRST)
    for packet in packets(encode_frame(make_header(), tensors)):
        coordinator.publish(RUN, packet)
    check(client)
    assert "Traceback" not in agent.said()


def test_truncated_oversized_and_overlapping_packets(
    agent: AgentProcess, coordinator: TinyCoordinator, client: Client
) -> None:
    coordinator.deploy(FIRST)
    (packet,) = packets(GOOD)
    for at in range(0, len(packet), 97):
        coordinator.publish(RUN, packet[:at])
    for field in (16, 20):  # total length, offset
        for value in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
            coordinator.publish(RUN, packet[:field] + value.to_bytes(4, "little") + packet[field + 4 :])
    check(client)
    assert agent.process.poll() is None
    assert "Traceback" not in agent.said()


def test_plans_that_make_no_sense(agent: AgentProcess, coordinator: TinyCoordinator, client: Client) -> None:
    coordinator.deploy(FIRST)
    check(client)
    assert FIRST.plan is not None
    stage = FIRST.plan.stages[0]
    absurd = [
        msgspec.structs.replace(FIRST, epoch="1-a-2", window=0),
        msgspec.structs.replace(FIRST, epoch="1-a-2", name="other"),
        msgspec.structs.replace(FIRST, epoch="99999999999-a-2"),
        msgspec.structs.replace(FIRST, epoch="1-a-2", manifest=Blob(digest="md5:1", size_bytes=1)),
        msgspec.structs.replace(FIRST, epoch="1-a-3", manifest=Blob(digest="sha256:" + "0" * 64, size_bytes=-5)),
        msgspec.structs.replace(FIRST, epoch="1-a-4", manifest=Blob(digest="sha256:" + "0" * 64, size_bytes=1 << 60)),
    ]
    for first, stop in ((1, 2), (0, 0), (-1, 2), (0, 1 << 40)):
        stages = (msgspec.structs.replace(stage, first_shard=first, stop_shard=stop),)
        plan = msgspec.structs.replace(FIRST.plan, stages=stages)
        absurd.append(msgspec.structs.replace(FIRST, epoch="1-a-5", plan=plan))
    for deployment in absurd:
        coordinator.publish(TOPICS.desired("tiny"), encode_deployment(deployment))
    coordinator.await_event(Failed, epoch="1-a-5", code="BundleError")
    check(client)
    assert agent.process.poll() is None
    assert "Traceback" not in agent.said()


def test_control_messages_of_the_wrong_kind_and_from_nowhere(
    agent: AgentProcess, coordinator: TinyCoordinator, client: Client
) -> None:
    coordinator.deploy(FIRST)
    check(client)
    for topic, message in (
        (TOPICS.command("pi-1"), Hello(node="cam")),
        (TOPICS.command("pi-1"), Abandon(deployment="no/name", epoch="x", reason="")),
        (TOPICS.fetch("pi-1"), FetchRequest(digest="../../etc/passwd", block=0, reply_to=TOPICS.blocks("cam"))),
        (TOPICS.fetch("pi-1"), FetchRequest(digest="sha256:" + "0" * 64, block=-1, reply_to=TOPICS.blocks("cam"))),
        (TOPICS.fetch("pi-1"), FetchRequest(digest="sha256:" + "0" * 64, block=0, reply_to="shardwire/default/+/#")),
        (TOPICS.blocks("pi-1"), Block(digest="sha256:" + "0" * 64, block=7, total_bytes=8, data=b"12345678")),
    ):
        coordinator.send(topic, message)
    check(client)
    assert agent.process.poll() is None
    assert "Traceback" not in agent.said()


def test_a_flood_of_nonsense_does_not_fill_the_log(
    agent: AgentProcess, coordinator: TinyCoordinator, client: Client
) -> None:
    coordinator.deploy(FIRST)
    before = agent.said().count("\n")
    for _ in range(2000):
        coordinator.publish(TOPICS.command("pi-1"), b"nonsense")
    check(client)
    assert agent.said().count("\n") - before < 100
