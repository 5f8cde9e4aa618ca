"""A short selection of `make chaos`, by the same code: no request is lost, answered twice, or answered wrongly."""

from __future__ import annotations

import pytest

from benchmarks.chaos_models import make_bundles
from host.chaos.oracle import Row
from host.chaos.plan import ChaosPlan, Fault, FleetPart, LoadPart
from host.chaos.run import run_plan

FAULTS = (
    Fault(kind="kill", name="killed", target="stage 0", steady=1.0, lasting=0.5),
    Fault(kind="power", name="power loss", target="stage 1", steady=1.0, lasting=0.5),
    Fault(kind="slow", name="slow link", steady=1.0, lasting=4.0),
    Fault(kind="corrupt", name="nonsense", steady=1.0, lasting=1.0),
    Fault(kind="broker", name="broker killed", steady=1.0, lasting=0.5),
    Fault(kind="coordinator-kill", name="coordinator killed", steady=1.0, lasting=0.5),
    Fault(kind="storm", name="epochs", steady=1.0, lasting=0.5, times=4, rate=40.0),
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    folder = tmp_path_factory.mktemp("chaos")
    bundles = make_bundles(folder / "bundles")
    plan = ChaosPlan(
        load=LoadPart(bundles=tuple(str(bundle.folder) for bundle in bundles), rate=10.0, deadline=40.0),
        fleet=FleetPart(devices=("pi-1", "pi-2", "pi-3")),
        fault=FAULTS,
    )
    return {row.fault: row for row in run_plan(plan, folder=folder / "run", limits=False)}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.label)
def test_a_fault_costs_no_request(rows: dict[str, Row], fault: Fault) -> None:
    row = rows[fault.label]
    assert row.broken == ()
    assert (row.lost, row.twice, row.wrong) == (0, 0, 0)
    assert row.accepted == row.offered > 0
