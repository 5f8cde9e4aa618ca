"""Plans, deployments and the order of epochs."""

import re
from typing import Literal

import msgspec

from edge.errors import FormatError
from edge.formats.bundle import Blob
from edge.formats.topics import check_name
from edge.formats.version import check_version

PLAN_FORMAT = "1.0"
MAX_DEPLOYMENT_BYTES = 4 * 1024 * 1024
MAX_STAGES = 256

_EPOCH = re.compile(r"(\d{1,10})-([0-9a-f]{1,16})-(\d{1,10})")


class Epoch(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Name and order of one change of a deployment's plan: (term, coordinator id, sequence)."""

    term: int
    coordinator: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.term}-{self.coordinator}-{self.sequence}"


def parse_epoch(name: str) -> Epoch:
    """Parse `5-a3f-12`.

    Raises:
        FormatError: it is not an epoch name.
    """
    match = _EPOCH.fullmatch(name)
    if match is None:
        raise FormatError(f"epoch {name[:64]!r} is not <term>-<hex id>-<sequence>")
    return Epoch(term=int(match[1]), coordinator=match[2], sequence=int(match[3]))


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive shards `[first_shard, stop_shard)` that one device runs as one session.

    Attributes:
        standbys: devices that hold the same stage, loaded and idle.
        predicted_seconds: compute time of one request.
        memory_bytes: weights, peak activation, queue buffers and runtime overhead.
        received_bytes, sent_bytes: tensors of one request across the two boundaries.
    """

    index: int
    device: str
    first_shard: int
    stop_shard: int
    standbys: tuple[str, ...] = ()
    predicted_seconds: float = 0.0
    memory_bytes: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Stages to devices, with what the planner expects of them.

    Attributes:
        bottleneck_seconds: largest stage or link time; its inverse is the predicted throughput.
        latency_seconds: sum of stage and link times of one request.
        binds: what the bottleneck is, for a person (`compute of pi-1`).
    """

    objective: Literal["throughput", "latency"]
    stages: tuple[Stage, ...]
    bottleneck_seconds: float
    latency_seconds: float
    binds: str


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """The retained value of `desired` and `serving`.

    Attributes:
        epoch: see `Epoch`; values are ordered by it.
        manifest: blob of the Shardwire manifest, None in a tombstone.
        plan: None in a tombstone.
        holders: nodes to ask for blobs, one after another.
        mode: `exact` runs shards unoptimised and bit-equal; `default` lets the device pick its layout.
        window: requests that stage 0 lets into the whole pipeline.
    """

    format: str = PLAN_FORMAT
    name: str
    epoch: str
    manifest: Blob | None
    plan: Plan | None
    holders: tuple[str, ...] = ()
    mode: Literal["default", "exact"] = "default"
    window: int = 8

    @property
    def removed(self) -> bool:
        """Whether this is a tombstone."""
        return self.plan is None or self.manifest is None


_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Deployment)


def encode_deployment(deployment: Deployment) -> bytes:
    """Encode as canonical JSON."""
    return _encoder.encode(deployment)


def decode_deployment(data: bytes) -> Deployment:
    """Decode and check a retained deployment value.

    Raises:
        FormatError: malformed, out of bounds, or stages that are not consecutive.
        UnsupportedVersion: another major version.
    """
    if len(data) > MAX_DEPLOYMENT_BYTES:
        raise FormatError(f"deployment of {len(data)} bytes is more than {MAX_DEPLOYMENT_BYTES}")
    try:
        deployment = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"deployment: {error}") from error
    check_version(deployment.format, supported=PLAN_FORMAT, what="deployment")
    parse_epoch(deployment.epoch)
    check_name(deployment.name, what="deployment name")
    for holder in deployment.holders:
        check_name(holder, what="holder")
    if deployment.plan is None:
        return deployment
    stages = deployment.plan.stages
    if not 1 <= len(stages) <= MAX_STAGES or deployment.window < 1:
        raise FormatError(f"deployment {deployment.name!r}: {len(stages)} stages, window {deployment.window}")
    expected = 0
    for index, stage in enumerate(stages):
        if stage.index != index or stage.first_shard != expected or stage.stop_shard <= stage.first_shard:
            raise FormatError(f"deployment {deployment.name!r}: stage {index} does not continue shard {expected}")
        for device in (stage.device, *stage.standbys):
            check_name(device, what="device")
        expected = stage.stop_shard
    return deployment
