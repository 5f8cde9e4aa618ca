"""Tensors travel compressed where the plan is better for it, the work of compressing counted."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from edge.formats.bundle import Manifest
from edge.formats.message import About, RuntimeOffer, Session
from edge.formats.plan import Constraints, Objective, Pin
from host.errors import PlanError
from host.fleet.codec_choice import plan_any_codec
from host.fleet.survey import PlanOrder
from host.planning.codecs import BOTH, CodecPlan, best_codec, codec_question, deflating
from host.planning.costs import DeviceCost, Network
from host.planning.planner import plan_pipeline
from host.planning.workload import workload_of
from tests.fake_bundle import fake_bundle
from tests.plans import device, link


def manifest(size_bytes: int, deflated_bytes: int) -> Manifest:
    made = fake_bundle(shards=2).manifest
    tensors = tuple(
        msgspec.structs.replace(tensor, size_bytes=size_bytes, deflated_bytes=deflated_bytes) for tensor in made.tensors
    )
    return msgspec.structs.replace(made, tensors=tensors)


def best(
    made: Manifest, *devices: DeviceCost, objective: Objective = "throughput", client_mbit: float = 10
) -> CodecPlan:
    return best_codec(
        made,
        devices,
        plan_pipeline,
        network=Network(client=link(client_mbit)),
        constraints=Constraints(),
        objective=objective,
        window=4,
    )


def test_a_slow_link_is_worth_compressing_for() -> None:
    assert best(manifest(100_000, 30_000), device("a", 0.001, 0.001)).codec == "deflate"


def test_what_does_not_shrink_travels_as_it_is() -> None:
    assert best(manifest(100_000, 0), device("a", 0.001, 0.001)).codec == "raw"


@pytest.mark.parametrize("objective", ["throughput", "latency", "energy"])
def test_a_slow_processor_on_a_fast_link_does_not_compress(objective: Objective) -> None:
    slow = replace(device("a", 0.001, 0.001, mbit=1e6), message_seconds_per_byte=1e-7)
    assert best(manifest(100_000, 60_000), slow, objective=objective, client_mbit=1e6).codec == "raw"


def test_compressing_takes_time_of_the_processor() -> None:
    (packing,) = deflating([replace(device("a", 0.1, 0.1), message_seconds_per_byte=1e-9)])
    assert packing.deflate_seconds_per_byte == pytest.approx(14e-9)
    assert packing.inflate_seconds_per_byte == pytest.approx(3.5e-9)
    work = workload_of(manifest(100_000, 50_000), codec="deflate")
    (stage,) = plan_pipeline(work, [packing]).stages
    assert stage.predicted_seconds == pytest.approx(0.2 + 2 * 50_000 * 1e-9 + 100_000 * 17.5e-9)


def test_tensors_are_in_memory_as_they_are_and_on_the_way_as_they_travel() -> None:
    stages = {
        codec: plan_pipeline(workload_of(manifest(100_000, 30_000), codec=codec), [device("a", 0.1, 0.1)]).stages[0]
        for codec in BOTH
    }
    assert (stages["raw"].received_bytes, stages["deflate"].received_bytes) == (100_000, 30_000)
    assert stages["raw"].memory_bytes == stages["deflate"].memory_bytes


def test_a_question_is_on_shards_and_bytes_on_the_wire() -> None:
    made = manifest(100_000, 30_000)
    for codec in BOTH:
        asked = codec_question(
            made,
            [device("a", 0.1, 0.1)],
            network=Network(),
            constraints=Constraints(pins=(Pin(layer=1, device="a"),)),
            objective="latency",
            window=4,
            codec=codec,
        )
        assert asked.workload.shards[0].received_bytes == (100_000 if codec == "raw" else 30_000)
        assert asked.constraints.pins == (Pin(layer=1, device="a"),)


def test_where_nothing_fits_the_first_reason_is_given() -> None:
    with pytest.raises(PlanError, match="no plan fits"):
        best(manifest(100_000, 30_000), device("a", 0.1, 0.1, memory_bytes=1))


def test_a_deployment_may_leave_the_codec_to_the_planner() -> None:
    about = About(
        node="a",
        session=Session(boot=1, connect=1),
        profile="rpi-zero2w",
        runtimes=(RuntimeOffer(name="onnxruntime", version="1.32.0", providers=()),),
        memory_bytes=1 << 30,
        free_memory_bytes=1 << 30,
        free_disk_bytes=1 << 30,
        cores=4,
        held_bytes=0,
        agent_version="0.1.0",
    )
    shrinking, solid = manifest(10_000_000, 10_000), manifest(10_000_000, 0)
    for made, expected in ((shrinking, "deflate"), (solid, "raw")):
        order = PlanOrder(digest="sha256:" + "0" * 64)
        plan, codec = plan_any_codec(made, [about], order, codec="auto", speeds={})
        assert codec == expected
        assert plan.stages[0].device == "a"
    assert plan_any_codec(shrinking, [about], order, codec="raw", speeds={})[1] == "raw"
