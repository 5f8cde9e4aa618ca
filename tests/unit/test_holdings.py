"""Who holds which blobs, as a deployment says it to those who fetch."""

from __future__ import annotations

import pytest

from edge.formats.message import Kept, Ready
from edge.formats.plan import Deployment, Holding, decode_deployment
from host.fleet.deploy_job import COPY_SECONDS
from host.fleet.holdings import KnownHolders, known_holdings, merged, own_holdings
from tests.fake_bundle import fake_bundle, joined
from tests.fake_fleet import TOPICS, FakeFleet, deploy_request, deployed, outcome
from tests.tiny_bundle import make_deployment, make_tiny_bundle

OLD, NEW = fake_bundle(), fake_bundle(version="1.1.0", weight_bytes=1001)
TINY = make_tiny_bundle()


@pytest.fixture
def fleet() -> FakeFleet:
    found = FakeFleet()
    for name in ("pi-1", "pi-2", "pi-3"):
        found.device(name)
    return found


def value(fleet: FakeFleet, kind: str) -> Deployment:
    return decode_deployment(fleet.retained(TOPICS.desired("net") if kind == "desired" else TOPICS.serving("net")))


def test_a_first_deployment_is_held_by_its_coordinator_and_then_by_its_devices_too(fleet: FakeFleet) -> None:
    deployed(fleet, OLD)
    serving = value(fleet, "serving")
    assert serving.plan is not None
    first, second = serving.plan.stages
    assert serving.holdings[:3] == (
        Holding(node="coordinator-aaaa", first_shard=0, stop_shard=4, golden=True),
        Holding(node=first.device, first_shard=0, stop_shard=first.stop_shard, golden=True),
        Holding(node=second.device, first_shard=second.first_shard, stop_shard=4),
    )


def test_a_coordinator_for_one_command_stays_until_the_devices_have_what_only_it_holds(fleet: FakeFleet) -> None:
    coordinator = fleet.coordinator(OLD, staying=False)
    fleet.devices[0].keeps = fleet.devices[1].keeps = False
    coordinator.ask(deploy_request(OLD, "pi-1", "pi-2"))
    fleet.pass_seconds(8)
    assert coordinator.phases[-1] == "leaving copies with the devices"
    assert not outcome(coordinator).done
    fleet.pass_seconds(COPY_SECONDS)
    assert outcome(coordinator).ok
    assert outcome(coordinator).done
    assert {held.node for held in value(fleet, "serving").holdings} <= {"pi-1", "pi-2"}


def test_devices_of_another_bundle_are_asked_last_for_what_both_share(fleet: FakeFleet) -> None:
    coordinator = deployed(fleet, joined(OLD, NEW))
    fleet.devices[2].behaviour = lambda device, deployment: False
    coordinator.ask(deploy_request(NEW, "pi-3", request_id="r2"))
    fleet.pass_seconds(4)
    desired = value(fleet, "desired")
    assert {held.node for held in desired.holdings} == {"coordinator-aaaa"}
    assert desired.holders == ("coordinator-aaaa", "pi-3", "pi-1", "pi-2")


def test_who_said_to_hold_it_comes_before_who_should_and_who_is_away_last() -> None:
    served = make_deployment(TINY, ("pi-0", "pi-1"))
    known = KnownHolders()
    kept = Kept(deployment=served.name, epoch=served.epoch, stages=(1,))
    known.hear("pi-9", kept)
    ready = Ready(deployment=served.name, epoch=served.epoch, stage=1, fetched_bytes=0, load_seconds=0.0, rss_bytes=0)
    known.hear("pi-1", ready)
    found = known_holdings(served, TINY.manifest, known, lambda name: name != "pi-1")
    assert [held.node for held in found] == ["pi-9", "pi-0", "pi-1"]
    known.forget("pi-9")
    assert "pi-9" not in [held.node for held in known_holdings(served, TINY.manifest, known, lambda _name: True)]


def test_a_coordinator_says_only_what_it_has() -> None:
    lacking = {blob.digest for blob in OLD.manifest.blobs(1, 2)} - {blob.digest for blob in OLD.manifest.blobs(0, 1)}
    found = own_holdings("boss", OLD.manifest, lambda digest: digest in OLD.stored and digest not in lacking)
    assert found == [
        Holding(node="boss", first_shard=0, stop_shard=1, golden=True),
        Holding(node="boss", first_shard=2, stop_shard=4),
    ]
    assert own_holdings("boss", OLD.manifest, lambda _digest: False) == []


def test_nothing_is_said_twice() -> None:
    whole = Holding(node="a", first_shard=0, stop_shard=4)
    golden = Holding(node="a", first_shard=0, stop_shard=1, golden=True)
    assert merged([whole, Holding(node="a", first_shard=1, stop_shard=2), golden, golden]) == [whole, golden]
