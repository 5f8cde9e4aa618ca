"""`shardwire fleet`: what a device measured of itself, in a few words and in full."""

from __future__ import annotations

import pytest

from edge.formats.message import Speed
from edge.formats.speed import LinkSpeed, ModelSpeed, OperatorSpeed
from host.cli.fleet import _record, measured_text
from host.fleet.observe import Sighting
from host.fleet.roster import Node

_MODEL = ModelSpeed(
    manifest="sha256:" + "0" * 64,
    mode="default",
    threads=1,
    runtime="onnxruntime 1.32.0",
    shard_seconds=(0.01, -1.0),
    session_seconds=0.001,
)
_OPERATOR = OperatorSpeed(kind="conv", macs_per_second=1e9, memory_bytes_per_second=1e9, call_seconds=1e-5)
_LINK = LinkSpeed(bytes_per_second=11 * 2**20, latency_seconds=0.001)


def speed(**known: object) -> Speed:
    return Speed(node="pi-1", profile="rpi4", **known)  # type: ignore[arg-type]  # each test names real fields


@pytest.mark.parametrize(
    ("known", "text"),
    [
        (None, "nothing"),
        (speed(), "nothing"),
        (speed(models=(_MODEL,)), "1 model"),
        (speed(models=(_MODEL, _MODEL), message_seconds=0.00051), "2 models, 0.5 ms a message"),
        (speed(operators=(_OPERATOR,), link=_LINK), "operators, 11.0 MiB/s"),
    ],
)
def test_what_was_measured_is_told_in_a_few_words(known: Speed | None, text: str) -> None:
    assert measured_text(known) == text


def test_json_has_all_that_was_measured_and_null_for_what_was_not() -> None:
    measured = speed(models=(_MODEL,), message_seconds=0.0005)
    record = _record(Sighting(node=Node(name="pi-1", speed=measured), online=True))
    assert record["speed"] == {
        "operators": [],
        "message_seconds": 0.0005,
        "message_seconds_per_byte": None,
        "link": None,
        "models": [
            {
                "manifest": _MODEL.manifest,
                "mode": "default",
                "threads": 1,
                "runtime": "onnxruntime 1.32.0",
                "shard_seconds": (0.01, -1.0),
                "session_seconds": 0.001,
            }
        ],
    }
    assert _record(Sighting(node=Node(name="pi-1"), online=False))["speed"] is None
