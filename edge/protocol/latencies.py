"""What answers and acks of a deployment take, as its client sees it, and how long it waits for them."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from edge.formats.plan import Deployment
from edge.protocol.pending import Pending
from edge.protocol.runners import SILENT_SECONDS
from edge.protocol.ways import Route

LEAST_RESEND_SECONDS = 1.0
MOST_RESEND_SECONDS = 30.0
_RESEND_FACTOR = 3.0

_REMEMBERED = 512
_MAX_DEVICES = 4096


@dataclass(slots=True)
class Latencies:
    """What answers took of late.

    Attributes:
        recent: seconds, the latest last.
        seen: how many came since the plan changed.
    """

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    seen: int = 0

    def note(self, seconds: float) -> None:
        """Take what one answer took."""
        self.recent.append(seconds)
        self.seen += 1

    def high(self) -> float:
        """Return what 99 % of the latest took, in seconds; 0 when there was none."""
        return sorted(self.recent)[math.ceil(0.99 * len(self.recent)) - 1] if self.recent else 0.0

    def usual(self, deployment: Deployment, *, in_flight: int) -> float:
        """Return what 99 % of the answers take, in seconds.

        It is no less than the pipeline needs for what is in flight. The first answers had nobody before them: until as
        many came as are in flight, it is also no less than the plan says of a full window.

        Args:
            deployment: whose answers.
            in_flight: requests of this client.
        """
        observed = self.high()
        if (plan := deployment.plan) is None:
            return observed
        if self.seen < in_flight:
            return max(observed, plan.latency_seconds + deployment.window * plan.bottleneck_seconds)
        return max(observed, in_flight * plan.bottleneck_seconds)


class Patience:
    """How long a client waits for a word before it sends again."""

    def __init__(self, draw: Callable[[], float]) -> None:
        """Start with nothing known.

        Args:
            draw: random numbers in [0, 1), for jitter.
        """
        self._draw = draw
        self._answers: dict[str, Latencies] = {}
        self._acks: dict[str, Latencies] = {}
        self._heard: dict[str, float] = {}

    def plan_changed(self, name: str) -> None:
        """Another plan serves a deployment: its first answers have nobody before them."""
        self._answers.setdefault(name, Latencies()).seen = 0

    def answered(self, name: str, seconds: float) -> None:
        """Note what an answer took."""
        self._answers.setdefault(name, Latencies()).note(seconds)

    def acked(self, name: str, device: str, seconds: float, now: float) -> None:
        """Note what the ack of a device of stage 0 took."""
        self._acks.setdefault(name, Latencies()).note(seconds)
        if len(self._heard) >= _MAX_DEVICES:
            self._heard.clear()
        self._heard[device] = now

    def until(self, pending: Pending, now: float) -> float:
        """Return until when a frame that was not taken waits yet: where many are on their way, others are taken first.

        Args:
            pending: whose time to be sent again has come.
            now: monotonic seconds.
        """
        waits = pending.in_flight and pending.fair and not pending.taken and now < pending.answer_by
        heard = self._heard.get(pending.sent_to, -math.inf)
        return min(pending.answer_by, heard + SILENT_SECONDS) if waits else now

    def is_overdue(self, pending: Pending, now: float) -> bool:
        """Tell whether a request waits longer than nearly all did before it, or was sent again already."""
        if pending.attempt > 0:
            return True
        answers = self._answers.get(pending.name)
        return now - pending.sent_at > (answers.high() if answers is not None else 0.0)

    def usual(self, route: Route, *, in_flight: int) -> float:
        """Return how long a first send is left without an answer, in seconds."""
        answers = self._answers.setdefault(route.deployment.name, Latencies())
        return max(LEAST_RESEND_SECONDS, _RESEND_FACTOR * answers.usual(route.deployment, in_flight=in_flight))

    def for_answer(self, route: Route, *, in_flight: int, spent: int) -> float:
        """Return how long a send is left without an answer, in seconds; longer with each attempt spent."""
        base = self.usual(route, in_flight=in_flight)
        return min(MOST_RESEND_SECONDS, base * float(2**spent)) * (1.0 + 0.1 * self._draw())

    def for_ack(self, route: Route) -> float:
        """Return how long stage 0 may leave a frame untaken; infinity without another device, or before the first ack.

        A pipeline may take long to answer; whether anybody is there is known sooner.
        """
        acks, plan = self._acks.get(route.deployment.name), route.deployment.plan
        if acks is None or plan is None or len(plan.stages[0].devices) < 2:
            return math.inf
        return max(SILENT_SECONDS, _RESEND_FACTOR * acks.high())
