"""What an agent finds on its disk when it starts."""

from dataclasses import dataclass, field

from edge.formats.message import Speed, Transfer
from edge.formats.plan import Deployment
from edge.protocol.marks import Deaths, Marks


@dataclass(frozen=True, kw_only=True, slots=True)
class OnDisk:
    """What an agent finds on its disk when it starts.

    Attributes:
        serving: newest serving plan of each deployment.
        held: digests of the blobs.
        poisoned: requests that killed it.
        speed: what was measured of it, None when nothing was.
        marks: what no message can set back.
        deaths: how often the agent died of an epoch.
        partial: blobs that are not whole.
    """

    serving: tuple[Deployment, ...] = ()
    held: frozenset[str] = frozenset()
    held_bytes: int = 0
    free_disk_bytes: int = 0
    poisoned: frozenset[str] = frozenset()
    speed: Speed | None = None
    marks: Marks = field(default_factory=Marks)
    deaths: Deaths = field(default_factory=dict)
    partial: tuple[Transfer, ...] = ()
