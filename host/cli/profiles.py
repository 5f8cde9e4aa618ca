"""`shardwire profiles`."""

from typing import Annotated

import msgspec
import typer

from edge.formats.profile import load_profile, profile_ids
from host.cli.console import out, print_json, size_text, table


def command(
    profile: Annotated[str | None, typer.Argument(help="Id or .toml file; all of them when left out.")] = None,
) -> None:
    """List the device profiles, or show one."""
    if profile is not None:
        print_json(msgspec.to_builtins(load_profile(profile)))
        return
    rows = table("id", "device", "arch", "isa", ">cores", ">usable RAM", ">largest shard", ">watts", "stock image")
    for name in profile_ids():
        found = load_profile(name)
        rows.add_row(
            found.id,
            found.name,
            found.arch,
            " ".join(found.isa),
            str(found.cores),
            size_text(found.usable_memory_bytes),
            size_text(found.shard_limit_bytes),
            "?" if found.power is None else f"{found.power.idle_watts:g}–{found.power.busy_watts:g}",
            "runs the agent" if found.system.runs_on_stock_image else found.system.remedy,
        )
    out.print(rows)
