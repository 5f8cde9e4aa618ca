"""What the agent's protocol is told, and what it asks for in return; see `edge.protocol.session`."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from edge.formats.bundle import Blob, Manifest, ShardFormat
from edge.formats.frame import Frame
from edge.formats.message import FetchRequest, Speed
from edge.formats.plan import Codec, Deployment
from edge.protocol.fetch import BlockServed, KeepBlock
from edge.protocol.marks import ForgetDeaths, SaveMarks
from edge.routes import Hand, Route
from edge.transport import Channel, Publication, TransportEvent


class StageKey(NamedTuple):
    """Names one loaded stage."""

    deployment: str
    epoch: str
    stage: int


# ---------------------------------------------------------------------------------------------------------- events
@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """Time went by; at least every quarter of a second while something is under way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """The compute loop is alive; once a second.

    Attributes:
        frames_done: since the process started.
        free_memory_bytes: what the system would still give.
        dropped_messages: that the inbox had no room for.
    """

    frames_done: int
    free_memory_bytes: int
    dropped_messages: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class BlobBegun:
    """Room is made for a blob; these blocks of it are missing."""

    digest: str
    missing: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlocksKept:
    """Blocks are durable."""

    digest: str
    indices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlobStored:
    """A blob is whole and verified."""

    digest: str
    held_bytes: int
    free_disk_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BlobSpoiled:
    """All blocks came, and they are not the blob; what was there of it is dropped."""

    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BlobFailed:
    """The store or the manifest parser refuses a blob.

    Attributes:
        code: class name of the error.
        reason: its one line.
    """

    digest: str
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BlobsDropped:
    """The store was collected."""

    digests: tuple[str, ...]
    held_bytes: int
    free_disk_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestRead:
    """A manifest is parsed."""

    digest: str
    manifest: Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class StageLoaded:
    """A stage can run."""

    key: StageKey
    load_seconds: float
    rss_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRefused:
    """A stage cannot be loaded."""

    key: StageKey
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StageClosed:
    """A stage is freed, or was not there."""

    key: StageKey


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameDone:
    """A frame was run, or given up; what follows from it is published.

    Attributes:
        queued_seconds: from its complete arrival to the start of the run.
        ended: the request left the pipeline here: by its result, an error, or because its time is up.
        failed: it ended with an error of the stage, not of the input.
    """

    key: StageKey
    request_id: str
    run_seconds: float
    queued_seconds: float = 0.0
    ended: bool
    failed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchEnded:
    """A bench is over.

    Attributes:
        job: which one.
        seconds: how long it took.
        found: what was measured; its name and profile are filled in by the session. None when nothing was.
        reason: one line when it failed.
    """

    job: "RunBench"
    seconds: float
    found: Speed | None
    reason: str = ""


AgentEvent = (
    TransportEvent
    | Tick
    | Beat
    | BlobBegun
    | BlocksKept
    | BlockServed
    | BlobStored
    | BlobSpoiled
    | BlobFailed
    | BlobsDropped
    | ManifestRead
    | StageLoaded
    | StageRefused
    | StageClosed
    | FrameDone
    | BenchEnded
)


# --------------------------------------------------------------------------------------------------------- effects
@dataclass(frozen=True, kw_only=True, slots=True)
class Subscribe:
    """Ask the broker for a topic filter."""

    channel: Channel
    filter: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Unsubscribe:
    """Give a topic filter back."""

    channel: Channel
    filter: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveServing:
    """Remember a serving plan on disk."""

    deployment: Deployment


@dataclass(frozen=True, kw_only=True, slots=True)
class BeginBlob:
    """Make room for a blob; `BlobBegun` or `BlobFailed` follows."""

    blob: Blob


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadManifest:
    """Read and parse a manifest from the store; `ManifestRead` or `BlobFailed` follows."""

    blob: Blob


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectBlobs:
    """Drop every blob but these; `BlobsDropped` follows."""

    keep: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerFetch:
    """Publish a block to one who asked for it."""

    request: FetchRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadStage:
    """Verify the blobs of a stage and load it beside what runs; `StageLoaded` or `StageRefused` follows.

    Attributes:
        route: which tensors it takes and gives.
        runtime: name of the runtime to load it with.
        must_run: refuse it when it does not run on zeros, too.
        arrives, leaves: shard format in whose form tensors come and go; None for the bundle's own.
    """

    key: StageKey
    manifest: Manifest
    first_shard: int
    stop_shard: int
    route: Route
    mode: Literal["default", "exact"]
    runtime: str
    must_run: bool = False
    arrives: ShardFormat | None = None
    leaves: ShardFormat | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CloseStage:
    """Free a stage once the frames before this effect are run; `StageClosed` follows."""

    key: StageKey


@dataclass(frozen=True, kw_only=True, slots=True)
class Onward:
    """A frame that follows a run.

    Attributes:
        hand: for which stage, with which tensors.
        runners: devices of that stage, of which one gets it.
        standbys: devices that have it loaded, for when no runner is there.
    """

    hand: Hand
    runners: tuple[str, ...]
    standbys: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFrame:
    """Run a frame and publish what follows, see `edge.protocol.relay`; `FrameDone` follows.

    Attributes:
        frame: what arrived; of a join, all parts in one.
        arrived: monotonic seconds when its last packet came.
        received_bytes: size of the frame, or of all parts.
        onward: frames for the next step; empty when this is the last stage.
        admitting: who may have let the request into the pipeline, and wants to know when it leaves.
        codec: how tensors travel.
    """

    key: StageKey
    frame: Frame
    arrived: float
    received_bytes: int
    onward: tuple[Onward, ...] = ()
    admitting: tuple[str, ...] = ()
    codec: Codec = "raw"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunBench:
    """Time shards, and what messages cost, beside what is served; `BenchEnded` follows.

    Attributes:
        request_id: of the `BenchRequest`; empty after a stage was loaded, when only its shards are timed, and given
            up once frames come.
        digest: of the manifest.
        mode: how the shards are run.
        runtime: name of the runtime to run them with.
        memory_bytes: what a session may take.
        most_seconds: how long the timing of shards may take.
        fits: whether operator speeds are fitted to them.
        messages: whether messages and the link are measured, too, when it was asked for.
    """

    request_id: str
    digest: str
    manifest: Manifest
    first_shard: int
    stop_shard: int
    mode: Literal["default", "exact"]
    runtime: str
    memory_bytes: int
    most_seconds: float
    fits: bool = False
    messages: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Echoed:
    """Tell the bench that a frame which it sent to this device came back whole."""

    request_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveSpeed:
    """Remember on disk what was measured."""

    speed: Speed


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """Write a log line."""

    level: Literal["info", "warning", "error"]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """End the agent: it must not go on, and a person must act."""

    reason: str


Effect = (
    Publication
    | Subscribe
    | Unsubscribe
    | SaveServing
    | SaveMarks
    | ForgetDeaths
    | BeginBlob
    | KeepBlock
    | ReadManifest
    | CollectBlobs
    | AnswerFetch
    | LoadStage
    | CloseStage
    | RunFrame
    | RunBench
    | Echoed
    | SaveSpeed
    | Log
    | Stop
)
