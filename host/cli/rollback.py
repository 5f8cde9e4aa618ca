"""`shardwire rollback`."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from edge.formats.message import RollbackRequest
from edge.formats.topics import check_name
from host.cli.console import err
from host.cli.fleet_command import carry_out
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet


def command(
    name: Annotated[str, typer.Argument(help="Deployment to take back.")],
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
) -> None:
    """Serve again what was served before, or end the trial of a canary."""
    check_name(name, what="deployment name")
    request = RollbackRequest(request_id=secrets.token_hex(8), name=name, reply_to="")
    outcome = carry_out(request, f"rolling {name} back", broker=broker, fleet=fleet)
    err.print(f"{name}: {outcome.reason}", markup=False)
