"""Simulated fleets of a bundle with two builds: answers are right, and times and bytes are those of the plan."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from benchmarks.chain import chain_manifest
from edge.formats.bundle import Blob, Build, Form, RuntimeNeed, digest_of
from edge.formats.plan import Plan, Stage
from host.planning.costs import DeviceCost
from host.planning.price import price_plan
from host.planning.workload import workload_of
from host.simulate.bundle import SimulatedBundle, simulated_bundle
from host.simulate.faults import Fault
from host.simulate.fleet import EPOCH, Deployed, SimulatedFleet, Traffic
from tests.simulated_fleets import device

PLAIN = chain_manifest([400_000, 400_000, 400_000, 40_000])
MANIFEST = msgspec.structs.replace(
    PLAIN,
    builds=(
        Build(
            runtimes=(RuntimeNeed(name="litert", least_version="1.0"),),
            operators=(),
            shards=tuple(
                msgspec.structs.replace(shard, graph=Blob(digest=digest_of(b"m%d" % at), size_bytes=300), weights=())
                for at, shard in enumerate(PLAIN.shards)
            ),
            forms=tuple(Form(name=f"t{at}", dtype="int8", scale=0.1) for at in range(1, 3)),
        ),
    ),
)
"""Between its shards, the other build has bytes in place of floats."""

STAGES = tuple(Stage(index=at, device=f"d{at}", first_shard=at, stop_shard=at + 1) for at in range(3))


def fleet(*runtimes: str) -> tuple[DeviceCost, ...]:
    return tuple(replace(device(f"d{at}", [0.01] * 3), runtime=runtime) for at, runtime in enumerate(runtimes))


def served(devices: tuple[DeviceCost, ...]) -> tuple[Plan, SimulatedBundle]:
    return price_plan(workload_of(MANIFEST), devices, STAGES, window=24), simulated_bundle(MANIFEST)


@pytest.mark.parametrize(
    ("runtimes", "takes", "sizes"),
    [
        (("onnxruntime",) * 3, ["", "", ""], [400_000, 400_000]),
        (("onnxruntime", "litert", "onnxruntime"), ["", "tflite", "tflite"], [100_000, 100_000]),
        (("litert", "onnxruntime", "onnxruntime"), ["", "tflite", ""], [100_000, 400_000]),
        (("litert",) * 3, ["", "tflite", "tflite"], [100_000, 100_000]),
    ],
)
def test_a_mixed_pipeline_answers_rightly_with_the_times_and_bytes_of_its_plan(
    runtimes: tuple[str, ...], takes: list[str], sizes: list[int]
) -> None:
    devices = fleet(*runtimes)
    plan, bundle = served(devices)
    assert [stage.takes for stage in plan.stages] == takes
    assert [stage.received_bytes for stage in plan.stages[1:]] == sizes
    deployed = Deployed(name="net", bundle=bundle, plan=plan, window=24)
    alone, full = (
        SimulatedFleet(devices, [deployed], coordination="none").run(Traffic(requests=80, window=window))
        for window in (1, 12)
    )
    assert alone.whole
    assert full.whole
    assert alone.latency.p50 == pytest.approx(plan.latency_seconds, rel=0.05)
    assert full.throughput == pytest.approx(1 / plan.bottleneck_seconds, rel=0.05)
    assert full.broker_bytes == pytest.approx(80 * plan.network_bytes, rel=0.02)


def test_when_a_device_is_lost_the_others_go_on_with_the_build_of_their_own_runtime() -> None:
    devices = (*fleet("onnxruntime", "litert"), replace(device("spare", [0.02] * 3), runtime="onnxruntime"))
    stages = (
        Stage(index=0, device="d0", first_shard=0, stop_shard=1),
        Stage(index=1, device="d1", first_shard=1, stop_shard=3),
    )
    bundle = simulated_bundle(MANIFEST)
    plan = price_plan(workload_of(bundle.manifest), devices, stages)
    simulated = SimulatedFleet(
        devices,
        [Deployed(name="net", bundle=bundle, plan=plan)],
        faults=[Fault(at=10, device="d1", kind="kill")],
        coordination="replans",
    )
    report = simulated.run(Traffic(seconds=40, rate=2, deadline_seconds=35))
    assert report.whole, report.errors
    assert report.epochs["net"] != EPOCH
    last = report.happened[-1]
    assert {name for runners in last.stages for name in runners} <= {"d0", "spare"}
