"""Messages of the control plane: msgpack maps with a `type` tag and a format version."""

from typing import Literal, TypeVar

import msgspec

from edge.errors import FormatError
from edge.formats.bundle import Blob
from edge.formats.version import check_version

MESSAGE_FORMAT = "1.0"
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
    """

    node: str
    session: Session
    frames_done: int
    oldest_queued_seconds: float
    data_up: bool


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


class DeployRequest(_Message, kw_only=True, frozen=True, tag="deploy"):
    """Command to a coordinator: put a bundle to work under a name.

    Attributes:
        request_id: repeated until its `CommandOutcome` comes.
        manifest: blob of the Shardwire manifest.
        holders: nodes that hold its blobs now.
        devices: names to use; empty for every device that is online.
        use_all: give each of them a stage, even where fewer would be faster.
        window: requests in flight in the whole pipeline.
        reply_to: topic for the outcome.
    """

    request_id: str
    name: str
    manifest: Blob
    holders: tuple[str, ...]
    devices: tuple[str, ...] = ()
    use_all: bool = False
    objective: Literal["throughput", "latency"] = "throughput"
    mode: Literal["default", "exact"] = "default"
    window: int = 8
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


Command = Abandon | DeployRequest | UndeployRequest | CancelRequest
Event = Progress | Ready | Failed | Dropped | CommandOutcome
Ack = Taken | Done
Message = State | About | Heartbeat | Hello | Lease | Command | Event | FetchRequest | Block | Ack

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
