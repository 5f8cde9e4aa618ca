"""One change of a deployment, make before break: prepare, probe, commit, or abandon. No IO and no clock.

::

    PREPARING --every device ready--> PROBING --golden output right--> COMMITTING --own `serving` seen--> SERVING
        |                                |                                 |
        +--- a device failed, went away or stood still; the probe failed; cancelled
        v
    ABANDONING --every device dropped the epoch, or the time for that is over--> ABANDONED

Once `serving` was published nobody can take it back, so COMMITTING has no way to ABANDONING.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from edge.formats.bundle import Manifest
from edge.formats.message import Abandon, Dropped, Failed, Progress, Ready, encode_message
from edge.formats.plan import Deployment, encode_deployment
from edge.transport import Channel, Publication
from host.fleet.identity import Caller, retained
from host.fleet.probe import GoldenCase, Probe

REPEAT_SECONDS = 2.0
"""How often `desired` and `serving` are published again until they are answered."""

STALL_SECONDS = 120.0
"""How long a device may show no progress: loading a large stage on a small board takes most of it."""

AWAY_SECONDS = 5.0
"""How long a device may be away while it prepares."""

ABANDON_SECONDS = 5.0
"""How long devices have to drop an abandoned epoch."""

Online = Callable[[str], bool]


class Phase(Enum):
    """Where a rollout is; the value is for people."""

    PREPARING = "preparing"
    PROBING = "probing"
    COMMITTING = "committing"
    SERVING = "serving"
    ABANDONING = "abandoning"
    ABANDONED = "abandoned"


_FINAL = (Phase.SERVING, Phase.ABANDONED)


@dataclass(slots=True)
class _Member:
    """One device of the plan, and those of its stages that are not ready."""

    lacks: set[int]
    active_at: float
    seen_at: float
    answered: bool = False
    dropped: bool = False

    @property
    def ready(self) -> bool:
        return not self.lacks


class Rollout:
    """Brings one epoch into service."""

    def __init__(
        self,
        deployment: Deployment,
        manifest: Manifest,
        cases: Sequence[GoldenCase],
        caller: Caller,
        *,
        staying: bool = True,
        now: float,
    ) -> None:
        """Start to prepare; the first `tick` publishes `desired`.

        Args:
            deployment: the value of `desired`; it has a plan.
            manifest: of its bundle.
            cases: golden inputs to probe with.
            caller: who coordinates.
            staying: whether the caller holds the blobs also after the commit.
            now: monotonic seconds.
        """
        if deployment.plan is None:
            raise ValueError("a rollout needs a plan")
        holders = deployment.holders if staying else tuple(n for n in deployment.holders if n != caller.node)
        self.deployment = deployment
        self.serving = msgspec.structs.replace(deployment, holders=holders)
        self.phase = Phase.PREPARING
        self.reason = ""
        self.probe: Probe | None = None
        self._manifest = manifest
        self._cases = tuple(cases)
        self._caller = caller
        self._publish_at = now
        self._give_up_at = 0.0
        self._members: dict[str, _Member] = {}
        for stage in deployment.plan.stages:
            for name in stage.devices:
                member = self._members.setdefault(name, _Member(lacks=set(), active_at=now, seen_at=now))
                member.lacks.add(stage.index)

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.phase in _FINAL

    def abandon(self, reason: str, now: float) -> None:
        """Give the epoch up, unless it is committed already."""
        if self.phase in (Phase.PREPARING, Phase.PROBING):
            self.phase, self.reason = Phase.ABANDONING, reason
            self._publish_at, self._give_up_at = now, now + ABANDON_SECONDS

    def receive(self, device: str, event: Progress | Ready | Failed | Dropped, now: float) -> None:
        """Take an event that a device published about this epoch; others are ignored."""
        member = self._members.get(device)
        if member is None or (event.deployment, event.epoch) != (self.deployment.name, self.deployment.epoch):
            return
        member.answered, member.active_at = True, now
        match event:
            case Ready():
                member.lacks.discard(event.stage)
            case Failed():
                member.dropped = True
                self.abandon(f"{device} cannot take stage {event.stage}: {event.reason}", now)
            case Dropped():
                member.dropped = True
                if member.ready:
                    self.abandon(f"{device} dropped the epoch", now)

    def result(self, payload: bytes, now: float) -> None:
        """Take a packet from the caller's result topic."""
        if self.phase is Phase.PROBING and self.probe is not None:
            self.probe.receive(payload, now)

    def saw_serving(self, epoch: str) -> None:
        """Note that the broker delivered a `serving` of this deployment."""
        if self.phase is Phase.COMMITTING and epoch == self.deployment.epoch:
            self.phase = Phase.SERVING

    def tick(self, now: float, online: Online) -> list[Publication]:
        """Do what is due now.

        Args:
            now: monotonic seconds.
            online: tells whether a device is there.
        """
        if self.phase in (Phase.PREPARING, Phase.PROBING):
            self._watch(now, online)
        if self.phase is Phase.PREPARING and all(member.ready for member in self._members.values()):
            self.phase = Phase.PROBING
            self.probe = Probe(self.deployment, self._cases, self._manifest, self._caller, now=now)
        publications: list[Publication] = []
        if self.phase is Phase.PROBING and self.probe is not None:
            publications += self.probe.tick(now)
            self._judge(self.probe, now)
        if self.phase is Phase.ABANDONING:
            self._finish_abandoning(now, online)
        if not self.over and now >= self._publish_at:
            self._publish_at = now + REPEAT_SECONDS
            publications += self._repeated()
        return publications

    def _watch(self, now: float, online: Online) -> None:
        for name, member in self._members.items():
            if online(name):
                member.seen_at = now
            elif now - member.seen_at > AWAY_SECONDS:
                self.abandon(f"{name} went away while the epoch was {self.phase.value}", now)
            if not member.ready and now - member.active_at > STALL_SECONDS:
                did = "made no progress" if member.answered else "did not answer"
                self.abandon(f"{name} {did} for {STALL_SECONDS:.0f} s", now)

    def _judge(self, probe: Probe, now: float) -> None:
        if probe.failure is not None:
            self.abandon(f"probe: {probe.failure}", now)
        elif probe.passed:
            self.phase, self._publish_at = Phase.COMMITTING, now

    def _finish_abandoning(self, now: float, online: Online) -> None:
        waiting = [name for name, member in self._members.items() if not member.dropped and online(name)]
        if not waiting or now >= self._give_up_at:
            self.phase = Phase.ABANDONED

    def _repeated(self) -> list[Publication]:
        topics, deployment = self._caller.topics, self.deployment
        match self.phase:
            case Phase.PREPARING if not all(member.answered for member in self._members.values()):
                return [retained(topics.desired(deployment.name), encode_deployment(deployment))]
            case Phase.COMMITTING:
                # `desired` again too, for a device that lost its disk: its holders may be others now.
                value = encode_deployment(self.serving)
                return [retained(topic(deployment.name), value) for topic in (topics.desired, topics.serving)]
            case Phase.ABANDONING:
                command = encode_message(
                    Abandon(deployment=deployment.name, epoch=deployment.epoch, reason=self.reason[:500])
                )
                commands = [
                    Publication(channel=Channel.CONTROL, topic=topics.command(name), payload=command, qos=1)
                    for name, member in self._members.items()
                    if not member.dropped
                ]
                # Absence means nothing: a device that was away must not find the abandoned plan there.
                return [retained(topics.desired(deployment.name), b""), *commands]
        return []
