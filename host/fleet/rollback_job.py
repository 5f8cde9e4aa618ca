"""Serving what was served before, or ending the trial of a canary. No clock; IO only through blob sources."""

from __future__ import annotations

from edge.formats.message import CommandOutcome, DeployRequest, Heartbeat, RollbackRequest
from edge.formats.plan import Deployment
from host.fleet.deploy_job import DeployJob
from host.fleet.desired import Cause
from host.fleet.effects import JobEffect
from host.fleet.jobs import KNOWN_SECONDS, Desk, DeviceEvent, plan_holders
from host.fleet.outcomes import outcome_of, unknown_deployment


class RollbackJob:
    """Find out what was served before, and bring it into service under a new epoch, planned for who is here now."""

    def __init__(self, request: RollbackRequest, desk: Desk, *, ended: str = "", now: float) -> None:
        """Start with nothing done.

        Args:
            request: what is asked for.
            desk: what jobs share.
            ended: epoch of the canary that this command ended already, empty when there was none.
            now: monotonic seconds.
        """
        self.request_id, self.name, self.reply_to = request.request_id, request.name, request.reply_to
        self.outcome: CommandOutcome | None = None
        self._desk = desk
        self._began = now
        self._ended = ended
        self._ends_canary = False
        self._inner: DeployJob | None = None

    @property
    def replans(self) -> bool:
        """See `Job.replans`."""
        return False

    @property
    def tries(self) -> str:
        """See `Job.tries`."""
        return ""

    @property
    def epoch(self) -> str:
        """See `Job.epoch`."""
        return self._inner.epoch if self._inner is not None else ""

    @property
    def devices(self) -> frozenset[str]:
        """See `Job.devices`."""
        return self._inner.devices if self._inner is not None else frozenset()

    def phase(self) -> str:
        """See `Job.phase`."""
        return "looking for what was served before" if self._inner is None else self._inner.phase()

    def tick(self, now: float) -> list[JobEffect]:
        """See `Job.tick`."""
        if self.outcome is not None:
            return []
        if self._inner is None:
            self._begin(now)
        if self._inner is None:
            return []
        effects = self._inner.tick(now)
        found = self._inner.outcome
        if found is not None and self._ends_canary:
            self._end_well(found.epoch)
        elif found is not None:
            self.outcome = outcome_of(
                self.request_id,
                reason="" if found.ok else found.reason,
                epoch=found.epoch,
                told=f"serves the bundle of before, epoch {found.epoch}" if found.ok else "",
            )
        return effects

    def receive(self, device: str, event: DeviceEvent, now: float) -> None:
        """See `Job.receive`."""
        if self._inner is not None:
            self._inner.receive(device, event, now)

    def beat(self, device: str, heartbeat: Heartbeat, now: float) -> None:
        """See `Job.beat`."""

    def result(self, payload: bytes, now: float) -> None:
        """See `Job.result`."""
        if self._inner is not None:
            self._inner.result(payload, now)

    def saw_serving(self, deployment: Deployment, now: float) -> None:
        """See `Job.saw_serving`."""
        if self._inner is not None:
            self._inner.saw_serving(deployment, now)

    def cancel(self, reason: str, now: float) -> None:
        """See `Job.cancel`."""
        if self._inner is None:
            self.outcome = outcome_of(self.request_id, reason=reason)
        else:
            self._inner.cancel(reason, now)

    def hand_over(self, reason: str, now: float) -> None:
        """Stop as another coordinator took over; see `DeployJob.hand_over`."""
        if self._inner is None:
            self.cancel(reason, now)
        else:
            self._inner.hand_over(reason, now)

    def _begin(self, now: float) -> None:
        if self._ended:
            self._end_well(self._ended)
            return
        desk = self._desk
        if min(desk.since_hello(now), now - self._began) < KNOWN_SECONDS and desk.serving(self.name) is None:
            return
        serving, canary = desk.serving(self.name), desk.canary(self.name)
        if serving is None or serving.removed:
            self.outcome = outcome_of(self.request_id, reason=unknown_deployment(self.name, desk.names()))
        elif canary is not None:
            self._inner = DeployJob.of_found(canary, desk, now=now)
            self._inner.cancel("a person rolled it back", now)
            self._ends_canary = True
        elif serving.before is None:
            reason = f"nothing but this bundle was served as {self.name}: there is nothing to go back to"
            self.outcome = outcome_of(self.request_id, reason=reason)
        else:
            self._inner = DeployJob(
                _request_of_before(serving, self.request_id),
                desk,
                now=now,
                cause=Cause(why="a person rolled it back", replans=False, rolls_back=True),
            )

    def _end_well(self, epoch: str) -> None:
        self.outcome = outcome_of(self.request_id, epoch=epoch, told=f"the canary, epoch {epoch}, was taken back")


def _request_of_before(serving: Deployment, request_id: str) -> DeployRequest:
    before = serving.before
    if before is None:
        raise ValueError("nothing was served before")
    return DeployRequest(
        request_id=request_id,
        name=serving.name,
        manifest=before.manifest,
        # Devices keep the blobs of the bundle before.
        holders=tuple(dict.fromkeys((*serving.holders, *plan_holders(serving.plan)))),
        constraints=before.constraints,
        objective=before.objective,
        mode=before.mode,
        window=before.window,
        codec=before.codec,
        allow_older=True,
        reply_to="",
    )
