"""What a device lacks or loses is told in one line, and does no more harm than it must."""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.client import Client
from edge.formats.frame import Frame, FrameHeader, decode_frame, encode_frame
from edge.formats.message import Failed, Ready, Session
from edge.formats.packet import Reassembler, split
from edge.formats.topics import Topics
from edge.mqtt import MqttTransport
from edge.transport import Channel, Publication, Received, Subscribed, TransportEvent
from host.broker import RunningBroker
from tests.agents import AgentProcess, running_agents
from tests.tiny_bundle import TinyBundle, make_deployment, make_input, make_tiny_bundle, tiny_coordinator

BUNDLE = make_tiny_bundle()
OTHER = make_tiny_bundle(seed=1)
TOPICS = Topics(fleet="default")
FIRST = make_deployment(BUNDLE, ("pi-1",))


@pytest.fixture
def agent(broker: RunningBroker, tmp_path: Path) -> Iterator[AgentProcess]:
    with running_agents(broker.url, tmp_path, "pi-1") as (running,):
        yield running


def check(url: str, bundle: TinyBundle = BUNDLE) -> None:
    with Client.connect(url) as client:
        result = client.infer("tiny", {"x": make_input(1)})
        np.testing.assert_allclose(result.outputs["y"], bundle.answer(make_input(1)), atol=1e-5)


def test_a_device_with_too_little_memory_says_so_and_the_old_epoch_goes_on(
    broker: RunningBroker, tmp_path: Path
) -> None:
    with (
        running_agents(broker.url, tmp_path, "pi-1", options=("--memory-limit", str(8 << 20))),
        tiny_coordinator(broker.url, BUNDLE, OTHER) as coordinator,
    ):
        coordinator.deploy(FIRST)
        coordinator.desire(make_deployment(OTHER, ("pi-1",), epoch="1-a-2", memory_bytes=310 << 20))
        failed = coordinator.await_event(Failed)
        assert (failed.code, failed.reason) == (
            "OutOfMemory",
            "stage 0 of tiny needs 310 MiB, this device has 7 MiB free",
        )
        check(broker.url)


def test_a_device_with_too_little_disk_says_so(broker: RunningBroker, tmp_path: Path) -> None:
    with (
        running_agents(broker.url, tmp_path, "pi-1", options=("--disk-limit", "700000")),
        tiny_coordinator(broker.url, BUNDLE) as coordinator,
    ):
        coordinator.desire(FIRST)
        failed = coordinator.await_event(Failed)
        assert failed.code == "StoreError"
        assert "MiB does not fit: " in failed.reason


def test_a_holder_that_gives_other_bytes_is_found_out(broker: RunningBroker, agent: AgentProcess) -> None:
    wrong = {digest: data[::-1] for digest, data in BUNDLE.blobs.items()}
    wrong[BUNDLE.manifest_blob.digest] = BUNDLE.blobs[BUNDLE.manifest_blob.digest]
    liar = TinyBundle(manifest=BUNDLE.manifest, manifest_blob=BUNDLE.manifest_blob, blobs=wrong, weights=BUNDLE.weights)
    with tiny_coordinator(broker.url, liar) as coordinator:
        coordinator.desire(make_deployment(BUNDLE, ("pi-1",), holders=("boss",)))
        failed = coordinator.await_event(Failed)
        assert failed.reason.endswith(
            ("cannot be fetched: boss sent a wrong block", "what its holders sent has another digest")
        )
    assert not list((agent.folder / "blobs" / "sha256").glob(BUNDLE.manifest.shards[0].weights[0].digest[7:]))


@pytest.mark.parametrize("kind", ["weights", "graph", "manifest"])
def test_a_blob_damaged_on_the_disk_is_noticed_at_the_next_start(
    broker: RunningBroker, agent: AgentProcess, kind: str
) -> None:
    shard = BUNDLE.manifest.shards[0]
    blob = {"weights": shard.weights[0], "graph": shard.graph, "manifest": BUNDLE.manifest_blob}[kind]
    with tiny_coordinator(broker.url, BUNDLE) as coordinator:
        coordinator.deploy(FIRST)
        agent.process.kill()
        agent.process.wait(timeout=10)
        file = agent.folder / "blobs" / "sha256" / blob.digest.removeprefix("sha256:")
        damaged = bytearray(file.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        file.write_bytes(bytes(damaged))
        coordinator.events.clear()
        agent.restart()
        if kind == "manifest":
            failed = coordinator.await_event(Failed)
            assert failed.code == "DigestMismatch"
        else:
            coordinator.await_event(Ready)
            check(broker.url)


def test_a_transfer_that_was_cut_by_a_kill_goes_on_where_it_was(broker: RunningBroker, agent: AgentProcess) -> None:
    weights = BUNDLE.manifest.shards[0].weights[0]
    with tiny_coordinator(broker.url, BUNDLE) as coordinator:
        coordinator.lose_block = (weights.digest, 3)
        coordinator.desire(FIRST)
        partial = agent.folder / "partial" / f"{weights.digest.removeprefix('sha256:')}.bits"
        await_bits(partial, expected=0b10111)
        agent.process.kill()
        coordinator.lose_block = None
        coordinator.asked_blocks.clear()
        agent.restart()
        coordinator.await_event(Ready)
        asked = [block for digest, block in coordinator.asked_blocks if digest == weights.digest]
        assert asked == [3]


def test_the_request_that_was_running_when_the_agent_died_is_not_run_again(
    broker: RunningBroker, agent: AgentProcess
) -> None:
    with tiny_coordinator(broker.url, BUNDLE) as coordinator:
        coordinator.deploy(FIRST)
        agent.process.kill()
        agent.process.wait(timeout=10)
        (agent.folder / "running").write_bytes(b"bad".ljust(256, b"\0"))
        agent.restart()
        agent.await_line("(?s) ready: .* ready: ")
        for request_id, kind in (("bad", "error"), ("good", "result"), ("bad", "error")):
            frame = ask(broker.url, request_id)
            assert frame.header.kind == kind
            assert frame.header.error is None or frame.header.error.code == "poison"


def await_bits(path: Path, *, expected: int) -> None:
    """Wait until a bitmap of few blocks is as expected."""
    pause = threading.Event()
    for _ in range(400):
        if path.exists() and int.from_bytes(path.read_bytes(), "little") == expected:
            return
        pause.wait(0.025)
    raise AssertionError(f"{path} is {path.read_bytes()!r}")


def ask(url: str, request_id: str) -> Frame:
    """Send a request with a chosen id, as no client does, until it is answered."""
    events: queue.Queue[TransportEvent] = queue.Queue()
    transport = MqttTransport(url, fleet="default", node="cam", on_event=events.put)
    transport.start()
    transport.wait_connected(10)
    transport.subscribe(Channel.DATA, TOPICS.result("cam"))
    header = FrameHeader(
        request_id=request_id,
        sender="cam",
        reply_to=TOPICS.result("cam"),
        ttl_ms=10_000,
        deployment="tiny",
        epoch="1-a-1",
        stage=0,
    )
    join, sequence = Reassembler(), 0
    try:
        while True:
            event = events.get(timeout=15)
            if isinstance(event, Received) and (data := join.add(event.payload, 0.0)) is not None:
                frame = decode_frame(data)
                if frame.header.error is None or frame.header.error.code not in ("busy", "gone"):
                    return frame
            elif not isinstance(event, Subscribed):
                continue
            sequence += 1
            encoded = encode_frame(header, {"x": make_input(1)})
            for packet in split(encoded, sender="cam", session=Session(boot=1, connect=1), sequence=sequence):
                topic = TOPICS.run("pi-1", "tiny", "1-a-1", 0)
                transport.publish(Publication(channel=Channel.DATA, topic=topic, payload=packet))
    finally:
        transport.close()
