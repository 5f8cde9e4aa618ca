"""The plans that the requests of one deployment may take: what serves, a canary beside it, those before; no IO."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256

from edge.formats.bundle import Manifest
from edge.formats.plan import Deployment, Plan, parse_epoch

_REMEMBERED = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Where the requests of a deployment go now."""

    deployment: Deployment
    manifest: Manifest

    @property
    def epoch(self) -> str:
        """Epoch of the plan."""
        return self.deployment.epoch


class Ways:
    """The routes of one deployment that a client knows.

    Attributes:
        serving: what serves; None before it is known, or when the deployment is removed.
        canary: what is tried on a part of the requests.
    """

    def __init__(self) -> None:
        """Start with nothing known."""
        self.serving: Route | None = None
        self.canary: Route | None = None
        self._past: deque[Route] = deque(maxlen=_REMEMBERED)
        self._newest = ""

    def serve(self, route: Route) -> bool:
        """Let a newer plan serve; False when it is not newer. A canary that is not newer than it ends."""
        if self._newest and parse_epoch(route.epoch) <= parse_epoch(self._newest):
            return False
        self.stop()
        self.serving, self._newest = route, route.epoch
        if self.canary is not None and parse_epoch(self.canary.epoch) <= parse_epoch(route.epoch):
            self.end_canary()
        return True

    def stop(self) -> None:
        """Let nothing serve."""
        if self.serving is not None:
            self._past.append(self.serving)
        self.serving = None

    def try_out(self, route: Route) -> bool:
        """Try a plan that is newer than what serves, and not older than the canary known; else False."""
        newest = self.canary.epoch if self.canary is not None else self._newest
        if not self._newest or parse_epoch(route.epoch) <= parse_epoch(newest):
            return False
        self.end_canary()
        self.canary = route
        return True

    def end_canary(self) -> Route | None:
        """Try nothing any more; return what was tried."""
        ended, self.canary = self.canary, None
        if ended is not None:
            self._past.append(ended)
        return ended

    def is_drawn(self, request_id: str) -> bool:
        """Tell whether the canary gets a request."""
        return self.canary is not None and draw(request_id) < self.canary.deployment.share

    def find(self, epoch: str) -> Route | None:
        """Return the route of an epoch, if it is still known."""
        return next((route for route in self._all() if route.epoch == epoch), None)

    def devices(self) -> frozenset[str]:
        """Return the devices of all plans known, those before included: something may be on its way there."""
        return frozenset(device for route in self._all() for device in devices_of(route.deployment.plan))

    def _all(self) -> Iterator[Route]:
        yield from (route for route in (self.serving, self.canary, *reversed(self._past)) if route is not None)


def draw(request_id: str) -> float:
    """Return a number in [0, 1) that is always the same for one request."""
    return int.from_bytes(sha256(request_id.encode()).digest()[:4]) / 2**32


def devices_of(plan: Plan | None) -> tuple[str, ...]:
    """Return the devices that hold a stage of a plan loaded, each once."""
    return tuple(dict.fromkeys(device for stage in plan.stages for device in stage.devices)) if plan else ()


def is_whole(route: Route, is_away: Callable[[str], bool]) -> bool:
    """Tell whether every stage has somebody who is there."""
    plan = route.deployment.plan
    return plan is not None and all(any(not is_away(device) for device in stage.devices) for stage in plan.stages)


def steps_of(route: Route | None) -> tuple[tuple[int, ...], ...]:
    """Return the stages of each step; empty where the plan is not known."""
    if route is None or route.deployment.plan is None:
        return ()
    return tuple(tuple(stage.index for stage in step) for step in route.deployment.plan.steps())
