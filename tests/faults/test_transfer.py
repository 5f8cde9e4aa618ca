"""Transfers of blobs are interrupted in every way, and lose a window of blocks at most."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.client import Client
from edge.formats.message import BLOCK_BYTES, Failed, Ready
from edge.formats.plan import Deployment, Holding
from edge.protocol.fetch import all_blocks
from edge.protocol.pace import WINDOW_BLOCKS
from host.broker import RunningBroker
from tests.agents import AgentProcess, running_agents
from tests.tiny_bundle import (
    DeepBundle,
    make_deep_bundle,
    make_deployment,
    make_input,
    make_tiny_bundle,
    tiny_coordinator,
)
from tests.transfers import await_true, holding, listening

KILLS = 15
BUNDLE = make_deep_bundle(34)
OTHER = make_deep_bundle(34, seed=1)
SERVED = make_tiny_bundle(seed=2)


def blocks_of(bundle: DeepBundle) -> int:
    """Return of how many blocks a bundle is, its manifest included."""
    return sum(max(1, -(-len(data) // BLOCK_BYTES)) for data in bundle.blobs.values())


def deployment(
    bundle: DeepBundle = BUNDLE, device: str = "pi-1", *, holders: tuple[str, ...], epoch: str = "1-a-1"
) -> Deployment:
    return make_deployment(bundle, (device,), holders=holders, epoch=epoch, name="deep", memory_bytes=64 << 20)


def check(url: str, bundle: DeepBundle = BUNDLE) -> None:
    with Client.connect(url) as client:
        result = client.infer("deep", {"x": make_input(1)})
        np.testing.assert_allclose(result.outputs["y"], bundle.answer(make_input(1)), atol=1e-3)


@pytest.fixture
def agent(broker: RunningBroker, tmp_path: Path) -> Iterator[AgentProcess]:
    with running_agents(broker.url, tmp_path, "pi-1") as (running,):
        yield running


@pytest.mark.slow
def test_a_device_killed_at_every_tenth_block_goes_on_where_it_was(broker: RunningBroker, agent: AgentProcess) -> None:
    assert blocks_of(BUNDLE) >= 10 * KILLS
    with (
        tiny_coordinator(broker.url, SERVED) as coordinator,
        holding(broker.url, BUNDLE, "shelf") as shelf,
        listening(broker.url) as ear,
    ):
        # What serves tells the device after each restart, before the plan in preparation does, what it must keep.
        coordinator.deploy(make_deployment(SERVED, ("pi-1",)))
        shelf.allow(0)
        coordinator.desire(deployment(holders=("shelf",)))
        for kill in range(1, KILLS + 1):
            shelf.allow(10 * kill)
            shelf.await_given(10 * kill)
            agent.process.kill()
            agent.restart()
            agent.await_line(f"(?s)(.* ready: ){{{kill + 1}}}")
        shelf.allow(1 << 30)
        coordinator.await_event(Ready, deployment="deep")
        coordinator.serve(deployment(holders=("shelf",)))
        assert ear.repeats() <= KILLS * WINDOW_BLOCKS
        assert len(ear.asked(holder="shelf")) == blocks_of(BUNDLE)
        check(broker.url)


@pytest.mark.slow
def test_a_holder_that_dies_is_followed_by_another_at_once(broker: RunningBroker, agent: AgentProcess) -> None:
    with (
        tiny_coordinator(broker.url) as coordinator,
        holding(broker.url, BUNDLE, "shelf-2"),
        listening(broker.url) as ear,
        holding(broker.url, BUNDLE, "shelf-1") as shelf,
    ):
        shelf.allow(50)
        coordinator.desire(deployment(holders=("shelf-1", "shelf-2")))
        shelf.await_given(50)
        await_true(lambda: len(ear.asked()) >= 50 + WINDOW_BLOCKS, "a window of unanswered requests")
        shelf.close()
        coordinator.await_event(Ready)
        assert ear.repeats() <= WINDOW_BLOCKS
        assert len(ear.asked(holder="shelf-2")) <= blocks_of(BUNDLE) - 50 + WINDOW_BLOCKS


@pytest.mark.slow
def test_a_killed_agent_that_gave_its_blobs_is_followed_by_another(broker: RunningBroker, tmp_path: Path) -> None:
    with (
        running_agents(broker.url, tmp_path, "pi-1", "pi-2") as (first, second),
        tiny_coordinator(broker.url) as coordinator,
        listening(broker.url) as ear,
    ):
        with holding(broker.url, BUNDLE, "shelf"):
            for name, device in (("a", "pi-1"), ("b", "pi-2")):
                kept = make_deployment(BUNDLE, (device,), holders=("shelf",), name=name, memory_bytes=64 << 20)
                coordinator.deploy(kept)
        # The host is gone: a new device fetches from its neighbours, of which one dies at it.
        with running_agents(broker.url, tmp_path, "pi-3"):
            holdings = tuple(Holding(node=node, first_shard=0, stop_shard=34) for node in ("pi-1", "pi-2"))
            wanted = make_deployment(BUNDLE, ("pi-3",), holders=("shelf",), name="c", memory_bytes=64 << 20)
            coordinator.desire(msgspec.structs.replace(wanted, holdings=holdings))
            await_true(lambda: len(ear.asked(holder="pi-1", by="pi-3")) >= 30, "blocks from pi-1")
            first.process.kill()
            coordinator.await_event(Ready, device="pi-3")
            assert len(ear.asked(holder="pi-2", by="pi-3")) > 0
            assert not ear.asked(holder="shelf", by="pi-3")
            assert ear.repeats(by="pi-3") <= WINDOW_BLOCKS
            assert second.process.poll() is None


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a disk of a size; needs root."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)], check=True)
        stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
        yield folder


@pytest.mark.slow
def test_a_full_disk_ends_the_new_epoch_with_one_line_and_nothing_else(broker: RunningBroker, tmp_path: Path) -> None:
    size = sum(map(len, BUNDLE.blobs.values()))
    with (
        small_disk(tmp_path / "pi-1", size + size // 2) as disk,
        running_agents(broker.url, tmp_path, "pi-1") as (agent,),
        tiny_coordinator(broker.url, BUNDLE, OTHER) as coordinator,
    ):
        coordinator.deploy(deployment(holders=("boss",)))
        coordinator.events.clear()
        coordinator.desire(deployment(OTHER, holders=("boss",), epoch="1-a-2"))
        failed = coordinator.await_event(Failed)
        assert failed.code == "StoreError"
        assert failed.reason.endswith("MiB: no space left on the disk")
        check(broker.url)
        assert [event for _, event in coordinator.events if isinstance(event, Failed)] == [failed]
        subprocess.run(["mount", "-o", f"remount,size={3 * size}", str(disk)], check=True)
        coordinator.deploy(deployment(OTHER, holders=("boss",), epoch="1-a-3"))
        check(broker.url, OTHER)
        assert agent.process.poll() is None


def test_the_large_bundle_is_large() -> None:
    weights = BUNDLE.manifest.shards[0].weights[0]
    assert len(all_blocks(weights)) == 5
