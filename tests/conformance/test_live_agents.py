"""Real models through three live agents, each a process of its own, on a real broker: the bits of the whole model."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.client import Client
from edge.formats.message import DeployRequest
from edge.formats.plan import Constraints, Plan
from host.broker import start_broker
from host.bundle import OpenBundle
from host.fleet.blobs import BundleBlobs
from host.fleet.command import Course, run_command
from host.fleet.local import LocalAgent, local_agents
from tests.conformance.cutting import Tensors, cut_everywhere, largest_error, same_bits
from tests.zoo import zoo_model

pytestmark = pytest.mark.slow

FLEET = "conformance"
AGENTS = (
    LocalAgent(name="pi-4", profile="rpi4"),
    LocalAgent(name="pi-3", profile="rpi3"),
    LocalAgent(name="orin", profile="jetson-orin-nano"),
)
SOURCE_ERROR = 1e-5


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker with three agents online; all of them are gone afterwards."""
    folder = tmp_path_factory.mktemp("fleet")
    with (
        start_broker("auto", folder=folder / "broker") as broker,
        local_agents(broker.url, AGENTS, folder=folder / "agents", fleet=FLEET) as processes,
    ):
        yield broker.url
        assert [name for name, process in processes.items() if process.poll() is not None] == []


def deploy(url: str, bundle: OpenBundle, *, exact: bool) -> Plan:
    """Put a bundle to work on all three agents, and return the plan."""
    courses: list[Course] = []
    request = DeployRequest(
        request_id=secrets.token_hex(8),
        name=bundle.manifest.name,
        manifest=bundle.manifest_blob,
        holders=(),
        constraints=Constraints(devices=tuple(agent.name for agent in AGENTS), use_all=True),
        mode="exact" if exact else "default",
        reply_to="",
    )
    run_command(url, request, fleet=FLEET, blobs=BundleBlobs(bundle), on_change=courses.append)
    plan = courses[-1].plan
    assert plan is not None
    return plan


@pytest.mark.parametrize(
    ("name", "quantize"),
    [
        ("efficientnet-lite0", "none"),
        ("efficientnet-lite0", "int8"),
        ("silero-vad-ifless", "none"),
        ("ppocr-cls", "none"),
        ("magika", "none"),
    ],
)
def test_three_agents_answer_with_the_bits_of_the_whole(name: str, quantize: str, url: str, tmp_path: Path) -> None:
    cut = cut_everywhere(zoo_model(name), tmp_path / "bundle", profile="rpi4", quantize=quantize)
    # An int8 model keeps its bits whatever memory layout the runtime picks; an fp32 model does in exact mode.
    plan = deploy(url, cut.bundle, exact=quantize == "none")
    assert sorted(stage.device for stage in plan.stages) == sorted(agent.name for agent in AGENTS)
    assert [stage.first_shard for stage in plan.stages][1:] == [stage.stop_shard for stage in plan.stages][:-1]

    asked: list[Tensors] = [sample.inputs for sample in cut.samples]
    with Client.connect(url, fleet=FLEET) as client:
        one_by_one = [client.infer(cut.bundle.manifest.name, inputs) for inputs in asked]
        streamed = list(client.stream(cut.bundle.manifest.name, asked * 4, window=4))

    for answers in (
        one_by_one,
        *(streamed[first : first + len(asked)] for first in range(0, len(streamed), len(asked))),
    ):
        for answer, sample in zip(answers, cut.samples, strict=True):
            assert [hop.device for hop in answer.trace] == [stage.device for stage in plan.stages]
            for output, expected in sample.whole.items():
                assert same_bits(answer.outputs[output], expected)
            if quantize == "none":
                assert largest_error(answer.outputs, sample.source) <= SOURCE_ERROR
