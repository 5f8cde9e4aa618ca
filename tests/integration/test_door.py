"""Raw input that never leaves its device: through the agent's door instead of the broker."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.client import Client
from edge.errors import InvalidInput
from edge.formats.message import Session
from edge.formats.topics import Topics
from edge.transport import Channel, Received, Subscribed
from host.broker import RunningBroker
from host.fleet.identity import Caller
from host.fleet.link import FleetLink
from tests.agents import AgentProcess, running_agents
from tests.tiny_bundle import make_deployment, make_input, make_tiny_bundle, tiny_coordinator

BUNDLE = make_tiny_bundle()
TOPICS = Topics(fleet="default")


@pytest.fixture
def door() -> Iterator[Path]:
    path = Path(f"/tmp/shardwire-{os.getpid()}-{secrets.token_hex(4)}")  # noqa: S108 - a socket's path must be short
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def camera(broker: RunningBroker, tmp_path: Path, door: Path) -> Iterator[AgentProcess]:
    with running_agents(broker.url, tmp_path, "cam-1", options=("--door", str(door))) as (camera,):
        yield camera


@pytest.fixture
def fleet(broker: RunningBroker, tmp_path: Path, camera: AgentProcess) -> Iterator[RunningBroker]:
    with running_agents(broker.url, tmp_path, "pi-1"), tiny_coordinator(broker.url, BUNDLE) as coordinator:
        coordinator.deploy(make_deployment(BUNDLE, ("cam-1", "pi-1")))
        yield broker


def test_inputs_go_through_the_door_and_no_frame_of_them_through_the_broker(fleet: RunningBroker, door: Path) -> None:
    caller = Caller(node="listener", session=Session(boot=1, connect=1), topics=TOPICS)
    with FleetLink(fleet.url, caller) as link, Client.connect(fleet.url, doors={"cam-1": door}) as client:
        link.subscribe(Channel.DATA, "shardwire/default/run/#")
        while not isinstance(link.take(5.0), Subscribed):
            pass
        for seed in range(5):
            outputs = client.infer("tiny", {"x": make_input(seed)}).outputs
            np.testing.assert_allclose(outputs["y"], BUNDLE.answer(make_input(seed)), atol=1e-5)
        heard: list[tuple[str, ...]] = []
        while len(heard) < 5:
            event = link.take(5.0)
            assert event is not None, "the frames between the stages are heard"
            if isinstance(event, Received):
                heard.append(tuple(event.topic.split("/")[2:4]))
        assert set(heard) == {("run", "pi-1")}


def test_a_deployment_whose_first_stage_is_elsewhere_is_refused_before_anything_is_sent(
    broker: RunningBroker, tmp_path: Path, camera: AgentProcess, door: Path
) -> None:
    with running_agents(broker.url, tmp_path, "pi-1"), tiny_coordinator(broker.url, BUNDLE) as coordinator:
        coordinator.deploy(make_deployment(BUNDLE, ("pi-1", "cam-1")))
        with (
            Client.connect(broker.url, doors={"cam-1": door}) as client,
            pytest.raises(InvalidInput, match=r"the first stage of tiny is on pi-1, which has no door here"),
        ):
            client.infer("tiny", {"x": make_input(0)})


def test_an_agent_that_comes_back_opens_its_door_again(fleet: RunningBroker, camera: AgentProcess, door: Path) -> None:
    with Client.connect(fleet.url, doors={"cam-1": door}) as client:
        client.infer("tiny", {"x": make_input(0)})
        camera.process.kill()
        camera.restart()
        outputs = client.infer("tiny", {"x": make_input(1)}).outputs
        np.testing.assert_allclose(outputs["y"], BUNDLE.answer(make_input(1)), atol=1e-5)
    camera.process.terminate()
    assert camera.process.wait(timeout=10) == 0
    assert not door.exists()
