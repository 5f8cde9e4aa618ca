"""What is known of deployments: the greatest epoch wins, tombstones count, absence means nothing."""

from __future__ import annotations

import pytest

from edge.errors import FormatError
from edge.formats.plan import Deployment, Plan, Stage, encode_deployment, parse_epoch
from host.fleet.ledger import Ledger, News
from tests.fake_bundle import fake_bundle

_PLAN = Plan(
    objective="throughput",
    stages=(Stage(index=0, device="pi-1", first_shard=0, stop_shard=1),),
    bottleneck_seconds=1.0,
    latency_seconds=1.0,
    binds="",
)


def value(epoch: str, *, removed: bool = False, name: str = "net") -> Deployment:
    manifest = None if removed else fake_bundle().manifest_blob
    return Deployment(name=name, epoch=epoch, manifest=manifest, plan=None if removed else _PLAN)


@pytest.mark.parametrize("newer", ["1-b-1", "1-a-2", "2-a-1", "10-a-1"])
def test_the_greater_epoch_is_kept_whatever_comes_last(newer: str) -> None:
    ledger = Ledger()
    assert ledger.keep(value("1-a-1")) is News.NEWER
    assert ledger.keep(value(newer)) is News.NEWER
    assert ledger.keep(value("1-a-1")) is News.OLDER
    assert ledger.keep(value(newer)) is News.SAME
    assert ledger.serving("net") == value(newer)


def test_a_tombstone_removes_and_is_remembered() -> None:
    ledger = Ledger([value("1-a-1")])
    assert ledger.names() == ["net"]
    ledger.keep(value("1-a-2", removed=True))
    assert ledger.names() == []
    assert ledger.keep(value("1-a-1")) is News.OLDER


def test_an_epoch_that_was_only_prepared_counts_for_the_order_and_serves_nothing() -> None:
    ledger = Ledger()
    assert ledger.receive("net", "desired", encode_deployment(value("3-a-1"))) is None
    assert ledger.newest("net") == parse_epoch("3-a-1")
    assert ledger.names() == []


def test_absence_means_nothing() -> None:
    ledger = Ledger([value("1-a-1")])
    assert ledger.receive("net", "serving", b"") is None
    assert ledger.names() == ["net"]


def test_a_value_under_another_name_is_refused() -> None:
    with pytest.raises(FormatError, match="deployment 'net' on the topic of 'other'"):
        Ledger().receive("other", "serving", encode_deployment(value("1-a-1")))
