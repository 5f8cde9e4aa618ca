"""`shardwire chaos`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from host.chaos.oracle import Row, verdict
from host.chaos.plan import load_plan
from host.cli.console import out
from host.cli.options import quiet_transport
from host.cli.signals import terminated_as_exit
from host.errors import UserError

_COLUMNS = (
    *("fault", ">offered", ">accepted", ">answered", ">busy", ">timed out", ">lost", ">twice", ">wrong", ">epochs"),
    *(">recover s", ">worst s", "promise"),
)
_FAULT_WIDTH = 34


def command(
    plan: Annotated[Path, typer.Option("--plan", help="The plan, a TOML file.")],
    seed: Annotated[int | None, typer.Option("--seed", help="Instead of the plan's.")] = None,
    only: Annotated[str, typer.Option("--only", help="Carry out the faults of this kind only.", metavar="KIND")] = "",
    json: Annotated[Path | None, typer.Option("--json", help="Write the rows to this file.")] = None,
    folder: Annotated[Path | None, typer.Option("--folder", help="Keep logs and state of the nodes here.")] = None,
) -> None:
    """Hurt a fleet by a schedule, and check that it keeps its promise."""
    quiet_transport()
    # Only here: the table of the faults loads what the other commands do without.
    from host.chaos.run import run_plan

    chosen = load_plan(plan)
    if seed is not None:
        chosen = msgspec.structs.replace(chosen, seed=seed)
    kinds = sorted({fault.kind for fault in chosen.fault})
    if only and only not in kinds:
        raise UserError(f"{plan}: no fault of kind {only!r}; there are: {', '.join(kinds)}")
    out.print(f"seed {chosen.seed}, {chosen.load.rate:g} requests a second", markup=False)
    out.print("  ".join(_cells(tuple(column.lstrip(">") for column in _COLUMNS))), style="bold", soft_wrap=True)
    with terminated_as_exit():
        rows = run_plan(chosen, folder=folder, only=only, on_row=_show)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")
    broken = [row for row in rows if row.broken]
    out.print(f"{len(rows)} faults, {len(rows) - len(broken)} times the promise was kept, {len(broken)} times broken")
    raise typer.Exit(1 if broken or not rows else 0)


def _cells(values: tuple[str, ...]) -> list[str]:
    """Pad the cells of a line: rows are printed as they come, so no later one can widen a column."""
    heads = [column.lstrip(">") for column in _COLUMNS]
    first, *rest = values
    return [first.ljust(_FAULT_WIDTH), *(value.rjust(len(head)) for value, head in zip(rest, heads[1:], strict=True))]


def _show(row: Row) -> None:
    counts = (row.offered, row.accepted, row.answered, row.busy, row.timed_out, row.lost, row.twice, row.wrong)
    recover = f"{row.recover_seconds:.2f}" if row.recover_seconds >= 0 else "never"
    cells = (row.fault, *map(str, (*counts, row.epochs)), recover, f"{row.worst_seconds:.2f}", verdict(row))
    style = "" if verdict(row) == "kept" else "red"
    out.print("  ".join(_cells(cells)), style=style, markup=False, soft_wrap=True)
    if row.note:
        out.print(f"    {row.note}", markup=False, soft_wrap=True)
    for line in row.broken:
        out.print(f"    {line}", style=style, markup=False, soft_wrap=True)
