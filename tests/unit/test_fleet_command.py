"""`shardwire fleet`: what a device measured of itself, in a few words and in full."""

from __future__ import annotations

import pytest

from edge.formats.message import Metrics, Session, Speed, Transfer
from edge.formats.speed import LinkSpeed, ModelSpeed, OperatorSpeed
from host.cli.fleet import _record, fetching_text, measured_text
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


def metrics(*transfers: Transfer) -> Metrics:
    return Metrics(node="pi-1", session=Session(boot=1, connect=1), uptime_seconds=5.0, transfers=transfers)


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (None, ""),
        (metrics(), ""),
        (metrics(Transfer(digest="sha256:0", done_bytes=0, total_bytes=0)), ""),
        (
            metrics(
                Transfer(digest="sha256:0", done_bytes=3 << 20, total_bytes=4 << 20, holder="pi-2"),
                Transfer(digest="sha256:1", done_bytes=0, total_bytes=4 << 20, holder="host-1"),
            ),
            "38% of 8.0 MiB from host-1, pi-2",
        ),
    ],
)
def test_what_is_on_its_way_is_told_with_who_is_asked_for_it(told: Metrics | None, text: str) -> None:
    assert fetching_text(told) == text
