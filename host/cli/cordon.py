"""`shardwire cordon`."""

from __future__ import annotations

from host.cli.device_request import Device, tell
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet


def command(device: Device, broker: Broker = DEFAULT_BROKER, fleet: Fleet = DEFAULT_FLEET) -> None:
    """Leave a device out of new plans; what it runs goes on."""
    tell(device, "cordon", "is left out of new plans; it goes on with what it runs", broker=broker, fleet=fleet)
