"""A new bundle is tried on a part of the requests: it serves all when it does well, and is taken back when it fails."""

from __future__ import annotations

import pytest

from edge.formats.canary import Canary
from edge.formats.message import RollbackRequest, UndeployRequest
from edge.formats.plan import Deployment, decode_deployment
from edge.formats.speed import StageLoad
from host.fleet.canary import Counters, Tally, Verdict, judge
from host.fleet.identity import retained
from tests.fake_bundle import FakeBundle, fake_bundle, joined
from tests.fake_fleet import TOPICS, FakeCoordinator, FakeFleet, deploy_request, deployed, outcome

OLD, NEW = fake_bundle(), fake_bundle(version="1.1.0", weight_bytes=1001)
TERMS = Canary(share=0.1, seconds=60.0, most_failed=0.01, least_frames=20)
CANARY, SERVING, DESIRED = TOPICS.canary("net"), TOPICS.serving("net"), TOPICS.desired("net")


def load(stage: int, frames: int, failed: int = 0, epoch: str = "1-a-2") -> StageLoad:
    return StageLoad(
        deployment="net", epoch=epoch, stage=stage, frames=frames, failed=failed, run_seconds=0.1, queued_seconds=0.0
    )


@pytest.mark.parametrize(
    ("frames", "failed", "seconds", "verdict", "told"),
    [
        (100, 0, 59.0, Verdict.TRY_ON, "0 of 100 frames failed"),
        (100, 0, 60.0, Verdict.PROMOTE, "0 of 100 frames failed in 60 s"),
        (100, 1, 60.0, Verdict.PROMOTE, "1 of 100 frames failed in 60 s"),
        (100, 2, 5.0, Verdict.TAKE_BACK, "2 of 100 frames failed, more than 1 %"),
        (19, 0, 600.0, Verdict.TRY_ON, "0 of 19 frames failed, it needs 20"),
        (3, 1, 1.0, Verdict.TAKE_BACK, "1 of 3 frames failed, more than 1 %"),
    ],
)
def test_it_is_judged_by_what_failed_and_how_long_it_took(
    frames: int, failed: int, seconds: float, verdict: Verdict, told: str
) -> None:
    assert judge(TERMS, Tally(frames=frames, failed=failed), seconds=seconds) == (verdict, told)


def test_requests_are_counted_at_the_first_stage_and_failures_at_all_without_those_of_the_probe() -> None:
    counters = Counters("net", "1-a-2", probed=3)
    counters.hear("pi-1", [load(0, 20), load(0, 99, epoch="1-a-1")])
    counters.hear("pi-2", [load(1, 19, failed=2)])
    assert counters.tally() == Tally(frames=17, failed=2)


def test_a_device_that_starts_anew_does_not_make_its_failures_forgotten() -> None:
    counters = Counters("net", "1-a-2")
    for frames, failed in ((20, 2), (1, 0), (5, 1)):
        counters.hear("pi-1", [load(0, frames, failed)])
    assert counters.tally() == Tally(frames=25, failed=3)


# ---------------------------------------------------------------------------------------------------- in a fleet
@pytest.fixture
def fleet() -> FakeFleet:
    found = FakeFleet()
    for name in ("pi-1", "pi-2", "pi-3"):
        found.device(name).run_seconds = lambda stage: 0.01
    return found


def tried(fleet: FakeFleet) -> FakeCoordinator:
    """A fleet that serves the old bundle and tries the new one."""
    coordinator = deployed(fleet, joined(OLD, NEW))
    coordinator.ask(deploy_request(NEW, "pi-2", "pi-3", request_id="r2", canary=TERMS))
    fleet.pass_seconds(4)
    return coordinator


def bundle_of(fleet: FakeFleet, topic: str) -> FakeBundle:
    manifest = decode_deployment(fleet.retained(topic)).manifest
    return next(bundle for bundle in (OLD, NEW) if bundle.manifest_blob == manifest)


def test_it_gets_its_share_beside_what_serves_and_serves_all_after_its_time(fleet: FakeFleet) -> None:
    coordinator = tried(fleet)
    canary = decode_deployment(fleet.retained(CANARY))
    assert (canary.share, canary.epoch) == (0.1, "1-aaaa-2")
    assert bundle_of(fleet, SERVING) is OLD
    fleet.pass_seconds(61)
    assert outcome(coordinator, "r2").ok
    assert outcome(coordinator, "r2").reason == "0 of 99 frames failed in 60 s"
    assert bundle_of(fleet, SERVING) is NEW
    assert decode_deployment(fleet.retained(SERVING)).share == 1.0
    assert fleet.retained(CANARY) == b""
    assert [event.what for event in coordinator.history if event.epoch == "1-aaaa-2"] == [
        "preparing",
        "canary",
        "serving",
    ]


def test_it_is_taken_back_when_too_many_of_its_frames_fail(fleet: FakeFleet) -> None:
    def fails(value: Deployment) -> int:
        return 5 if value.epoch == "1-aaaa-2" else 0

    fleet.devices[2].failed = fails
    coordinator = tried(fleet)
    fleet.pass_seconds(3)
    told = outcome(coordinator, "r2")
    assert (told.ok, told.reason) == (False, "the canary was taken back: 5 of 99 frames failed, more than 1 %")
    assert fleet.retained(CANARY) == fleet.retained(DESIRED) == b""
    assert bundle_of(fleet, SERVING) is OLD
    assert not any("1-aaaa-2" in device.epochs for device in fleet.devices)


def test_a_rollback_ends_it(fleet: FakeFleet) -> None:
    coordinator = tried(fleet)
    coordinator.ask(RollbackRequest(request_id="r3", name="net", reply_to=""))
    fleet.pass_seconds(3)
    assert outcome(coordinator, "r3").reason == "the canary, epoch 1-aaaa-2, was taken back"
    assert outcome(coordinator, "r2").reason == "a person rolled it back"
    assert fleet.retained(CANARY) == b""
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"


def test_another_coordinator_goes_on_with_it(fleet: FakeFleet) -> None:
    first = tried(fleet)
    second = fleet.coordinator(joined(OLD, NEW), name="coordinator-bbbb")
    fleet.pass_seconds(3)
    fleet.coordinators.remove(first)
    fleet.pass_seconds(15)
    assert fleet.epoch_of(CANARY) == "1-aaaa-2"
    fleet.pass_seconds(70)
    assert bundle_of(fleet, SERVING) is NEW
    assert fleet.retained(CANARY) == b""
    assert second.history[-1].what == "serving"


def test_a_coordinator_that_was_stopped_and_wakes_leaves_it_to_who_took_over(fleet: FakeFleet) -> None:
    first = tried(fleet)
    fleet.coordinator(joined(OLD, NEW), name="coordinator-bbbb")
    fleet.pass_seconds(3)
    fleet.coordinators.remove(first)  # stopped, with its connections open
    fleet.pass_seconds(15)
    fleet.coordinators.append(first)
    fleet.pass_seconds(5)
    assert fleet.epoch_of(CANARY) == "1-aaaa-2"
    assert outcome(first, "r2").reason == "coordinator coordinator-bbbb took over"
    fleet.pass_seconds(70)
    assert fleet.epoch_of(SERVING) == "1-aaaa-2"


def test_there_must_be_something_to_fall_back_to(fleet: FakeFleet) -> None:
    coordinator = fleet.coordinator(NEW)
    coordinator.ask(deploy_request(NEW, "pi-2", "pi-3", canary=TERMS))
    fleet.pass_seconds(4)
    assert outcome(coordinator).reason == (
        "net serves nothing that a canary could be compared with: deploy without --canary"
    )


@pytest.mark.parametrize("terms", [Canary(share=1.0), Canary(share=0.0), Canary(share=0.1, seconds=-1.0)])
def test_what_is_no_trial_is_refused(fleet: FakeFleet, terms: Canary) -> None:
    coordinator = deployed(fleet, OLD)
    coordinator.ask(deploy_request(OLD, request_id="r2", canary=terms))
    assert "canary" in outcome(coordinator, "r2").reason


def test_its_terms_are_kept_by_who_takes_over(fleet: FakeFleet) -> None:
    terms = Canary(share=0.1, seconds=20.0, most_failed=0.5, least_frames=3)
    coordinator = deployed(fleet, joined(OLD, NEW))
    coordinator.ask(deploy_request(NEW, "pi-2", "pi-3", request_id="r2", canary=terms))
    fleet.pass_seconds(4)
    assert decode_deployment(fleet.retained(CANARY)).canary == terms
    fleet.coordinator(joined(OLD, NEW), name="coordinator-bbbb")
    fleet.pass_seconds(3)
    fleet.coordinators.remove(coordinator)
    fleet.pass_seconds(15)
    assert decode_deployment(fleet.retained(CANARY)).canary == terms
    fleet.pass_seconds(20)
    assert bundle_of(fleet, SERVING) is NEW
    assert decode_deployment(fleet.retained(SERVING)).canary is None


def test_one_that_was_taken_back_while_the_broker_was_gone_is_not_tried_again(fleet: FakeFleet) -> None:
    coordinator = tried(fleet)
    shown = fleet.retained(CANARY)
    coordinator.ask(RollbackRequest(request_id="r3", name="net", reply_to=""))
    fleet.pass_seconds(3)
    assert fleet.retained(CANARY) == b""
    # The broker lost that, as it was killed before it wrote it down.
    coordinator.transport.publish(retained(CANARY, shown))
    fleet.pass_seconds(12)
    assert fleet.retained(CANARY) == b""
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"
    assert [event.what for event in coordinator.history if event.what == "canary"] == ["canary"]


def test_other_commands_say_how_it_is_ended(fleet: FakeFleet) -> None:
    coordinator = tried(fleet)
    coordinator.ask(UndeployRequest(request_id="r3", name="net", reply_to=""))
    assert outcome(coordinator, "r3").reason == (
        "net tries a canary, epoch 1-aaaa-2: wait for it, or end it with `shardwire rollback net`"
    )
