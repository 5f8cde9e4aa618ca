"""Plans, deployments and the order of epochs."""

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from edge.errors import FormatError
from edge.formats.bundle import Blob
from edge.formats.canary import Canary, check_canary
from edge.formats.constraints import (
    MAX_CONSTRAINTS,
    MAX_REPLICAS,
    MAX_STANDBYS,
    Constraints,
    Pin,
    check_constraints,
)
from edge.formats.topics import check_name
from edge.formats.version import check_version

__all__ = [
    "MAX_CONSTRAINTS",
    "MAX_DEPLOYMENT_BYTES",
    "MAX_HOLDINGS",
    "MAX_REPLICAS",
    "MAX_STAGES",
    "MAX_STANDBYS",
    "MAX_WINDOW",
    "PLAN_FORMAT",
    "Before",
    "Codec",
    "Constraints",
    "Deployment",
    "Epoch",
    "Fate",
    "Holding",
    "LeftOut",
    "Loss",
    "Objective",
    "Pin",
    "Plan",
    "Source",
    "Stage",
    "Takes",
    "check_constraints",
    "decode_deployment",
    "encode_deployment",
    "parse_epoch",
]

PLAN_FORMAT = "1.3"
MAX_DEPLOYMENT_BYTES = 4 * 1024 * 1024
MAX_STAGES = 256
MAX_WINDOW = 4096
MAX_HOLDINGS = 4096

Objective = Literal["throughput", "latency", "energy", "memory"]
Source = Literal["measured", "fitted", "profile"]
Codec = Literal["raw", "deflate"]
Takes = Literal["", "onnx", "tflite"]
Fate = Literal["replica", "standby", "replan", "move", "stops"]

_ISSUED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
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

    A device has one place in a plan, or two: of two stages that are each alone in their step, with stages side by side
    somewhere between them, and of which it is the only device.

    Attributes:
        replicas: further devices that run the same stage; each request goes to one of `device` and these.
        standbys: devices that hold the same stage, loaded and idle; senders go over to them when no runner is there.
            Each may run another stage.
        keepers: devices that hold the blobs of this stage without loading it, so that its only copy is not lost.
        swaps: of its devices, those without room for two stages, which stop what they serve to load this one.
        beside: runs side by side with the stage before it: both belong to one *step*, and the next step joins them.
        takes: the shard format in whose `Manifest.form` tensors arrive at its step; empty for the manifest's own.
        predicted_seconds: processor time of one request on one of its devices, messages included.
        source: where that time comes from.
        memory_bytes: weights, peak activation, queue buffers and runtime overhead.
        received_bytes, sent_bytes: tensors of one request across its borders.
    """

    index: int
    device: str
    first_shard: int
    stop_shard: int
    replicas: tuple[str, ...] = ()
    standbys: tuple[str, ...] = ()
    keepers: tuple[str, ...] = ()
    swaps: tuple[str, ...] = ()
    beside: bool = False
    takes: Takes = ""
    predicted_seconds: float = 0.0
    source: Source = "profile"
    memory_bytes: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0

    @property
    def runners(self) -> tuple[str, ...]:
        """The devices that take turns with this stage."""
        return (self.device, *self.replicas)

    @property
    def devices(self) -> tuple[str, ...]:
        """All devices that hold this stage, standbys last."""
        return (*self.runners, *self.standbys)


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """A device that could take part and does not, and why, for a person."""

    device: str
    reason: str


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """What the death of one device means for a plan.

    Attributes:
        then: `replica` and `standby`: senders go over to another device by themselves; `replan`: a coordinator makes
            another plan, whose devices hold all they need; `move`: as before, and blobs have to be fetched from
            others; `stops`: nothing answers until the device is back.
        reason: for a person, where it stops.
    """

    device: str
    then: Fate
    reason: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Stages to devices, with what the planner expects of them.

    Attributes:
        bottleneck_seconds: time between two results at full load, the largest of all loads; its inverse is the
            predicted throughput.
        latency_seconds: time of one request alone.
        energy_joules: of one request, all devices.
        binds: what the bottleneck is, for a person (`compute of pi-1`).
        network_bytes: tensors of one request that the broker takes in.
        gap: how much worse than the best plan this may be at most, as a part of it; 0 when it is proven best.
        left_out: devices that were not used.
        losses: what the death of each of its devices means; empty when that was not worked out.
        pause_seconds: how long nothing answers while devices swap; 0 when none does.
        runtimes: the runtime that each device loads its stages with; a device that is not named chooses by itself.
    """

    objective: Objective
    stages: tuple[Stage, ...]
    bottleneck_seconds: float
    latency_seconds: float
    energy_joules: float = 0.0
    binds: str
    network_bytes: int = 0
    gap: float = 0.0
    left_out: tuple[LeftOut, ...] = ()
    losses: tuple[Loss, ...] = ()
    pause_seconds: float = 0.0
    runtimes: dict[str, str] = {}

    def steps(self) -> tuple[tuple[Stage, ...], ...]:
        """Return the stages in the groups that run side by side, in order."""
        steps: list[list[Stage]] = []
        for stage in self.stages:
            if stage.beside and steps:
                steps[-1].append(stage)
            else:
                steps.append([stage])
        return tuple(map(tuple, steps))


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """A node that holds blobs of a bundle: those of the shards `[first_shard, stop_shard)`, and its manifest.

    Attributes:
        golden: whether it holds the golden inputs and answers too.
        shard_format: of the shards; empty for every format that the bundle has.
    """

    node: str
    first_shard: int
    stop_shard: int
    golden: bool = False
    shard_format: Takes = ""


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """What a deployment served before, for `rollback`.

    Attributes:
        epoch: that it had then.
        rest: as in `Deployment`.
    """

    epoch: str
    manifest: Blob
    objective: Objective = "throughput"
    mode: Literal["default", "exact"] = "default"
    window: int = 8
    codec: Codec = "raw"
    constraints: Constraints = Constraints()


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """The retained value of `desired`, `serving` and `canary`.

    Attributes:
        epoch: see `Epoch`; values are ordered by it.
        manifest: blob of the Shardwire manifest, None in a tombstone.
        plan: None in a tombstone.
        holders: nodes to ask for blobs, one after another, after those that `holdings` name.
        holdings: who holds which blobs, as far as it is known.
        mode: `exact` runs shards unoptimised and bit-equal; `default` lets the device pick its layout.
        window: requests that stage 0 lets into the whole pipeline.
        codec: how tensors travel between stages.
        constraints: what the plan keeps to, and what the next one must.
        before: what another bundle served under this name last; None when there was none.
        rolls_back: whether its bundle may be older than one that was served.
        canary: in a `canary`, how it is tried; None in `desired` and `serving`.
        issued: UTC time when a coordinator made this, `YYYY-MM-DDTHH:MM:SSZ`; devices judge expiry by the newest that
            they have seen.
    """

    format: str = PLAN_FORMAT
    name: str
    epoch: str
    manifest: Blob | None
    plan: Plan | None
    holders: tuple[str, ...] = ()
    mode: Literal["default", "exact"] = "default"
    window: int = 8
    codec: Codec = "raw"
    constraints: Constraints = Constraints()
    holdings: tuple[Holding, ...] = ()
    before: Before | None = None
    rolls_back: bool = False
    canary: Canary | None = None
    issued: str = ""

    @property
    def removed(self) -> bool:
        """Whether this is a tombstone."""
        return self.plan is None or self.manifest is None

    @property
    def share(self) -> float:
        """Part of the requests that it gets: 1 but for a canary."""
        return 1.0 if self.canary is None else self.canary.share


_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Deployment)


def encode_deployment(deployment: Deployment) -> bytes:
    """Encode as canonical JSON."""
    return _encoder.encode(deployment)


def decode_deployment(data: bytes) -> Deployment:
    """Decode and check a retained deployment value.

    Raises:
        FormatError: malformed, out of bounds, stages that are not consecutive, or a device in places that it cannot
            have together.
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
    where = f"deployment {deployment.name!r}"
    if not 1 <= deployment.window <= MAX_WINDOW:
        raise FormatError(f"{where}: window {deployment.window} is not within 1 and {MAX_WINDOW}")
    check_constraints(deployment.constraints, where)
    _check_history(deployment, where)
    if deployment.plan is not None:
        _check_plan(deployment.plan, where)
    return deployment


def _check_history(deployment: Deployment, where: str) -> None:
    if len(deployment.holdings) > MAX_HOLDINGS:
        raise FormatError(f"{where}: {len(deployment.holdings)} holdings; at most {MAX_HOLDINGS} are allowed")
    for holding in deployment.holdings:
        check_name(holding.node, what="holder")
    if deployment.canary is not None:
        check_canary(deployment.canary, where)
    if deployment.issued and not _ISSUED.fullmatch(deployment.issued):
        raise FormatError(f"{where}: issued {deployment.issued[:40]!r} is not YYYY-MM-DDTHH:MM:SSZ")
    if deployment.before is not None:
        parse_epoch(deployment.before.epoch)
        check_constraints(deployment.before.constraints, where)


def _check_plan(plan: Plan, where: str) -> None:
    stages = plan.stages
    if not 1 <= len(stages) <= MAX_STAGES:
        raise FormatError(f"{where}: {len(stages)} stages; 1 to {MAX_STAGES} are allowed")
    expected = 0
    for index, stage in enumerate(stages):
        if stage.index != index or stage.first_shard != expected or stage.stop_shard <= stage.first_shard:
            raise FormatError(f"{where}: stage {index} does not continue shard {expected}")
        expected = stage.stop_shard
    if stages[0].beside or stages[-1].beside:
        raise FormatError(f"{where}: the first and the last step must have one stage each")
    devices = [device for stage in stages for device in stage.devices]
    if len(devices) - len(stages) > MAX_REPLICAS:
        raise FormatError(f"{where}: {len(devices) - len(stages)} replicas; at most {MAX_REPLICAS} are allowed")
    steps = plan.steps()
    places: dict[str, list[int]] = {}
    for place, step in enumerate(steps):
        for device in (device for stage in step for device in stage.runners):
            check_name(device, what="device")
            places.setdefault(device, []).append(place)
    for device, taken in places.items():
        if len(taken) > 1 and not _returns(device, taken, steps):
            raise FormatError(f"{where}: {device} has two places in its plan")
    for stage in stages:
        _check_idle(stage, where)
    _check_forms(plan, where)
    for name in (*(item.device for item in plan.left_out), *(item.device for item in plan.losses)):
        check_name(name, what="device")


def _check_forms(plan: Plan, where: str) -> None:
    """Check the runtimes of devices, and in what form tensors travel."""
    if len(plan.runtimes) > MAX_STAGES + MAX_REPLICAS:
        raise FormatError(f"{where}: {len(plan.runtimes)} runtimes; at most {MAX_STAGES + MAX_REPLICAS} are allowed")
    for device, runtime in plan.runtimes.items():
        check_name(device, what="device")
        check_name(runtime, what="runtime")
    steps = plan.steps()
    if steps[0][0].takes:
        raise FormatError(f"{where}: clients send the bundle's own form, stage 0 takes {steps[0][0].takes}")
    for step in steps:
        if len({stage.takes for stage in step}) > 1:
            raise FormatError(f"{where}: stages {step[0].index} to {step[-1].index} take tensors in several forms")


def _check_idle(stage: Stage, where: str) -> None:
    """Check the devices that hold a stage without running it."""
    idle = (*stage.standbys, *stage.keepers)
    for device in idle:
        check_name(device, what="device")
    if len(idle) > MAX_REPLICAS or len({*stage.runners, *idle}) != len(stage.runners) + len(idle):
        raise FormatError(f"{where}: stage {stage.index} names a device twice, or too many")
    if strange := set(stage.swaps) - set(stage.devices):
        raise FormatError(f"{where}: stage {stage.index}: {min(strange)[:64]!r} swaps, and has no part in it")


def _returns(device: str, places: Sequence[int], steps: Sequence[Sequence[Stage]]) -> bool:
    """Whether a device has exactly two stages, alone in their steps and with it, and others side by side between them.

    It would idle while they work. Next to each other, or around one stage alone, they gain nothing as two stages.
    """
    if len(places) != 2:
        return False
    first, second = places
    alone = all([stage.runners for stage in steps[place]] == [(device,)] for place in places)
    return alone and any(len(step) > 1 for step in steps[first + 1 : second])
