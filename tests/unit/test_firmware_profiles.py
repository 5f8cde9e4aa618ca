"""The profiles that come with Shardwire are complete, sourced, and in a sane relation to each other."""

import itertools
from pathlib import Path

import pytest

from edge.formats.profile import DeviceProfile, load_profile, profile_ids

ALL = (
    "jetson-nano",
    "jetson-orin-nano",
    "phone-high",
    "phone-mid",
    "rpi-zero2w",
    "rpi3",
    "rpi3-32bit",
    "rpi4",
    "rpi5",
    "x86-gateway",
)
BITS_64 = tuple(name for name in ALL if name != "rpi3-32bit")


@pytest.fixture(scope="module")
def profiles() -> dict[str, DeviceProfile]:
    return {name: load_profile(name) for name in profile_ids()}


def test_the_ten_device_classes_are_there() -> None:
    assert profile_ids() == ALL


@pytest.mark.parametrize("name", ALL)
def test_a_profile_carries_the_id_it_is_loaded_by(name: str, profiles: dict[str, DeviceProfile]) -> None:
    assert profiles[name].id == name


@pytest.mark.parametrize("name", ALL)
def test_every_source_is_a_page_or_says_that_it_is_derived_or_chosen(
    name: str, profiles: dict[str, DeviceProfile]
) -> None:
    for source in profiles[name].sources:
        cited = "https://" in source.text
        assert cited or source.text.startswith(("derived: ", "chosen: ")) or "Shardwire" in source.text, source


@pytest.mark.parametrize("name", BITS_64)
def test_pip_can_install_a_runtime_with_the_cpu_behind_everything_else(
    name: str, profiles: dict[str, DeviceProfile]
) -> None:
    onnxruntime = profiles[name].runtimes[0]
    assert onnxruntime.name == "onnxruntime"
    assert onnxruntime.installable_providers == ("CPUExecutionProvider",)
    if len(onnxruntime.providers) > 1:
        assert "CPU is the fallback" in onnxruntime.note


def test_a_32_bit_board_has_the_one_runtime_that_there_is_a_wheel_of(profiles: dict[str, DeviceProfile]) -> None:
    small, large = profiles["rpi3-32bit"], profiles["rpi3"]
    assert [runtime.name for runtime in small.runtimes] == ["tflite-runtime"]
    assert "numpy<2" in small.runtimes[0].note
    assert small.arch == "armv7l"
    assert small.system.runs_on_stock_image
    assert small.macs_per_second.float32 < large.macs_per_second.float32


@pytest.mark.parametrize("name", ["jetson-nano", "jetson-orin-nano", "phone-mid", "phone-high"])
def test_a_stock_image_that_cannot_run_the_agent_says_what_to_do(name: str, profiles: dict[str, DeviceProfile]) -> None:
    system = profiles[name].system
    assert not system.runs_on_stock_image
    assert len(system.remedy) > 100


def test_jetpack_4_is_too_old_in_both_python_and_glibc(profiles: dict[str, DeviceProfile]) -> None:
    system = profiles["jetson-nano"].system
    assert (system.stock_python, system.stock_glibc) == ("3.6", "2.27")
    assert (system.min_python, system.min_glibc) == ("3.11", "2.28")


def test_the_smallest_board_refuses_layers_that_the_others_take(profiles: dict[str, DeviceProfile]) -> None:
    limits = {name: profile.shard_limit_bytes for name, profile in profiles.items()}
    assert min(limits, key=limits.__getitem__) == "rpi-zero2w"
    assert limits["rpi-zero2w"] == 37_500_000
    # The largest layers of alexnet, zfnet512 and vgg19 hold 37.7 M, 37.7 M and 102.8 M float32 weights.
    assert limits["rpi-zero2w"] < 4 * 37_748_736
    assert limits["rpi4"] > 4 * 102_760_448


def test_int8_pays_on_every_device(profiles: dict[str, DeviceProfile]) -> None:
    for profile in profiles.values():
        assert profile.preferred_dtypes[0] == "int8"
        assert profile.macs_per_second.int8 > profile.macs_per_second.float32


def test_each_raspberry_pi_is_faster_than_the_one_before(profiles: dict[str, DeviceProfile]) -> None:
    boards = [profiles[name] for name in ("rpi-zero2w", "rpi3", "rpi4", "rpi5")]
    for slower, faster in itertools.pairwise(boards):
        assert slower.macs_per_second.float32 < faster.macs_per_second.float32
        assert slower.macs_per_second.int8 < faster.macs_per_second.int8
        assert slower.usable_memory_bytes <= faster.usable_memory_bytes


def test_float16_is_rated_exactly_where_the_processor_has_it(profiles: dict[str, DeviceProfile]) -> None:
    for profile in profiles.values():
        assert (profile.macs_per_second.float16 is not None) == ("fp16" in profile.isa)


@pytest.mark.parametrize("name", ALL)
def test_every_profile_says_what_its_device_draws(name: str, profiles: dict[str, DeviceProfile]) -> None:
    power = profiles[name].power
    assert power is not None
    assert 0 < power.idle_watts < power.busy_watts


def test_a_small_board_draws_less_than_a_large_one(profiles: dict[str, DeviceProfile]) -> None:
    busy = [
        profile.power.busy_watts
        for name in ("rpi-zero2w", "rpi3", "rpi4", "rpi5", "x86-gateway")
        if (profile := profiles[name]).power is not None
    ]
    assert busy == sorted(busy)


def test_the_gateway_claims_no_vnni(profiles: dict[str, DeviceProfile]) -> None:
    """A bundle for the gateway class must not saturate on an AVX2 machine without VNNI."""
    assert profiles["x86-gateway"].isa == ("avx2",)


def test_the_page_on_profiles_shows_each_with_its_shard_limit(profiles: dict[str, DeviceProfile]) -> None:
    page = Path(__file__).parents[2].joinpath("docs", "profiles.md").read_text(encoding="utf-8")
    rows = {cells[1].strip(" `"): cells for line in page.splitlines() if len(cells := line.split("|")) == 6}
    for name, profile in profiles.items():
        stated = float(rows[name][3].removesuffix(" MB "))
        assert stated == pytest.approx(profile.shard_limit_bytes / 1e6, abs=0.06), name
        assert ("**no**" in rows[name][4]) != profile.system.runs_on_stock_image, name
