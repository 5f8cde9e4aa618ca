"""The requests of one client, each kept until its one outcome; no IO, no clock, no threads.

Outcomes: a result, `DeadlineExceeded`, `Poison`, `InvalidInput`, or `cancel`. Everything else that goes wrong is
repaired by sending again: with the same id, and a higher attempt when the pipeline may have run it.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from edge.errors import REQUEST_ERRORS, Busy, Gone, RequestError, StageFailed
from edge.formats.frame import Frame, FrameError, FrameHeader
from edge.formats.message import State, Taken
from edge.formats.plan import MAX_STAGES, Stage
from edge.formats.tensor import Array
from edge.formats.topics import Topics
from edge.protocol.latencies import Patience
from edge.protocol.pending import AskServing, InferenceResult, Pending, Place, RequestAction, SendRequest, Settle
from edge.protocol.runners import FrameKey, Runners
from edge.protocol.suspects import Trials, acquit, note_death, verdict
from edge.protocol.timers import Timers
from edge.protocol.ways import Route, Ways, is_whole

__all__ = ["AskServing", "InferenceResult", "RequestAction", "Requests", "Route", "SendRequest", "Settle"]

MAX_ATTEMPTS = 8
FAILOVER_SECONDS = 0.03
"""Within this time what was in flight through a device that went away is sent again: not all at one moment."""

_GONE_SECONDS, _RETRY_SECONDS, _ASK_SECONDS = 0.25, 0.1, 1.0


class Requests:
    """All requests of one client that have no outcome yet."""

    def __init__(self, *, topics: Topics, client: str, draw: Callable[[], float], connected: bool = True) -> None:
        """Start empty.

        Args:
            topics: of the fleet.
            client: node name of the client.
            draw: random numbers in [0, 1), for jitter.
            connected: whether frames can be sent and results received now.
        """
        self._topics = topics
        self._client = client
        self._draw = draw
        self._connected = connected
        self._ways: dict[str, Ways] = {}
        self._pending: dict[str, Pending] = {}
        self._queued: dict[str, deque[str]] = {}
        self._sent: dict[str, dict[str, Pending]] = {}
        self._deadlines = Timers()
        self._resends = Timers()
        self._patience = Patience(draw)
        self._asked: dict[str, float] = {}
        self._runners = Runners(client)
        self._trials = Trials(self._runners)

    # ------------------------------------------------------------------------------------------------------ routes
    def route(self, name: str) -> Route | None:
        """Return where requests of a deployment go."""
        ways = self._ways.get(name)
        return ways.serving if ways is not None else None

    def watching(self) -> frozenset[str]:
        """Return the devices whose states this client must hear."""
        return frozenset(device for ways in self._ways.values() for device in ways.devices())

    def set_route(self, route: Route, now: float) -> list[RequestAction]:
        """Send what is sent from now on to this plan; an older one than the plan known is ignored."""
        name = route.deployment.name
        if not self._ways.setdefault(name, Ways()).serve(route):
            return []
        self._patience.plan_changed(name)
        whole = is_whole(route, self._runners.is_away)
        for pending in self._sent.get(name, {}).values():
            if pending.route is not None and pending.route.epoch == route.epoch:
                pass  # it was tried as a canary, and goes on there
            elif pending.last_error == Gone.code or (pending.lost and whole):
                self._resend_soon(pending, now)
            elif pending.is_left_behind(route) and self._patience.is_overdue(pending, now):
                pending.fair = False
                self._resend_soon(pending, now)
            elif not pending.in_flight or pending.spent:
                # What has backed off from the old plan must not sit it out: nobody may be left there to answer.
                plans = [route] if pending.route is None else [route, pending.route]
                sent = len(self._sent[name])
                self._resend_by(pending, now + max(self._patience.usual(plan, in_flight=sent) for plan in plans))
        return self.tick(now)

    def remove_route(self, name: str) -> None:
        """Note that a deployment is removed; its requests wait for its return or their deadline."""
        if (ways := self._ways.get(name)) is not None:
            ways.stop()
            ways.end_canary()

    def set_canary(self, route: Route, now: float) -> list[RequestAction]:
        """Try a plan on the share of the new requests that it names; one not newer than what serves is ignored."""
        name = route.deployment.name
        ways = self._ways.get(name)
        if ways is None:
            return []
        actions = self.end_canary(name, now) if ways.canary is None or ways.canary.epoch != route.epoch else []
        ways.try_out(route)
        return actions

    def end_canary(self, name: str, now: float) -> list[RequestAction]:
        """Try nothing any more; what is on its way there is sent to what serves."""
        ways = self._ways.get(name)
        ended = ways.end_canary() if ways is not None else None
        if ended is None:
            return []
        for pending in self._sent.get(name, {}).values():
            if pending.on_canary and pending.canary_epoch == ended.epoch:
                pending.on_canary = pending.fair = False
                self._resend_soon(pending, now)
        return self.tick(now)

    # -------------------------------------------------------------------------------------------- what callers want
    def submit(
        self,
        request_id: str,
        name: str,
        inputs: Mapping[str, Array],
        *,
        deadline_seconds: float,
        observe: bool,
        now: float,
        place: Place | None = None,
    ) -> list[RequestAction]:
        """Take a request and send it as soon as the window of its deployment has room."""
        self._pending[request_id] = Pending(
            request_id=request_id,
            name=name,
            inputs=inputs,
            submitted=now,
            deadline=now + deadline_seconds,
            deadline_seconds=deadline_seconds,
            observe=observe,
            place=place,
        )
        self._deadlines.set(request_id, now + deadline_seconds)
        self._queued.setdefault(name, deque()).append(request_id)
        return self._fill(name, now)

    def cancel(self, request_id: str, now: float) -> list[RequestAction]:
        """Forget a request."""
        pending = self._forget(request_id)
        return self._fill(pending.name, now) if pending is not None else []

    # ------------------------------------------------------------------------------------------ what others tell us
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
        pending, session = self._pending.get(taken.request_id), self._runners.session(taken.node)
        if pending is not None and session is not None:
            acquit(pending, taken.node, until_boot=session.boot - 1)
        if pending is None or taken.attempt != pending.attempt or not 0 <= taken.stage < MAX_STAGES:
            return
        if taken.stage == 0 and not pending.taken:
            self._patience.acked(pending.name, taken.node, now - pending.sent_at, now)
            if pending.in_flight and pending.fair and self._resends.at(pending.request_id) < pending.answer_by:
                self._resends.set(pending.request_id, pending.answer_by)
        pending.taken.setdefault(taken.stage, now - pending.sent_at)

    def state(self, state: State, now: float) -> list[RequestAction]:
        """Take the state of a device; what was in flight through one that left is sent again at once.

        That is when every stage still has somebody; else it is as soon as it has again, or another plan serves.
        """
        before = self._runners.session(state.node)
        change = self._runners.state(state)
        if change is None:
            return []
        if change.there and not change.restarted and before is not None:
            for pending in self._pending.values():
                acquit(pending, change.device, since_boot=before.boot, until_boot=before.boot)
        for pending in tuple(self._in_flight()):
            if change.left and pending.may_be_on(change.device):
                note_death(pending, change.device, before, now)
                pending.fair, pending.lost = False, True
            if pending.lost and self._is_whole(pending):
                self._resend_soon(pending, now)
        return self.tick(now)

    def disconnected(self) -> None:
        """The connection is cut: nothing is sent until it stands again, and no attempt is spent."""
        self._connected = False

    def reconnected(self, now: float) -> list[RequestAction]:
        """The connection stands; results may have been lost, so what was sent before is sent again soon."""
        self._connected = True
        for sent in self._sent.values():
            for pending in sent.values():
                soon = now + _RETRY_SECONDS * (1.0 + self._draw())
                if pending.in_flight or self._resends.at(pending.request_id) < soon:
                    pending.fair = False
                    self._resends.set(pending.request_id, soon)
        return self.tick(now)

    def tick(self, now: float) -> list[RequestAction]:
        """Send again what is due, end what is too late."""
        actions: list[RequestAction] = []
        while (request_id := self._deadlines.due(now)) is not None:
            if (pending := self._forget(request_id)) is not None:
                actions.append(Settle(request_id=request_id, outcome=verdict(pending)))
        while self._connected and (request_id := self._resends.due(now)) is not None:
            pending = self._pending[request_id]
            if (until := self._patience.until(pending, now)) > now:
                self._resends.set(request_id, until)
            else:
                actions += self._send(pending, now)
        for name in tuple(self._queued):
            actions += self._fill(name, now)
        return actions

    def next_wake(self) -> float:
        """Return when `tick` has something to do at the earliest; infinity when nothing is pending."""
        return min(self._resends.next() if self._connected else math.inf, self._deadlines.next())

    # ----------------------------------------------------------------------------------------------------- sending
    def _fill(self, name: str, now: float) -> list[RequestAction]:
        route, queued = self.route(name), self._queued.get(name)
        if route is None or not queued or not self._connected:
            return []
        sent = self._sent.setdefault(name, {})
        actions: list[RequestAction] = []
        while queued and len(sent) < route.deployment.window:
            pending = self._pending.get(queued.popleft())
            if pending is not None:
                sent[pending.request_id] = pending
                actions += self._send(pending, now)
        return actions

    def _count(self, pending: Pending) -> None:
        """No word came: the pipeline may have run it, so it is another attempt; one that nothing thwarted is spent."""
        pending.attempt += 1
        pending.spent += pending.fair and not pending.on_canary
        pending.on_canary = False
        pending.last_error = "timeout"

    def _send(self, pending: Pending, now: float) -> list[RequestAction]:
        if pending.in_flight and self.route(pending.name) is not None:
            self._count(pending)
        route = self._choose_route(pending)
        if route is None or route.deployment.plan is None:
            self._resends.set(pending.request_id, now + _GONE_SECONDS)
            return []
        if pending.spent >= MAX_ATTEMPTS:
            self._resends.forget(pending.request_id)
            return []
        whole = is_whole(route, self._runners.is_away)
        if self._trials.must_wait(pending, now):
            pending.last_error = "suspect"
            self._resends.set(pending.request_id, now + _GONE_SECONDS)
            return []
        device = self._choose_device(pending, route.deployment.plan.stages[0], now)
        pending.sends += 1
        pending.sent_at, pending.sent_to, pending.route = now, device, route
        pending.fair, pending.lost = whole, not whole
        if not pending.attempt:
            pending.first_sent_at = now
        pending.taken = {}
        pending.last_error = ""
        in_flight = len(self._sent[pending.name])
        pending.answer_by = now + self._patience.for_answer(route, in_flight=in_flight, spent=pending.spent)
        self._resends.set(pending.request_id, min(pending.answer_by, now + self._patience.for_ack(route)))
        header = pending.header(route, client=self._client, topics=self._topics, now=now)
        topic = self._topics.run(device, pending.name, route.epoch, 0)
        return [SendRequest(topic=topic, header=header, tensors=pending.inputs)]

    def _choose_route(self, pending: Pending) -> Route | None:
        ways = self._ways.get(pending.name)
        return pending.choose_route(ways) if ways is not None else None

    def _choose_device(self, pending: Pending, first: Stage, now: float) -> str:
        # Silence and errors may be this device's fault; a full pipeline is not, nor what became of another device.
        silent = pending.last_error == "timeout" and pending.fair
        full = pending.last_error == Busy.code and len(first.runners) == 1
        avoid = pending.sent_to if silent or (pending.last_error not in ("", "timeout") and not full) else ""
        if told := [device for device in self._trials.witnesses(pending) if device in first.devices]:
            return told[0]
        if pending.place is not None:  # whoever keeps the state of its stream
            return self._runners.meet(first.runners, pending.place.stream, 0, standbys=first.standbys)
        key = FrameKey(pending.request_id, pending.attempt, 0)
        return self._runners.choose(first.runners, key, now, standbys=first.standbys, avoid=avoid)

    def _resend_soon(self, pending: Pending, now: float) -> None:
        self._resend_by(pending, now + FAILOVER_SECONDS * self._draw())

    def _resend_by(self, pending: Pending, at: float) -> None:
        self._resends.set(pending.request_id, min(at, self._resends.at(pending.request_id)))

    def _is_whole(self, pending: Pending) -> bool:
        route = self._choose_route(pending)
        return route is not None and is_whole(route, self._runners.is_away)

    def _in_flight(self) -> Iterator[Pending]:
        return (pending for sent in self._sent.values() for pending in sent.values() if pending.in_flight)

    # ----------------------------------------------------------------------------------------------------- answers
    def _result(self, pending: Pending, frame: Frame, now: float) -> list[RequestAction]:
        ways, epoch = self._ways.get(pending.name), frame.header.epoch
        route = ways.find(epoch) if ways is not None else None
        if route is None and pending.route is not None and pending.route.epoch == epoch:
            route = pending.route
        if route is not None and not pending.is_answer(frame.tensors, route):
            if self._is_tried(pending, epoch):
                return self._fall_back(pending, StageFailed.code, now)
            return self._retry(pending, StageFailed.code, _RETRY_SECONDS, now, again=True)
        if not frame.header.attempt:
            # Of later attempts nobody knows whether a stage had their result already (Karn's rule).
            self._patience.answered(pending.name, now - pending.first_sent_at)
        return self._settle(pending, pending.result(frame, route, now), now)

    def _error(self, pending: Pending, header: FrameHeader, error: FrameError, now: float) -> list[RequestAction]:
        if self._is_tried(pending, header.epoch):
            return self._fall_back(pending, error.code, now)
        kind = REQUEST_ERRORS.get(error.code, RequestError)
        if not kind.retryable:
            where = f"{error.device}: " if error.device else ""
            return self._settle(pending, kind(f"{where}{error.message}"[:600]), now)
        if header.attempt != pending.attempt or pending.last_error:
            return []
        if kind is Busy:
            wait = max(0.01, min(5.0, error.retry_after_ms / 1000)) * (1.0 + 0.5 * self._draw())
            return self._retry(pending, Busy.code, wait, now, again=False)
        if kind is Gone:
            return self._gone(pending, header.epoch, now)
        pending.last_message = f"{error.device}: {error.message}"[:600]
        if pending.failed_at == (error.device, error.message):
            # Stages are pure: what fails twice in the same way on the same device fails for ever.
            return self._settle(pending, kind(pending.last_message), now)
        pending.failed_at = (error.device, error.message) if kind is StageFailed else None
        return self._retry(pending, error.code, _RETRY_SECONDS * 2**pending.spent, now, again=True)

    def _gone(self, pending: Pending, epoch: str, now: float) -> list[RequestAction]:
        route = self.route(pending.name)
        if route is not None and route.epoch != epoch:
            return self._retry(pending, Gone.code, 0.0, now, again=False)
        actions = self._retry(pending, Gone.code, _GONE_SECONDS, now, again=False)
        if now - self._asked.get(pending.name, -math.inf) >= _ASK_SECONDS:
            self._asked[pending.name] = now
            actions.append(AskServing(name=pending.name))
        return actions

    def _is_tried(self, pending: Pending, epoch: str) -> bool:
        """Whether an answer comes from a canary, not from what serves."""
        route = self.route(pending.name)
        return bool(epoch) and epoch == pending.canary_epoch and (route is None or route.epoch != epoch)

    def _fall_back(self, pending: Pending, code: str, now: float) -> list[RequestAction]:
        """The canary failed: what serves is asked; an error that comes after it was asked says nothing."""
        if not pending.on_canary:
            return []
        pending.on_canary = False
        pending.spent -= 1
        return self._retry(pending, code, 0.0, now, again=True)

    def _retry(self, pending: Pending, code: str, wait: float, now: float, *, again: bool) -> list[RequestAction]:
        """Send again after `wait` seconds; `again` counts it as another attempt."""
        pending.last_error = code
        pending.attempt += again
        pending.spent += again
        self._resends.set(pending.request_id, now + wait)
        return self._send(pending, now) if wait <= 0 and self._connected else []

    def _settle(self, pending: Pending, outcome: InferenceResult | RequestError, now: float) -> list[RequestAction]:
        self._forget(pending.request_id)
        return [Settle(request_id=pending.request_id, outcome=outcome), *self._fill(pending.name, now)]

    def _forget(self, request_id: str) -> Pending | None:
        self._deadlines.forget(request_id)
        self._resends.forget(request_id)
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            pending.settled = True
            self._sent.get(pending.name, {}).pop(request_id, None)
        return pending
