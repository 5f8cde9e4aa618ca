"""`shardwire undeploy`."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from edge.formats.message import UndeployRequest
from edge.formats.topics import check_name
from host.cli.console import err
from host.cli.fleet_command import carry_out
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet


def command(
    name: Annotated[str, typer.Argument(help="Deployment to remove.")],
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
) -> None:
    """Remove a deployment."""
    check_name(name, what="deployment name")
    request = UndeployRequest(request_id=secrets.token_hex(8), name=name, reply_to="")
    carry_out(request, f"removing {name}", broker=broker, fleet=fleet)
    err.print(f"{name} is removed")
