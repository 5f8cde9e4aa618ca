"""`shardwire undeploy`."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from edge.formats.message import UndeployRequest
from edge.formats.topics import check_name
from host.cli.console import err
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet, quiet_transport
from host.cli.signals import terminated_as_exit
from host.fleet.command import Course, run_command


def command(
    name: Annotated[str, typer.Argument(help="Deployment to remove.")],
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
) -> None:
    """Remove a deployment."""
    quiet_transport()
    request = UndeployRequest(
        request_id=secrets.token_hex(8), name=check_name(name, what="deployment name"), reply_to=""
    )
    with terminated_as_exit(), err.status(f"removing {name}") as status:

        def show(course: Course) -> None:
            status.update(f"removing {name}: {course.phase}")

        run_command(broker, request, fleet=fleet, blobs=None, on_change=show)
    err.print(f"{name} is removed")
