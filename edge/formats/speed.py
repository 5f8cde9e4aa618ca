"""How fast a device is, as it measured itself: what the planner believes before it believes a profile."""

from typing import Literal

import msgspec

MAX_MODELS = 16
MAX_KINDS = 64
MAX_SHARDS = 8192
MOST_SECONDS = 86_400.0


class OperatorSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Fitted speed of one kind of operator: a call takes `call_seconds` and the larger of work and traffic.

    Attributes:
        kind: `conv`, `conv-int8`, `matmul`, `matmul-int8` or `other`; see `host.planning.speeds`.
        macs_per_second: compute roof; 0 for a kind that does not multiply.
        memory_bytes_per_second: memory roof.
        call_seconds: of each call.
    """

    kind: str
    macs_per_second: float
    memory_bytes_per_second: float
    call_seconds: float


class ModelSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Measured times of one model on one device with one runtime; a device with several may measure each.

    Attributes:
        manifest: digest of its manifest.
        mode: how its stages were run.
        threads: of one operator.
        runtime: name and version, such as `onnxruntime 1.32.0`.
        shard_seconds: mean operator time of each shard in one run; negative for those not measured.
        session_seconds: mean time of a call of the session beyond its operators; 0 where each shard is a session.
    """

    manifest: str
    mode: Literal["default", "exact"]
    threads: int
    runtime: str
    shard_seconds: tuple[float, ...]
    session_seconds: float

    @property
    def runtime_name(self) -> str:
        """Name of the runtime, without its version."""
        return self.runtime.partition(" ")[0]


class LinkSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """The way from a device to the broker and back to itself, as measured.

    Attributes:
        bytes_per_second: of large payloads, the slower of both directions.
        latency_seconds: half the round trip of a small one.
    """

    bytes_per_second: float
    latency_seconds: float


class StageLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How a stage does now, smoothed over its last frames.

    Attributes:
        frames: run since the stage was loaded.
        failed: of them, those that ended with an error of the stage.
        run_seconds: inside the runtime, of one frame.
        queued_seconds: from complete arrival to the start of the run.
    """

    deployment: str
    epoch: str
    stage: int
    frames: int
    run_seconds: float
    queued_seconds: float
    failed: int = 0
