"""Two agents and a client on a real broker: they fetch, load, answer, restart, switch and stop."""

import signal
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from edge.client import Client
from edge.errors import DeadlineExceeded, InvalidInput, TransportError, UnknownDeployment
from edge.formats.message import Dropped, Ready
from edge.formats.plan import Deployment
from edge.formats.tensor import Array
from host.broker import RunningBroker, start_broker
from tests.agents import AgentProcess, running_agents
from tests.tiny_bundle import (
    TinyBundle,
    TinyCoordinator,
    make_deployment,
    make_input,
    make_tiny_bundle,
    tiny_coordinator,
)

BUNDLE = make_tiny_bundle()
OTHER = make_tiny_bundle(seed=1)
FIRST = make_deployment(BUNDLE, ("pi-1", "pi-2"))
SECOND = make_deployment(OTHER, ("pi-2", "pi-1"), epoch="1-a-2")


@pytest.fixture
def agents(broker: RunningBroker, tmp_path: Path) -> Iterator[tuple[AgentProcess, ...]]:
    with running_agents(broker.url, tmp_path, "pi-1", "pi-2") as running:
        yield running


@pytest.fixture
def coordinator(broker: RunningBroker) -> Iterator[TinyCoordinator]:
    with tiny_coordinator(broker.url, BUNDLE, OTHER) as running:
        yield running


@pytest.fixture
def client(broker: RunningBroker) -> Iterator[Client]:
    with Client.connect(broker.url) as connected:
        yield connected


def check(client: Client, bundle: TinyBundle, seed: int = 0) -> None:
    result = client.infer("tiny", {"x": make_input(seed)})
    np.testing.assert_allclose(result.outputs["y"], bundle.answer(make_input(seed)), atol=1e-5)


def test_a_fleet_answers_on_each_kind_of_broker(any_broker: RunningBroker, tmp_path: Path) -> None:
    with (
        running_agents(any_broker.url, tmp_path, "pi-1", "pi-2"),
        tiny_coordinator(any_broker.url, BUNDLE) as coordinator,
        Client.connect(any_broker.url) as client,
    ):
        coordinator.deploy(FIRST)
        for seed in range(3):
            check(client, BUNDLE, seed)
        inputs = [{"x": make_input(seed)} for seed in range(60)]
        results = list(client.stream("tiny", inputs, window=4))
        for seed, result in enumerate(results):
            np.testing.assert_allclose(result.outputs["y"], BUNDLE.answer(make_input(seed)), atol=1e-5)


def test_one_clock_sees_every_hop(
    agents: tuple[AgentProcess, ...], coordinator: TinyCoordinator, client: Client
) -> None:
    coordinator.deploy(FIRST)
    result = client.infer("tiny", {"x": make_input(0)}, observe=True)
    assert [(hop.stage, hop.device) for hop in result.trace] == [(0, "pi-1"), (1, "pi-2")]
    assert all(hop.run_seconds > 0 and hop.queued_seconds >= 0 for hop in result.trace)
    first, second = result.taken_seconds
    assert first is not None
    assert second is not None
    assert 0 < first < second < result.latency_seconds


def test_each_device_fetches_only_its_own_shards_each_block_once(
    agents: tuple[AgentProcess, ...], coordinator: TinyCoordinator
) -> None:
    coordinator.deploy(FIRST)
    held = [{path.name for path in (agent.folder / "blobs" / "sha256").iterdir()} for agent in agents]
    for stage in range(2):
        wanted = {BUNDLE.manifest_blob, *BUNDLE.manifest.blobs(stage, stage + 1)}
        assert held[stage] == {blob.digest.removeprefix("sha256:") for blob in wanted}
    weights = [request for request in coordinator.asked_blocks if request[0] != BUNDLE.manifest_blob.digest]
    assert len(weights) == len(set(weights))


def test_an_agent_that_was_killed_serves_again_without_a_coordinator(
    broker: RunningBroker, agents: tuple[AgentProcess, ...], client: Client
) -> None:
    with tiny_coordinator(broker.url, BUNDLE) as coordinator:
        coordinator.deploy(FIRST)
        check(client, BUNDLE)
    agents[1].process.kill()
    agents[1].restart()
    check(client, BUNDLE, 1)


def test_a_request_outlives_the_death_of_the_agent_that_had_it(
    agents: tuple[AgentProcess, ...], coordinator: TinyCoordinator, client: Client
) -> None:
    coordinator.deploy(FIRST)
    check(client, BUNDLE)
    agents[0].process.kill()
    futures = [client.submit("tiny", {"x": make_input(seed)}) for seed in range(6)]
    agents[0].restart()
    for seed, future in enumerate(futures):
        result = future.result(timeout=30)
        np.testing.assert_allclose(result.outputs["y"], BUNDLE.answer(make_input(seed)), atol=1e-5)
    assert futures[0].result().attempts > 1


@pytest.mark.slow
def test_requests_stream_through_a_switch_of_epochs_and_each_is_right_for_its_epoch(
    agents: tuple[AgentProcess, ...], coordinator: TinyCoordinator, client: Client
) -> None:
    coordinator.deploy(FIRST)
    seen: set[str] = set()
    bundles = {FIRST.epoch: BUNDLE, SECOND.epoch: OTHER}
    x = make_input(7)

    def inputs() -> Iterator[dict[str, Array]]:
        for index in range(3000):
            if index == 100:
                coordinator.desire(SECOND)
            if index == 200:
                for stage in range(2):
                    coordinator.await_event(Ready, stage=stage, epoch=SECOND.epoch)
                coordinator.serve(SECOND)
            if SECOND.epoch in seen and index > 400:
                return
            yield {"x": x}

    for result in client.stream("tiny", inputs()):
        seen.add(result.epoch)
        np.testing.assert_allclose(result.outputs["y"], bundles[result.epoch].answer(x), atol=1e-5)
        assert result.attempts == 1
    assert seen == {FIRST.epoch, SECOND.epoch}
    for agent in agents:
        coordinator.await_event(Dropped, 15, epoch=FIRST.epoch, device=agent.name)


def test_a_neighbour_gives_the_blobs_when_the_coordinator_has_none(
    broker: RunningBroker, agents: tuple[AgentProcess, ...]
) -> None:
    with tiny_coordinator(broker.url, BUNDLE) as coordinator:
        coordinator.deploy(make_deployment(BUNDLE, ("pi-1",)))
    with tiny_coordinator(broker.url, name="empty") as coordinator:
        coordinator.deploy(make_deployment(BUNDLE, ("pi-1", "pi-2"), epoch="1-a-2", holders=("empty", "pi-1")))
        assert coordinator.asked_blocks, "the first holder was asked and had nothing"


def test_inputs_that_do_not_fit_are_refused_before_they_are_sent(
    agents: tuple[AgentProcess, ...], coordinator: TinyCoordinator, client: Client
) -> None:
    coordinator.deploy(FIRST)
    for inputs, text in (
        ({"x": np.zeros((1, 3), np.float32)}, "input 'x' is float32[1, 3], expected float32[1, 384]"),
        ({}, "missing input 'x'; the model takes ['x']"),
        ({"x": make_input(0), "z": make_input(0)}, "unknown input 'z'; the model takes ['x']"),
    ):
        with pytest.raises(InvalidInput) as caught:
            client.submit("tiny", inputs)
        assert str(caught.value) == text


def test_a_deployment_that_is_not_there_is_named_with_those_that_are(
    agents: tuple[AgentProcess, ...], coordinator: TinyCoordinator, client: Client
) -> None:
    coordinator.deploy(FIRST)
    with pytest.raises(UnknownDeployment) as caught:
        client.deployment("nope", 0.5)
    assert str(caught.value) == "no deployment called 'nope'; there are: tiny"
    assert [deployment.name for deployment in client.deployments(0.5)] == ["tiny"]


def test_a_removed_deployment_is_dropped_everywhere(
    agents: tuple[AgentProcess, ...], coordinator: TinyCoordinator, client: Client
) -> None:
    coordinator.deploy(FIRST)
    check(client, BUNDLE)
    coordinator.serve(Deployment(name="tiny", epoch="1-a-2", manifest=None, plan=None))
    for agent in agents:
        coordinator.await_event(Dropped, epoch=FIRST.epoch, device=agent.name)
        agent.process.terminate()
        assert agent.process.wait(timeout=5) == 0
        assert list((agent.folder / "blobs" / "sha256").iterdir()) == []
    with pytest.raises(UnknownDeployment):
        client.infer("tiny", {"x": make_input(0)}, deadline_seconds=0.5)


def test_a_request_that_nobody_answers_ends_at_its_deadline(
    agents: tuple[AgentProcess, ...], coordinator: TinyCoordinator, client: Client
) -> None:
    coordinator.deploy(FIRST)
    check(client, BUNDLE)
    agents[0].process.kill()
    with pytest.raises(DeadlineExceeded) as caught:
        client.infer("tiny", {"x": make_input(0)}, deadline_seconds=0.5)
    assert str(caught.value) == "no answer from tiny within 0.5 s (sent once)"


def test_a_cancelled_request_is_over_and_the_next_goes_on(
    agents: tuple[AgentProcess, ...], coordinator: TinyCoordinator, client: Client
) -> None:
    coordinator.deploy(FIRST)
    client.deployment("tiny")
    agents[1].process.send_signal(signal.SIGSTOP)
    future = client.submit("tiny", {"x": make_input(0)})
    assert future.cancel()
    agents[1].process.send_signal(signal.SIGCONT)
    with pytest.raises(CancelledError):
        future.result()
    check(client, BUNDLE)


def test_a_client_goes_on_after_the_broker_was_gone(broker_folder: Path, tmp_path: Path) -> None:
    with start_broker("auto", folder=broker_folder) as first:
        port, url = first.port, first.url
        with running_agents(url, tmp_path, "pi-1", "pi-2"), tiny_coordinator(url, BUNDLE) as coordinator:
            coordinator.deploy(FIRST)
            with Client.connect(url) as client:
                check(client, BUNDLE)
                first.process.kill()
                first.process.wait(timeout=10)
                future = client.submit("tiny", {"x": make_input(1)})
                with start_broker("auto", folder=broker_folder, port=port):
                    result = future.result(timeout=30)
                np.testing.assert_allclose(result.outputs["y"], BUNDLE.answer(make_input(1)), atol=1e-5)


def test_a_client_without_a_broker_fails_in_one_line() -> None:
    with pytest.raises(TransportError) as caught:
        Client.connect("mqtt://127.0.0.1:1", timeout_seconds=0.5)
    assert str(caught.value) == (
        "no broker at mqtt://127.0.0.1:1: connection refused; start one (mosquitto -p 1) or give --broker"
    )
