"""What `cordon`, `uncordon`, `drain` and `forget` share: a command to the coordinator about one device."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

import typer

from edge.formats.message import DeviceRequest
from edge.formats.topics import check_name
from host.cli.console import err
from host.cli.fleet_command import carry_out

Device = Annotated[str, typer.Argument(help="Name of the device.")]


def tell(
    device: str, action: Literal["cordon", "uncordon", "drain", "forget"], done: str, *, broker: str, fleet: str
) -> None:
    """Give a command about a device to the fleet, and say that it is done.

    Args:
        device: its name.
        action: see `DeviceRequest`.
        done: what is true of the device then.
        broker: its address.
        fleet: name of the fleet.

    Raises:
        FleetError: it failed; the text says why.
        TransportError: there is no broker, or it refuses us.
    """
    check_name(device, what="device name")
    request = DeviceRequest(request_id=secrets.token_hex(8), device=device, action=action, reply_to="")
    outcome = carry_out(request, f"{action} {device}", broker=broker, fleet=fleet)
    rest = f"; it is {outcome.reason}" if outcome.reason else ""
    err.print(f"{device} {done}{rest}", markup=False, soft_wrap=True)
