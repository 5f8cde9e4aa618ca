"""Which function carries out which kind of fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from host.chaos.faults.bridge import bridge
from host.chaos.faults.broker import broker
from host.chaos.faults.clients import client_kill
from host.chaos.faults.coordinators import coordinator_kill, coordinator_pause
from host.chaos.faults.epochs import storm
from host.chaos.faults.halt import pause
from host.chaos.faults.kill import kill, power
from host.chaos.faults.link import cut, slow
from host.chaos.faults.nonsense import corrupt
from host.chaos.faults.poison import poison
from host.chaos.faults.surroundings import clock, disk, memory
from host.chaos.faults.transfers import move, transfer
from host.chaos.faults.twins import twin
from host.chaos.scene import Scene

FAULTS: Mapping[str, Callable[[Scene], None]] = {
    "kill": kill,
    "power": power,
    "pause": pause,
    "cut": cut,
    "slow": slow,
    "broker": broker,
    "coordinator-kill": coordinator_kill,
    "coordinator-pause": coordinator_pause,
    "corrupt": corrupt,
    "poison": poison,
    "twin": twin,
    "clock": clock,
    "disk": disk,
    "memory": memory,
    "storm": storm,
    "client-kill": client_kill,
    "bridge": bridge,
    "transfer": transfer,
    "move": move,
}
"""By the `kind` of a plan's fault."""
