"""`shardwire forget`."""

from __future__ import annotations

from host.cli.device_request import Device, tell
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet


def command(device: Device, broker: Broker = DEFAULT_BROKER, fleet: Fleet = DEFAULT_FLEET) -> None:
    """Drop what is known of a device that is gone for good."""
    tell(device, "forget", "is forgotten", broker=broker, fleet=fleet)
