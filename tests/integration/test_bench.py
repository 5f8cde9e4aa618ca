"""A real agent on a real broker measures itself, remembers it, and is planned with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.formats.message import About, Speed
from edge.formats.plan import Plan
from edge.formats.profile import load_profile
from host.broker import RunningBroker
from host.errors import FleetError
from host.fleet.bench import BenchOrder, BenchResult, run_bench
from host.fleet.blobs import MemoryBlobs
from host.fleet.observe import look
from host.fleet.operator_mix import operator_mix
from host.fleet.survey import PlanOrder, plan_for
from tests.agents import AgentProcess, running_agents
from tests.command_line import shardwire
from tests.tiny_bundle import make_deployment, make_tiny_bundle, tiny_coordinator

BUNDLE = make_tiny_bundle()
ORDER = BenchOrder(manifest=BUNDLE.manifest_blob, fits=False, most_seconds=0.5)


@pytest.fixture
def agent(broker: RunningBroker, tmp_path: Path) -> Iterator[AgentProcess]:
    with running_agents(broker.url, tmp_path, "pi-1") as (running,):
        yield running


def bench(broker: RunningBroker, order: BenchOrder = ORDER) -> BenchResult:
    blobs = MemoryBlobs(BUNDLE.blobs)
    (result,) = run_bench(broker.url, order, blobs, fleet="default", names=("pi-1",), on_change=lambda *_: None)
    return result


def seen(broker: RunningBroker) -> tuple[About, Speed | None]:
    (sighting,) = look(broker.url, fleet="default", until_online=("pi-1",)).devices
    assert sighting.node.about is not None
    return sighting.node.about, sighting.node.speed


def plan(broker: RunningBroker) -> Plan:
    about, speed = seen(broker)
    order = PlanOrder(digest=BUNDLE.manifest_blob.digest)
    return plan_for(BUNDLE.manifest, (about,), order, speeds={"pi-1": speed} if speed is not None else {})


def test_a_device_is_planned_with_what_it_measured_also_after_its_restart(
    broker: RunningBroker, agent: AgentProcess
) -> None:
    assert plan(broker).stages[0].source == "profile"
    result = bench(broker)
    assert result.reason == ""
    assert result.speed is not None
    (model,) = result.speed.models
    assert model.manifest == BUNDLE.manifest_blob.digest
    assert all(seconds > 0 for seconds in model.shard_seconds)
    assert result.speed.message_seconds > 0
    assert result.speed.link is not None
    assert result.speed.link.bytes_per_second > 1e5
    agent.process.kill()
    agent.restart()
    assert seen(broker)[1] == result.speed
    (stage,) = plan(broker).stages
    assert stage.source == "measured"
    assert stage.predicted_seconds >= sum(model.shard_seconds)


def test_microbenchmarks_give_every_kind_of_operator_and_the_command_shows_them(
    broker: RunningBroker, agent: AgentProcess
) -> None:
    shown = shardwire("bench", "--broker", broker.url, "--seconds", "0.5", "--json")
    assert shown.code == 0, shown.err
    (record,) = msgspec.json.decode(shown.out, type=list[dict[str, Any]])
    assert (record["device"], record["source"], record["model"]) == ("pi-1", "measured", "operator-mix")
    kinds = {found["kind"] for found in record["operators"]}
    assert kinds == {"conv", "conv-int8", "matmul", "matmul-int8", "other"}
    assert record["model_seconds"] > 0
    _, speed = seen(broker)
    assert speed is not None
    assert speed.models[0].manifest == operator_mix().manifest_blob.digest
    # A bundle that was never timed here is predicted by its operators.
    assert plan(broker).stages[0].source == "fitted"


def test_a_stage_that_was_loaded_is_timed_without_being_asked(broker: RunningBroker, agent: AgentProcess) -> None:
    with tiny_coordinator(broker.url, BUNDLE) as coordinator:
        coordinator.deploy(make_deployment(BUNDLE, ("pi-1",)))
        looks = (seen(broker)[1] for _ in range(30))
        speed = next(found for found in looks if found is not None)
    assert [model.manifest for model in speed.models] == [BUNDLE.manifest_blob.digest]
    assert all(seconds > 0 for seconds in speed.models[0].shard_seconds)
    assert load_profile("x86-gateway").id == speed.profile


def test_a_device_that_is_not_there_is_named(broker: RunningBroker, agent: AgentProcess) -> None:
    blobs = MemoryBlobs(BUNDLE.blobs)
    with pytest.raises(FleetError, match=r"^pi-9: not online; online are: pi-1$"):
        run_bench(broker.url, ORDER, blobs, fleet="default", names=("pi-9",), on_change=lambda *_: None)


def test_a_bundle_that_nobody_holds_fails_in_one_line(broker: RunningBroker, agent: AgentProcess) -> None:
    blobs = MemoryBlobs({})
    (result,) = run_bench(broker.url, ORDER, blobs, fleet="default", names=("pi-1",), on_change=lambda *_: None)
    assert "does not hold it" in result.reason
