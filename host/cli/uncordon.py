"""`shardwire uncordon`."""

from __future__ import annotations

from host.cli.device_request import Device, tell
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet


def command(device: Device, broker: Broker = DEFAULT_BROKER, fleet: Fleet = DEFAULT_FLEET) -> None:
    """Let new plans use a device again."""
    tell(device, "uncordon", "is there for new plans again", broker=broker, fleet=fleet)
