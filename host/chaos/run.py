"""Carries out a plan: a fleet for each setup, a row for each fault."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.errors import ShardwireError
from host.bundle import OpenBundle, open_bundle
from host.chaos.answers import Answers, work_out
from host.chaos.faults.surroundings import SPECIAL, surroundings
from host.chaos.faults.table import FAULTS
from host.chaos.load import LoadDriver
from host.chaos.local import LocalFleet
from host.chaos.oracle import Row, judge
from host.chaos.plan import ChaosPlan, Fault, FleetPart, setup_of
from host.chaos.scene import FleetHands, Scene
from host.chaos.staging import StagingFleet

OnRow = Callable[[Row], None]
SETTLE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    plan: ChaosPlan
    bundles: Sequence[OpenBundle]
    answers: Answers
    folder: Path
    more: Mapping[str, OpenBundle]


def run_plan(
    plan: ChaosPlan,
    *,
    folder: Path | None = None,
    only: str = "",
    limits: bool = True,
    on_row: OnRow = lambda _row: None,
) -> tuple[Row, ...]:
    """Carry out every fault of a plan, one after another.

    Args:
        plan: checked; its bundles are absolute.
        folder: for logs and state, which are kept there; a temporary one when None.
        only: the kind of the faults that are carried out; empty for all.
        limits: whether recovery that takes longer than the plan allows breaks the promise.
        on_row: told each row as it is done.

    Raises:
        ShardwireError: the run cannot begin: a bundle, the broker or a node is missing.
    """
    chosen = [fault for fault in plan.fault if only in ("", fault.kind)]
    bundles = [open_bundle(Path(bundle)) for bundle in plan.load.bundles]
    answers = work_out(bundles, mode=plan.load.mode, seed=plan.seed)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shardwire-chaos-")))
        named = {name: folder for name in ("large", "poison") if (folder := getattr(plan.load, name))}
        more = {name: open_bundle(Path(path)) for name, path in named.items()}
        run = _Run(plan=plan, bundles=bundles, answers=answers, folder=place, more=more)
        for number, (setup, faults) in enumerate(_groups(plan, chosen)):
            for row in _on_one_fleet(run, setup, faults, place / f"fleet-{number}", limits=limits):
                rows.append(row)
                on_row(row)
    return tuple(rows)


def _groups(plan: ChaosPlan, faults: Sequence[Fault]) -> Iterator[tuple[FleetPart, list[Fault]]]:
    """Yield neighbouring faults that want the same fleet."""
    groups: list[tuple[FleetPart, list[Fault]]] = []
    for fault in faults:
        setup = setup_of(plan, fault)
        if groups and groups[-1][0] == setup and not {fault.kind, groups[-1][1][0].kind} & SPECIAL:
            groups[-1][1].append(fault)
        else:
            groups.append((setup, [fault]))
    yield from groups


def _on_one_fleet(run: _Run, setup: FleetPart, faults: Sequence[Fault], folder: Path, *, limits: bool) -> Iterator[Row]:
    waiting = list(faults)
    tries = 0
    while waiting:
        tries += 1
        # A fleet that a fault has left unusable is replaced, so that each row is of its own fault.
        with _fleet(run, setup, waiting[0].kind, folder / str(tries)) as fleet:
            if limits and isinstance(fleet, LocalFleet):
                fleet.await_settled()
            while waiting:
                fault = waiting.pop(0)
                row, usable = _row(run, fleet, fault, limits=limits)
                yield row
                if not usable:
                    break


@contextlib.contextmanager
def _fleet(run: _Run, setup: FleetPart, kind: str, folder: Path) -> Iterator[FleetHands]:
    if run.plan.fleet.broker:
        with StagingFleet(run.plan) as staging:
            yield staging
        return
    with contextlib.ExitStack() as stack:
        around = stack.enter_context(surroundings(kind, setup, folder))
        yield stack.enter_context(
            LocalFleet(setup, run.plan.load, folder=folder, seed=run.plan.seed, surroundings=around)
        )


def _row(run: _Run, fleet: FleetHands, fault: Fault, *, limits: bool) -> tuple[Row, bool]:
    plan = run.plan
    try:
        fleet.settle(run.bundles[0])
        load = LoadDriver(
            fleet.url,
            fleet=fleet.name,
            deployment=plan.load.deployment,
            answers=run.answers,
            digest=fleet.watcher.digest,
            rate=fault.rate or plan.load.rate,
            deadline_seconds=plan.load.deadline,
        )
        with load:
            draw = random.Random(f"{plan.seed} {fault.label}")  # noqa: S311 - which device is hurt is no secret
            scene = Scene(fleet, load, fault, bundles=run.bundles, answers=run.answers, random=draw, more=run.more)
            try:
                FAULTS[fault.kind](scene)
            except ShardwireError as error:
                scene.complain(str(error))
            usable = _restore(fleet, scene)
            samples = load.finish()
    except ShardwireError as error:
        return msgspec.structs.replace(judge(fault.label, ()), broken=(f"no load: {error}",)), False
    row = judge(
        fault.label,
        [*samples, *scene.samples],
        scene.marks,
        recover_within=scene.recover_within if limits and scene.recover_within else None,
        allowed=scene.allowed,
        faults=scene.faults,
        note=scene.note,
    )
    return row, usable and not row.lost


def _restore(fleet: FleetHands, scene: Scene) -> bool:
    try:
        fleet.restore()
    except ShardwireError as error:
        scene.complain(f"not restored: {error}")
        return False
    return True
