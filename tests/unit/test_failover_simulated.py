"""How long simulated fleets answer nothing after a device died: the real protocols, on a virtual clock."""

from __future__ import annotations

import pytest

from edge.formats.plan import Constraints
from host.simulate.fleet import EPOCH, Deployed, SimulatedFleet, Traffic
from tests.simulated_fleets import chain_bundle, device, planned

BUNDLE = chain_bundle([2000, 1500, 1000, 500, 400], weight_bytes=2000)
DEVICES = tuple(device(f"pi-{number}", [0.005] * 4) for number in range(3))
DIES_AT = 10.0
"""After the start; the coordinator has waited for everybody by then."""


def first_answer(fleet: SimulatedFleet, *, after: float) -> float:
    """Seconds from a moment until a request that was submitted after it is answered, and all earlier ones are."""
    asks = fleet.client.asks.values()
    assert all(ask.right for ask in asks), [ask.error for ask in asks if not ask.right]
    later = min(ask.settled for ask in asks if ask.submitted > after)
    earlier = max((ask.settled for ask in asks if ask.submitted <= after), default=after)
    return max(later, earlier) - after


def recovery_seconds(kind: str, victim: str) -> float:
    plan = planned(BUNDLE, DEVICES, [(0, 2, ["pi-0"]), (2, 4, ["pi-1"])])
    served = Deployed(name="net", bundle=BUNDLE, plan=plan, constraints=Constraints(most_replicas=1))
    fleet = SimulatedFleet(DEVICES, [served], coordination="replans")
    gone = fleet.devices[victim]
    fleet.at(DIES_AT, {"crash": gone.crash, "kill": gone.kill, "pause": gone.pause}[kind])
    report = fleet.run(Traffic(seconds=20, rate=20, deadline_seconds=20))
    assert report.whole, report.errors
    assert report.epochs["net"] != EPOCH
    return first_answer(fleet, after=DIES_AT)


@pytest.mark.parametrize("victim", ["pi-0", "pi-1"])
def test_a_killed_process_is_replaced_within_one_and_a_half_seconds(victim: str) -> None:
    assert recovery_seconds("crash", victim) <= 1.5


@pytest.mark.parametrize("kind", ["kill", "pause"])
def test_a_silent_death_is_noticed_and_mended_within_three_and_a_half_seconds(kind: str) -> None:
    assert recovery_seconds(kind, "pi-1") <= 3.5


def test_a_dead_coordinator_changes_nothing_for_clients() -> None:
    plan = planned(BUNDLE, DEVICES, [(0, 2, ["pi-0"]), (2, 4, ["pi-1"])])
    served = Deployed(name="net", bundle=BUNDLE, plan=plan)
    with_one = SimulatedFleet(DEVICES, [served], coordination="replans")
    assert with_one.coordinator is not None
    with_one.at(DIES_AT, with_one.coordinator.crash)
    report = with_one.run(Traffic(seconds=30, rate=20, deadline_seconds=20))
    assert report.whole, report.errors
    worst = max(ask.settled - ask.submitted for ask in with_one.client.asks.values())
    assert worst < 0.5
    assert report.epochs["net"] == EPOCH
