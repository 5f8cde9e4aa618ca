"""Retained deployments: decoded once for each change, and never one for another."""

from __future__ import annotations

import pytest

from edge.errors import FormatError
from edge.formats.plan import Deployment, encode_deployment
from edge.protocol.readings import Readings


def payload(name: str, epoch: str = "1-a-1", *, holders: int = 0) -> bytes:
    named = tuple(f"pi-{number}" for number in range(holders))
    return encode_deployment(Deployment(name=name, epoch=epoch, manifest=None, plan=None, holders=named))


def test_a_payload_that_came_before_is_not_decoded_again() -> None:
    readings = Readings()
    first = readings.read("net/serving", payload("net"), name="net")
    assert readings.read("net/serving", bytes(bytearray(payload("net"))), name="net") is first


def test_each_topic_has_its_own_last_payload_and_another_one_replaces_it() -> None:
    readings = Readings()
    first = readings.read("net/serving", payload("net"), name="net")
    assert readings.read("net/desired", payload("net", "1-a-2"), name="net").epoch == "1-a-2"
    assert readings.read("net/serving", payload("net"), name="net") is first
    assert readings.read("net/serving", payload("net", "1-a-3"), name="net").epoch == "1-a-3"
    assert readings.read("net/serving", payload("net"), name="net") is not first


@pytest.mark.parametrize("bad", [b"", b"{", payload("other")])
def test_what_is_malformed_or_of_another_name_is_refused_each_time_and_not_remembered(bad: bytes) -> None:
    readings = Readings()
    good = readings.read("net/serving", payload("net"), name="net")
    for _ in range(2):
        with pytest.raises(FormatError):
            readings.read("net/serving", bad, name="net")
    assert readings.read("net/serving", payload("net"), name="net") is good


def test_what_is_remembered_is_bounded_in_topics_and_in_bytes() -> None:
    readings = Readings()
    small = readings.read("net/serving", payload("net"), name="net")
    for number in range(63):
        readings.read(f"n{number}/serving", payload(f"n{number}"), name=f"n{number}")
    assert readings.read("net/serving", payload("net"), name="net") is small
    readings.read("one-more/serving", payload("one-more"), name="one-more")
    assert readings.read("net/serving", payload("net"), name="net") is not small

    large = [payload(f"n{number}", holders=110_000) for number in range(4)]
    assert 2 * len(large[0]) < 4 * 1024 * 1024 < 4 * len(large[0])
    read = [readings.read(f"n{at}/serving", data, name=f"n{at}") for at, data in enumerate(large)]
    again = [readings.read(f"n{at}/serving", large[at], name=f"n{at}") is read[at] for at in (3, 2, 0)]
    assert again == [True, True, False]
