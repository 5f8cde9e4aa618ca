"""Messages of the control plane: msgpack maps with a `type` tag and a format version.

Here are those about epochs, blobs and frames, and how all are written and read; `node` has what nodes say of
themselves, `command` what they are told. Whoever needs a message takes it from here.
"""

from typing import Literal, TypeVar

import msgspec

from edge.errors import FormatError
from edge.formats.command import (
    Abandon,
    Benched,
    BenchRequest,
    CancelRequest,
    CommandOutcome,
    Cordon,
    DeployRequest,
    DeviceRequest,
    RollbackRequest,
    Swap,
    UndeployRequest,
)
from edge.formats.envelope import MESSAGE_FORMAT, Envelope
from edge.formats.node import (
    MAX_LISTED,
    MAX_TRANSFERS,
    About,
    FleetEvent,
    Heartbeat,
    Hello,
    Lease,
    Metrics,
    RuntimeOffer,
    Session,
    Speed,
    State,
    Transfer,
    check_speed,
)
from edge.formats.plan import MAX_HOLDINGS, MAX_STAGES
from edge.formats.version import check_version

__all__ = [
    "BLOCK_BYTES",
    "MAX_BLOCK_MESSAGE_BYTES",
    "MAX_LISTED",
    "MAX_MESSAGE_BYTES",
    "MAX_TRANSFERS",
    "MESSAGE_FORMAT",
    "Abandon",
    "About",
    "Ack",
    "BenchRequest",
    "Benched",
    "Block",
    "CancelRequest",
    "Command",
    "CommandOutcome",
    "Cordon",
    "DeployRequest",
    "DeviceRequest",
    "Done",
    "Dropped",
    "Event",
    "Failed",
    "FetchRequest",
    "Fetched",
    "FleetEvent",
    "Heartbeat",
    "Hello",
    "Kept",
    "Lease",
    "Message",
    "Metrics",
    "Progress",
    "Ready",
    "RollbackRequest",
    "RuntimeOffer",
    "Session",
    "Speed",
    "State",
    "Swap",
    "Taken",
    "Transfer",
    "UndeployRequest",
    "check_speed",
    "decode_message",
    "encode_message",
]

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
BLOCK_BYTES = 128 * 1024
MAX_BLOCK_MESSAGE_BYTES = BLOCK_BYTES + 1024


class Progress(Envelope, kw_only=True, frozen=True, tag="progress"):
    """Event: bytes of an epoch fetched so far."""

    deployment: str
    epoch: str
    stage: int
    phase: Literal["fetching", "loading"]
    done_bytes: int
    total_bytes: int


class Ready(Envelope, kw_only=True, frozen=True, tag="ready"):
    """Event: the stage is loaded and its subscription is acknowledged."""

    deployment: str
    epoch: str
    stage: int
    fetched_bytes: int
    load_seconds: float
    rss_bytes: int


class Fetched(Envelope, kw_only=True, frozen=True, tag="fetched"):
    """Event: a device that swaps has all blobs of the epoch, and waits for `Swap`."""

    deployment: str
    epoch: str


class Kept(Envelope, kw_only=True, frozen=True, tag="kept"):
    """Event: the device holds the blobs of these stages of the serving epoch.

    Attributes:
        golden: whether the golden inputs and answers too.
    """

    deployment: str
    epoch: str
    stages: tuple[int, ...]
    golden: bool = False


class Failed(Envelope, kw_only=True, frozen=True, tag="failed"):
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


class Dropped(Envelope, kw_only=True, frozen=True, tag="dropped"):
    """Event: the device no longer holds anything of this epoch."""

    deployment: str
    epoch: str


class FetchRequest(Envelope, kw_only=True, frozen=True, tag="fetch"):
    """Asks a holder for one block of a blob."""

    digest: str
    block: int
    reply_to: str


class Block(Envelope, kw_only=True, frozen=True, tag="block"):
    """One block of at most `BLOCK_BYTES`; `total_bytes` is the size of the blob, -1 when it is not held."""

    digest: str
    block: int
    total_bytes: int
    data: bytes


class Taken(Envelope, kw_only=True, frozen=True, tag="taken"):
    """Ack to the sender of a frame: it is in the queue of the next stage."""

    node: str
    request_id: str
    attempt: int
    stage: int


class Done(Envelope, kw_only=True, frozen=True, tag="done"):
    """Ack to the admitting stage: the request left the pipeline."""

    node: str
    request_id: str
    attempt: int


Command = (
    Abandon
    | Swap
    | Cordon
    | BenchRequest
    | DeployRequest
    | UndeployRequest
    | RollbackRequest
    | DeviceRequest
    | CancelRequest
)
Event = Progress | Fetched | Ready | Kept | Failed | Dropped | Benched | CommandOutcome
Ack = Taken | Done
Message = (
    State
    | About
    | Speed
    | Heartbeat
    | Metrics
    | Hello
    | Lease
    | Command
    | Event
    | FleetEvent
    | FetchRequest
    | Block
    | Ack
)

_MOST: dict[type, dict[str, int]] = {
    About: {"runtimes": MAX_LISTED, "macs_per_second": MAX_LISTED},
    Heartbeat: {"stages": MAX_LISTED},
    Metrics: {"refused": MAX_LISTED, "transfers": MAX_TRANSFERS},
    Kept: {"stages": MAX_STAGES},
    DeployRequest: {"holders": MAX_HOLDINGS},
}

_T = TypeVar("_T")
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode_message(message: Message) -> bytes:
    """Encode one control message."""
    return _encoder.encode(message)


def decode_message(data: bytes, expected: type[_T]) -> _T:
    """Decode one control message of the class `expected`.

    Raises:
        FormatError: too long, also in one of its lists; not msgpack, fields missing or of a wrong type, or another
            message.
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
    for name, most in _MOST.get(type(message), {}).items():
        if len(getattr(message, name)) > most:
            raise FormatError(f"message: {type(message).__name__} has more than {most} {name}")
    return message
