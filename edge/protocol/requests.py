"""The requests of one client, each kept until its one outcome; no IO, no clock, no threads.

Outcomes: a result, `DeadlineExceeded`, `Poison`, `InvalidInput`, or `cancel`. Everything else that goes wrong is
repaired by sending again: with the same id, and a higher attempt when the pipeline may have run it.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edge.errors import REQUEST_ERRORS, Busy, DeadlineExceeded, Gone, RequestError, StageFailed
from edge.formats.bundle import Manifest
from edge.formats.frame import Frame, FrameError, FrameHeader, Hop
from edge.formats.message import Taken
from edge.formats.plan import MAX_STAGES, Deployment, parse_epoch
from edge.formats.tensor import Array, check_inputs
from edge.formats.topics import Topics
from edge.protocol.latencies import Latencies
from edge.protocol.runners import FrameKey, Runners

MAX_ATTEMPTS = 8
LEAST_RESEND_SECONDS = 1.0
MOST_RESEND_SECONDS = 30.0
_RESEND_FACTOR = 3.0
_GONE_SECONDS = 0.25
_RETRY_SECONDS = 0.1
_LEAST_DEADLINES = 256


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
class Route:
    """Where the requests of a deployment go now."""

    deployment: Deployment
    manifest: Manifest


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


RequestAction = SendRequest | Settle


@dataclass(slots=True)
class _Pending:
    request_id: str
    name: str
    inputs: Mapping[str, Array]
    submitted: float
    deadline: float
    deadline_seconds: float
    observe: bool
    attempt: int = 0
    sends: int = 0
    sent_at: float = 0.0
    first_sent_at: float = 0.0
    sent_to: str = ""
    resend_at: float = math.inf
    last_error: str = ""
    last_message: str = ""
    failed_at: tuple[str, str] | None = None
    taken: dict[int, float] = field(default_factory=dict)


class Requests:
    """All requests of one client that have no outcome yet."""

    def __init__(self, *, topics: Topics, client: str, draw: Callable[[], float]) -> None:
        """Start empty.

        Args:
            topics: of the fleet.
            client: node name of the client.
            draw: random numbers in [0, 1), for jitter.
        """
        self._topics = topics
        self._client = client
        self._draw = draw
        self._routes: dict[str, Route] = {}
        self._pending: dict[str, _Pending] = {}
        self._queued: dict[str, deque[str]] = {}
        self._sent: dict[str, dict[str, _Pending]] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._resends: list[tuple[float, int, str]] = []
        self._resend_numbers = itertools.count()
        self._latencies: dict[str, Latencies] = {}
        self._runners = Runners(client)

    def route(self, name: str) -> Route | None:
        """Return where requests of a deployment go."""
        return self._routes.get(name)

    def set_route(self, route: Route, now: float) -> list[RequestAction]:
        """Send what is sent from now on to this plan; an older one than the plan known is ignored."""
        name = route.deployment.name
        known = self._routes.get(name)
        if known is not None and parse_epoch(route.deployment.epoch) <= parse_epoch(known.deployment.epoch):
            return []
        self._routes[name] = route
        self._latencies.setdefault(name, Latencies()).seen = 0
        for pending in self._sent.get(name, {}).values():
            # What has backed off from the old plan must not sit it out: nobody may be left there to answer.
            soon = now if pending.last_error == Gone.code else now + self._usual_seconds(route, name)
            self._resend_at(pending, min(pending.resend_at, soon))
        return self.tick(now)

    def remove_route(self, name: str) -> None:
        """Note that a deployment is removed; its requests wait for its return or their deadline."""
        self._routes.pop(name, None)

    def submit(
        self,
        request_id: str,
        name: str,
        inputs: Mapping[str, Array],
        *,
        deadline_seconds: float,
        observe: bool,
        now: float,
    ) -> list[RequestAction]:
        """Take a request and send it as soon as the window of its deployment has room."""
        self._pending[request_id] = _Pending(
            request_id=request_id,
            name=name,
            inputs=inputs,
            submitted=now,
            deadline=now + deadline_seconds,
            deadline_seconds=deadline_seconds,
            observe=observe,
        )
        if len(self._deadlines) >= 2 * len(self._pending) + _LEAST_DEADLINES:
            # Most are of requests that have their outcome: with long deadlines they would pile up.
            self._deadlines = [(other.deadline, other.request_id) for other in self._pending.values()]
            heapq.heapify(self._deadlines)
        else:
            heapq.heappush(self._deadlines, (now + deadline_seconds, request_id))
        self._queued.setdefault(name, deque()).append(request_id)
        return self._fill(name, now)

    def cancel(self, request_id: str, now: float) -> list[RequestAction]:
        """Forget a request."""
        pending = self._forget(request_id)
        return self._fill(pending.name, now) if pending is not None else []

    def frame(self, frame: Frame, now: float) -> list[RequestAction]:
        """Take a result or an error; the first valid result of a pending request wins, the rest is dropped."""
        pending = self._pending.get(frame.header.request_id)
        if pending is not None and frame.header.error is not None:
            # Whoever refuses a frame is there; no ack follows.
            key = FrameKey(pending.request_id, frame.header.attempt, 0)
            self._runners.taken(frame.header.error.device, key)
        if pending is None or frame.header.deployment != pending.name or not pending.sends:
            return []
        if frame.header.kind == "result":
            return self._result(pending, frame, now)
        if frame.header.kind == "error" and frame.header.error is not None:
            return self._error(pending, frame.header, frame.header.error, now)
        return []

    def taken(self, taken: Taken, now: float) -> None:
        """Note that a stage has a request."""
        self._runners.taken(taken.node, FrameKey(taken.request_id, taken.attempt, taken.stage))
        pending = self._pending.get(taken.request_id)
        if pending is not None and taken.attempt == pending.attempt and 0 <= taken.stage < MAX_STAGES:
            pending.taken.setdefault(taken.stage, now - pending.sent_at)

    def reconnected(self, now: float) -> list[RequestAction]:
        """The connection was cut: results may be lost, so what was sent before is sent again soon."""
        for sent in self._sent.values():
            for pending in sent.values():
                self._resend_at(pending, min(pending.resend_at, now + _RETRY_SECONDS))
        return self.tick(now)

    def tick(self, now: float) -> list[RequestAction]:
        """Send again what is due, end what is too late."""
        actions: list[RequestAction] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            pending = self._forget(request_id)
            if pending is not None:
                actions.append(Settle(request_id=request_id, outcome=_too_late(pending)))
        while self._next_resend() <= now:
            _, _, request_id = heapq.heappop(self._resends)
            actions += self._send(self._pending[request_id], now)
        for name in tuple(self._queued):
            actions += self._fill(name, now)
        return actions

    def next_wake(self) -> float:
        """Return when `tick` has something to do at the earliest; infinity when nothing is pending."""
        return min(self._next_resend(), self._deadlines[0][0] if self._deadlines else math.inf)

    # ----------------------------------------------------------------------------------------------------- sending
    def _fill(self, name: str, now: float) -> list[RequestAction]:
        route, queued = self._routes.get(name), self._queued.get(name)
        if route is None or not queued:
            return []
        sent = self._sent.setdefault(name, {})
        actions: list[RequestAction] = []
        while queued and len(sent) < route.deployment.window:
            pending = self._pending.get(queued.popleft())
            if pending is not None:
                sent[pending.request_id] = pending
                actions += self._send(pending, now)
        return actions

    def _send(self, pending: _Pending, now: float) -> list[RequestAction]:
        route = self._routes.get(pending.name)
        if route is None or route.deployment.plan is None:
            self._resend_at(pending, now + _GONE_SECONDS)
            return []
        if pending.resend_at <= now and pending.last_error in ("", "timeout") and pending.sends:
            # No word came: the pipeline may have run it, so it is another attempt.
            pending.attempt += 1
            pending.last_error = "timeout"
        if pending.attempt >= MAX_ATTEMPTS:
            pending.resend_at = math.inf
            return []
        stage = route.deployment.plan.stages[0]
        # A resend goes to another device where there is one, standbys included.
        devices = stage.devices if pending.attempt else stage.runners
        key = FrameKey(pending.request_id, pending.attempt, 0)
        device = self._runners.choose(devices, key, now, avoid=pending.sent_to)
        pending.sends += 1
        pending.sent_at, pending.sent_to = now, device
        if not pending.attempt:
            pending.first_sent_at = now
        pending.taken = {}
        pending.last_error = ""
        self._resend_at(pending, now + self._resend_seconds(route, pending))
        header = FrameHeader(
            request_id=pending.request_id,
            attempt=pending.attempt,
            sender=self._client,
            reply_to=self._topics.result(self._client),
            ttl_ms=max(1, round((pending.deadline - now) * 1000)),
            deployment=pending.name,
            epoch=route.deployment.epoch,
            stage=0,
            codec=route.deployment.codec,
            observer=self._topics.ack(self._client) if pending.observe else "",
        )
        topic = self._topics.run(device, pending.name, route.deployment.epoch, 0)
        return [SendRequest(topic=topic, header=header, tensors=pending.inputs)]

    def _resend_seconds(self, route: Route, pending: _Pending) -> float:
        base = self._usual_seconds(route, pending.name)
        return min(MOST_RESEND_SECONDS, base * float(2**pending.attempt)) * (1.0 + 0.1 * self._draw())

    def _usual_seconds(self, route: Route, name: str) -> float:
        usual = self._latencies[name].usual(route.deployment, in_flight=len(self._sent[name]))
        return max(LEAST_RESEND_SECONDS, _RESEND_FACTOR * usual)

    def _resend_at(self, pending: _Pending, at: float) -> None:
        if pending.resend_at == at:
            return
        pending.resend_at = at
        if len(self._resends) >= 2 * len(self._pending) + _LEAST_DEADLINES:
            # As with the deadlines.
            self._resends = [entry for entry in self._resends if self._is_due(entry)]
            heapq.heapify(self._resends)
        heapq.heappush(self._resends, (at, next(self._resend_numbers), pending.request_id))

    def _next_resend(self) -> float:
        while self._resends and not self._is_due(self._resends[0]):
            heapq.heappop(self._resends)
        return self._resends[0][0] if self._resends else math.inf

    def _is_due(self, entry: tuple[float, int, str]) -> bool:
        """Whether an entry stands for a request that has no outcome and still waits for this time."""
        pending = self._pending.get(entry[2])
        return pending is not None and pending.resend_at == entry[0]

    # ----------------------------------------------------------------------------------------------------- answers
    def _result(self, pending: _Pending, frame: Frame, now: float) -> list[RequestAction]:
        route = self._routes.get(pending.name)
        if route is not None and frame.header.epoch == route.deployment.epoch:
            problem = check_inputs(frame.tensors, route.manifest.outputs)
            if problem is not None:
                return self._retry(pending, "stage-failed", _RETRY_SECONDS, now, again=True)
        self._forget(pending.request_id)
        if not frame.header.attempt:
            # Of later attempts nobody knows whether a stage had their result already (Karn's rule).
            self._latencies.setdefault(pending.name, Latencies()).note(now - pending.first_sent_at)
        result = InferenceResult(
            outputs=frame.tensors,
            trace=frame.header.trace,
            latency_seconds=now - pending.submitted,
            taken_seconds=tuple(pending.taken.get(hop.stage) for hop in frame.header.trace),
            attempts=pending.sends,
            epoch=frame.header.epoch,
            steps=_steps(route, frame.header.epoch),
        )
        return [Settle(request_id=pending.request_id, outcome=result), *self._fill(pending.name, now)]

    def _error(self, pending: _Pending, header: FrameHeader, error: FrameError, now: float) -> list[RequestAction]:
        kind = REQUEST_ERRORS.get(error.code, RequestError)
        if not kind.retryable:
            self._forget(pending.request_id)
            where = f"{error.device}: " if error.device else ""
            outcome = kind(f"{where}{error.message}"[:600])
            return [Settle(request_id=pending.request_id, outcome=outcome), *self._fill(pending.name, now)]
        if header.attempt != pending.attempt or pending.last_error:
            return []
        if kind is Busy:
            wait = max(0.01, min(5.0, error.retry_after_ms / 1000)) * (1.0 + 0.5 * self._draw())
            return self._retry(pending, Busy.code, wait, now, again=False)
        if kind is Gone:
            route = self._routes.get(pending.name)
            moved = route is not None and route.deployment.epoch != header.epoch
            return self._retry(pending, Gone.code, 0.0 if moved else _GONE_SECONDS, now, again=False)
        pending.last_message = f"{error.device}: {error.message}"[:600]
        if pending.failed_at == (error.device, error.message):
            # Stages are pure: what fails twice in the same way on the same device fails for ever.
            self._forget(pending.request_id)
            return [
                Settle(request_id=pending.request_id, outcome=kind(pending.last_message)),
                *self._fill(pending.name, now),
            ]
        pending.failed_at = (error.device, error.message) if kind is StageFailed else None
        return self._retry(pending, error.code, _RETRY_SECONDS * 2**pending.attempt, now, again=True)

    def _retry(self, pending: _Pending, code: str, wait: float, now: float, *, again: bool) -> list[RequestAction]:
        """Send again after `wait` seconds; `again` counts it as another attempt."""
        pending.last_error = code
        if again:
            pending.attempt += 1
        self._resend_at(pending, now + wait)
        return self._send(pending, now) if wait <= 0 else []

    def _forget(self, request_id: str) -> _Pending | None:
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            self._sent.get(pending.name, {}).pop(request_id, None)
        return pending


def _steps(route: Route | None, epoch: str) -> tuple[tuple[int, ...], ...]:
    """Return the stages of each step, where the plan that answered is the one that is known."""
    if route is None or route.deployment.plan is None or route.deployment.epoch != epoch:
        return ()
    return tuple(tuple(stage.index for stage in step) for step in route.deployment.plan.steps())


def _too_late(pending: _Pending) -> DeadlineExceeded:
    last = f"; the last word was {pending.last_error!r}" if pending.last_error else ""
    if last and pending.last_message:
        last += f" from {pending.last_message}"
    sends = f"sent {pending.sends} times" if pending.sends != 1 else "sent once"
    return DeadlineExceeded(f"no answer from {pending.name} within {pending.deadline_seconds:g} s ({sends}{last})")
