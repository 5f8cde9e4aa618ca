"""Frames that arrive at an agent: joined, checked, admitted, queued, or answered. Part of `edge.protocol.session`."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from edge.errors import CorruptFrame, FormatError
from edge.formats.frame import Frame, FrameHeader, decode_frame, decode_header
from edge.formats.message import Done, Taken, encode_message
from edge.formats.packet import Reassembler
from edge.formats.plan import MAX_STAGES, Deployment
from edge.formats.topics import Topics, check_name
from edge.protocol.effects import Effect, FrameDone, Log, RunFrame, StageKey
from edge.protocol.epochs import Epochs
from edge.protocol.joins import Joins, Part
from edge.protocol.local_epoch import LocalEpoch
from edge.protocol.relay import Relay
from edge.transport import Channel, Publication

LEAST_FRAME_LIMIT_BYTES = 4 * 1024 * 1024
LEAST_PARTIAL_BYTES = 16 * 1024 * 1024
LEAST_QUEUE_BYTES = 16 * 1024 * 1024
LOADING_RETRY_MS = 500
_MAX_RETRY_MS = 2000
_TELL_SECONDS = 10.0
_MAX_TTL_MS = 24 * 3600 * 1000
_MAX_REQUEST_ID = 64
MAX_SEQUENCE = 1 << 62
_MAX_ADMITTING = 16
_SLOT_FACTOR = 4.0
LEAST_SLOT_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Queued:
    arrived: float
    size_bytes: int


@dataclass(slots=True)
class Intake:
    """Decides about every frame; holds what is queued and who is in the pipeline.

    At stage 0 at most `window` requests of an epoch are in the whole pipeline, of which each of its runners admits
    an equal share. As many more wait at the door: a client learns of a free place before this device does, and must
    not be turned away for that. A stage that joins keeps parts until all of a request are here.

    Attributes:
        poisoned: requests that were being run when an agent died here.
        queue_limit_bytes: most bytes that the frames of all deployments may take while they wait.
        too_late: frames dropped without an answer because their time was up, since that was logged.
        all_too_late: the same since the start.
        refused: frames answered with an error without a run, by its code.
    """

    topics: Topics
    node: str
    relay: Relay
    epochs: Epochs
    poisoned: frozenset[str]
    queue_limit_bytes: int
    too_late: int = 0
    all_too_late: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    _reassembler: Reassembler = field(default_factory=lambda: Reassembler(limit_bytes=LEAST_FRAME_LIMIT_BYTES))
    _queue: dict[tuple[StageKey, str], _Queued] = field(default_factory=dict)
    _slots: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    _door: dict[tuple[str, str], deque[RunFrame]] = field(default_factory=dict)
    _joins: Joins = field(default_factory=Joins)
    _run_seconds: float = 0.0
    _told_late: float = float("-inf")
    _now: float = float("-inf")

    def oldest_seconds(self, now: float) -> float:
        """Return the age of the oldest frame that waits or runs; 0 when there is none."""
        return max((now - queued.arrived for queued in self._queue.values()), default=0.0)

    def waiting(self) -> tuple[int, int]:
        """Return how many frames wait or run, and their bytes in memory."""
        return len(self._queue), self._queued_bytes()

    def fit_limits(self) -> None:
        """Take the sizes of frames from the stages that are here now."""
        limit = max(LEAST_FRAME_LIMIT_BYTES, self.epochs.frame_limit_bytes())
        self._reassembler.limit_bytes = limit
        self._reassembler.total_limit_bytes = max(LEAST_PARTIAL_BYTES, 4 * limit)

    def packet(self, levels: tuple[str, ...], payload: bytes, now: float) -> list[Effect]:
        """Take one packet from `run/<node>/<deployment>/<epoch>/<stage>`.

        Raises:
            FormatError: it is no packet, or its frame is none or is not for this topic.
        """
        self._now = now
        data = self._reassembler.add(payload, now)
        if data is None:
            return []
        header, _ = decode_header(data)
        key = self._check_header(levels, header)
        try:
            frame = decode_frame(data, limit_bytes=self._reassembler.limit_bytes)
        except CorruptFrame as error:
            return self._refuse(header, error.code, str(error))
        return self._admit(key, frame, len(data), now)

    def done(self, done: Done) -> list[Effect]:
        """A request that was admitted here left the pipeline."""
        return self._left(done.request_id)

    def _left(self, request_id: str) -> list[Effect]:
        """Free the slot of a request that is no longer in the pipeline, and let the next one in."""
        for slots in self._slots.values():
            slots.pop(request_id, None)
        return self._open_door()

    def frame_done(self, event: FrameDone) -> list[Effect]:
        """A frame was run here."""
        self._queue.pop((event.key, event.request_id), None)
        if event.run_seconds > 0:
            self._run_seconds = 0.8 * self._run_seconds + 0.2 * event.run_seconds
        # Also after a later stage: this device may have let the request in, and nobody sends a `Done` to himself.
        return self._left(event.request_id) if event.ended else []

    def tick(self, now: float) -> list[Effect]:
        """Free the admission slots of requests whose time is up."""
        self._now = now
        for slots in self._slots.values():
            for request_id in [request_id for request_id, expires in slots.items() if now >= expires]:
                del slots[request_id]
        self._joins.expire(now, lambda key: self.epochs.find(key.deployment, key.epoch) is not None)
        if self.too_late and now - self._told_late >= _TELL_SECONDS:
            late, self.too_late, self._told_late = self.too_late, 0, now
            return [*self._open_door(), Log(level="info", text=f"{late} requests came when their time was up")]
        return self._open_door()

    def _open_door(self) -> list[Effect]:
        """Let in those who wait, as far as there are slots; tell them when their epoch was closed."""
        effects: list[Effect] = []
        for (name, epoch), waiting in tuple(self._door.items()):
            local = self.epochs.find(name, epoch)
            if local is None or not local.runs(0):
                del self._door[name, epoch]
                for job in waiting:
                    self._queue.pop((job.key, job.frame.header.request_id), None)
                    effects += self._turn_away(job.key, job.frame.header, local)
                continue
            slots = self._slots.setdefault((name, epoch), {})
            while waiting and len(slots) < _share(local.deployment):
                job = waiting.popleft()
                # Its time in the pipeline begins now: at the door it kept nobody out.
                admitted = max(job.arrived, self._now)
                expires = _slot_expires(local.deployment, job.frame.header, job.arrived, admitted)
                slots[job.frame.header.request_id] = expires
                effects.append(job)
        for name, epoch in [key for key in self._slots if self.epochs.find(*key) is None]:
            del self._slots[name, epoch]
        return effects

    def _turn_away(self, key: StageKey, header: FrameHeader, local: LocalEpoch | None) -> list[Effect]:
        """Answer a frame for a stage that cannot run now."""
        if local is None or all(stage.index != key.stage for stage in local.stages):
            serving = self.epochs.current(key.deployment)
            current = "none is" if serving is None or serving.removed else f"{serving.epoch} is"
            text = f"epoch {key.epoch} of {key.deployment} has no stage {key.stage} on {self.node}; {current} serving"
            return self._refuse(header, "gone", text)
        text = f"{self.node} is loading stage {key.stage} of {key.deployment}"
        return self._refuse(header, "busy", text, retry_after_ms=LOADING_RETRY_MS)

    def _check_header(self, levels: tuple[str, ...], header: FrameHeader) -> StageKey:
        key = StageKey(header.deployment, header.epoch, header.stage)
        if levels != ("run", self.node, header.deployment, header.epoch, str(header.stage)):
            raise FormatError(f"frame for stage {header.stage} of {header.deployment[:64]!r} on the wrong topic")
        if header.kind != "tensor" or not 0 < len(header.request_id) <= _MAX_REQUEST_ID:
            raise FormatError(f"frame: kind {header.kind}, or its request id is not allowed")
        if not 0 <= header.part < header.parts <= MAX_STAGES:
            raise FormatError(f"frame: part {header.part} of {header.parts} is not allowed")
        if len(header.stream) > _MAX_REQUEST_ID or not -1 <= header.after < header.sequence <= MAX_SEQUENCE:
            raise FormatError("frame: its place in a stream is not allowed")
        check_name(header.sender, what="sender")
        _check_topic(self.topics, header.reply_to, "result")
        if header.observer:
            _check_topic(self.topics, header.observer, "ack")
        return key

    def _admit(self, key: StageKey, frame: Frame, size_bytes: int, now: float) -> list[Effect]:
        header = frame.header
        local = self.epochs.find(key.deployment, key.epoch)
        if local is None or not local.runs(key.stage):
            return self._turn_away(key, header, local)
        route = local.routes[key.stage]
        if header.parts != len(route.arriving):
            raise FormatError(f"frame: {header.parts} parts for stage {key.stage}, which joins {len(route.arriving)}")
        if header.ttl_ms <= 0:
            self.too_late += 1
            self.all_too_late += 1
            return []
        if header.request_id in self.poisoned:
            text = f"{self.node} died while it ran this request"
            told = [*self._refuse(header, "poison", text), *self.relay.done(header, self._admitting(local, header))]
            return [*told, *self._left(header.request_id)]
        local.last_frame = now
        if (key, header.request_id) in self._queue:
            return list(self._taken(header, key))
        taken = self._taken(header, key)
        held_bytes = max(size_bytes, sum(array.nbytes for array in frame.tensors.values()))
        if header.parts > 1:
            part = Part(
                frame=frame,
                arrived=now,
                received_bytes=size_bytes,
                held_bytes=held_bytes,
                expires=_expires(header, now),
            )
            joined = self._joins.add(
                key,
                part,
                route,
                most_requests=_most_waiting(local.deployment),
                room_bytes=self._limit_bytes() - self._queued_bytes(),
            )
            if joined is None:
                return list(self._taken(header, key, whole=False))
            frame, size_bytes, held_bytes = joined.frame, joined.received_bytes, joined.held_bytes
        job = RunFrame(
            key=key,
            frame=frame,
            arrived=now,
            received_bytes=size_bytes,
            onward=local.onward(key.stage),
            admitting=self._admitting(local, frame.header),
            codec=local.deployment.codec,
        )
        return self._queue_up(local, job, held_bytes, taken)

    def _refuse(self, header: FrameHeader, code: str, text: str, *, retry_after_ms: int = 0) -> list[Effect]:
        self.refused[code] = self.refused.get(code, 0) + 1
        return list(self.relay.error(header, code, text, retry_after_ms=retry_after_ms))

    def _queue_up(self, local: LocalEpoch, job: RunFrame, held_bytes: int, taken: list[Publication]) -> list[Effect]:
        key, header = job.key, job.frame.header
        slots = self._slots.setdefault((key.deployment, key.epoch), {}) if key.stage == 0 else {}
        must_wait = key.stage == 0 and header.request_id not in slots and len(slots) >= _share(local.deployment)
        if full := self._full(local, job, held_bytes, must_wait=must_wait):
            return self._refuse(header, "busy", full, retry_after_ms=self._retry_after_ms())
        self._queue[key, header.request_id] = _Queued(arrived=job.arrived, size_bytes=held_bytes)
        if must_wait:
            self._door.setdefault((key.deployment, key.epoch), deque()).append(job)
            return list(taken)
        slots[header.request_id] = _slot_expires(local.deployment, header, job.arrived, job.arrived)
        # The run is asked for first: an ack must not delay it.
        return [job, *taken]

    def _full(self, local: LocalEpoch, job: RunFrame, held_bytes: int, *, must_wait: bool) -> str:
        """Return why a frame cannot be queued now, empty when it can."""
        share, name = _share(local.deployment), job.key.deployment
        if must_wait and len(self._door.get((name, job.key.epoch), ())) >= share:
            return f"{name} has {share} requests in its pipeline and as many at its door"
        queued = sum(1 for other, _ in self._queue if other == job.key)
        if not must_wait and queued >= _most_waiting(local.deployment):
            return f"{self.node} has {queued} requests of {name} queued"
        queued_bytes = self._queued_bytes()
        # Who is not let in yet must not displace the parts of those who are.
        used_bytes = queued_bytes + (self._joins.held_bytes if must_wait else 0)
        if used_bytes + held_bytes > self._limit_bytes():
            return f"{self.node} has {used_bytes} bytes queued"
        self._joins.make_room(self._limit_bytes() - queued_bytes - held_bytes)
        return ""

    def _queued_bytes(self) -> int:
        return sum(queued.size_bytes for queued in self._queue.values())

    def _limit_bytes(self) -> int:
        return max(LEAST_QUEUE_BYTES, self.queue_limit_bytes)

    def _admitting(self, local: LocalEpoch, header: FrameHeader) -> tuple[str, ...]:
        """Return the devices that may hold a slot of the request.

        It is the one that ran stage 0. Of a request that was sent again each of them may have let it in.
        """
        plan = local.deployment.plan
        if plan is None:
            return ()
        first = plan.stages[0]
        ran = self.node if header.stage == 0 else header.trace[0].device if header.trace else ""
        ran = ran if ran in first.devices else first.device
        others = [device for device in first.devices if device != ran] if header.attempt else []
        return (ran, *others[: _MAX_ADMITTING - 1])

    def _retry_after_ms(self) -> int:
        return max(10, min(_MAX_RETRY_MS, round(1000 * self._run_seconds * max(1, len(self._queue)))))

    def _taken(self, header: FrameHeader, key: StageKey, *, whole: bool = True) -> list[Publication]:
        """Return the acks of a frame; an observer hears of a join when it is whole."""
        payload = encode_message(
            Taken(node=self.node, request_id=header.request_id, attempt=header.attempt, stage=key.stage)
        )
        topics = dict.fromkeys(
            (self.topics.ack(header.sender), *((header.observer,) if header.observer and whole else ()))
        )
        return [Publication(channel=Channel.DATA, topic=topic, payload=payload) for topic in topics]


def _check_topic(topics: Topics, topic: str, kind: str, check: Callable[..., str] = check_name) -> None:
    """Refuse a topic given by someone else unless it is `<kind>/<node>` of this fleet: we publish to no other."""
    levels = topics.parse(topic)
    if levels is None or len(levels) != 2 or levels[0] != kind:
        raise FormatError(f"frame: {topic[:120]!r} is no {kind} topic of this fleet")
    check(levels[1], what="node name")


def _slot_expires(deployment: Deployment, header: FrameHeader, arrived: float, admitted: float) -> float:
    """Return until when a request keeps others out: much longer than it may take, and it or its `done` is lost."""
    plan = deployment.plan
    usual = plan.latency_seconds + deployment.window * plan.bottleneck_seconds if plan is not None else 0.0
    return min(_expires(header, arrived), admitted + max(LEAST_SLOT_SECONDS, _SLOT_FACTOR * usual))


def _expires(header: FrameHeader, arrived: float) -> float:
    return arrived + min(header.ttl_ms, _MAX_TTL_MS) / 1000


def _share(deployment: Deployment) -> int:
    """Return how many requests each runner of stage 0 lets into the pipeline."""
    runners = len(deployment.plan.stages[0].runners) if deployment.plan is not None else 1
    return -(-deployment.window // runners)


def _most_waiting(deployment: Deployment) -> int:
    """Return how many requests may wait for one stage: twice what the runners of stage 0 let in together."""
    runners = len(deployment.plan.stages[0].runners) if deployment.plan is not None else 1
    return 2 * _share(deployment) * runners
