"""A request that has no outcome yet, and what is done about it. Part of `edge.protocol.requests`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from edge.errors import DeadlineExceeded, RequestError
from edge.formats.frame import Frame, FrameHeader, Hop
from edge.formats.tensor import Array, check_inputs
from edge.formats.topics import Topics
from edge.protocol.ways import Route, Ways, devices_of, steps_of


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceResult:
    """The answer to one request.

    Attributes:
        outputs: the model's outputs by name; read-only.
        trace: what each stage did, in order.
        latency_seconds: from submission to the arrival of the result.
        taken_seconds: for each entry of the trace, when the client saw that its frame had arrived, counted from the
            send that was answered; None where no ack came. Only stage 0 unless the request was observed.
        attempts: how often it was sent.
        epoch: the epoch that answered.
        steps: the stages that ran side by side, step after step; empty where that is not known.
    """

    outputs: dict[str, Array]
    trace: tuple[Hop, ...]
    latency_seconds: float
    taken_seconds: tuple[float | None, ...]
    attempts: int
    epoch: str
    steps: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a request is in a stream whose state devices keep, see `FrameHeader`.

    Attributes:
        kept: outputs that are states and stay where they are.
    """

    stream: str
    sequence: int
    after: int
    kept: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class SendRequest:
    """Publish a frame."""

    topic: str
    header: FrameHeader
    tensors: Mapping[str, Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settle:
    """Give a request its outcome."""

    request_id: str
    outcome: InferenceResult | RequestError


@dataclass(frozen=True, kw_only=True, slots=True)
class AskServing:
    """Ask the broker again which plan serves: the one that is known is gone."""

    name: str


RequestAction = SendRequest | Settle | AskServing


@dataclass(frozen=True, kw_only=True, slots=True)
class Death:
    """A device went away while a request may have been on it.

    Attributes:
        boot: of the life that ended.
        first_shard, stop_shard: that it ran of the request.
    """

    device: str
    boot: int
    first_shard: int
    stop_shard: int


@dataclass(slots=True)
class Pending:
    """One request without an outcome.

    Attributes:
        attempt: of the last send; raised whenever the pipeline may have run it.
        spent: attempts that count: whose send nothing is known to have thwarted.
        sends: how often it was sent.
        sent_to: device that got it last.
        route: that it was sent along last.
        fair: whether that send counts as an attempt when no word comes.
        lost: it is known to be lost, or was sent while some stage had nobody.
        on_canary: whether it is tried on the canary; None before its first send.
        canary_epoch: that it was tried on.
        last_error: code of the last word; empty while it is in flight, `timeout` after no word came.
        deaths: that it may have caused.
        died_at: monotonic seconds of the last of them.
        settled: it has its outcome, or was cancelled.
        taken: for each stage, when its ack came, from the last send.
        place: in a stream whose state devices keep; None for others.
    """

    request_id: str
    name: str
    inputs: Mapping[str, Array]
    submitted: float
    deadline: float
    deadline_seconds: float
    observe: bool
    attempt: int = 0
    spent: int = 0
    sends: int = 0
    sent_at: float = 0.0
    first_sent_at: float = 0.0
    sent_to: str = ""
    route: Route | None = None
    fair: bool = True
    lost: bool = False
    on_canary: bool | None = None
    canary_epoch: str = ""
    answer_by: float = math.inf
    last_error: str = ""
    last_message: str = ""
    failed_at: tuple[str, str] | None = None
    deaths: tuple[Death, ...] = ()
    died_at: float = -math.inf
    settled: bool = False
    taken: dict[int, float] = field(default_factory=dict)
    place: Place | None = None

    @property
    def in_flight(self) -> bool:
        """Whether it was sent and no word came."""
        return self.sends > 0 and self.last_error in ("", "timeout")

    def choose_route(self, ways: Ways) -> Route | None:
        """Return where it goes now; a first send may be drawn for a canary, and stays there until that fails it."""
        if ways.serving is None:
            return None
        if self.on_canary is None:
            self.on_canary = ways.is_drawn(self.request_id)
            self.canary_epoch = ways.canary.epoch if self.on_canary and ways.canary is not None else ""
        if self.on_canary and ways.canary is not None and ways.canary.epoch == self.canary_epoch:
            return ways.canary
        return ways.serving

    def may_be_on(self, device: str) -> bool:
        """Whether it may be on a device, or on its way there."""
        plan = self.route.deployment.plan if self.route is not None else None
        if plan is None:
            return False
        # Standbys get what was sent again, and what comes when no runner is there: then it is marked as lost.
        idle_too = self.attempt > 0 or self.lost
        return device == self.sent_to or any(
            device in (stage.devices if idle_too else stage.runners) for stage in plan.stages[1:]
        )

    def is_left_behind(self, route: Route) -> bool:
        """Whether it may be on a device, or on its way there, that a newer plan does without.

        Of a device that fell silent nobody says that it is gone, but the plan without it does.
        """
        if not self.in_flight or self.route is None:
            return False
        left = set(devices_of(self.route.deployment.plan)) - set(devices_of(route.deployment.plan))
        return any(self.may_be_on(device) for device in left)

    def header(self, route: Route, *, client: str, topics: Topics, now: float) -> FrameHeader:
        """Return the header of its next send.

        Args:
            route: that it takes.
            client: node name of the client.
            topics: of the fleet.
            now: monotonic seconds.
        """
        return FrameHeader(
            request_id=self.request_id,
            attempt=self.attempt,
            sender=client,
            reply_to=topics.result(client),
            ttl_ms=max(1, round((self.deadline - now) * 1000)),
            deployment=self.name,
            epoch=route.epoch,
            stage=0,
            codec=route.deployment.codec,
            observer=topics.ack(client) if self.observe else "",
            stream=self.place.stream if self.place is not None else "",
            sequence=self.place.sequence if self.place is not None else 0,
            after=self.place.after if self.place is not None else -1,
        )

    def is_answer(self, tensors: Mapping[str, Array], route: Route) -> bool:
        """Whether tensors are what the model of a plan gives, but for the states that devices keep."""
        kept = self.place.kept if self.place is not None else frozenset()
        given = {name: array for name, array in tensors.items() if name not in kept}
        return check_inputs(given, [spec for spec in route.manifest.outputs if spec.name not in kept]) is None

    def result(self, frame: Frame, route: Route | None, now: float) -> InferenceResult:
        """Return its outcome.

        Args:
            frame: that brought it.
            route: of the plan that answered, where it is known.
            now: monotonic seconds.
        """
        kept = self.place.kept if self.place is not None else frozenset()
        return InferenceResult(
            outputs={name: array for name, array in frame.tensors.items() if name not in kept},
            trace=frame.header.trace,
            latency_seconds=now - self.submitted,
            taken_seconds=tuple(self.taken.get(hop.stage) for hop in frame.header.trace),
            attempts=self.sends,
            epoch=frame.header.epoch,
            steps=steps_of(route),
        )

    def too_late(self) -> DeadlineExceeded:
        """Return what it ends with when its time is up."""
        last = f"; the last word was {self.last_error!r}" if self.last_error else ""
        if last and self.last_message:
            last += f" from {self.last_message}"
        sends = f"sent {self.sends} times" if self.sends != 1 else "sent once"
        return DeadlineExceeded(f"no answer from {self.name} within {self.deadline_seconds:g} s ({sends}{last})")
