"""Messages of the control plane: msgpack maps with a `type` tag and a format version."""

from typing import Literal, TypeVar

import msgspec

from edge.errors import FormatError
from edge.formats.bundle import Blob
from edge.formats.plan import Codec, Constraints, Objective
from edge.formats.speed import MAX_KINDS, MAX_MODELS, MAX_SHARDS, LinkSpeed, ModelSpeed, OperatorSpeed, StageLoad
from edge.formats.version import check_version

MESSAGE_FORMAT = "1.1"
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
BLOCK_BYTES = 128 * 1024
MAX_BLOCK_MESSAGE_BYTES = BLOCK_BYTES + 1024


class Session(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One connected life of a node: later sessions compare greater.

    Attributes:
        boot: counter on disk, raised at every process start.
        connect: counter raised at every connection of that process.
    """

    boot: int
    connect: int


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    format: str = MESSAGE_FORMAT


class State(_Message, kw_only=True, frozen=True, tag="state"):
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


class About(_Message, kw_only=True, frozen=True, tag="about"):
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
    macs_per_second: dict[str, float] = {}
    agent_version: str


class Heartbeat(_Message, kw_only=True, frozen=True, tag="heartbeat"):
    """Proof of life of the compute loop.

    Attributes:
        frames_done: since the process started.
        oldest_queued_seconds: age of the oldest frame that waits, 0 when none does.
        data_up: whether the data connection stands.
        stages: what its stages measured.
    """

    node: str
    session: Session
    frames_done: int
    oldest_queued_seconds: float
    data_up: bool
    stages: tuple[StageLoad, ...] = ()


class Speed(_Message, kw_only=True, frozen=True, tag="speed"):
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


class Hello(_Message, kw_only=True, frozen=True, tag="hello"):
    """A node came and wants to know who is here."""

    node: str


class Lease(_Message, kw_only=True, frozen=True, tag="lease"):
    """Who coordinates, under which term, and which node holds its blobs."""

    coordinator: str
    term: int
    session: Session


class Abandon(_Message, kw_only=True, frozen=True, tag="abandon"):
    """Command: drop an epoch and what was prepared for it."""

    deployment: str
    epoch: str
    reason: str


class BenchRequest(_Message, kw_only=True, frozen=True, tag="bench"):
    """Command to a device: measure yourself; `Speed` is published anew, and `Benched` follows.

    Attributes:
        request_id: repeated until `Benched` comes.
        manifest: blob of the manifest whose shards are timed.
        fits: whether operator speeds are fitted to them (a bundle of microbenchmarks).
        holders: nodes that hold its blobs now.
        mode: how the shards are run.
        most_seconds: how long the timing of shards may take.
        reply_to: topic for `Benched`.
    """

    request_id: str
    manifest: Blob
    fits: bool = False
    holders: tuple[str, ...]
    mode: Literal["default", "exact"] = "default"
    most_seconds: float = 30.0
    reply_to: str


class Benched(_Message, kw_only=True, frozen=True, tag="benched"):
    """Event: a `BenchRequest` is done, or not.

    Attributes:
        reason: one line when it failed.
    """

    request_id: str
    ok: bool
    reason: str = ""
    seconds: float = 0.0


class DeployRequest(_Message, kw_only=True, frozen=True, tag="deploy"):
    """Command to a coordinator: put a bundle to work under a name.

    Attributes:
        request_id: repeated until its `CommandOutcome` comes.
        manifest: blob of the Shardwire manifest.
        holders: nodes that hold its blobs now.
        constraints: what the plan must keep to.
        window: requests in flight in the whole pipeline.
        codec: how tensors travel between stages; `auto` for what gives the better plan.
        reply_to: topic for the outcome.
    """

    request_id: str
    name: str
    manifest: Blob
    holders: tuple[str, ...]
    constraints: Constraints = Constraints()
    objective: Objective = "throughput"
    mode: Literal["default", "exact"] = "default"
    window: int = 8
    codec: Codec | Literal["auto"] = "raw"
    reply_to: str


class UndeployRequest(_Message, kw_only=True, frozen=True, tag="undeploy"):
    """Command to a coordinator: remove a deployment."""

    request_id: str
    name: str
    reply_to: str


class CancelRequest(_Message, kw_only=True, frozen=True, tag="cancel"):
    """Command to a coordinator: stop a command of this sender, unless it is committed."""

    request_id: str


class CommandOutcome(_Message, kw_only=True, frozen=True, tag="outcome"):
    """What became of a command.

    Attributes:
        done: False while it is still going on.
        epoch: of the deployment, empty when there is none.
        reason: one line when it failed.
    """

    request_id: str
    done: bool
    ok: bool
    epoch: str = ""
    reason: str = ""


class Progress(_Message, kw_only=True, frozen=True, tag="progress"):
    """Event: bytes of an epoch fetched so far."""

    deployment: str
    epoch: str
    stage: int
    phase: Literal["fetching", "loading"]
    done_bytes: int
    total_bytes: int


class Ready(_Message, kw_only=True, frozen=True, tag="ready"):
    """Event: the stage is loaded and its subscription is acknowledged."""

    deployment: str
    epoch: str
    stage: int
    fetched_bytes: int
    load_seconds: float
    rss_bytes: int


class Failed(_Message, kw_only=True, frozen=True, tag="failed"):
    """Event: the epoch cannot be prepared or served here.

    Attributes:
        code: class name of the error, e.g. `OutOfMemory`.
        reason: one line for a person.
    """

    deployment: str
    epoch: str
    stage: int
    code: str
    reason: str


class Dropped(_Message, kw_only=True, frozen=True, tag="dropped"):
    """Event: the device no longer holds anything of this epoch."""

    deployment: str
    epoch: str


class FetchRequest(_Message, kw_only=True, frozen=True, tag="fetch"):
    """Asks a holder for one block of a blob."""

    digest: str
    block: int
    reply_to: str


class Block(_Message, kw_only=True, frozen=True, tag="block"):
    """One block of at most `BLOCK_BYTES`; `total_bytes` is the size of the blob, -1 when it is not held."""

    digest: str
    block: int
    total_bytes: int
    data: bytes


class Taken(_Message, kw_only=True, frozen=True, tag="taken"):
    """Ack to the sender of a frame: it is in the queue of the next stage."""

    node: str
    request_id: str
    attempt: int
    stage: int


class Done(_Message, kw_only=True, frozen=True, tag="done"):
    """Ack to the admitting stage: the request left the pipeline."""

    node: str
    request_id: str
    attempt: int


Command = Abandon | BenchRequest | DeployRequest | UndeployRequest | CancelRequest
Event = Progress | Ready | Failed | Dropped | Benched | CommandOutcome
Ack = Taken | Done
Message = State | About | Speed | Heartbeat | Hello | Lease | Command | Event | FetchRequest | Block | Ack

_T = TypeVar("_T")
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode_message(message: Message) -> bytes:
    """Encode one control message."""
    return _encoder.encode(message)


def decode_message(data: bytes, expected: type[_T]) -> _T:
    """Decode one control message of the class `expected`.

    Raises:
        FormatError: too long, not msgpack, fields missing or of a wrong type, or another message.
        UnsupportedVersion: another major version.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise FormatError(f"message of {len(data)} bytes is more than {MAX_MESSAGE_BYTES}")
    try:
        message = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"message: {error}") from error
    check_version(message.format, supported=MESSAGE_FORMAT, what="message")
    if not isinstance(message, expected):
        raise FormatError(f"message: got {type(message).__name__}, expected {expected.__name__}")
    return message
