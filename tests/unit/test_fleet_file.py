"""A fleet file says what devices and links there are; each fault of it is named in one line, with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.formats.profile import load_profile
from host.errors import PlanError
from host.planning.costs import LOCAL_NETWORK, LinkCost
from host.planning.fleet_entries import FLEET_FORMAT
from host.planning.fleet_file import CLIENT, DescribedFleet, described_costs, parse_fleet
from tests.fake_bundle import fake_bundle

_MANIFEST = fake_bundle(shards=3).manifest
_DOCS = Path(__file__).parents[2] / "docs"
_TWO = """\
format = "1.0"

[[devices]]
name = "pi-1"
profile = "rpi4"

[[devices]]
name = "cam-1"
profile = "rpi-zero2w"
"""


def parse(text: str) -> DescribedFleet:
    return parse_fleet(text, file="fleet.toml", load=load_profile)


def fault_of(text: str) -> str:
    with pytest.raises(PlanError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def device(more: str, *, profile: str = "rpi4") -> str:
    return f'format = "{FLEET_FORMAT}"\n[[devices]]\nname = "pi-1"\nprofile = "{profile}"\n{more}\n'


# ------------------------------------------------------------------------------------------------------------- reading


def test_a_device_is_what_its_profile_says() -> None:
    fleet = parse(_TWO)
    pi, cam = described_costs(fleet, _MANIFEST)
    profile = load_profile("rpi4")
    assert (pi.name, cam.name) == ("pi-1", "cam-1")
    assert (pi.memory_bytes, pi.flash_bytes) == (profile.usable_memory_bytes, profile.flash_bytes)
    assert pi.link.up_bytes_per_second == profile.link.up_bytes_per_second
    assert pi.source == "profile"
    assert profile.power is not None
    assert pi.busy_watts == profile.power.busy_watts
    assert sum(cam.shard_seconds) > sum(pi.shard_seconds)


def test_nothing_is_between_the_devices_that_is_not_said() -> None:
    network = parse(_TWO).network
    assert network.client == LOCAL_NETWORK
    assert network.broker_bytes_per_second == float("inf")
    assert (network.media, dict(network.pairs)) == ((), {})


def test_a_pattern_stands_for_several_devices_that_are_alike() -> None:
    fleet = parse('format = "1.0"\n[[devices]]\nname = "pi-*"\ncount = 20\nprofile = "rpi4"\n')
    assert [each.name for each in fleet.devices] == [f"pi-{number}" for number in range(1, 21)]
    times = {cost.shard_seconds for cost in described_costs(fleet, _MANIFEST)}
    assert len(times) == 1


def test_what_a_device_has_may_be_told_otherwise() -> None:
    (cost,) = described_costs(
        parse(device("free_memory_bytes = 1000\nflash_bytes = 90_000_000_000\nbusy_watts = 3.5")), _MANIFEST
    )
    assert (cost.memory_bytes, cost.flash_bytes, cost.busy_watts) == (1000, 90_000_000_000, 3.5)


def test_a_measured_rate_counts_in_the_dtype_of_the_bundle() -> None:
    (slow,) = described_costs(parse(device("macs_per_second = 1e6")), _MANIFEST)
    assert slow.shard_seconds == pytest.approx((1000.0,) * 3)


def test_a_faster_network_leaves_messages_as_they_are_and_a_share_of_the_processor_slows_both() -> None:
    plain, faster, shared = (
        described_costs(parse(device(more)), _MANIFEST)[0] for more in ("", "speed_factor = 2", "cpu_share = 0.25")
    )
    assert faster.shard_seconds == pytest.approx([seconds / 2 for seconds in plain.shard_seconds])
    assert faster.message_seconds == plain.message_seconds
    assert shared.shard_seconds == pytest.approx([seconds * 4 for seconds in plain.shard_seconds])
    assert shared.message_seconds == pytest.approx(4 * plain.message_seconds)
    assert shared.message_seconds_per_byte == pytest.approx(4 * plain.message_seconds_per_byte)
    assert shared.session_seconds == pytest.approx(4 * plain.session_seconds)


def test_a_link_is_in_megabits_or_in_bytes_and_keeps_what_is_not_said() -> None:
    mbit, size = (
        described_costs(parse(device(f"link = {{ {way} }}")), _MANIFEST)[0].link
        for way in ("up_mbit_per_second = 8", "down_bytes_per_second = 5e5, latency_seconds = 0.01")
    )
    profile = load_profile("rpi4").link
    assert mbit == LinkCost(
        up_bytes_per_second=1e6,
        down_bytes_per_second=profile.down_bytes_per_second,
        latency_seconds=profile.latency_seconds,
    )
    assert (size.down_bytes_per_second, size.latency_seconds) == (5e5, 0.01)


def test_the_client_and_the_broker_have_limits_of_their_own() -> None:
    network = parse(_TWO + "[client]\nlink = { up_mbit_per_second = 10 }\n[broker]\nmbit_per_second = 100\n").network
    assert network.client.up_bytes_per_second == 1.25e6
    assert network.client.down_bytes_per_second == LOCAL_NETWORK.down_bytes_per_second
    assert network.broker_bytes_per_second == 12.5e6


def test_a_medium_has_those_who_name_it_and_those_it_names() -> None:
    fleet = parse(
        _TWO.replace('"rpi-zero2w"', '"rpi-zero2w"\ncell = "hall"')
        + '[[media]]\nname = "hall"\nmbit_per_second = 40\nmembers = ["pi-*"]\n'
        + '[[media]]\nname = "yard"\nbytes_per_second = 1e6\nmembers = ["client"]\n'
    )
    hall, yard = fleet.network.media
    assert (hall.nodes, hall.bytes_per_second) == (frozenset({"cam-1", "pi-1"}), 5e6)
    assert (yard.nodes, yard.bytes_per_second) == (frozenset({CLIENT}), 1e6)


def test_a_pair_goes_both_ways_unless_it_does_not() -> None:
    pair = '[[pairs]]\nsender = "pi-1"\nreceiver = "cam-1"\nmbit_per_second = 8\nlatency_seconds = 0.001\n'
    both, one = parse(_TWO + pair).network.pairs, parse(_TWO + pair + "both_ways = false\n").network.pairs
    assert set(both) == {("pi-1", "cam-1"), ("cam-1", "pi-1")}
    assert set(one) == {("pi-1", "cam-1")}
    assert both["cam-1", "pi-1"].bytes_per_second == 1e6


def test_the_example_of_the_documentation_is_a_fleet_file() -> None:
    fleet = parse((_DOCS / "fleet.toml").read_text(encoding="utf-8"))
    assert [each.name for each in fleet.devices] == [
        *(f"cam-{number}" for number in (1, 2, 3)),
        *(f"pi-{number}" for number in (1, 2, 3, 4)),
        "gateway",
    ]
    assert fleet.network.media[0].nodes == {"cam-1", "cam-2", "cam-3", CLIENT}


# -------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("devices = 3", "fleet.toml: format: expected a version such as '1.1', got None"),
        ('format = "2.0"', "fleet.toml: format version 2.0 cannot be read; this release reads 1.x"),
        ('format = "1.0"', "fleet.toml: devices: missing; expected list"),
        ('format = "1.0"\ndevices = []', "fleet.toml: devices: expected 1 to 4096 items, got []"),
        (device("colour = 3"), "fleet.toml: devices[0].colour: unknown key; allowed: name, profile, count, "),
        (device("", profile="rpi9"), "fleet.toml: devices[0].profile: unknown profile 'rpi9': choose one of "),
        (device("count = 2"), "fleet.toml: devices[0].name: expected one '*' in it, as count is 2, got 'pi-1'"),
        (device("cpu_share = 1.5"), "fleet.toml: devices[0].cpu_share: expected float from 1e-06 to 1, got 1.5"),
        (device("count = 0"), "fleet.toml: devices[0].count: expected int from 1 to 4096, got 0"),
        (_TWO.replace("cam-1", "pi-1"), "fleet.toml: devices: 'pi-1' is there twice"),
        (_TWO.replace("cam-1", "Cam 1"), "fleet.toml: devices[1].name: device name 'Cam 1'"),
        (_TWO.replace("cam-1", "client"), "fleet.toml: devices[1].name: 'client' is who sends requests: "),
        (
            device("link = { up_mbit_per_second = 1, up_bytes_per_second = 1 }"),
            "fleet.toml: devices[0].link: expected up_bytes_per_second or up_mbit_per_second, got both",
        ),
        (
            _TWO + "[broker]\nmbit_per_second = 1\nbytes_per_second = 1\n",
            "fleet.toml: broker: expected bytes_per_second or mbit_per_second, got both",
        ),
        (
            _TWO + '[[media]]\nname = "hall"\n',
            "fleet.toml: media[0]: expected bytes_per_second or mbit_per_second, got none",
        ),
        (
            _TWO + '[[media]]\nname = "hall"\nmbit_per_second = 1\nmembers = ["pi-9"]\n',
            "fleet.toml: media[0].members[0]: no device is called 'pi-9'",
        ),
        (
            _TWO + '[[pairs]]\nsender = "pi-1"\nreceiver = "pi-9"\nmbit_per_second = 1\n',
            "fleet.toml: pairs[0].receiver: no device is called 'pi-9'",
        ),
        (
            _TWO
            + '[[pairs]]\nsender = "pi-1"\nreceiver = "cam-1"\nmbit_per_second = 1\n'
            + '[[pairs]]\nsender = "cam-1"\nreceiver = "pi-1"\nmbit_per_second = 2\n',
            "fleet.toml: pairs[1]: from 'cam-1' to 'pi-1' is otherwise in pairs[0]; keep one, or set ",
        ),
        (
            _TWO + '[[pairs]]\nsender = "pi-1"\nreceiver = "pi-1"\nmbit_per_second = 1\n',
            "fleet.toml: pairs[0].receiver: expected another device than the sender, got 'pi-1'",
        ),
        (
            device('cell = "hall"', profile="rpi-zero2w"),
            "fleet.toml: devices[0].cell: no medium is called 'hall'; media has none",
        ),
        (
            device('cell = "hall"') + '[[media]]\nname = "hall"\nmbit_per_second = 1\n',
            "fleet.toml: devices[0].cell: profile 'rpi4' is on a cable; say in devices[0].link how fast its Wi-Fi is",
        ),
    ],
)
def test_a_fault_is_named_with_its_place(text: str, fault: str) -> None:
    assert fault_of(text).startswith(fault)


def test_all_faults_are_named_at_once() -> None:
    text = _TWO.replace('"rpi4"', "4") + "[broker]\nmbit_per_second = 'fast'\n"
    assert fault_of(text) == (
        "fleet.toml: devices[0].profile: expected str, got 4; broker.mbit_per_second: expected float, got 'fast'"
    )


def test_more_devices_than_a_fleet_has_are_refused() -> None:
    half = '[[devices]]\nname = "{}-*"\ncount = 4000\nprofile = "rpi4"\n'
    text = 'format = "1.0"\n' + half.format("a") + half.format("b")
    assert fault_of(text) == "fleet.toml: devices: expected at most 4096, got 8000"


def test_a_newer_minor_version_is_read_without_its_new_keys() -> None:
    major, _, minor = FLEET_FORMAT.partition(".")
    newer = device("colour = 3").replace(FLEET_FORMAT, f"{major}.{int(minor) + 1}")
    assert len(parse(newer).devices) == 1


def test_text_that_is_no_toml_is_refused() -> None:
    assert fault_of("devices [").startswith("fleet.toml: not TOML: ")


def outcome(text: str) -> DescribedFleet | str:
    try:
        return parse(text)
    except PlanError as error:
        return str(error)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for content in (text, _TWO + text):
        found = outcome(content)
        assert isinstance(found, DescribedFleet) or found.startswith("fleet.toml: ")
