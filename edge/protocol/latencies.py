"""What answers of a deployment take, as its client sees it."""

import math
from collections import deque
from dataclasses import dataclass, field

from edge.formats.plan import Deployment

_REMEMBERED = 512


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

    def usual(self, deployment: Deployment, *, in_flight: int) -> float:
        """Return what 99 % of the answers take, in seconds.

        It is no less than the pipeline needs for what is in flight. The first answers had nobody before them: until as
        many came as are in flight, it is also no less than the plan says of a full window.

        Args:
            deployment: whose answers.
            in_flight: requests of this client.
        """
        observed = sorted(self.recent)[math.ceil(0.99 * len(self.recent)) - 1] if self.recent else 0.0
        if (plan := deployment.plan) is None:
            return observed
        if self.seen < in_flight:
            return max(observed, plan.latency_seconds + deployment.window * plan.bottleneck_seconds)
        return max(observed, in_flight * plan.bottleneck_seconds)
