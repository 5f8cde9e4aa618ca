"""`shardwire drain`."""

from __future__ import annotations

from host.cli.device_request import Device, tell
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet


def command(device: Device, broker: Broker = DEFAULT_BROKER, fleet: Fleet = DEFAULT_FLEET) -> None:
    """Give the stages of a device to others, and leave it out of new plans."""
    tell(
        device,
        "drain",
        "runs nothing any more and is left out of new plans; shardwire uncordon takes it back",
        broker=broker,
        fleet=fleet,
    )
