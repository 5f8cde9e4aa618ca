"""One change of a deployment, make before break: prepare, probe, commit, or abandon. No IO and no clock.

::

    PREPARING --all ready, or fetched who swaps--> SWAPPING --all ready--> PROBING --golden output right--> COMMITTING
        |            (nobody swaps: straight to PROBING)     |                |     (a canary: TRYING first)    |
        +--- a device failed, went away or stood still; the probe failed; the canary did; cancelled      own `serving`
        v                                                                                                     v
    ABANDONING --every device dropped the epoch, or the time for that is over--> ABANDONED                 SERVING

Once `serving` was published nobody can take it back, so COMMITTING has no way to ABANDONING. Only where something newer
serves, or another coordinator took over and nobody saw the commit, it ends as ABANDONED, without a word to the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from edge.formats.bundle import Manifest
from edge.formats.canary import Canary
from edge.formats.message import Abandon, Dropped, Failed, Fetched, Heartbeat, Ready, Swap, encode_message
from edge.formats.plan import Deployment, encode_deployment, parse_epoch
from edge.transport import Channel, Publication
from host.fleet.canary import Counters, Verdict, judge
from host.fleet.identity import Caller, retained
from host.fleet.jobs import DeviceEvent
from host.fleet.probe import GoldenCase, Probe

REPEAT_SECONDS = 2.0
"""How often `desired`, `serving` and commands are published again until they are answered."""

STALL_SECONDS = 120.0
"""How long a device may show no progress: loading a large stage on a small board takes most of it."""

AWAY_SECONDS = 5.0
"""How long a device may be away while it prepares."""

REPLAN_AWAY_SECONDS = 0.5
"""The same, when the plan mends a deployment that cannot answer: another plan is made at once."""

ABANDON_SECONDS = 5.0
"""How long devices have to drop an abandoned epoch."""

MEND_ABANDON_SECONDS = 1.0
"""The same, when another plan is waited for: a newer epoch makes them drop it too."""

Online = Callable[[str], bool]


class Phase(Enum):
    """Where a rollout is; the value is for people."""

    PREPARING = "preparing"
    SWAPPING = "swapping"
    PROBING = "probing"
    TRYING = "trying"
    COMMITTING = "committing"
    SERVING = "serving"
    ABANDONING = "abandoning"
    ABANDONED = "abandoned"


_FINAL = (Phase.SERVING, Phase.ABANDONED)
_REVOCABLE = (Phase.PREPARING, Phase.SWAPPING, Phase.PROBING, Phase.TRYING)


@dataclass(slots=True)
class _Member:
    """One device of the plan, and those of its stages that are not ready."""

    lacks: set[int]
    active_at: float
    seen_at: float
    swaps: bool = False
    fetched: bool = False
    answered: bool = False
    dropped: bool = False

    @property
    def ready(self) -> bool:
        return not self.lacks


class Rollout:
    """Brings one epoch into service.

    Attributes:
        deployment: the value of `desired`.
        serving: the value of `serving`, when it comes to that.
        phase: where it is.
        reason: why it was abandoned; how a canary does, or did.
        pause_seconds: how long nothing answered while devices swapped; None when none did.
    """

    def __init__(
        self,
        deployment: Deployment,
        manifest: Manifest | None,
        cases: Sequence[GoldenCase],
        caller: Caller,
        *,
        serving: Deployment | None = None,
        canary: Canary | None = None,
        mends: bool = False,
        now: float,
    ) -> None:
        """Start to prepare; the first `tick` publishes `desired`.

        Args:
            deployment: the value of `desired`; it has a plan.
            manifest: of its bundle; None for what is not probed, see `adopt_canary`.
            cases: golden inputs to probe with.
            caller: who coordinates.
            serving: the value of `serving`, when who holds blobs changes with the commit.
            canary: how the epoch is tried on a part of the requests first; None to serve it at once.
            mends: whether a plan of the same bundle is replaced: the probe is short, and nobody is waited for.
            now: monotonic seconds.
        """
        if deployment.plan is None:
            raise ValueError("a rollout needs a plan")
        self.deployment = deployment
        self.serving = deployment if serving is None else serving
        self.phase = Phase.PREPARING
        self.reason = ""
        self.pause_seconds: float | None = None
        self.probe: Probe | None = None
        self._manifest = manifest
        self._cases = tuple(cases)
        self._caller = caller
        self._canary = canary
        self._mends = mends
        self._counters: Counters | None = None
        self._tries_since = now
        self._swaps_since: float | None = None
        self._canary_out = False
        self._told_abandon = False
        self._let_go_at: float | None = None
        self._publish_at = now
        self._give_up_at = 0.0
        self._members: dict[str, _Member] = {}
        for stage in deployment.plan.stages:
            for name in stage.devices:
                member = self._members.setdefault(name, _Member(lacks=set(), active_at=now, seen_at=now))
                member.lacks.add(stage.index)
                member.swaps = member.swaps or name in stage.swaps

    def adopt_canary(self, now: float) -> None:
        """Go on with a canary that another coordinator began: it is prepared and probed, and its time starts anew."""
        for member in self._members.values():
            member.lacks.clear()
        self._try(now)

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.phase in _FINAL

    def abandon(self, reason: str, now: float) -> None:
        """Give the epoch up, unless it is committed already."""
        if self.phase in _REVOCABLE:
            self.phase, self.reason = Phase.ABANDONING, reason
            self._publish_at = now
            self._give_up_at = now + (MEND_ABANDON_SECONDS if self._mends else ABANDON_SECONDS)

    def receive(self, device: str, event: DeviceEvent, now: float) -> None:
        """Take an event that a device published about this epoch; others are ignored."""
        member = self._members.get(device)
        if member is None or (event.deployment, event.epoch) != (self.deployment.name, self.deployment.epoch):
            return
        member.answered, member.active_at = True, now
        match event:
            case Ready():
                member.lacks.discard(event.stage)
            case Fetched():
                member.fetched = True
            case Failed():
                member.dropped = True
                self.abandon(f"{device} cannot take stage {event.stage}: {event.reason}", now)
            case Dropped():
                member.dropped = True
                if member.ready:
                    self.abandon(f"{device} dropped the epoch", now)

    def beat(self, device: str, heartbeat: Heartbeat) -> None:
        """Take a heartbeat: a canary is judged by what its stages tell."""
        if self._counters is not None and device in self._members:
            self._counters.hear(device, heartbeat.stages)

    def result(self, payload: bytes, now: float) -> None:
        """Take a packet from the caller's result topic."""
        if self.phase is Phase.PROBING and self.probe is not None:
            self.probe.receive(payload, now)

    def saw_serving(self, epoch: str, now: float) -> None:
        """Note that the broker delivered a `serving` of this deployment."""
        if epoch != self.deployment.epoch:
            if parse_epoch(epoch) > parse_epoch(self.deployment.epoch):
                self._supersede(f"epoch {epoch} serves, which is newer", now)
        elif self.phase is Phase.COMMITTING:
            self.phase = Phase.SERVING
            if self._swaps_since is not None:
                self.pause_seconds = now - self._swaps_since

    def let_go(self, reason: str, now: float) -> None:
        """Publish the commit no more, as another coordinator decides: only whether it was taken is waited for."""
        if self._let_go_at is None:
            self._let_go_at = now
            self.reason = f"{reason} while it was committed: see `shardwire status`"

    def _supersede(self, reason: str, now: float) -> None:
        if self.phase is Phase.COMMITTING:
            self.phase, self.reason = Phase.ABANDONED, reason  # nobody takes it any more, whatever we publish
        else:
            self.abandon(reason, now)

    def tick(self, now: float, online: Online) -> list[Publication]:
        """Do what is due now.

        Args:
            now: monotonic seconds.
            online: tells whether a device is there.
        """
        if self.phase in _REVOCABLE:
            self._watch(now, online)
        if self.phase in (Phase.PREPARING, Phase.SWAPPING):
            self._prepare(now)
        publications: list[Publication] = []
        if self.phase is Phase.PROBING and self.probe is not None:
            publications += self.probe.tick(now)
            self._judge(self.probe, now)
        if self.phase is Phase.TRYING:
            self._judge_canary(now)
        if self.phase is Phase.ABANDONING:
            self._finish_abandoning(now, online)
        if self.phase is Phase.COMMITTING and self._let_go_at is not None:
            if now - self._let_go_at >= REPEAT_SECONDS:
                self.phase = Phase.ABANDONED
            return publications
        if self.over:
            return [*publications, *self._end_canary(last=True)]
        if now >= self._publish_at:
            self._publish_at = now + REPEAT_SECONDS
            publications += self._repeated()
        return publications

    # -------------------------------------------------------------------------------------------------------- steps
    def _watch(self, now: float, online: Online) -> None:
        most_away = REPLAN_AWAY_SECONDS if self._mends else AWAY_SECONDS
        for name, member in self._members.items():
            if online(name):
                member.seen_at = now
            elif now - member.seen_at > most_away:
                self.abandon(f"{name} went away while the epoch was {self.phase.value}", now)
            waits = member.fetched and self.phase is Phase.PREPARING  # for the others
            if not member.ready and not waits and now - member.active_at > STALL_SECONDS:
                did = "made no progress" if member.answered else "did not answer"
                self.abandon(f"{name} {did} for {STALL_SECONDS:.0f} s", now)

    def _prepare(self, now: float) -> None:
        members = self._members.values()
        if all(member.ready for member in members) and self._manifest is not None:
            self.phase = Phase.PROBING
            self.probe = Probe(self.deployment, self._cases, self._manifest, self._caller, short=self._mends, now=now)
        elif self.phase is Phase.PREPARING and all(
            member.ready or (member.swaps and member.fetched) for member in members
        ):
            self.phase, self._publish_at, self._swaps_since = Phase.SWAPPING, now, now
            for member in members:
                member.active_at = now

    def _judge(self, probe: Probe, now: float) -> None:
        if probe.failure is not None:
            self.abandon(f"probe: {probe.failure}", now)
        elif probe.passed and self._canary is not None:
            self._try(now)
        elif probe.passed:
            self.phase, self._publish_at = Phase.COMMITTING, now

    def _try(self, now: float) -> None:
        self.phase, self._publish_at, self._tries_since = Phase.TRYING, now, now
        probed = 0 if self.probe is None else self.probe.sent
        self._counters = Counters(self.deployment.name, self.deployment.epoch, probed=probed)
        self._canary_out = True

    def _judge_canary(self, now: float) -> None:
        if self._canary is None or self._counters is None:
            return
        seconds = now - self._tries_since
        verdict, told = judge(self._canary, self._counters.tally(), seconds=seconds)
        self.reason = told
        if verdict is Verdict.TAKE_BACK:
            self.abandon(f"the canary was taken back: {told}", now)
        elif verdict is Verdict.PROMOTE:
            self.phase, self._publish_at = Phase.COMMITTING, now

    def _finish_abandoning(self, now: float, online: Online) -> None:
        waiting = [name for name, member in self._members.items() if not member.dropped and online(name)]
        if self._told_abandon and (not waiting or now >= self._give_up_at):
            self.phase = Phase.ABANDONED

    # ------------------------------------------------------------------------------------------------- publications
    def _end_canary(self, *, last: bool = False) -> list[Publication]:
        if not self._canary_out:
            return []
        self._canary_out = not last  # what is published while the broker is gone is lost
        return [retained(self._caller.topics.canary(self.deployment.name), b"")]

    def _repeated(self) -> list[Publication]:
        topics, deployment = self._caller.topics, self.deployment
        match self.phase:
            case Phase.PREPARING if not all(member.answered for member in self._members.values()):
                return [retained(topics.desired(deployment.name), encode_deployment(deployment))]
            case Phase.SWAPPING:
                swap = encode_message(Swap(deployment=deployment.name, epoch=deployment.epoch))
                return [self._command(name, swap) for name, member in self._members.items() if not member.ready]
            case Phase.TRYING if self._canary is not None:
                tried = msgspec.structs.replace(deployment, canary=self._canary)
                return [retained(topics.canary(deployment.name), encode_deployment(tried))]
            case Phase.COMMITTING:
                # `desired` again too, for a device that lost its disk: its holders may be others now.
                value = encode_deployment(self.serving)
                return [retained(topic(deployment.name), value) for topic in (topics.serving, topics.desired)]
            case Phase.ABANDONING:
                self._told_abandon = True
                command = encode_message(
                    Abandon(deployment=deployment.name, epoch=deployment.epoch, reason=self.reason[:500])
                )
                commands = [
                    self._command(name, command) for name, member in self._members.items() if not member.dropped
                ]
                # Absence means nothing: a device that was away must not find the abandoned plan there.
                return [*self._end_canary(), retained(topics.desired(deployment.name), b""), *commands]
        return []

    def _command(self, device: str, payload: bytes) -> Publication:
        topic = self._caller.topics.command(device)
        return Publication(channel=Channel.CONTROL, topic=topic, payload=payload, qos=1)
