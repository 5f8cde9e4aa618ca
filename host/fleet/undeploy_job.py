"""Removing a deployment. No IO and no clock."""

from __future__ import annotations

from edge.formats.message import CommandOutcome, Dropped, UndeployRequest
from edge.formats.plan import Deployment, encode_deployment
from edge.transport import Publication
from host.fleet.effects import Happened, JobEffect, Keep
from host.fleet.identity import retained
from host.fleet.jobs import DROP_SECONDS, KNOWN_SECONDS, Desk, DeviceEvent, QuietJob, plan_holders
from host.fleet.outcomes import outcome_of, unknown_deployment

_REPEAT_SECONDS = 2.0


class UndeployJob(QuietJob):
    """Publish a tombstone and wait until the devices have dropped the deployment."""

    def __init__(self, request: UndeployRequest, desk: Desk, *, now: float) -> None:
        self.request_id, self.name, self.reply_to = request.request_id, request.name, request.reply_to
        self.outcome: CommandOutcome | None = None
        self._desk = desk
        self._began = now
        self._tombstone: Deployment | None = None
        self._waiting: set[str] = set()
        self._seen = False
        self._publish_at = now

    def phase(self) -> str:
        """See `Job.phase`."""
        return "removing"

    def tick(self, now: float) -> list[JobEffect]:
        """See `Job.tick`."""
        if self.outcome is not None:
            return []
        effects: list[JobEffect] = []
        if self._tombstone is None:
            effects += self._begin(now)
        if self._tombstone is None or self.outcome is not None:
            return effects
        online = [name for name in self._waiting if self._desk.roster.online(name, now)]
        if self._seen and (not online or now - self._began > DROP_SECONDS):
            self.outcome = outcome_of(self.request_id, epoch=self._tombstone.epoch)
            why = "a person removed it"
            effects.append(Happened(what="removed", why=why, deployment=self.name, epoch=self._tombstone.epoch))
        elif now - self._began > 2 * DROP_SECONDS:
            self.outcome = outcome_of(self.request_id, reason="the broker did not take the removal")
        elif now >= self._publish_at:
            self._publish_at = now + _REPEAT_SECONDS
            effects += self._publications(self._tombstone)
        return effects

    def receive(self, device: str, event: DeviceEvent, now: float) -> None:
        """See `Job.receive`."""
        del now
        if isinstance(event, Dropped) and event.deployment == self.name:
            self._waiting.discard(device)

    def saw_serving(self, deployment: Deployment, now: float) -> None:
        """See `Job.saw_serving`."""
        del now
        if self._tombstone is not None and deployment.epoch == self._tombstone.epoch:
            self._seen = True

    def cancel(self, reason: str, now: float) -> None:
        """See `Job.cancel`."""
        del now
        if self._tombstone is None:
            self.outcome = outcome_of(self.request_id, reason=reason)

    def _begin(self, now: float) -> list[JobEffect]:
        serving = self._desk.serving(self.name)
        waited = min(self._desk.since_hello(now), now - self._began)
        if serving is None or serving.removed:
            if serving is not None or waited >= KNOWN_SECONDS:
                self.outcome = outcome_of(self.request_id, reason=unknown_deployment(self.name, self._desk.names()))
            return []
        epoch = self._desk.next_epoch(self.name, now)
        if epoch is None:
            return []
        self._began = now  # it may have waited for its turn
        issued = self._desk.utc()
        self._tombstone = Deployment(name=self.name, epoch=epoch, manifest=None, plan=None, issued=issued)
        self._waiting = set(plan_holders(serving.plan))
        return [Keep(deployment=self._tombstone)]

    def _publications(self, tombstone: Deployment) -> list[Publication]:
        topics, payload = self._desk.caller.topics, encode_deployment(tombstone)
        canary = [retained(topics.canary(self.name), b"")] if self._desk.canary(self.name) is not None else []
        return [
            *(retained(topic, payload) for topic in (topics.desired(self.name), topics.serving(self.name))),
            *canary,
        ]
