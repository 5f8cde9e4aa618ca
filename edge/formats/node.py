"""What nodes say of themselves: who they are, how they do, how fast they are, and what happened among them."""

from typing import Literal

import msgspec

from edge.errors import FormatError
from edge.formats.envelope import Envelope
from edge.formats.speed import MAX_KINDS, MAX_MODELS, MAX_SHARDS, LinkSpeed, ModelSpeed, OperatorSpeed, StageLoad

MAX_TRANSFERS = 64
MAX_LISTED = 64
"""Of what a node lists of itself: runtimes, speeds, loads of stages, codes of errors."""


class Session(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One connected life of a node: later sessions compare greater.

    Attributes:
        boot: counter on disk, raised at every process start.
        connect: counter raised at every connection of that process.
    """

    boot: int
    connect: int


class State(Envelope, kw_only=True, frozen=True, tag="state"):
    """Birth and last will of a node.

    Attributes:
        instance: drawn at random by each process, so that two devices made from one disk image, whose boot counters
            are equal, can be told apart.
        uptime_seconds: age of the process when this was made; of two with one name, the older stays.
    """

    node: str
    role: Literal["agent", "coordinator", "client"]
    online: bool
    session: Session
    instance: str = ""
    uptime_seconds: float = 0.0


def is_late(state: State, known: State) -> bool:
    """Tell whether a state of a node is of an older connection than the one that is known, and says nothing now.

    A birth message of another process is never late: two devices may have one name for a while, and the one that stays
    says so, whose counters may be smaller than those of the one that ended.
    """
    return state.session < known.session and not (state.online and state.instance != known.instance)


class RuntimeOffer(msgspec.Struct, frozen=True, kw_only=True):
    """One runtime that a device has.

    Attributes:
        name: as in the profile, e.g. `onnxruntime`.
        version: of the installed package.
        providers: execution providers that are really present, in order of preference.
    """

    name: str
    version: str
    providers: tuple[str, ...]


class About(Envelope, kw_only=True, frozen=True, tag="about"):
    """What a device is and has now.

    Attributes:
        profile: profile id.
        runtimes: what is installed.
        memory_bytes: RAM that stages may use in all.
        free_memory_bytes: of it, still free.
        free_disk_bytes: room in the blob store.
        cores: processors online.
        held_bytes: size of all blobs held.
        macs_per_second: measured, per dtype; empty when nothing was measured.
        agent_version: release of Shardwire.
        cordoned: whether new plans leave it out; kept on its disk.
    """

    node: str
    session: Session
    profile: str
    runtimes: tuple[RuntimeOffer, ...]
    memory_bytes: int
    free_memory_bytes: int
    free_disk_bytes: int
    cores: int
    held_bytes: int
    macs_per_second: dict[str, float] = msgspec.field(default_factory=dict)
    agent_version: str
    cordoned: bool = False


class Heartbeat(Envelope, kw_only=True, frozen=True, tag="heartbeat"):
    """Proof of life of the compute loop.

    Attributes:
        frames_done: since the process started.
        oldest_queued_seconds: age of the oldest frame that waits, 0 when none does.
        data_up: whether the data connection stands.
        stages: what its stages measured.
        broker: of a coordinator: place of the broker that the fleet is to use, in its list; -1 of everybody else.
    """

    node: str
    session: Session
    frames_done: int
    oldest_queued_seconds: float
    data_up: bool
    stages: tuple[StageLoad, ...] = ()
    broker: int = -1


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """A blob on its way to a device; `holder` is who is asked for it now."""

    digest: str
    done_bytes: int
    total_bytes: int
    holder: str = ""


class Metrics(Envelope, kw_only=True, frozen=True, tag="metrics"):
    """Counters of an agent since its process started, every five seconds.

    Attributes:
        uptime_seconds: of the process.
        frames_done, frames_failed: runs.
        refused: frames answered with an error without a run, by its code.
        too_late: frames dropped because their time was up.
        dropped_messages: that the inbox had no room for.
        queued_frames, queued_bytes: now.
        run_p50_seconds, run_p99_seconds: of the last runs; 0 when there was none.
        fetched_bytes, served_bytes: of blobs, from and to others.
        repeated_blocks: asked for more than once.
        held_bytes, free_disk_bytes, free_memory_bytes: now.
        transfers: what is on its way, at most `MAX_TRANSFERS`.
    """

    node: str
    session: Session
    uptime_seconds: float
    frames_done: int = 0
    frames_failed: int = 0
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    too_late: int = 0
    dropped_messages: int = 0
    queued_frames: int = 0
    queued_bytes: int = 0
    run_p50_seconds: float = 0.0
    run_p99_seconds: float = 0.0
    fetched_bytes: int = 0
    served_bytes: int = 0
    repeated_blocks: int = 0
    held_bytes: int = 0
    free_disk_bytes: int = 0
    free_memory_bytes: int = 0
    transfers: tuple[Transfer, ...] = ()


class Speed(Envelope, kw_only=True, frozen=True, tag="speed"):
    """What a device measured of itself; retained, and kept on its disk.

    Attributes:
        operators: fitted to microbenchmarks; empty when none ran.
        message_seconds: processor time to receive or send one frame; negative when not measured.
        message_seconds_per_byte: the same for each byte; negative when not measured.
        link: to the broker; None when not measured.
        models: newest first, at most `MAX_MODELS`.
    """

    node: str
    profile: str
    operators: tuple[OperatorSpeed, ...] = ()
    message_seconds: float = -1.0
    message_seconds_per_byte: float = -1.0
    link: LinkSpeed | None = None
    models: tuple[ModelSpeed, ...] = ()


def check_speed(speed: Speed) -> Speed:
    """Return `speed` when its lists are not too long.

    Raises:
        FormatError: one is; the text says which.
    """
    shards = max((len(model.shard_seconds) for model in speed.models), default=0)
    for what, found, most in (
        ("models", len(speed.models), MAX_MODELS),
        ("kinds of operators", len(speed.operators), MAX_KINDS),
        ("shards", shards, MAX_SHARDS),
    ):
        if found > most:
            raise FormatError(f"speed of {speed.node[:64]!r}: {found} {what} are more than {most}")
    return speed


class Hello(Envelope, kw_only=True, frozen=True, tag="hello"):
    """A node came and wants to know who is here.

    Attributes:
        role: of the node; agents do not answer each other.
    """

    node: str
    role: Literal["agent", "coordinator", "client"] | None = None


class Lease(Envelope, kw_only=True, frozen=True, tag="lease"):
    """Who coordinates, under which term, and which node holds its blobs."""

    coordinator: str
    term: int
    session: Session


class FleetEvent(Envelope, kw_only=True, frozen=True, tag="fleet-event"):
    """One line of the history of a fleet.

    Attributes:
        at: UTC time, `YYYY-MM-DDTHH:MM:SSZ`.
        who: the node that did or saw it.
        what: one of `host.fleet.history.KINDS`.
        why: one line for a person.
        deployment, epoch, device: that it is about; empty where it is about none.
    """

    at: str
    who: str
    what: str
    why: str = ""
    deployment: str = ""
    epoch: str = ""
    device: str = ""
