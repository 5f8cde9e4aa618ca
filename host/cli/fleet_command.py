"""What the commands share that tell a fleet to do something and ship nothing."""

from __future__ import annotations

from edge.formats.message import CommandOutcome, DeviceRequest, RollbackRequest, UndeployRequest
from host.cli.console import err
from host.cli.options import quiet_transport
from host.cli.signals import terminated_as_exit
from host.fleet.command import Course, run_command


def carry_out(
    request: UndeployRequest | RollbackRequest | DeviceRequest, doing: str, *, broker: str, fleet: str
) -> CommandOutcome:
    """Give a command to the fleet, show how it goes, and return its good outcome.

    Args:
        request: without `reply_to`.
        doing: what is going on, for a person.
        broker: its address.
        fleet: name of the fleet.

    Raises:
        FleetError: it failed; the text says why.
        TransportError: there is no broker, or it refuses us.
    """
    quiet_transport()
    with terminated_as_exit(), err.status(doing) as status:

        def show(course: Course) -> None:
            status.update(f"{doing}: {course.phase}")

        return run_command(broker, request, fleet=fleet, blobs=None, on_change=show)
