"""How fast a coordinator mends what cannot answer, and whom it does not trust with a stage; virtual clock."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from edge.formats.canary import Canary
from edge.formats.message import About, Session, decode_message, encode_message
from edge.formats.plan import parse_epoch
from edge.transport import Channel, Publication
from host.fleet.absence import STEADY_SECONDS
from host.fleet.effects import CoordinatorEffect, Happened
from host.fleet.jobs import GRACE_SECONDS
from host.fleet.watch import LEAST_SECONDS, SETTLE_SECONDS
from tests.fake_bundle import FakeBundle, fake_bundle, joined
from tests.fake_fleet import TOPICS, FakeCoordinator, FakeFleet, deploy_request, outcome
from tests.watched_fleets import SERVING, named, plan_of, users, watched

_QUIET_SECONDS = LEAST_SECONDS + 5


@pytest.fixture
def bundle() -> FakeBundle:
    return fake_bundle()


@pytest.fixture
def fleet() -> FakeFleet:
    found = FakeFleet()
    for name in ("pi-1", "pi-2", "pi-3"):
        found.device(name)
    return found


def happened(fleet: FakeFleet) -> list[tuple[str, str]]:
    """What the coordinators have to tell from now on."""
    found: list[tuple[str, str]] = []
    for coordinator in fleet.coordinators:
        tick = coordinator.core.tick

        def told(now: float, tick: Callable[[float], list[CoordinatorEffect]] = tick) -> list[CoordinatorEffect]:
            effects = tick(now)
            found.extend((one.what, one.device or one.epoch) for one in effects if isinstance(one, Happened))
            return effects

        coordinator.core.tick = told  # type: ignore[method-assign]  # a spy
    return found


def test_what_cannot_answer_is_mended_within_a_second_and_the_history_has_it(
    fleet: FakeFleet, bundle: FakeBundle
) -> None:
    watched(fleet, bundle)
    fleet.pass_seconds(GRACE_SECONDS)
    told = happened(fleet)
    gone = plan_of(fleet).stages[0].device
    named(fleet, gone).kill()
    fleet.pass_seconds(1)
    assert fleet.epoch_of(SERVING) == "1-aaaa-2"
    assert [one for one in told if one[0] in ("left", "degraded", "recovered")] == [
        ("left", gone),
        ("degraded", "1-aaaa-1"),
        ("recovered", "1-aaaa-2"),
    ]


def test_where_a_replica_goes_on_its_place_is_filled_without_haste(fleet: FakeFleet, bundle: FakeBundle) -> None:
    coordinator = fleet.coordinator(bundle, horizon_seconds=600.0)
    coordinator.ask(deploy_request(bundle, use_all=False, most_replicas=2))
    fleet.pass_seconds(GRACE_SECONDS + SETTLE_SECONDS)
    replicas = [stage for stage in plan_of(fleet).stages if stage.replicas]
    assert replicas, plan_of(fleet)
    named(fleet, replicas[0].device).kill()
    fleet.pass_seconds(SETTLE_SECONDS - 1)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"
    fleet.pass_seconds(4)
    assert fleet.epoch_of(SERVING) == "1-aaaa-2"
    assert replicas[0].device not in users(fleet)


@pytest.mark.slow
def test_a_device_that_comes_and_goes_causes_no_endless_changes(fleet: FakeFleet, bundle: FakeBundle) -> None:
    fleet.device("box", profile="x86-gateway")
    watched(fleet, bundle)
    fleet.pass_seconds(GRACE_SECONDS)
    assert "box" in users(fleet)
    for _ in range(20):
        named(fleet, "box").kill()
        fleet.pass_seconds(5)
        named(fleet, "box").revive()
        fleet.pass_seconds(5)
    assert "box" not in users(fleet)
    assert parse_epoch(fleet.epoch_of(SERVING)).sequence <= 4
    fleet.pass_seconds(STEADY_SECONDS + 2 * SETTLE_SECONDS + LEAST_SECONDS)
    assert "box" in users(fleet), "who stays is used again"


def test_a_cordoned_device_serves_on_and_gets_nothing_new(fleet: FakeFleet, bundle: FakeBundle) -> None:
    watched(fleet, bundle)
    before = plan_of(fleet)
    kept, spare = before.stages[0].device, min({"pi-1", "pi-2", "pi-3"} - users(fleet))
    for name in (kept, spare):
        cordon(fleet, name)
    fleet.pass_seconds(_QUIET_SECONDS)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"
    gone = before.stages[-1].device
    named(fleet, gone).kill()
    fleet.pass_seconds(5)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1", "nobody may take it over"
    named(fleet, gone).revive()
    fleet.pass_seconds(5)
    named(fleet, kept).kill()
    fleet.pass_seconds(5)
    assert users(fleet) == {gone}


def cordon(fleet: FakeFleet, name: str) -> None:
    about = msgspec.structs.replace(
        decode_message(fleet.retained(TOPICS.about(name)), About), cordoned=True, session=Session(boot=9, connect=9)
    )
    payload = encode_message(about)
    fleet.broker.route(
        Publication(channel=Channel.CONTROL, topic=TOPICS.about(name), payload=payload, qos=1, retain=True)
    )


def test_who_stands_by_takes_over_when_the_last_will_of_the_other_comes_and_mends_at_once(
    fleet: FakeFleet, bundle: FakeBundle
) -> None:
    first = watched(fleet, bundle)
    fleet.coordinator(bundle, name="coordinator-bbbb", horizon_seconds=600.0)
    fleet.pass_seconds(GRACE_SECONDS + 1)
    gone = plan_of(fleet).stages[0].device
    named(fleet, gone).kill()
    first.transport.cut(Channel.CONTROL)
    first.transport.cut(Channel.DATA)
    fleet.coordinators.remove(first)
    fleet.pass_seconds(1.5)
    assert fleet.epoch_of(SERVING) == "2-bbbb-1"
    assert gone not in users(fleet)


def tries(fleet: FakeFleet, bundle: FakeBundle, new: FakeBundle, *, most_replicas: int = 1) -> FakeCoordinator:
    """A coordinator that watches `net` and tries another bundle for it on `box`."""
    coordinator = fleet.coordinator(joined(bundle, new), horizon_seconds=600.0)
    served = deploy_request(bundle, "pi-1", "pi-2", "pi-3", use_all=False, most_replicas=most_replicas)
    coordinator.ask(served)
    fleet.pass_seconds(6)
    fleet.device("box")
    fleet.pass_seconds(1)
    trial = Canary(share=0.1, seconds=600.0)
    coordinator.ask(deploy_request(new, "box", request_id="r2", use_all=False, canary=trial))
    fleet.pass_seconds(4)
    assert fleet.retained(TOPICS.canary("net"))
    return coordinator


def test_while_a_canary_is_tried_what_answers_stays_and_what_does_not_ends_it(bundle: FakeBundle) -> None:
    fleet, new = FakeFleet(), fake_bundle(version="1.1.0", weight_bytes=1001)
    for name in ("pi-1", "pi-2", "pi-3"):
        fleet.device(name)
    coordinator = tries(fleet, bundle, new, most_replicas=2)
    replicated = next(stage for stage in plan_of(fleet).stages if stage.replicas)
    named(fleet, replicated.device).kill()
    fleet.pass_seconds(LEAST_SECONDS + SETTLE_SECONDS)
    assert fleet.epoch_of(SERVING) == "1-aaaa-1"
    assert not outcome(coordinator, "r2").done
    for name in replicated.replicas:
        named(fleet, name).kill()
    fleet.pass_seconds(3)
    assert outcome(coordinator, "r2").reason == "the plan that serves had to be replaced"
    assert fleet.retained(TOPICS.canary("net")) == b""
    assert parse_epoch(fleet.epoch_of(SERVING)).sequence > 2
