"""What a plan must keep to, in the words of the command line."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from edge.errors import FormatError
from edge.formats.plan import Constraints, Pin
from host.cli.constraints import check_devices, device_names, read_constraints
from host.errors import PlanError
from tests.fake_bundle import fake_bundle

_PLAIN = fake_bundle(shards=4).manifest
_MANIFEST = msgspec.structs.replace(
    _PLAIN,
    name="net",
    layers=tuple(
        msgspec.structs.replace(layer, name=name)
        for layer, name in zip(_PLAIN.layers, ("stem", "scope:conv", "7", "head"), strict=True)
    ),
)


def read(
    *, devices: str = "", without: Sequence[str] = (), pins: Sequence[str] = (), forbidden: Sequence[str] = ()
) -> Constraints:
    return read_constraints(
        _MANIFEST,
        devices=devices,
        without=without,
        pins=pins,
        forbidden=forbidden,
        use_all=False,
        most_replicas=4,
        side_by_side=True,
    )


def test_nothing_said_is_nothing_to_keep_to() -> None:
    assert read() == Constraints()


@pytest.mark.parametrize(
    ("text", "layer"),
    [("0:cam-1", 0), ("3:cam-1", 3), ("-1:cam-1", 3), ("-4:cam-1", 0), ("head:cam-1", 3), ("scope:conv:cam-1", 1)],
)
def test_a_layer_is_a_number_a_number_from_the_end_or_a_name(text: str, layer: int) -> None:
    assert read(pins=[text]).pins == (Pin(layer=layer, device="cam-1"),)
    assert read(forbidden=[text]).forbidden == (Pin(layer=layer, device="cam-1"),)


def test_a_name_counts_before_a_number() -> None:
    assert read(pins=["7:cam-1"]).pins == (Pin(layer=2, device="cam-1"),)


def test_devices_are_named_once_each_in_one_word_or_several() -> None:
    found = read(devices="pi-1, pi-2,pi-1", without=["pi-3", "pi-4,pi-3"])
    assert (found.devices, found.without) == (("pi-1", "pi-2"), ("pi-3", "pi-4"))
    assert device_names("  ") == ()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("cam-1", "--pin 'cam-1': give LAYER:DEVICE, such as 0:pi-1"),
        (":cam-1", "--pin ':cam-1': give LAYER:DEVICE, such as 0:pi-1"),
        ("0:", "--pin '0:': give LAYER:DEVICE, such as 0:pi-1"),
        ("4:cam-1", "--pin: no layer 4; 'net' has layers 0 to 3, or -1 to -4"),
        ("-5:cam-1", "--pin: no layer -5; 'net' has layers 0 to 3, or -1 to -4"),
        ("stme:cam-1", "--pin: 'net' has no layer called 'stme'; did you mean 'stem'? see shardwire inspect --json"),
        ("body:cam-1", "--pin: 'net' has no layer called 'body'; see shardwire inspect --json"),
    ],
)
def test_a_pin_that_cannot_be_is_named_in_one_line(text: str, fault: str) -> None:
    with pytest.raises(PlanError) as caught:
        read(pins=[text])
    assert str(caught.value) == fault


@pytest.mark.parametrize(("devices", "without"), [("", ["pi-1"]), ("pi-2", [])])
def test_no_layer_is_pinned_to_a_device_that_may_not_take_part(devices: str, without: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        read(pins=["2:pi-1"], devices=devices, without=without)
    assert str(caught.value) == "--pin: layer 2 is to stay on pi-1, which may not take part"


def test_a_device_whose_name_is_none_is_refused() -> None:
    with pytest.raises(FormatError, match="device name 'Cam 1'"):
        read(pins=["0:Cam 1"])


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (Constraints(devices=("x",)), "--devices: no device called 'x' in fleet 'lab'; there are: pi-1, pi-2"),
        (Constraints(without=("x",)), "--without: no device called 'x' in fleet 'lab'; there are: pi-1, pi-2"),
        (
            Constraints(pins=(Pin(layer=0, device="x"),)),
            "--pin: no device called 'x' in fleet 'lab'; there are: pi-1, pi-2",
        ),
        (
            Constraints(forbidden=(Pin(layer=0, device="x"),)),
            "--forbid: no device called 'x' in fleet 'lab'; there are: pi-1, pi-2",
        ),
    ],
)
def test_every_device_that_is_spoken_of_must_be_there(found: Constraints, fault: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_devices(found, ["pi-2", "pi-1"], where="fleet 'lab'")
    assert str(caught.value) == fault
