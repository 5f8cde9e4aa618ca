"""Planning again, as simulated fleets measure it: who replaces a plan must not make it slower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from edge.formats.plan import Constraints
from host.planning.planner import plan_pipeline
from host.planning.workload import workload_of
from host.simulate.faults import Fault
from host.simulate.fleet import Coordination, Deployed, SimulatedFleet, Traffic
from tests.simulated_fleets import chain_bundle, device

BUNDLE = chain_bundle([200_000, 150_000, 100_000, 50_000, 4_000])
DEVICES = [
    replace(
        device(name, [seconds] * 4),
        session_seconds=0.001,
        message_seconds=0.001,
        message_seconds_per_byte=2e-8,
    )
    for name, seconds in (("pi-1", 0.008), ("pi-2", 0.008), ("pi-3", 0.008), ("snail", 0.8))
]
SECONDS = 60.0


def measured_rate(factor: float, constraints: Constraints, coordination: Coordination) -> float:
    """Requests a second while pi-1 becomes slow after a second."""
    plan = plan_pipeline(workload_of(BUNDLE.manifest), DEVICES, constraints=constraints)
    served = Deployed(name="net", bundle=BUNDLE, plan=plan, constraints=constraints)
    faults: Sequence[Fault] = [Fault(at=1.0, device="pi-1", kind="slow", factor=factor)]
    report = SimulatedFleet(DEVICES, [served], faults=faults, coordination=coordination).run(Traffic(seconds=SECONDS))
    assert report.whole, report.errors
    return report.throughput


@pytest.mark.slow
@pytest.mark.parametrize("factor", [3.0, 5.0])
def test_a_slowed_fleet_is_no_slower_when_its_plan_may_be_replaced(factor: float) -> None:
    turns, alone = Constraints(), Constraints(most_replicas=1)
    assert measured_rate(factor, turns, "replans") >= 0.95 * measured_rate(factor, turns, "commands")
    assert measured_rate(factor, alone, "replans") >= 1.2 * measured_rate(factor, alone, "commands")
