"""What was served before serves again, under a new epoch; older and expired bundles are refused otherwise."""

from __future__ import annotations

import pytest

from edge.errors import Downgrade
from edge.formats.message import RollbackRequest, UndeployRequest
from edge.formats.plan import Deployment, decode_deployment
from host.fleet.admission import check_version_order
from tests.fake_bundle import fake_bundle, joined
from tests.fake_fleet import TOPICS, FakeCoordinator, FakeFleet, deploy_request, deployed, outcome

OLD, NEW = fake_bundle(), fake_bundle(version="1.10.0", weight_bytes=1001)
BOTH = joined(OLD, NEW)


@pytest.fixture
def fleet() -> FakeFleet:
    found = FakeFleet()
    for name in ("pi-1", "pi-2", "pi-3"):
        found.device(name)
    return found


def serving(fleet: FakeFleet) -> Deployment:
    return decode_deployment(fleet.retained(TOPICS.serving("net")))


def ask_back(fleet: FakeFleet, coordinator: FakeCoordinator, request_id: str) -> str:
    coordinator.ask(RollbackRequest(request_id=request_id, name="net", reply_to=""))
    fleet.pass_seconds(5)
    return outcome(coordinator, request_id).reason


def updated(fleet: FakeFleet) -> FakeCoordinator:
    coordinator = deployed(fleet, BOTH)
    coordinator.ask(deploy_request(NEW, "pi-2", "pi-3", request_id="r2"))
    fleet.pass_seconds(4)
    assert outcome(coordinator, "r2").ok, outcome(coordinator, "r2")
    return coordinator


def test_the_bundle_of_before_serves_under_a_new_epoch_and_back_again(fleet: FakeFleet) -> None:
    coordinator = updated(fleet)
    assert ask_back(fleet, coordinator, "r3") == "serves the bundle of before, epoch 1-aaaa-3"
    value = serving(fleet)
    assert (value.epoch, value.manifest, value.rolls_back) == ("1-aaaa-3", OLD.manifest_blob, True)
    assert coordinator.history[-1].what == "rolled-back"
    ask_back(fleet, coordinator, "r4")
    assert serving(fleet).manifest == NEW.manifest_blob


def test_it_is_planned_anew_for_who_is_here(fleet: FakeFleet) -> None:
    coordinator = updated(fleet)
    fleet.devices[0].kill()
    fleet.pass_seconds(4)
    ask_back(fleet, coordinator, "r3")
    plan = serving(fleet).plan
    assert plan is not None
    assert {name for stage in plan.stages for name in stage.devices} == {"pi-2"}, "pi-1 and pi-2 were named then"


def test_a_new_plan_of_the_same_bundle_does_not_change_what_was_before(fleet: FakeFleet) -> None:
    coordinator = updated(fleet)
    before = serving(fleet).before
    assert before is not None
    assert (before.epoch, before.manifest) == ("1-aaaa-1", OLD.manifest_blob)
    coordinator.ask(deploy_request(NEW, "pi-1", "pi-3", request_id="r3"))
    fleet.pass_seconds(4)
    assert serving(fleet).before == before


def test_where_nothing_was_before_it_says_so(fleet: FakeFleet) -> None:
    coordinator = deployed(fleet, BOTH)
    assert ask_back(fleet, coordinator, "r2") == (
        "nothing but this bundle was served as net: there is nothing to go back to"
    )
    coordinator.ask(UndeployRequest(request_id="r3", name="net", reply_to=""))
    fleet.pass_seconds(4)
    assert ask_back(fleet, coordinator, "r4") == "no deployment called 'net'; there is none"


def test_an_older_bundle_is_refused_unless_it_is_wanted(fleet: FakeFleet) -> None:
    coordinator = updated(fleet)
    coordinator.ask(deploy_request(OLD, request_id="r3"))
    fleet.pass_seconds(4)
    assert outcome(coordinator, "r3").reason == (
        "double 1.0.0 is older than 1.10.0, which serves: use --allow-older, or `shardwire rollback`"
    )
    coordinator.ask(deploy_request(OLD, request_id="r4", allow_older=True))
    fleet.pass_seconds(4)
    assert outcome(coordinator, "r4").ok
    assert serving(fleet).rolls_back


def test_an_expired_bundle_is_refused_by_the_date_of_the_coordinator(fleet: FakeFleet) -> None:
    bundle = fake_bundle(expires="2026-02-28")
    coordinator = fleet.coordinator(bundle, utc="2026-03-01T00:00:00Z")
    coordinator.ask(deploy_request(bundle))
    fleet.pass_seconds(4)
    assert outcome(coordinator).reason == "double 1.0.0 expired on 2026-02-28: package it anew"
    assert fleet.retained(TOPICS.desired("net")) == b"", "nothing is shipped"


def test_devices_learn_the_time_from_what_is_deployed(fleet: FakeFleet) -> None:
    deployed(fleet, BOTH)
    assert serving(fleet).issued == "2026-03-01T12:00:00Z"


def test_another_model_under_the_same_name_is_no_downgrade() -> None:
    other = fake_bundle(version="9.0.0").manifest
    check_version_order(OLD.manifest, None, allow_older=False)
    with pytest.raises(Downgrade):
        check_version_order(OLD.manifest, other, allow_older=False)
