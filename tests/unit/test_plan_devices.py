"""From manifests and descriptions of devices to what the planner works with: measured, fitted, or from the profile."""

from __future__ import annotations

import itertools
from dataclasses import replace

import msgspec
import pytest

from edge.formats.bundle import RuntimeNeed
from edge.formats.message import About, RuntimeOffer, Session, Speed
from edge.formats.plan import Constraints, Pin, Source
from edge.formats.profile import load_profile
from edge.formats.speed import LinkSpeed, ModelSpeed, OperatorSpeed
from host.errors import PlanError
from host.fleet.survey import PlanOrder, fleet_costs, known_profile, plan_for
from host.planning.costs import DeviceCost, LinkCost
from host.planning.devices import SESSION_BYTES, alike, device_cost, missing_runtime, roofline_seconds
from host.planning.workload import work_dtype, workload_of
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
_RPI4 = load_profile("rpi4")
_BUNDLE = fake_bundle(shards=3, weight_bytes=1000, macs=10**9)
_MANIFEST = _BUNDLE.manifest
_DIGEST = _BUNDLE.manifest_blob.digest
_BY_PROFILE = roofline_seconds(
    _MANIFEST, macs_per_second=_RPI4.macs_per_second.float32, memory_bytes_per_second=_RPI4.memory_bytes_per_second
)
_OTHER = OperatorSpeed(kind="other", macs_per_second=0.0, memory_bytes_per_second=0.0, call_seconds=0.25)


def _model(*seconds: float, **changes: object) -> ModelSpeed:
    made = ModelSpeed(
        manifest=_DIGEST,
        mode="default",
        threads=1,
        runtime="onnxruntime 1.32.0",
        shard_seconds=seconds,
        session_seconds=0.004,
    )
    return msgspec.structs.replace(made, **changes)


def _speed(*models: ModelSpeed, node: str = "pi-1", **changes: object) -> Speed:
    return msgspec.structs.replace(Speed(node=node, profile="rpi4", models=models), **changes)


def _cost(speed: Speed | None = None, *kin: Speed, about: About = _ABOUT) -> DeviceCost:
    return device_cost(about, _RPI4, _MANIFEST, digest=_DIGEST, speed=speed, kin=kin)


# -------------------------------------------------------------------------------------------------------- workload
def test_a_shard_costs_its_files_and_the_cut_sets_around_it() -> None:
    first, *_ = workload_of(_MANIFEST).shards
    assert sum(first.blobs.values()) == 1000 + len(b"graph 0")
    assert first.extra_bytes == 0
    assert (first.received_bytes, first.sent_bytes) == (16, 16)


def test_constants_that_unfold_in_memory_are_counted_beyond_their_files() -> None:
    shard = msgspec.structs.replace(_MANIFEST.shards[0], size_bytes=5000)
    manifest = msgspec.structs.replace(_MANIFEST, shards=(shard, *_MANIFEST.shards[1:]))
    assert workload_of(manifest).shards[0].extra_bytes == 5000 - 1007


# --------------------------------------------------------------------------------------------------------- profile
def test_a_device_offers_its_free_memory_and_what_its_profile_says() -> None:
    cost = _cost()
    assert cost.memory_bytes == 2_000_000_000
    assert cost.flash_bytes == 1_000_000_000
    assert cost.shard_seconds == _BY_PROFILE
    assert cost.source == "profile"
    assert cost.session_bytes == SESSION_BYTES
    assert cost.link.up_bytes_per_second == _RPI4.link.up_bytes_per_second
    assert _RPI4.power is not None
    assert cost.busy_watts == _RPI4.power.busy_watts


def test_a_rate_that_a_device_measured_counts_before_its_profile() -> None:
    rate = _RPI4.macs_per_second.float32 / 2
    cost = _cost(about=msgspec.structs.replace(_ABOUT, macs_per_second={"float32": rate}))
    assert cost.shard_seconds == pytest.approx([2 * seconds for seconds in _BY_PROFILE])


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_rate_that_cannot_be_is_not_believed(rate: float) -> None:
    assert _cost(about=msgspec.structs.replace(_ABOUT, macs_per_second={"float32": rate})).shard_seconds == _BY_PROFILE


@pytest.mark.parametrize(("quantize", "dtype"), [("none", "float32"), ("int8", "int8")])
def test_the_speed_of_the_bundles_dtype_counts(quantize: str, dtype: str) -> None:
    compression = msgspec.structs.replace(_MANIFEST.compression, quantize=quantize)
    assert work_dtype(msgspec.structs.replace(_MANIFEST, compression=compression)) == dtype


@pytest.mark.parametrize("quantize", ["int4", "int8-weights"])
def test_weights_of_few_bits_are_multiplied_as_such_by_onnxruntime_alone(quantize: str) -> None:
    compression = msgspec.structs.replace(_MANIFEST.compression, quantize=quantize)
    onnx = msgspec.structs.replace(_MANIFEST, compression=compression)
    litert = msgspec.structs.replace(onnx, runtimes=(RuntimeNeed(name="litert", least_version="1.0"),))
    assert (work_dtype(onnx), work_dtype(litert)) == ("int8", "float32")


# -------------------------------------------------------------------------------------------------------- measured
def test_what_was_measured_of_this_bundle_counts_before_all() -> None:
    cost = _cost(_speed(_model(9.0, 9.0, 9.0, mode="exact"), _model(0.1, 0.0, 0.3), operators=(_OTHER,)))
    assert (cost.shard_seconds, cost.session_seconds, cost.source) == ((0.1, 0.0, 0.3), 0.004, "measured")


def test_shards_that_were_not_measured_are_as_much_slower_as_the_others_are() -> None:
    first, second, third = _BY_PROFILE
    cost = _cost(_speed(_model(2 * first, 4 * second, -1.0)))
    assert cost.shard_seconds == pytest.approx((2 * first, 4 * second, 3 * third))
    assert cost.source == "fitted"


def test_fitted_operators_count_for_a_bundle_that_was_not_measured() -> None:
    assert _cost(_speed(operators=(_OTHER,))).shard_seconds == (0.25,) * 3
    assert _cost(_speed(operators=(_OTHER,))).source == "fitted"


def test_another_device_of_the_same_profile_stands_in() -> None:
    measured = _speed(_model(0.1, 0.2, 0.3), node="pi-2", message_seconds=0.01, message_seconds_per_byte=1e-9)
    fitted = _speed(node="pi-3", operators=(_OTHER,))
    stranger = _speed(_model(7.0, 7.0, 7.0), node="pi-4", profile="rpi5")
    cost = _cost(None, fitted, stranger)
    assert (cost.shard_seconds, cost.source) == ((0.25,) * 3, "fitted")
    cost = _cost(None, fitted, stranger, measured)
    assert (cost.shard_seconds, cost.source) == ((0.1, 0.2, 0.3), "fitted")
    assert (cost.message_seconds, cost.message_seconds_per_byte) == (0.01, 1e-9)
    assert cost.link == _cost().link, "a link is the device's own"
    assert _cost(None, stranger).source == "profile"


def test_the_mean_of_several_stands_in_whatever_their_order() -> None:
    kin = [_speed(_model(0.1 * n, 0.1, 0.1), node=f"pi-{n}") for n in range(2, 6)]
    costs = {_cost(None, *order) for order in itertools.permutations(kin)}
    assert len(costs) == 1
    assert costs.pop().shard_seconds[0] == pytest.approx(0.35)


def test_messages_and_the_link_are_as_measured() -> None:
    link = LinkSpeed(bytes_per_second=2.5e6, latency_seconds=0.02)
    cost = _cost(_speed(message_seconds=0.001, message_seconds_per_byte=2e-9, link=link))
    assert (cost.message_seconds, cost.message_seconds_per_byte) == (0.001, 2e-9)
    assert cost.link == LinkCost(up_bytes_per_second=2.5e6, down_bytes_per_second=2.5e6, latency_seconds=0.02)
    assert cost.source == "profile"


_NO_NUMBERS = (float("nan"), float("inf"), 1e300, -float("inf"))


@pytest.mark.parametrize(
    "seconds",
    [
        *((0.1, number, 0.1) for number in _NO_NUMBERS),
        (0.0, 0.0, 0.0),
        (1e-9, 1e-9, 1e-9),
        (-1.0, -1.0, -1.0),
        (90_000.0, 1.0, 1.0),
        (0.1, 0.1),
        (0.1,) * 4,
    ],
)
def test_times_that_cannot_be_are_not_believed(seconds: tuple[float, ...]) -> None:
    cost = _cost(_speed(_model(*seconds)), _speed(_model(*seconds), node="pi-2"))
    assert (cost.shard_seconds, cost.source) == (_BY_PROFILE, "profile")


@pytest.mark.parametrize("number", [*_NO_NUMBERS, -1e-9])
def test_costs_that_cannot_be_are_not_believed(number: float) -> None:
    lie = _speed(
        message_seconds=number,
        message_seconds_per_byte=number,
        link=LinkSpeed(bytes_per_second=number, latency_seconds=number),
        operators=(msgspec.structs.replace(_OTHER, call_seconds=number),),
    )
    assert _cost(lie, replace_node(lie)) == _cost()
    assert _cost(_speed(_model(0.1, 0.1, 0.1, session_seconds=number))).session_seconds == _cost().session_seconds


def replace_node(speed: Speed) -> Speed:
    return msgspec.structs.replace(speed, node="pi-2")


def test_what_another_board_measured_under_this_name_is_not_believed() -> None:
    assert _cost(_speed(_model(0.1, 0.1, 0.1), profile="rpi5")) == _cost()


# ----------------------------------------------------------------------------------------------------------- alike
def _device(name: str, seconds: float = 1.0, **changes: object) -> DeviceCost:
    made = DeviceCost(
        name=name,
        shard_seconds=(seconds, 2 * seconds),
        source="measured",
        link=LinkCost(up_bytes_per_second=1e6, down_bytes_per_second=1e6, latency_seconds=0.001),
        memory_bytes=1000,
        flash_bytes=1000,
        message_seconds=0.001,
        message_seconds_per_byte=1e-9,
    )
    return replace(made, **changes)  # type: ignore[arg-type] # names and types are the tests' own


def _kinds(*costs: DeviceCost, profiles: dict[str, str] | None = None) -> dict[str, DeviceCost]:
    found = alike(costs, profiles=profiles or dict.fromkeys((cost.name for cost in costs), "rpi4"))
    assert [cost.name for cost in found] == [cost.name for cost in costs]
    return {cost.name: replace(cost, name="") for cost in found}


def test_devices_that_measured_nearly_the_same_are_one_kind_with_the_means_and_the_least_room() -> None:
    kinds = _kinds(_device("a", 1.0, memory_bytes=1200), _device("b", 1.08, flash_bytes=1100))
    assert kinds["a"] == kinds["b"]
    assert kinds["a"].shard_seconds == pytest.approx((1.04, 2.08))
    assert (kinds["a"].memory_bytes, kinds["a"].flash_bytes) == (1000, 1000)


@pytest.mark.parametrize(
    "changes",
    [
        {"shard_seconds": (1.2, 2.2)},
        {"source": "fitted"},
        {"memory_bytes": 700},
        {"flash_bytes": 1300},
        {"link": LinkCost(up_bytes_per_second=2e6, down_bytes_per_second=1e6, latency_seconds=0.001)},
        {"link": LinkCost(up_bytes_per_second=1e6, down_bytes_per_second=1e6, latency_seconds=0.01)},
        {"message_seconds": 0.002},
        {"message_seconds_per_byte": 2e-9},
        {"session_seconds": 0.01},
    ],
)
def test_devices_that_differ_in_anything_that_matters_stay_as_they_are(changes: dict[str, object]) -> None:
    one, other = _device("a"), _device("b", **changes)  # type: ignore[arg-type] # as above
    assert _kinds(one, other) == {"a": replace(one, name=""), "b": replace(other, name="")}


def test_devices_of_different_profiles_are_never_one_kind() -> None:
    kinds = _kinds(_device("a"), _device("b", 1.01), profiles={"a": "rpi4", "b": "rpi5"})
    assert kinds["a"] != kinds["b"]


def test_kinds_do_not_depend_on_names_or_order() -> None:
    seconds = (1.0, 1.05, 1.09, 1.12, 1.3, 2.0)
    expected = None
    for order in itertools.islice(itertools.permutations(range(len(seconds))), 0, None, 37):
        kinds = _kinds(*(_device(f"d{place}", seconds[index]) for place, index in enumerate(order)))
        found = [kinds[f"d{order.index(index)}"] for index in range(len(seconds))]
        expected = expected or found
        assert found == expected
    assert expected is not None
    assert expected[0] == expected[1] == expected[2] != expected[3]


# ------------------------------------------------------------------------------------------------------------ fleet
def _about(name: str, **changes: object) -> About:
    return msgspec.structs.replace(_ABOUT, node=name, **changes)


@pytest.mark.parametrize(
    ("speeds", "sources"),
    [
        ({}, ("profile", "profile")),
        ({"a": _speed(_model(0.1, 0.1, 0.1), node="a")}, ("measured", "fitted")),
        ({"c": _speed(_model(0.1, 0.1, 0.1), node="c")}, ("fitted", "fitted")),
    ],
)
def test_a_fleet_is_planned_with_the_best_that_is_known_of_each(
    speeds: dict[str, Speed], sources: tuple[Source, Source]
) -> None:
    costs = fleet_costs(_MANIFEST, (_about("a"), _about("b")), mode="default", digest=_DIGEST, speeds=speeds)
    assert tuple(cost.source for cost in costs) == sources


def test_a_plan_rests_on_measured_speeds_and_says_so() -> None:
    speeds = {
        "slow": _speed(_model(1.0, 1.0, 1.0), node="slow"),
        "fast": _speed(_model(0.1, 0.1, 0.1), node="fast"),
    }
    plan = plan_for(_MANIFEST, (_about("slow"), _about("fast")), PlanOrder(digest=_DIGEST), speeds=speeds)
    assert [(stage.device, stage.source) for stage in plan.stages] == [("fast", "measured")]
    assert 0.3 < plan.bottleneck_seconds < 0.32


def test_the_last_byte_of_memory_is_used_where_equal_kinds_would_not_fit() -> None:
    need = max(workload_of(_MANIFEST).shards, key=lambda shard: sum(shard.blobs.values()))
    room = SESSION_BYTES + 3 * sum(need.blobs.values()) + 16 * 8 * 2 + 32
    abouts = (_about("a", free_memory_bytes=room), _about("b", free_memory_bytes=int(room / 1.2)))
    plan = plan_for(_MANIFEST, abouts, PlanOrder(digest=_DIGEST, objective="latency"), speeds={})
    assert [stage.device for stage in plan.stages] == ["a"]


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


def test_a_profile_is_read_once_whoever_names_it() -> None:
    assert known_profile(_about("one")) is known_profile(_about("two"))
    stranger = msgspec.structs.replace(_about("three"), profile="toaster")
    with pytest.raises(PlanError, match="three has profile 'toaster'; known are: "):
        known_profile(stranger)


def test_a_pin_to_a_device_that_is_not_there_is_told_by_its_layer() -> None:
    order = PlanOrder(digest=_DIGEST, constraints=Constraints(pins=(Pin(layer=1, device="pi-9"),)))
    with pytest.raises(PlanError) as caught:
        plan_for(_MANIFEST, (_ABOUT,), order, speeds={})
    assert str(caught.value) == "layer 1 (l1) is pinned to 'pi-9', which cannot take part; these can: pi-1"
