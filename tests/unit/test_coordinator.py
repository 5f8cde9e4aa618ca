"""What the coordinator does with commands, devices that fail, and other coordinators; virtual clock, no broker."""

from __future__ import annotations

import pytest

from edge.formats.message import (
    Failed,
    Lease,
    UndeployRequest,
    decode_message,
)
from edge.formats.plan import decode_deployment
from tests.fake_bundle import FakeBundle, fake_bundle
from tests.fake_fleet import TOPICS, FakeDevice, FakeFleet, deploy_request, deployed, outcome

_DESIRED, _SERVING = TOPICS.desired("net"), TOPICS.serving("net")


@pytest.fixture
def bundle() -> FakeBundle:
    return fake_bundle()


@pytest.fixture
def fleet() -> FakeFleet:
    found = FakeFleet()
    for name in ("pi-1", "pi-2", "pi-3"):
        found.device(name)
    return found


def test_a_deployment_is_prepared_probed_and_committed_in_this_order(fleet: FakeFleet, bundle: FakeBundle) -> None:
    coordinator = deployed(fleet, bundle)
    assert coordinator.phases == [
        "fetching the bundle",
        "gathering devices",
        "waiting for the lease",
        "preparing",
        "probing",
        "committing",
    ]
    serving = decode_deployment(fleet.retained(_SERVING))
    assert serving.epoch == outcome(coordinator).epoch == "1-aaaa-1"
    assert serving.plan is not None
    assert {stage.device for stage in serving.plan.stages} == {"pi-1", "pi-2"}
    assert set(serving.holders) == {"coordinator-aaaa", "pi-1", "pi-2"}
    assert fleet.devices[0].serving["net"].epoch == serving.epoch
    assert "net" in fleet.devices[2].serving, "every device hears the plan, also one without a stage"


def test_a_coordinator_that_leaves_is_the_last_holder_of_the_deployment(fleet: FakeFleet, bundle: FakeBundle) -> None:
    coordinator = fleet.coordinator(bundle, staying=False)
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-2"))
    fleet.pass_seconds(4)
    assert outcome(coordinator).ok
    for topic in (_DESIRED, _SERVING):
        value = decode_deployment(fleet.retained(topic))
        assert value.holders[-1] == "coordinator-aaaa"
        assert {held.node for held in value.holdings} == {"pi-1", "pi-2"}
    coordinator.leave()
    vacant = decode_message(fleet.retained(TOPICS.lease()), Lease)
    assert (vacant.coordinator, vacant.term) == ("", 2)
    assert fleet.retained(TOPICS.state("coordinator-aaaa")) == b""


def test_each_change_of_the_plan_is_a_later_epoch(fleet: FakeFleet, bundle: FakeBundle) -> None:
    coordinator = deployed(fleet, bundle)
    coordinator.ask(deploy_request(bundle, "pi-2", "pi-3", request_id="r2"))
    fleet.pass_seconds(4)
    assert outcome(coordinator, "r2").epoch == "1-aaaa-2"
    assert fleet.epoch_of(_SERVING) == "1-aaaa-2"


def test_a_command_asked_again_is_answered_and_not_done_again(fleet: FakeFleet, bundle: FakeBundle) -> None:
    coordinator = deployed(fleet, bundle)
    coordinator.outcomes.clear()
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-2"))
    fleet.pass_seconds(4)
    assert outcome(coordinator).epoch == "1-aaaa-1"
    assert fleet.epoch_of(_DESIRED) == "1-aaaa-1"


def test_a_device_that_cannot_take_its_stage_ends_the_epoch_and_the_old_one_goes_on(
    fleet: FakeFleet, bundle: FakeBundle
) -> None:
    coordinator = deployed(fleet, bundle)

    def refuse(device: FakeDevice, deployment: object) -> bool:
        reason = "stage 1 of net needs 310.0 MiB, this device has 120.0 MiB free"
        epoch = fleet.epoch_of(_DESIRED)
        device.send(Failed(deployment="net", epoch=epoch, stage=1, code="OutOfMemory", reason=reason))
        return False

    fleet.devices[2].behaviour = refuse
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-3", request_id="r2"))
    fleet.pass_seconds(4)
    told = outcome(coordinator, "r2")
    assert not told.ok
    assert told.reason == ("pi-3 cannot take stage 1: stage 1 of net needs 310.0 MiB, this device has 120.0 MiB free")
    assert fleet.epoch_of(_SERVING) == "1-aaaa-1"
    assert fleet.retained(_DESIRED) == b"", "a device that was away must not find the abandoned plan"
    assert list(fleet.devices[0].epochs) == ["1-aaaa-1"], "the device that was ready dropped the epoch"


def test_a_wrong_answer_to_the_golden_input_never_serves(fleet: FakeFleet, bundle: FakeBundle) -> None:
    for device in fleet.devices:
        device.factor = 2.1
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-2"))
    fleet.pass_seconds(5)
    assert outcome(coordinator).reason == (
        "probe: the answer to golden input 0 is not the whole model's: "
        "output 'x' has relative error 5.00e-02, above 0.0001"
    )
    assert fleet.retained(_SERVING) == b""
    assert not any(device.epochs for device in fleet.devices)


def test_a_device_that_dies_while_it_prepares_ends_the_epoch(fleet: FakeFleet, bundle: FakeBundle) -> None:
    def die(device: FakeDevice, deployment: object) -> bool:
        device.kill()
        return False

    fleet.devices[1].behaviour = die
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-2"))
    fleet.pass_seconds(12)
    assert outcome(coordinator).reason == "pi-2 went away while the epoch was preparing"
    assert not fleet.devices[0].epochs


def test_a_device_that_comes_back_in_time_goes_on(fleet: FakeFleet, bundle: FakeBundle) -> None:
    dead: list[FakeDevice] = []

    def die_once(device: FakeDevice, deployment: object) -> bool:
        if not dead:
            dead.append(device)
            device.kill()
            return False
        return True

    fleet.devices[1].behaviour = die_once
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-2"))
    fleet.pass_seconds(3)
    dead[0].revive()
    fleet.pass_seconds(4)
    assert outcome(coordinator).ok, outcome(coordinator)


def test_a_silent_device_is_given_up(fleet: FakeFleet, bundle: FakeBundle) -> None:
    fleet.devices[1].behaviour = lambda device, deployment: False
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-2"))
    fleet.pass_seconds(115)
    assert not outcome(coordinator).done
    fleet.pass_seconds(15)
    assert outcome(coordinator).reason == "pi-2 did not answer for 120 s"


def test_a_cancelled_command_leaves_nothing_behind(fleet: FakeFleet, bundle: FakeBundle) -> None:
    fleet.devices[1].behaviour = lambda device, deployment: False
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, "pi-1", "pi-2"))
    fleet.pass_seconds(5)
    coordinator.core.cancel("interrupted", fleet.now)
    fleet.pass_seconds(7)
    assert outcome(coordinator).reason == "interrupted"
    assert fleet.retained(_DESIRED) == b""
    assert not fleet.devices[0].epochs
    assert fleet.devices[1].heard_abandon[0] == "interrupted"


def test_undeploy_leaves_a_tombstone_that_outranks_the_deployment(fleet: FakeFleet, bundle: FakeBundle) -> None:
    coordinator = deployed(fleet, bundle)
    coordinator.ask(UndeployRequest(request_id="u1", name="net", reply_to=""))
    fleet.pass_seconds(4)
    assert outcome(coordinator, "u1").ok
    for topic in (_DESIRED, _SERVING):
        value = decode_deployment(fleet.retained(topic))
        assert value.removed
        assert value.epoch == "1-aaaa-2"
    assert not any(device.serving for device in fleet.devices)


def test_what_is_not_served_cannot_be_removed(fleet: FakeFleet, bundle: FakeBundle) -> None:
    coordinator = deployed(fleet, bundle)
    coordinator.ask(UndeployRequest(request_id="u1", name="nett", reply_to=""))
    fleet.pass_seconds(4)
    assert outcome(coordinator, "u1").reason == "no deployment called 'nett'; there are: net"


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        (("pi-9",), "no device called 'pi-9'; online are: pi-1, pi-2, pi-3"),
        (("pi-1", "pi-4"), "device 'pi-4' is offline; online are: pi-1, pi-2, pi-3"),
        (("pi-1", "pi-1"), ""),
    ],
)
def test_devices_that_are_asked_for_must_be_there(
    fleet: FakeFleet, bundle: FakeBundle, devices: tuple[str, ...], reason: str
) -> None:
    fleet.device("pi-4").turn()
    fleet.devices[3].kill()
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, *devices))
    fleet.pass_seconds(6)
    assert outcome(coordinator).reason == reason
    assert outcome(coordinator).done


def test_a_fleet_without_devices_is_said_so(bundle: FakeBundle) -> None:
    fleet = FakeFleet()
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle))
    fleet.pass_seconds(6)
    assert outcome(coordinator).reason == "no devices are online in fleet 'test': start shardwire-agent on them"


def test_a_bundle_that_fits_nowhere_says_what_binds_and_by_how_much() -> None:
    bundle = fake_bundle(shards=2, weight_bytes=20 << 20)
    fleet = FakeFleet()
    fleet.device("pi-1", free_memory_bytes=30 << 20)
    fleet.device("pi-2", free_memory_bytes=40 << 20)
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, use_all=False))
    fleet.pass_seconds(6)
    assert outcome(coordinator).reason == (
        "no plan fits: the shards need 40.0 MiB of weights and room for activations and queues beside them, "
        "devices have memory: pi-1 30.0 MiB, pi-2 40.0 MiB; 6.1 MiB more on each would do: "
        "add a device or free some, use a smaller window, or package for a smaller profile"
    )
    assert fleet.retained(_DESIRED) == b""


def test_a_device_without_the_runtime_is_passed_over_unless_it_is_asked_for(bundle: FakeBundle) -> None:
    fleet = FakeFleet()
    able, unable = fleet.device("pi-1"), fleet.device("pi-2", profile="not-a-profile")
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle, able.name, use_all=False))
    fleet.pass_seconds(5)
    assert outcome(coordinator).ok
    coordinator.ask(deploy_request(bundle, unable.name, use_all=False, request_id="r2", name="other"))
    fleet.pass_seconds(5)
    assert outcome(coordinator, "r2").reason.startswith("pi-2 has profile 'not-a-profile'; known are: jetson-nano, ")


def test_a_device_that_lacks_the_runtime_is_passed_over(fleet: FakeFleet, bundle: FakeBundle) -> None:
    fleet.devices[0].runtime_version = "1.2.0"
    coordinator = fleet.coordinator(bundle)
    coordinator.ask(deploy_request(bundle))
    fleet.pass_seconds(5)
    assert outcome(coordinator).ok, outcome(coordinator)
    plan = decode_deployment(fleet.retained(_SERVING)).plan
    assert plan is not None
    assert {stage.device for stage in plan.stages} == {"pi-2", "pi-3"}
    coordinator.ask(deploy_request(bundle, "pi-1", request_id="r2"))
    fleet.pass_seconds(5)
    assert outcome(coordinator, "r2").reason == (
        "pi-1 has onnxruntime 1.2.0, the bundle needs onnxruntime 1.22.0 or newer"
    )
