"""What the plan of a deployment must keep to."""

import msgspec

from edge.errors import FormatError
from edge.formats.topics import check_name

MAX_REPLICAS = 4096
MAX_CONSTRAINTS = 4096
MAX_STANDBYS = 8


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """The stage that holds a layer runs on this device, and on no other."""

    layer: int
    device: str


class Constraints(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan must keep to.

    Attributes:
        devices: that may take part; empty for all.
        without: devices that may not.
        pins: layers that stay on a device.
        forbidden: layers that do not run on a device.
        use_all: give every device a stage, even where fewer would be faster.
        most_replicas: devices that may run one stage at most.
        side_by_side: whether branches may run on several devices at once.
        standbys: devices that hold each stage loaded and idle, beside those that run it; fewer where there is no room.
    """

    devices: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    pins: tuple[Pin, ...] = ()
    forbidden: tuple[Pin, ...] = ()
    use_all: bool = False
    most_replicas: int = 4
    side_by_side: bool = True
    standbys: int = 0


def check_constraints(constraints: Constraints, where: str) -> None:
    """Check what came from outside.

    Args:
        constraints: of a deployment, or of the request for one.
        where: said first in what is wrong.

    Raises:
        FormatError: a name that is none, or out of bounds.
    """
    pins = (*constraints.pins, *constraints.forbidden)
    names = (*constraints.devices, *constraints.without, *(pin.device for pin in pins))
    if len(names) > MAX_CONSTRAINTS:
        raise FormatError(f"{where}: {len(names)} constraints; at most {MAX_CONSTRAINTS} are allowed")
    for name in names:
        check_name(name, what="device")
    if wrong := [pin.layer for pin in pins if pin.layer < 0]:
        raise FormatError(f"{where}: constraints name layer {wrong[0]}")
    if not 0 <= constraints.standbys <= MAX_STANDBYS:
        raise FormatError(f"{where}: standbys {constraints.standbys} is not within 0 and {MAX_STANDBYS}")
    if not 1 <= constraints.most_replicas <= MAX_REPLICAS:
        raise FormatError(f"{where}: most_replicas {constraints.most_replicas} is not within 1 and {MAX_REPLICAS}")
