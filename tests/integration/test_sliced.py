"""A layer that no device can hold: packaged in slices, planned, run by stages and on agents, equal to the whole."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import msgspec
import onnx
import pytest

from edge.client import Client
from edge.formats.plan import Plan, Stage
from host.answers import read_tensors, run_plan, verify_answers
from host.broker import RunningBroker
from host.bundle import OpenBundle, open_bundle
from host.errors import PlanError
from host.package import PackageRequest, package
from host.planning.costs import LOCAL_NETWORK, DeviceCost
from host.planning.devices import SESSION_BYTES
from host.planning.planner import plan_pipeline
from host.planning.workload import workload_of
from tests.agents import running_agents
from tests.command_line import shardwire_ok
from tests.conformance.cutting import same_bits
from tests.vgg_net import small_profile, vgg_net

LARGEST_LAYER_BYTES = 768 * 4096 * 4
DEVICE_BYTES = SESSION_BYTES + LARGEST_LAYER_BYTES * 29 // 50
"""Such a device has room for a session and not for the largest layer; two of them have none for the model."""


def _package(folder: Path, *, side: int, hidden: int, limit: int | None, quantize: str = "none") -> OpenBundle:
    onnx.save(vgg_net(side=side, hidden=hidden), folder / "vgg.onnx")
    profile = "rpi4" if limit is None else str(small_profile(folder, max_shard_bytes=limit))
    request = PackageRequest(source=str(folder / "vgg.onnx"), profile=profile, target=folder / "out", quantize=quantize)
    return package(request).bundle


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> OpenBundle:
    """A net whose first fully connected layer has 12 MiB, in shards of at most 5 MiB."""
    return _package(tmp_path_factory.mktemp("sliced"), side=64, hidden=768, limit=5 << 20)


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> OpenBundle:
    """A net whose first fully connected layer has 32 MiB, in halves; what is before and after it has 1 MiB."""
    return _package(tmp_path_factory.mktemp("halved"), side=128, hidden=512, limit=17 << 20)


HALF_LAYER_BYTES = 512 * 16384 * 4 // 2
HALF_DEVICE_BYTES = SESSION_BYTES + HALF_LAYER_BYTES * 3 // 2
"""Such a device has room for a session and one half of the layer, or for two sessions without a half."""


def _answers_as_the_whole(bundle: OpenBundle, plan: Plan) -> bool:
    """Whether the stages of a plan answer to the golden input with the bits of the whole model."""
    pair = bundle.manifest.golden[0]
    found = run_plan(bundle, plan, read_tensors(bundle, pair.inputs))
    return same_bits(found["y"], read_tensors(bundle, pair.whole)["y"])


def _devices(count: int, bundle: OpenBundle, *, memory_bytes: int = DEVICE_BYTES) -> list[DeviceCost]:
    seconds = tuple(
        1e-9 * sum(layer.macs for layer in bundle.manifest.layers[s.first_layer : s.stop_layer])
        for s in bundle.manifest.shards
    )
    return [
        DeviceCost(
            name=f"pi-{index}",
            shard_seconds=seconds,
            link=LOCAL_NETWORK,
            memory_bytes=memory_bytes,
            flash_bytes=1 << 40,
            session_bytes=SESSION_BYTES,
        )
        for index in range(count)
    ]


@pytest.mark.parametrize(
    ("quantize", "limit", "slices"),
    [
        ("none", 200_000, 3 + 6),
        ("int8", 60_000, 3 + 5),
        ("int8-dynamic", 60_000, 3 + 5),
        ("int4", 40_000, 3 + 5),
        ("float16", 300_000, 3 + 6),
    ],
)
def test_however_the_weights_are_stored_slices_answer_as_the_whole(
    quantize: str, limit: int, slices: int, tmp_path: Path
) -> None:
    bundle = _package(tmp_path, side=16, hidden=512, limit=limit, quantize=quantize)

    manifest = bundle.manifest
    assert sum("/slice_" in layer.name for layer in manifest.layers) == slices
    assert max(shard.size_bytes for shard in manifest.shards) <= limit
    assert len(workload_of(manifest).sections) == 2
    for verdict in verify_answers(bundle):
        assert verdict.fault is None, verdict
        assert verdict.bit_equal or verdict.mode == "default", verdict
        assert verdict.relative_error <= 1e-5, verdict


def test_two_processes_slice_alike(tmp_path: Path) -> None:
    onnx.save(vgg_net(), tmp_path / "vgg.onnx")
    for seed in ("1", "2"):
        shardwire_ok(
            *("package", tmp_path / "vgg.onnx", "--quantize", "none", "--slice-above", "200000"),
            *("--out", tmp_path / seed),
            env={"PYTHONHASHSEED": seed},
            cwd=tmp_path,
        )
    first, second = (open_bundle(tmp_path / seed) for seed in ("1", "2"))
    assert first.artefact_digest == second.artefact_digest
    assert [len(section.bounds) - 1 for section in workload_of(first.manifest).sections] == [3, 6]


def test_what_is_above_the_wish_is_sliced_and_the_command_says_where(tmp_path: Path) -> None:
    onnx.save(vgg_net(), tmp_path / "vgg.onnx")

    ran = shardwire_ok(
        *("package", tmp_path / "vgg.onnx", "--quantize", "none", "--slice-above", "600000"),
        *("--out", tmp_path / "out"),
        cwd=tmp_path,
    )

    assert re.search(r"may run side by side +branches in shards 6-7\b", ran.out)
    assert "fc7/slice_1" in shardwire_ok("inspect", tmp_path / "out").out


@pytest.mark.parametrize(("quantize", "above"), [("none", 20_000), ("int8", 8_000)])
def test_convolutions_are_sliced_too(quantize: str, above: int, tmp_path: Path) -> None:
    onnx.save(vgg_net(side=8, hidden=8, channels=123), tmp_path / "vgg.onnx")

    bundle = package(
        PackageRequest(
            source=str(tmp_path / "vgg.onnx"),
            profile="rpi4",
            target=tmp_path / "out",
            quantize=quantize,
            slice_above_bytes=above,
        )
    ).bundle

    assert sum("conv2/slice_" in layer.name for layer in bundle.manifest.layers) in (2, 3)
    for verdict in verify_answers(bundle):
        assert verdict.fault is None, verdict
        assert verdict.bit_equal or (quantize == "none" and verdict.relative_error <= 1e-5), verdict


def test_every_way_to_share_out_the_slices_answers_as_the_whole(sliced: OpenBundle) -> None:
    (section,) = workload_of(sliced.manifest).sections
    last = len(sliced.manifest.shards)
    a, b, c, d = section.bounds
    for bounds in ((a, b, c, d), (a, b, d), (a, c, d)):
        ranges = list(pairwise((0, *bounds, last)))
        stages = tuple(
            Stage(index=i, device=f"pi-{i}", first_shard=first, stop_shard=stop, beside=2 <= i < len(ranges) - 1)
            for i, (first, stop) in enumerate(ranges)
        )
        plan = Plan(objective="latency", stages=stages, bottleneck_seconds=1, latency_seconds=1, binds="")
        assert _answers_as_the_whole(sliced, plan)


def test_three_devices_of_which_none_can_hold_the_layer_run_the_model(sliced: OpenBundle, tmp_path: Path) -> None:
    whole = _package(tmp_path, side=64, hidden=768, limit=None)
    with pytest.raises(PlanError, match="no plan fits"):
        plan_pipeline(workload_of(whole.manifest), _devices(3, whole))

    plan = plan_pipeline(workload_of(sliced.manifest), _devices(3, sliced))

    assert {stage.device for stage in plan.stages} == {"pi-0", "pi-1", "pi-2"}
    assert all(stage.memory_bytes <= DEVICE_BYTES for stage in plan.stages)
    assert _answers_as_the_whole(sliced, plan)


def test_slices_run_side_by_side_where_that_is_faster(sliced: OpenBundle) -> None:
    (section,) = workload_of(sliced.manifest).sections
    slow = tuple(
        1.0 if section.first <= index < section.stop else 0.001 for index in range(len(sliced.manifest.shards))
    )
    devices = [
        DeviceCost(name=device.name, shard_seconds=slow, link=device.link, memory_bytes=1 << 40, flash_bytes=1 << 40)
        for device in _devices(5, sliced)
    ]

    plan = plan_pipeline(workload_of(sliced.manifest), devices, objective="latency")

    assert [len(step) for step in plan.steps()] == [1, 3, 1]
    assert _answers_as_the_whole(sliced, plan)


@pytest.mark.slow
def test_three_agents_of_which_none_can_hold_the_layer_answer_as_the_whole(
    sliced: OpenBundle, broker: RunningBroker, tmp_path: Path
) -> None:
    pair = sliced.manifest.golden[0]
    x, truth = read_tensors(sliced, pair.inputs), read_tensors(sliced, pair.whole)["y"]
    limit = ("--memory-limit", str(DEVICE_BYTES))
    with running_agents(broker.url, tmp_path, "pi-1", "pi-2", "pi-3", options=limit):
        shardwire_ok("deploy", sliced.folder, "--mode", "exact", "--broker", broker.url)
        with Client.connect(broker.url) as client:
            result = client.infer("vgg", x, observe=True)
    assert same_bits(result.outputs["y"], truth)
    assert {hop.device for hop in result.trace} == {"pi-1", "pi-2", "pi-3"}


@pytest.mark.slow
def test_agents_that_run_slices_side_by_side_answer_as_the_whole(
    sliced: OpenBundle, broker: RunningBroker, tmp_path: Path
) -> None:
    pair = sliced.manifest.golden[0]
    x, truth = read_tensors(sliced, pair.inputs), read_tensors(sliced, pair.whole)["y"]
    at = ("--broker", broker.url)
    names = [f"pi-{index}" for index in range(5)]
    with running_agents(broker.url, tmp_path, *names, options=("--memory-limit", str(DEVICE_BYTES))):
        shardwire_ok("deploy", sliced.folder, "--mode", "exact", "--objective", "latency", *at)
        (found,) = msgspec.json.decode(shardwire_ok("status", "--json", *at).out)
        with Client.connect(broker.url) as client:
            results = [client.infer("vgg", x, observe=True) for _ in range(10)]
    assert [stage["beside"] for stage in found["stages"]] == [False, False, True, True, False]
    assert all(same_bits(result.outputs["y"], truth) for result in results)
    assert {hop.device for result in results for hop in result.trace} == set(names)


@pytest.mark.slow
def test_three_devices_run_the_halves_side_by_side_and_one_of_them_the_rest(halved: OpenBundle, tmp_path: Path) -> None:
    whole = _package(tmp_path, side=128, hidden=512, limit=None)
    with pytest.raises(PlanError, match="no plan fits"):
        plan_pipeline(workload_of(whole.manifest), _devices(3, whole, memory_bytes=HALF_DEVICE_BYTES))

    devices = _devices(3, halved, memory_bytes=HALF_DEVICE_BYTES)
    plan = plan_pipeline(workload_of(halved.manifest), devices, objective="latency")

    assert [len(step) for step in plan.steps()] == [1, 2, 1]
    first, *halves, last = plan.stages
    assert first.device == last.device
    assert len({first.device, *(stage.device for stage in halves)}) == 3
    assert first.memory_bytes + last.memory_bytes <= HALF_DEVICE_BYTES
    assert all(HALF_LAYER_BYTES < stage.memory_bytes <= HALF_DEVICE_BYTES for stage in halves)
    assert _answers_as_the_whole(halved, plan)


@pytest.mark.slow
def test_three_agents_that_run_the_halves_side_by_side_answer_as_the_whole(
    halved: OpenBundle, broker: RunningBroker, tmp_path: Path
) -> None:
    pair = halved.manifest.golden[0]
    x, truth = read_tensors(halved, pair.inputs), read_tensors(halved, pair.whole)["y"]
    at = ("--broker", broker.url)
    limit = ("--memory-limit", str(HALF_DEVICE_BYTES))
    with running_agents(broker.url, tmp_path, "pi-1", "pi-2", "pi-3", options=limit):
        # On a processor as fast as this one halves of a small net are not worth the messages: input and result stay
        # on one device, which cannot have the halves too.
        pins = ("--pin", "0:pi-1", "--pin", "-1:pi-1")
        shardwire_ok("deploy", halved.folder, "--mode", "exact", "--objective", "latency", *pins, *at)
        (found,) = msgspec.json.decode(shardwire_ok("status", "--json", *at).out)
        with Client.connect(broker.url) as client:
            results = [client.infer("vgg", x, observe=True) for _ in range(5)]
            results += client.stream("vgg", [x] * 30, window=8)
        shardwire_ok("undeploy", "vgg", *at)
    devices = [stage["device"] for stage in found["stages"]]
    assert [stage["beside"] for stage in found["stages"]] == [False, False, True, False]
    assert (devices[0], devices[3], set(devices)) == ("pi-1", "pi-1", {"pi-1", "pi-2", "pi-3"})
    assert all(same_bits(result.outputs["y"], truth) for result in results)
    assert {tuple(hop.device for hop in result.trace) for result in results} == {tuple(devices)}
    assert {result.attempts for result in results} == {1}
