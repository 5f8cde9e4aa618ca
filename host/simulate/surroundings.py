"""Where the devices of a simulated fleet are, and what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edge.formats.topics import Topics
from edge.protocol.readings import Readings
from host.simulate.bundle import SimulatedBundle
from host.simulate.clock import Clock
from host.simulate.network import SimulatedBroker


@dataclass(frozen=True, kw_only=True, slots=True)
class Habits:
    """What all devices of a simulated fleet have in common beside their costs.

    Attributes:
        disk_bytes_per_second: at which blobs are written.
        load_seconds: to load a stage, beside its weights.
        load_bytes_per_second: at which weights are read and packed.
        start_seconds: from power to the first connection.
        profile: what a device says it is.
    """

    disk_bytes_per_second: float = 20e6
    load_seconds: float = 0.5
    load_bytes_per_second: float = 50e6
    start_seconds: float = 3.0
    profile: str = "rpi4"


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """Where all devices of a fleet are.

    Attributes:
        clock: of the simulation.
        broker: to connect to.
        topics: of the fleet.
        bundles: by digest of the manifest.
        habits: of all devices.
        log: gets the name of a device and each line of its log.
        readings: of deployments; that all devices share them saves time here, and changes nothing.
    """

    clock: Clock
    broker: SimulatedBroker
    topics: Topics
    bundles: Mapping[str, SimulatedBundle]
    habits: Habits
    log: Callable[[str, str], None]
    readings: Readings = field(default_factory=Readings)
