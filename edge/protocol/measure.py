"""What a device knows of its own speed, and how it comes to know it. Part of the session.

A `BenchRequest` names a manifest: its blobs are fetched as those of an epoch are, then the bench times them in a thread
of its own, with every runtime of the device that can. The shards of a stage that was just loaded are timed, too, for a
moment, unless that is known.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from edge.errors import CorruptFrame, FormatError, StageError
from edge.formats.bundle import Blob, Manifest, check_digest
from edge.formats.frame import decode_frame
from edge.formats.message import Benched, BenchRequest, Speed, Taken, encode_message
from edge.formats.packet import Reassembler
from edge.formats.speed import MAX_MODELS, MAX_SHARDS, ModelSpeed
from edge.formats.topics import Topics, check_name
from edge.protocol.builds import blobs_in, format_by
from edge.protocol.effects import BenchEnded, Echoed, Effect, ReadManifest, RunBench, SaveSpeed
from edge.protocol.local_epoch import LocalEpoch
from edge.protocol.needs import choose_runtime, usable_runtimes
from edge.protocol.preparing import EpochAction, Need
from edge.protocol.presence import AgentIdentity, control
from edge.transport import Channel, Publication

MAX_HOLDERS = 256
MOST_BENCH_SECONDS = 120.0
STAGE_SECONDS = 1.0
"""How long the shards of a stage that was just loaded are timed."""

IDLE_SECONDS = 2.0
"""Not where a frame was run within this time: a switch of epochs must not slow down those who wait for answers."""

_MAX_REQUEST_ID = 64
_REMEMBERED = 64
_ECHO_BYTES = 4 * 1024 * 1024


@dataclass(kw_only=True, slots=True)
class _Job:
    request: BenchRequest
    waiting: dict[str, Blob]
    keep: frozenset[str]
    manifest: Manifest | None = None
    runtimes: tuple[str, ...] = ()
    running: bool = False
    seconds: float = 0.0


@dataclass(slots=True)
class Measure:
    """Keeps what was measured, carries out one `BenchRequest` at a time, and answers it again when it is repeated.

    Attributes:
        speed: what is known, None when nothing is.
    """

    topics: Topics
    identity: AgentIdentity
    budget_bytes: Callable[[], int]
    speed: Speed | None = None
    _job: _Job | None = None
    _ran_at: float = float("-inf")
    _answers: dict[str, Benched] = field(default_factory=dict)
    _echoes: Reassembler = field(
        default_factory=lambda: Reassembler(limit_bytes=_ECHO_BYTES, total_limit_bytes=_ECHO_BYTES)
    )

    def announce(self) -> list[Effect]:
        """Say what is known, if anything is."""
        if self.speed is None:
            return []
        return [control(self.topics.speed(self.identity.name), self.speed, qos=1, retain=True)]

    def wanted(self) -> frozenset[str]:
        """Return the digests of the blobs that a bench waits for."""
        return frozenset(self._job.waiting) if self._job is not None else frozenset()

    def keeps(self) -> frozenset[str]:
        """Return the digests of the blobs that a bench needs, here or not."""
        return self._job.keep if self._job is not None else frozenset()

    # ---------------------------------------------------------------------------------------------------- requests
    def command(self, request: BenchRequest) -> list[EpochAction]:
        """Begin a bench, or say again what became of it.

        Raises:
            FormatError: the request is malformed.
            BundleError: it names no blob.
        """
        _check(request, self.topics)
        answer = self._answers.get(request.request_id)
        if answer is not None:
            return [control(request.reply_to, answer, qos=1)]
        if self._job is not None:
            if self._job.request.request_id == request.request_id:
                return []
            busy = Benched(request_id=request.request_id, ok=False, reason="it is measuring for somebody else")
            return [control(request.reply_to, busy, qos=1)]
        self._job = _Job(request=request, waiting={}, keep=frozenset())
        return self._wait_for((request.manifest,))

    def stored(self, digest: str, _now: float) -> list[EpochAction]:
        """A blob is whole."""
        job = self._job
        if job is None or job.waiting.pop(digest, None) is None or job.waiting:
            return []
        if job.manifest is None:
            return [ReadManifest(blob=job.request.manifest)]
        return self._run(job, job.manifest)

    def blob_failed(self, digest: str, _code: str, reason: str) -> list[EpochAction]:
        """A blob cannot be had, kept or parsed."""
        job = self._job
        if job is None or job.running:
            return []
        is_manifest = job.manifest is None and digest == job.request.manifest.digest
        return self._finish(job, ok=False, reason=reason) if digest in job.waiting or is_manifest else []

    def manifest_read(self, digest: str, manifest: Manifest) -> list[EpochAction]:
        """A manifest is parsed: fetch the shards."""
        job = self._job
        if job is None or job.manifest is not None or job.waiting or digest != job.request.manifest.digest:
            return []
        if len(manifest.shards) > MAX_SHARDS:
            return self._finish(job, ok=False, reason=f"{len(manifest.shards)} shards are more than {MAX_SHARDS}")
        try:
            choose_runtime(manifest, self.identity.runtimes)
        except StageError as error:
            return self._finish(job, ok=False, reason=str(error))
        job.manifest = manifest
        job.runtimes = usable_runtimes(manifest, self.identity.runtimes)
        formats = dict.fromkeys(format_by(runtime) for runtime in job.runtimes)
        return self._wait_for(blobs_in(manifest, formats, 0, len(manifest.shards)))

    def ran(self, now: float) -> None:
        """Note that a frame was run."""
        self._ran_at = now

    def stage_loaded(self, local: LocalEpoch, stage: int, now: float) -> list[Effect]:
        """A stage was loaded: time its shards for a moment, unless that is known or frames come."""
        if now - self._ran_at < IDLE_SECONDS:
            return []
        manifest, loaded = local.manifest, next(part for part in local.stages if part.index == stage)
        if manifest is None or len(manifest.shards) > MAX_SHARDS:
            return []
        first, stop, mode = loaded.first_shard, loaded.stop_shard, local.deployment.mode
        runtime = local.runtime or choose_runtime(manifest, self.identity.runtimes)
        known = _model(self.speed, local.manifest_digest, mode, runtime)
        if known is not None and all(seconds >= 0 for seconds in known.shard_seconds[first:stop]):
            return []
        return [
            RunBench(
                request_id="",
                digest=local.manifest_digest,
                manifest=manifest,
                first_shard=first,
                stop_shard=stop,
                mode=mode,
                runtime=runtime,
                memory_bytes=self.budget_bytes(),
                most_seconds=STAGE_SECONDS,
            )
        ]

    def ended(self, event: BenchEnded) -> list[EpochAction]:
        """A bench is over: keep and publish what it found."""
        actions: list[EpochAction] = []
        if event.found is not None:
            me = self.identity
            known = self.speed if self.speed is not None and self.speed.profile == me.profile else None
            self.speed = merged(known or Speed(node=me.name, profile=me.profile), event.found)
            actions += [SaveSpeed(speed=self.speed), *self.announce()]
        job = self._job
        if job is not None and job.running and job.request.request_id == event.job.request_id:
            job.seconds += event.seconds
            if not event.reason and job.runtimes and job.manifest is not None:
                actions += self._run(job, job.manifest)
            else:
                actions += self._finish(job, ok=not event.reason, reason=event.reason, seconds=job.seconds)
        return actions

    # ------------------------------------------------------------------------------------------------------ echoes
    def echo(self, payload: bytes, now: float) -> list[Effect]:
        """Take a packet that this device sent to itself; what comes while no bench runs is dropped.

        A whole frame is acknowledged, as one for a stage is: an echo costs what sending one and receiving one do.

        Raises:
            FormatError: it is no packet, or the frame is none.
        """
        if self._job is None or not self._job.running:
            return []
        data = self._echoes.add(payload, now)
        if data is None:
            return []
        try:
            request_id = decode_frame(data).header.request_id
        except CorruptFrame as error:
            raise FormatError(str(error)) from error
        name = self.identity.name
        ack = encode_message(Taken(node=name, request_id=request_id, attempt=0, stage=0))
        return [
            Publication(channel=Channel.DATA, topic=self.topics.ack(name), payload=ack),
            Echoed(request_id=request_id),
        ]

    # --------------------------------------------------------------------------------------------------- own steps
    def _wait_for(self, blobs: Iterable[Blob]) -> list[EpochAction]:
        job = self._job
        if job is None:
            return []
        job.waiting = {blob.digest: blob for blob in blobs}
        job.keep |= frozenset(job.waiting)
        holders = tuple(holder for holder in job.request.holders if holder != self.identity.name)
        # Those that are here are named, too: the disk says so at once.
        return [Need(blob=blob, holders=holders) for blob in job.waiting.values()]

    def _run(self, job: _Job, manifest: Manifest) -> list[EpochAction]:
        """Time the shards with the next runtime; messages are measured once, with the first."""
        runtime, *more = job.runtimes
        is_first, job.running, job.runtimes = not job.running, True, tuple(more)
        request = job.request
        return [
            RunBench(
                request_id=request.request_id,
                digest=request.manifest.digest,
                manifest=manifest,
                first_shard=0,
                stop_shard=len(manifest.shards),
                mode=request.mode,
                runtime=runtime,
                memory_bytes=self.budget_bytes(),
                most_seconds=min(request.most_seconds, MOST_BENCH_SECONDS),
                fits=request.fits,
                messages=is_first,
            )
        ]

    def _finish(self, job: _Job, *, ok: bool, reason: str = "", seconds: float = 0.0) -> list[EpochAction]:
        request_id = job.request.request_id
        answer = Benched(request_id=request_id, ok=ok, reason=reason[:500], seconds=seconds)
        self._answers[request_id] = answer
        while len(self._answers) > _REMEMBERED:
            del self._answers[next(iter(self._answers))]
        self._job = None
        return [control(job.request.reply_to, answer, qos=1)]


def merged(known: Speed, found: Speed) -> Speed:
    """Return what is known after a bench: what it found counts before what was known.

    Args:
        known: before; its name and profile stay.
        found: by the bench; what it did not measure is empty, None or negative.
    """
    models = list(known.models)
    for model in reversed(found.models):
        before = _model(known, model.manifest, model.mode, model.runtime_name)
        models = [other for other in models if other != before]
        models.insert(0, _merged_model(before, model))
    measured_messages = found.message_seconds >= 0
    return Speed(
        node=known.node,
        profile=known.profile,
        operators=found.operators or known.operators,
        message_seconds=found.message_seconds if measured_messages else known.message_seconds,
        message_seconds_per_byte=(
            found.message_seconds_per_byte if measured_messages else known.message_seconds_per_byte
        ),
        link=found.link or known.link,
        models=tuple(models[:MAX_MODELS]),
    )


def _merged_model(before: ModelSpeed | None, found: ModelSpeed) -> ModelSpeed:
    same = (
        before is not None
        and (before.threads, before.runtime) == (found.threads, found.runtime)
        and len(before.shard_seconds) == len(found.shard_seconds)
    )
    if before is None or not same:
        return found
    pairs = zip(before.shard_seconds, found.shard_seconds, strict=True)
    return msgspec.structs.replace(found, shard_seconds=tuple(new if new >= 0 else old for old, new in pairs))


def _model(speed: Speed | None, digest: str, mode: str, runtime: str) -> ModelSpeed | None:
    wanted = (digest, mode, runtime)
    models = speed.models if speed is not None else ()
    return next((model for model in models if (model.manifest, model.mode, model.runtime_name) == wanted), None)


def _check(request: BenchRequest, topics: Topics) -> None:
    if not 0 < len(request.request_id) <= _MAX_REQUEST_ID or len(request.holders) > MAX_HOLDERS:
        raise FormatError(f"bench request {request.request_id[:64]!r} with {len(request.holders)} holders")
    if not (math.isfinite(request.most_seconds) and request.most_seconds > 0):
        raise FormatError(f"bench request {request.request_id!r}: most_seconds is {request.most_seconds}")
    check_digest(request.manifest.digest, where="bench request")
    for holder in request.holders:
        check_name(holder, what="holder")
    levels = topics.parse(request.reply_to)
    if levels is None or len(levels) != 3 or (levels[0], levels[2]) != ("device", "event"):
        raise FormatError(f"{request.reply_to[:120]!r} is no event topic of this fleet")
    check_name(levels[1], what="node name")
