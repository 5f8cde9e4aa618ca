"""Agents on a real broker whose plan has stages side by side, replicas, and tensors that travel compressed."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edge.client import Client
from edge.protocol.requests import InferenceResult
from host.broker import RunningBroker
from host.fleet.hops import hop_times
from tests.agents import running_agents
from tests.tiny_bundle import (
    TinyBundle,
    make_deployment,
    make_diamond_bundle,
    make_input,
    make_tiny_bundle,
    tiny_coordinator,
)

DIAMOND = make_diamond_bundle()
TINY = make_tiny_bundle()
DEVICES = ("pi-0", "pi-1", "pi-2", "pi-3")


def check(result: InferenceResult, bundle: TinyBundle, seed: int) -> None:
    np.testing.assert_allclose(result.outputs["y"], bundle.answer(make_input(seed)), atol=1e-5)


def ran(results: list[InferenceResult], stage: int) -> Counter[str]:
    return Counter(hop.device for result in results for hop in result.trace if hop.stage == stage)


def test_two_devices_work_side_by_side_and_a_third_joins(broker: RunningBroker, tmp_path: Path) -> None:
    with (
        running_agents(broker.url, tmp_path, *DEVICES),
        tiny_coordinator(broker.url, DIAMOND) as coordinator,
        Client.connect(broker.url) as client,
    ):
        coordinator.deploy(make_deployment(DIAMOND, DEVICES, beside=(2,), codec="deflate"))
        requests = [{"x": make_input(seed)} for seed in range(40)]
        for seed, result in enumerate(client.stream("tiny", requests)):
            check(result, DIAMOND, seed)
            assert [(hop.stage, hop.device) for hop in result.trace] == list(enumerate(DEVICES))
            assert result.attempts == 1
        seen = client.infer("tiny", {"x": make_input(0)}, observe=True)
        hops = hop_times(seen)
        assert [hop.receiver for hop in hops] == [*DEVICES, "client"]
        assert [hop.sender for hop in hops[:3]] == ["client", "pi-0", "pi-0"]
        assert hops[3].sender in ("pi-1", "pi-2")
        assert all(hop.seconds is not None for hop in hops)


def test_three_devices_run_what_takes_four_stages(broker: RunningBroker, tmp_path: Path) -> None:
    devices = ("pi-0", "pi-1", "pi-2", "pi-0")
    deployment = make_deployment(DIAMOND, devices, beside=(2,), window=4)
    with (
        running_agents(broker.url, tmp_path, *DEVICES[:3]),
        tiny_coordinator(broker.url, DIAMOND) as coordinator,
        Client.connect(broker.url) as client,
        Client.connect(broker.url) as other,
    ):
        coordinator.deploy(deployment)
        requests = [{"x": make_input(seed)} for seed in range(60)]
        # Two clients, so that requests wait at the door of pi-0 while it joins others.
        streams = [source.stream("tiny", requests, window=8) for source in (client, other)]
        for seed, results in enumerate(zip(*streams, strict=True)):
            for result in results:
                check(result, DIAMOND, seed)
                assert [(hop.stage, hop.device) for hop in result.trace] == list(enumerate(devices))
                assert result.epoch == deployment.epoch
        seen = client.infer("tiny", {"x": make_input(0)}, observe=True)
        hops = hop_times(seen)
        assert [hop.receiver for hop in hops] == [*devices, "client"]
        assert all(hop.seconds is not None for hop in hops)


@pytest.mark.slow
def test_replicas_share_the_work_and_one_that_dies_costs_no_request(broker: RunningBroker, tmp_path: Path) -> None:
    devices = ("pi-0", "pi-1")
    deployment = make_deployment(TINY, devices, replicas={0: ("pi-2",), 1: ("pi-3",)}, window=8)
    with (
        running_agents(broker.url, tmp_path, *DEVICES) as agents,
        tiny_coordinator(broker.url, TINY) as coordinator,
        Client.connect(broker.url) as client,
    ):
        coordinator.deploy(deployment)
        results = list(client.stream("tiny", [{"x": make_input(seed)} for seed in range(60)], window=8))
        for seed, result in enumerate(results):
            check(result, TINY, seed)
        assert set(ran(results, 0)) == {"pi-0", "pi-2"}
        assert set(ran(results, 1)) == {"pi-1", "pi-3"}
        assert min([*ran(results, 0).values(), *ran(results, 1).values()]) >= 20
        agents[3].process.kill()
        agents[2].process.kill()
        results = list(client.stream("tiny", [{"x": make_input(seed)} for seed in range(60)], window=8))
        for seed, result in enumerate(results):
            check(result, TINY, seed)
        assert set(ran(results, 0)) == {"pi-0"}
        assert set(ran(results, 1)) == {"pi-1"}
