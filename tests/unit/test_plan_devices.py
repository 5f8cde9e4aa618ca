"""From manifests and descriptions of devices to what the planner works with."""

from __future__ import annotations

import msgspec
import pytest

from edge.formats.message import About, RuntimeOffer, Session
from edge.formats.profile import load_profile
from host.errors import PlanError
from host.fleet.survey import known_profile
from host.partition.devices import SESSION_BYTES, device_cost, missing_runtime, shard_costs, work_dtype
from host.partition.planner import DeviceCost, LayerWork, LinkCost, ShardCost, plan_pipeline
from tests.fake_bundle import fake_bundle

_ABOUT = About(
    node="pi-1",
    session=Session(boot=1, connect=1),
    profile="rpi4",
    runtimes=(RuntimeOffer(name="onnxruntime", version="1.32.0", providers=()),),
    memory_bytes=3_000_000_000,
    free_memory_bytes=2_000_000_000,
    free_disk_bytes=1_000_000_000,
    cores=4,
    held_bytes=0,
    agent_version="0.1.0",
)
_MANIFEST = fake_bundle(shards=3, weight_bytes=1000, macs=77).manifest


def test_a_shard_costs_its_files_its_work_and_the_cut_sets_around_it() -> None:
    first, *_ = shard_costs(_MANIFEST)
    assert sum(first.blobs.values()) == 1000 + len(b"graph 0")
    assert first.extra_bytes == 0
    assert (first.received_bytes, first.sent_bytes) == (16, 16)
    assert first.layers == (LayerWork(macs=77, moved_bytes=1000 + 32),)


def test_constants_that_unfold_in_memory_are_counted_beyond_their_files() -> None:
    shard = msgspec.structs.replace(_MANIFEST.shards[0], size_bytes=5000)
    manifest = msgspec.structs.replace(_MANIFEST, shards=(shard, *_MANIFEST.shards[1:]))
    assert shard_costs(manifest)[0].extra_bytes == 5000 - 1007


def test_a_device_offers_its_free_memory_and_what_its_profile_says() -> None:
    cost = device_cost(_ABOUT, load_profile("rpi4"), dtype="float32")
    assert cost.memory_bytes == 2_000_000_000
    assert cost.flash_bytes == 1_000_000_000
    assert cost.macs_per_second == load_profile("rpi4").macs_per_second.float32
    assert cost.session_bytes == SESSION_BYTES


def test_what_a_device_measured_counts_before_its_profile() -> None:
    measured = msgspec.structs.replace(_ABOUT, macs_per_second={"int8": 5e9})
    assert device_cost(measured, load_profile("rpi4"), dtype="int8").macs_per_second == 5e9
    assert device_cost(measured, load_profile("rpi4"), dtype="float32").macs_per_second != 5e9


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_speed_that_cannot_be_is_not_believed(speed: float) -> None:
    liar = msgspec.structs.replace(_ABOUT, macs_per_second={"int8": speed})
    cost = device_cost(liar, load_profile("rpi4"), dtype="int8")
    assert cost.macs_per_second == load_profile("rpi4").macs_per_second.int8


@pytest.mark.parametrize(("quantize", "dtype"), [("none", "float32"), ("int8", "int8")])
def test_the_speed_of_the_bundles_dtype_counts(quantize: str, dtype: str) -> None:
    compression = msgspec.structs.replace(_MANIFEST.compression, quantize=quantize)
    assert work_dtype(msgspec.structs.replace(_MANIFEST, compression=compression)) == dtype


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        ("1.32.0", None),
        ("1.22.0", None),
        ("1.21.9", "pi-1 has onnxruntime 1.21.9, the bundle needs onnxruntime 1.22.0 or newer"),
        ("", "pi-1 has no runtime, the bundle needs onnxruntime 1.22.0 or newer"),
    ],
)
def test_a_runtime_that_is_missing_or_too_old_is_named(version: str, fault: str | None) -> None:
    runtimes = (RuntimeOffer(name="onnxruntime", version=version, providers=()),) if version else ()
    assert missing_runtime(msgspec.structs.replace(_ABOUT, runtimes=runtimes), _MANIFEST) == fault


@pytest.mark.parametrize("profile", ["rpi9", "../../etc/passwd", "/etc/x.toml"])
def test_a_profile_name_from_the_network_is_an_id_and_nothing_else(profile: str) -> None:
    with pytest.raises(PlanError, match=r"^pi-1 has profile '.*'; known are: jetson-nano, "):
        known_profile(msgspec.structs.replace(_ABOUT, profile=profile))


def _shard(**fields: int) -> ShardCost:
    return ShardCost(
        layers=(LayerWork(macs=fields.get("macs", 10), moved_bytes=0),),
        blobs={str(fields.get("blob", 0)): 10 << 20},
        received_bytes=0,
        sent_bytes=0,
    )


def _device(name: str, **fields: int) -> DeviceCost:
    return DeviceCost(
        name=name,
        macs_per_second=fields.get("speed", 1),
        memory_bytes_per_second=1,
        link=LinkCost(up_bytes_per_second=1, down_bytes_per_second=1, latency_seconds=0),
        memory_bytes=fields.get("memory", 64 << 20),
        flash_bytes=fields.get("flash", 64 << 20),
    )


def test_a_blob_that_two_shards_share_counts_once_a_device() -> None:
    shards = [_shard(blob=1), _shard(blob=1)]
    assert plan_pipeline(shards, [_device("a", memory=10 << 20)]).stages[0].memory_bytes == 10 << 20


def test_equal_shares_go_to_equal_devices_and_the_bottleneck_is_named() -> None:
    plan = plan_pipeline([_shard(blob=n) for n in range(4)], [_device("b"), _device("a")])
    assert [(stage.device, stage.first_shard, stage.stop_shard) for stage in plan.stages] == [("a", 0, 2), ("b", 2, 4)]
    assert plan.bottleneck_seconds == 20
    assert plan.binds == "compute of a"


def test_a_device_that_would_slow_the_rest_stays_unused_unless_all_shall_take_part() -> None:
    shards, devices = [_shard(blob=n) for n in range(4)], [_device("fast", speed=100), _device("slow", speed=1)]
    assert [stage.device for stage in plan_pipeline(shards, devices).stages] == ["fast"]
    assert len(plan_pipeline(shards, devices, use_all=True).stages) == 2


@pytest.mark.parametrize(
    ("devices", "use_all", "text"),
    [
        ([], False, "no plan for 2 shards on 0 devices: both need at least one"),
        (["a", "a"], False, "device 'a' is given twice"),
        (
            ["a", "b", "c"],
            True,
            (
                "3 devices shall all take part, and the bundle has 2 shards: "
                "name fewer devices, or package for a smaller profile"
            ),
        ),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(devices: list[str], use_all: bool, text: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_pipeline([_shard(), _shard()], [_device(name) for name in devices], use_all=use_all)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("memory", "flash", "text"),
    [
        (8 << 20, 64 << 20, "devices have memory: a 8.0 MiB; 12.0 MiB more on each would do"),
        (64 << 20, 15 << 20, "devices have flash: a 15.0 MiB; 5.0 MiB more on each would do"),
    ],
)
def test_an_infeasible_plan_says_what_binds_and_by_how_much(memory: int, flash: int, text: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_pipeline([_shard(blob=1), _shard(blob=2)], [_device("a", memory=memory, flash=flash)])
    assert str(caught.value).startswith("no plan fits: the shards need 20.0 MiB of weights")
    assert text in str(caught.value)


def test_a_fleet_too_large_for_the_exact_search_is_planned_with_its_fastest_devices() -> None:
    devices = [_device(f"d{n:02}", speed=n + 1) for n in range(20)]
    plan = plan_pipeline([_shard(blob=n, macs=1000) for n in range(6)], devices)
    assert {stage.device for stage in plan.stages} <= {f"d{n:02}" for n in range(8, 20)}


def test_thirty_devices_of_three_kinds_are_planned_exactly() -> None:
    devices = [_device(f"d{n:02}", speed=1 + n % 3) for n in range(30)]
    plan = plan_pipeline([_shard(blob=n, macs=60) for n in range(10)], devices)
    assert plan.bottleneck_seconds == 20
    assert len(plan.stages) == 10


def test_where_the_fast_devices_have_no_room_the_roomy_ones_are_tried() -> None:
    small = [_device(f"fast-{n:02}", speed=100 + n, memory=1 << 20) for n in range(14)]
    roomy = _device("roomy", speed=1)
    assert [stage.device for stage in plan_pipeline([_shard(blob=1)], [*small, roomy]).stages] == ["roomy"]
