"""What a coordinator does by itself when devices come, go, slow down or refuse; virtual clock, no broker."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from edge.formats.message import Failed, Hello, Session, Speed, UndeployRequest, decode_message, encode_message
from edge.formats.plan import Deployment, Plan, decode_deployment
from edge.formats.speed import LinkSpeed
from edge.store import BlobStore
from edge.transport import Channel, Publication
from host.fleet.blobs import MemoryBlobs
from host.fleet.collect import Collector
from host.fleet.coordinator import Coordinator
from host.fleet.identity import Caller
from host.fleet.jobs import GRACE_SECONDS
from host.fleet.lease import LeaseKeeper
from host.fleet.watch import LEAST_SECONDS, RECHECK_SECONDS
from tests.fake_bundle import FakeBundle, fake_bundle
from tests.fake_fleet import TOPICS, FakeCoordinator, FakeDevice, FakeFleet, deploy_request, outcome
from tests.watched_fleets import SERVING, heard, named, plan_of, slow, users, watched

_GONE_SECONDS = 5
_QUIET_SECONDS = max(LEAST_SECONDS, GRACE_SECONDS) + 5


@pytest.fixture
def bundle() -> FakeBundle:
    return fake_bundle()


@pytest.fixture
def fleet() -> FakeFleet:
    found = FakeFleet()
    for name in ("pi-1", "pi-2", "pi-3"):
        found.device(name)
    return found


def places(plan: Plan) -> list[tuple[tuple[str, ...], int, int]]:
    return [(stage.runners, stage.first_shard, stage.stop_shard) for stage in plan.stages]


# ------------------------------------------------------------------------------------------------ devices that leave
def test_a_device_that_leaves_is_replaced_and_the_others_keep_what_they_have(
    fleet: FakeFleet, bundle: FakeBundle
) -> None:
    watched(fleet, bundle)
    before = plan_of(fleet)
    fleet.pass_seconds(GRACE_SECONDS)
    named(fleet, before.stages[-1].device).kill()
    fleet.pass_seconds(_GONE_SECONDS + 3)
    after = plan_of(fleet)
    assert fleet.epoch_of(SERVING) == "1-aaaa-2"
    assert before.stages[-1].device not in users(fleet)
    assert [(s.device, s.stop_shard) for s in after.stages[:-1]] == [
        (s.device, s.stop_shard) for s in before.stages[:-1]
    ]
    value = decode_deployment(fleet.retained(SERVING))
    assert value.constraints == deploy_request(bundle, use_all=False).constraints
    assert set(value.holders) >= users(fleet) | {"coordinator-aaaa"}


def test_a_device_that_comes_back_soon_is_waited_for(fleet: FakeFleet, bundle: FakeBundle) -> None:
    watched(fleet, bundle)
    fleet.pass_seconds(GRACE_SECONDS)
    gone = named(fleet, plan_of(fleet).stages[0].device)
    gone.kill()
    fleet.turn()
    gone.revive()
    fleet.pass_seconds(_GONE_SECONDS)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"


def test_a_device_that_is_there_and_cannot_run_its_stage_any_more_is_replaced(
    fleet: FakeFleet, bundle: FakeBundle
) -> None:
    watched(fleet, bundle)
    fleet.pass_seconds(GRACE_SECONDS)
    bad = plan_of(fleet).stages[0].device
    epoch = fleet.epoch_of(SERVING)
    named(fleet, bad).send(Failed(deployment="net", epoch=epoch, stage=0, code="StageError", reason="disk"))
    fleet.pass_seconds(5)
    assert fleet.epoch_of(SERVING) == "1-aaaa-2"
    assert bad not in users(fleet)


def test_without_a_golden_input_nothing_is_replaced_and_it_is_said_what_to_do(
    fleet: FakeFleet, bundle: FakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="host.fleet.watch")
    first = fleet.coordinator(bundle, staying=False)
    first.ask(deploy_request(bundle, use_all=False))
    fleet.pass_seconds(5)
    first.leave()
    fleet.coordinators.remove(first)
    manifest = bundle.manifest_blob.digest
    poor = replace(bundle, blobs=MemoryBlobs({manifest: bundle.blobs.read(manifest)}))
    fleet.coordinator(poor, name="coordinator-bbbb", horizon_seconds=600.0)
    fleet.pass_seconds(GRACE_SECONDS + 3)
    named(fleet, plan_of(fleet).stages[0].device).kill()
    fleet.pass_seconds(2 * _GONE_SECONDS)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"
    reason = "a golden input of its bundle is held by nobody who is here: deploy it again"
    assert [record.message for record in caplog.records] == [f"net: {reason}", f"net: degraded: {reason}"]


def test_only_devices_that_were_named_take_over(fleet: FakeFleet, bundle: FakeBundle) -> None:
    watched(fleet, bundle, "pi-1", "pi-2")
    fleet.pass_seconds(GRACE_SECONDS)
    named(fleet, "pi-1").kill()
    fleet.pass_seconds(_GONE_SECONDS + 3)
    assert users(fleet) == {"pi-2"}


def test_a_coordinator_for_one_command_leaves_plans_alone(fleet: FakeFleet, bundle: FakeBundle) -> None:
    coordinator = fleet.coordinator(bundle, staying=False)
    coordinator.ask(deploy_request(bundle, use_all=False))
    fleet.pass_seconds(GRACE_SECONDS + 5)
    named(fleet, plan_of(fleet).stages[0].device).kill()
    fleet.pass_seconds(2 * _GONE_SECONDS)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"


def test_who_took_over_watches_what_it_did_not_deploy(fleet: FakeFleet, bundle: FakeBundle) -> None:
    first = watched(fleet, bundle)
    fleet.coordinator(bundle, name="coordinator-bbbb", horizon_seconds=600.0)
    fleet.pass_seconds(3)
    first.transport.cut(Channel.CONTROL)
    first.transport.cut(Channel.DATA)
    fleet.coordinators.remove(first)
    fleet.pass_seconds(GRACE_SECONDS)
    gone = plan_of(fleet).stages[0].device
    named(fleet, gone).kill()
    fleet.pass_seconds(_GONE_SECONDS + 3)
    assert fleet.epoch_of(SERVING) == "2-bbbb-1"
    assert gone not in users(fleet)


def test_who_stands_by_collects_what_it_will_need(fleet: FakeFleet, bundle: FakeBundle, tmp_path: Path) -> None:
    first = watched(fleet, bundle)
    caller = Caller(node="coordinator-bbbb", session=Session(boot=1, connect=1), topics=TOPICS)
    store = BlobStore(tmp_path)
    core = Coordinator(
        caller,
        blobs=store,
        collector=Collector(store, caller),
        keeper=LeaseKeeper(node=caller.node, session=caller.session, now=fleet.now),
        staying=True,
        horizon_seconds=600.0,
    )
    fleet.coordinators.append(FakeCoordinator(core=core, fleet=fleet))
    fleet.pass_seconds(8)
    manifest = bundle.manifest
    golden = [blob for pair in manifest.golden for blob in (pair.inputs, pair.whole)]
    assert not store.missing([bundle.manifest_blob, *golden, *manifest.blobs(0, len(manifest.shards))])
    first.transport.cut(Channel.CONTROL)
    first.transport.cut(Channel.DATA)
    fleet.coordinators.remove(first)
    named(fleet, plan_of(fleet).stages[0].device).kill()
    fleet.pass_seconds(_GONE_SECONDS + 5)
    value = decode_deployment(fleet.retained(SERVING))
    assert value.epoch == "2-bbbb-1"
    assert "coordinator-aaaa" not in value.holders
    assert "coordinator-bbbb" in value.holders


def test_a_deploy_of_the_same_bundle_leaves_it_where_it_is(fleet: FakeFleet, bundle: FakeBundle) -> None:
    coordinator = watched(fleet, bundle, "pi-2", "pi-3")
    before = plan_of(fleet)
    coordinator.ask(deploy_request(bundle, request_id="r2", use_all=False))
    fleet.pass_seconds(5)
    assert outcome(coordinator, "r2").ok
    assert places(plan_of(fleet)) == places(before)


# ------------------------------------------------------------------------------------------------- devices that join
def test_a_fast_device_that_joins_is_used_and_a_useless_one_is_not(fleet: FakeFleet, bundle: FakeBundle) -> None:
    watched(fleet, bundle)
    fleet.device("zero", profile="rpi-zero2w")
    fleet.pass_seconds(_QUIET_SECONDS)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"
    fleet.device("box", profile="x86-gateway")
    fleet.pass_seconds(8)
    assert "box" in users(fleet)
    fleet.pass_seconds(_QUIET_SECONDS)
    assert fleet.epoch_of(SERVING) == "1-aaaa-2", "what was decided is not decided again"


def test_a_device_that_comes_back_has_a_stage_again_where_every_device_must(
    fleet: FakeFleet, bundle: FakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="host.fleet.watch")
    fleet.device("zero", profile="rpi-zero2w")
    coordinator = fleet.coordinator(bundle, horizon_seconds=600.0)
    coordinator.ask(deploy_request(bundle, "pi-1", "zero", use_all=True))
    fleet.pass_seconds(5)
    assert users(fleet) == {"pi-1", "zero"}
    fleet.pass_seconds(GRACE_SECONDS)
    named(fleet, "zero").kill()
    fleet.pass_seconds(_GONE_SECONDS + 5)
    assert users(fleet) == {"pi-1"}
    named(fleet, "zero").revive()
    fleet.pass_seconds(_QUIET_SECONDS)
    assert users(fleet) == {"pi-1", "zero"}
    expected = "net: plans again, zero joined: every device must have a stage, and zero has none; "
    assert expected in caplog.records[-1].message


def test_what_made_a_plan_better_may_be_nothing_that_was_seen(
    fleet: FakeFleet, bundle: FakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="host.fleet.watch")
    box = fleet.device("box", profile="x86-gateway", free_memory_bytes=1)
    watched(fleet, bundle)
    fleet.pass_seconds(_QUIET_SECONDS)
    assert "box" not in users(fleet)
    box.free_memory_bytes = 1 << 30
    box.announce()
    fleet.pass_seconds(RECHECK_SECONDS + 8)
    assert "box" in users(fleet)
    assert "net: plans again, found a better plan: " in caplog.records[-1].message


def test_plans_do_not_follow_each_other_at_once(fleet: FakeFleet, bundle: FakeBundle) -> None:
    watched(fleet, bundle)
    fleet.device("box", profile="x86-gateway")
    fleet.pass_seconds(LEAST_SECONDS - 8)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"
    fleet.pass_seconds(12)
    assert fleet.epoch_of(SERVING) == "1-aaaa-2"


# -------------------------------------------------------------------------------------------- devices that slow down
def test_a_device_that_proves_slow_gets_less_to_do(
    fleet: FakeFleet, bundle: FakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="host.fleet.watch")
    watched(fleet, bundle, "pi-1", "pi-2")
    before = plan_of(fleet)
    slowed = before.stages[0].device
    fleet.pass_seconds(_QUIET_SECONDS)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"
    named(fleet, slowed).run_seconds = slow(3.0)
    fleet.pass_seconds(10)
    assert fleet.epoch_of(SERVING) == "1-aaaa-2"
    shards = {stage.device: stage.stop_shard - stage.first_shard for stage in plan_of(fleet).stages}
    assert shards.get(slowed, 0) < before.stages[0].stop_shard
    (line,) = [record.message for record in caplog.records if "plans again" in record.message]
    assert f"net: plans again, {slowed} takes 3." in line
    assert "requests/s instead of" in line
    assert "MiB move in" in line


def test_a_link_that_degrades_is_avoided_when_the_device_has_measured_it(
    fleet: FakeFleet, bundle: FakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="host.fleet.watch")
    watched(fleet, bundle)
    slowed = plan_of(fleet).stages[0].device
    fleet.pass_seconds(_QUIET_SECONDS)
    speed = Speed(node=slowed, profile="rpi4", link=LinkSpeed(bytes_per_second=10.0, latency_seconds=0.5))
    payload = encode_message(speed)
    fleet.broker.route(
        Publication(channel=Channel.CONTROL, topic=TOPICS.speed(slowed), payload=payload, qos=1, retain=True)
    )
    fleet.pass_seconds(10)
    assert slowed not in users(fleet)
    assert f"net: plans again, {slowed} measured itself anew: " in caplog.records[-1].message


def test_noise_changes_nothing(fleet: FakeFleet, bundle: FakeBundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="host.fleet.watch")
    watched(fleet, bundle)
    noise = itertools.cycle([0.9, 1.1, 1.0, 1.08, 0.93])
    for device in fleet.devices:
        device.run_seconds = lambda stage: next(noise) * stage.predicted_seconds
    fleet.pass_seconds(200)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"
    assert len(caplog.records) == 1, [record.message for record in caplog.records]


# ------------------------------------------------------------------------------------------------------ what goes wrong
def refuse(device: FakeDevice, value: Deployment) -> bool:
    device.send(Failed(deployment="net", epoch=value.epoch, stage=0, code="OutOfMemory", reason="no room"))
    return False


def test_a_device_that_refuses_is_left_out_of_the_next_try(fleet: FakeFleet, bundle: FakeBundle) -> None:
    watched(fleet, bundle)
    spare = next(device for device in fleet.devices if device.name not in users(fleet))
    spare.behaviour = refuse
    fleet.pass_seconds(GRACE_SECONDS)
    named(fleet, plan_of(fleet).stages[0].device).kill()
    fleet.pass_seconds(3)
    assert fleet.epoch_of(SERVING) == "1-aaaa-3", "what the failure taught is not waited with"
    assert spare.name not in users(fleet)


def test_a_change_that_fails_again_and_again_is_tried_ever_more_rarely(fleet: FakeFleet, bundle: FakeBundle) -> None:
    watched(fleet, bundle, "pi-1", "pi-2")
    fleet.pass_seconds(GRACE_SECONDS)
    for device in fleet.devices:
        device.factor = 2.1  # every probe fails
    tried = heard(fleet, TOPICS.desired("net"))
    named(fleet, "pi-1").kill()
    fleet.pass_seconds(_GONE_SECONDS)
    tries = []
    for _ in range(3):
        fleet.pass_seconds(60)
        tries.append(len({decode_deployment(payload).epoch for payload in tried if payload}))
    assert tries[0] >= 2
    assert tries[2] - tries[0] <= 2, tries
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"


def test_what_cannot_be_mended_is_said_once_and_to_whoever_asks(
    fleet: FakeFleet, bundle: FakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="host.fleet.watch")
    watched(fleet, bundle, "pi-1")
    fleet.pass_seconds(GRACE_SECONDS)
    events = heard(fleet, TOPICS.event("coordinator-aaaa"))
    caplog.clear()
    named(fleet, "pi-1").kill()
    fleet.pass_seconds(100)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["net: degraded: no device is here that can take part"]
    told = [decode_message(payload, Failed) for payload in events]
    assert [(one.deployment, one.epoch, one.reason) for one in told] == [
        ("net", "1-aaaa-1", "no device is here that can take part")
    ]
    events.clear()
    hello = encode_message(Hello(node="host-1"))
    fleet.broker.route(Publication(channel=Channel.CONTROL, topic=TOPICS.hello(), payload=hello, qos=1))
    fleet.pass_seconds(3)
    assert decode_message(events[0], Failed) == told[0]
    named(fleet, "pi-1").revive()
    fleet.pass_seconds(5)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1", "it serves again by itself"


def test_a_command_goes_before_a_change_of_its_own(fleet: FakeFleet, bundle: FakeBundle) -> None:
    coordinator = watched(fleet, bundle)
    spare = next(device for device in fleet.devices if device.name not in users(fleet))
    spare.behaviour = lambda device, value: False  # never gets ready
    fleet.pass_seconds(GRACE_SECONDS)
    gone = plan_of(fleet).stages[0].device
    named(fleet, gone).kill()
    fleet.pass_seconds(_GONE_SECONDS)
    assert coordinator.core.busy
    rest = min(users(fleet) - {gone})
    coordinator.ask(deploy_request(bundle, rest, request_id="r2", use_all=False))
    fleet.pass_seconds(12)
    assert outcome(coordinator, "r2").ok, outcome(coordinator, "r2")
    assert users(fleet) == {rest}


def test_what_is_removed_is_watched_no_longer(fleet: FakeFleet, bundle: FakeBundle) -> None:
    coordinator = watched(fleet, bundle)
    fleet.pass_seconds(GRACE_SECONDS)
    coordinator.ask(UndeployRequest(request_id="u1", name="net", reply_to=""))
    fleet.pass_seconds(4)
    fleet.devices[0].kill()
    fleet.pass_seconds(2 * _GONE_SECONDS)
    assert decode_deployment(fleet.retained(SERVING)).removed
    assert not coordinator.core.busy
