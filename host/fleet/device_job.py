"""Commands about one device: to leave it out of plans, to empty it, to forget it. No clock and no IO."""

from __future__ import annotations

from edge.formats.message import CommandOutcome, Cordon, DeviceRequest, encode_message
from edge.transport import Channel, Publication
from host.fleet.deploy_job import DeployJob
from host.fleet.desired import Cause, request_of
from host.fleet.effects import Happened, JobEffect
from host.fleet.identity import retained
from host.fleet.jobs import KNOWN_SECONDS, Desk, Job, QuietJob, named_devices
from host.fleet.outcomes import outcome_of, subject

TAKE_SECONDS = 10.0
"""How long a device has to say that it is cordoned."""

_REPEAT_SECONDS = 2.0
_DONE = {"cordon": "cordoned", "uncordon": "uncordoned", "drain": "drained", "forget": "forgotten"}


class DeviceJob(QuietJob):
    """Does with a device what was asked for, and has deployments planned anew without it."""

    def __init__(self, request: DeviceRequest, desk: Desk, *, now: float) -> None:
        self.request_id, self.name, self.reply_to = request.request_id, subject(request), request.reply_to
        self.outcome: CommandOutcome | None = None
        self._device, self._action = request.device, request.action
        self._desk = desk
        self._began = now
        self._publish_at = now
        self._told = False
        self._moves: dict[str, str] = {}

    def phase(self) -> str:
        """See `Job.phase`."""
        moving = [name for name, request_id in self._moves.items() if self._desk.outcome(request_id) is None]
        return f"moving {', '.join(moving)} away from {self._device}" if moving else f"{self._action} {self._device}"

    def tick(self, now: float) -> list[JobEffect]:
        """See `Job.tick`."""
        if self.outcome is not None or not self._known(now):
            return []
        if (fault := self._fault(now)) is not None:
            self.outcome = outcome_of(self.request_id, reason=fault)
            return []
        effects = self._forget() if self._action == "forget" else self._cordon(now)
        if not self._told or self._action in ("cordon", "uncordon"):
            if self._told:
                self._end()
            return effects
        return [*effects, *self._move(now)]

    def cancel(self, reason: str, now: float) -> None:
        """See `Job.cancel`."""
        for name, request_id in self._moves.items():
            for job in self._desk.running(name):
                if job.request_id == request_id:
                    job.cancel(reason, now)
        self.outcome = outcome_of(self.request_id, reason=reason)

    def _known(self, now: float) -> bool:
        here = self._desk.roster.get(self._device)
        since_hello = self._desk.since_hello(now)
        if self._action == "drain" and since_hello < KNOWN_SECONDS:
            return False  # what it runs may not be known yet
        waited = min(since_hello, now - self._began)
        return waited >= KNOWN_SECONDS or (here.online(now) and here.about is not None)

    def _fault(self, now: float) -> str | None:
        roster, device = self._desk.roster, self._device
        if not roster.get(device).is_agent and not self._told:
            names = ", ".join(node.name for node in roster.agents()[:20])
            return f"no device called {device!r}; there are: {names or 'none'}"
        online = roster.online(device, now)
        if self._action == "forget":
            return f"{device} is online: stop its agent first, or cordon it" if online and not self._told else None
        if not online and not self._told:
            return (
                f"{device} is offline: it is cordoned when it is here; `shardwire forget {device}` if it never will be"
            )
        return None

    def _cordon(self, now: float) -> list[JobEffect]:
        """Tell the device until it says that it took it."""
        about, wanted = self._desk.roster.get(self._device).about, self._action != "uncordon"
        if self._told:
            return []
        if about is not None and about.cordoned == wanted:
            self._told = True
            what = "cordoned" if wanted else "uncordoned"
            if self._publish_at == self._began:
                return []  # it was so before
            return [Happened(what=what, why="a person asked for it", device=self._device)]
        if now - self._began > TAKE_SECONDS:
            reason = f"{self._device} did not say within {TAKE_SECONDS:.0f} s that it took it"
            self.outcome = outcome_of(self.request_id, reason=reason)
        if self.outcome is not None or now < self._publish_at:
            return []
        self._publish_at = now + _REPEAT_SECONDS
        topic = self._desk.caller.topics.command(self._device)
        payload = encode_message(Cordon(cordoned=wanted))
        return [Publication(channel=Channel.CONTROL, topic=topic, payload=payload, qos=1)]

    def _forget(self) -> list[JobEffect]:
        if self._told:
            return []
        self._told = True
        self._desk.forget(self._device)
        topics = self._desk.caller.topics
        gone = [retained(topic(self._device), b"") for topic in (topics.state, topics.about, topics.speed)]
        return [*gone, Happened(what="forgotten", why="a person said that it is gone for good", device=self._device)]

    def _move(self, now: float) -> list[JobEffect]:
        """Have every deployment that names the device planned anew without it, and wait for that."""
        desk = self._desk
        # What others prepare comes first: it may be another bundle, and name the device.
        waits = any(not job.tries and self._device in job.devices for job in self._others(*desk.worked_on()))
        for name in desk.names():
            value = desk.serving(name)
            if name in self._moves or value is None or not self._names(name):
                continue
            if others := self._others(name):
                waits = waits or not any(job.tries for job in others)
                continue
            self._moves[name] = f"{self.request_id[:64]}-{name}"
            why = f"{self._device} is {_DONE[self._action]}"
            cause = Cause(why=why, replans=False, without=self._device)
            desk.start(DeployJob(request_of(value, self._moves[name]), desk, now=now, cause=cause), now)
        if waits or any(desk.outcome(request_id) is None for request_id in self._moves.values()):
            return []
        left = [name for name in sorted({*desk.names(), *desk.worked_on()}) if self._names(name) or self._tried(name)]
        reasons = [f"{name}: {self._why(name)}" for name in left]
        if self._action == "forget":
            self._end(f"still in the plan of {'; '.join(reasons)}" if left else "")
            return []
        if left:
            reason = f"{self._device} is cordoned, and cannot be drained: {'; '.join(reasons)}"
            self.outcome = outcome_of(self.request_id, reason=reason)
            return []
        self._end()
        return [Happened(what="drained", why="no plan names it any more", device=self._device)]

    def _names(self, name: str) -> bool:
        value = self._desk.serving(name)
        return value is not None and self._device in named_devices(value.plan)

    def _others(self, *names: str) -> list[Job]:
        """Return the jobs of others about some deployments."""
        return [job for name in names for job in self._desk.running(name) if job.request_id != self._moves.get(name)]

    def _tried(self, name: str) -> bool:
        """Whether a canary is tried on the device."""
        return any(job.tries and self._device in job.devices for job in self._others(name))

    def _why(self, name: str) -> str:
        if any(job.tries for job in self._others(name)):
            return f"a canary is tried; `shardwire rollback {name}` ends it"
        found = self._desk.outcome(self._moves.get(name, ""))
        return found.reason if found is not None and not found.ok else "its plan was changed by another command"

    def _end(self, told: str = "") -> None:
        self.outcome = outcome_of(self.request_id, told=told)
