"""The commands that a coordinator works on, and what became of those before. No clock; IO only through blob sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge.formats.message import CommandOutcome, DeployRequest, DeviceRequest, Heartbeat, RollbackRequest
from edge.formats.plan import Deployment
from host.fleet.deploy_job import DeployJob
from host.fleet.device_job import DeviceJob
from host.fleet.effects import CoordinatorEffect, Keep, Request, Told
from host.fleet.jobs import Desk, DeviceEvent, Job
from host.fleet.lease import LeaseKeeper
from host.fleet.outcomes import outcome_of, replies, request_fault, subject
from host.fleet.rollback_job import RollbackJob
from host.fleet.undeploy_job import UndeployJob

MAX_JOBS = 64
MAX_OUTCOMES = 256

Keeper = Callable[[Deployment], object]
Ended = Callable[[Job, CommandOutcome, float], None]


class Worklist:
    """Takes commands, lets those about one thing follow each other, and tells how they do."""

    def __init__(self, desk: Desk, keeper: LeaseKeeper, *, keep: Keeper, ended: Ended) -> None:
        """Start with nothing to do.

        Args:
            desk: what jobs share.
            keeper: of the lease.
            keep: takes a serving value that a job brought about.
            ended: told of every job that ended.
        """
        self._desk = desk
        self._keeper = keeper
        self._keep = keep
        self._ended = ended
        self._jobs: dict[str, Job] = {}
        self._told: dict[str, str] = {}
        self._outcomes: dict[str, CommandOutcome] = {}

    # ------------------------------------------------------------------------------------------------------ looking
    @property
    def busy(self) -> bool:
        """Whether a command is being worked on."""
        return bool(self._jobs)

    def running(self, name: str) -> Sequence[Job]:
        """See `Desk.running`."""
        return [job for job in self._jobs.values() if job.name == name]

    def outcome(self, request_id: str) -> CommandOutcome | None:
        """See `Desk.outcome`."""
        return self._outcomes.get(request_id)

    def names(self, *, trying: bool = True) -> set[str]:
        """Return what is worked on; without `trying`, not those that only try a canary."""
        return {job.name for job in self._jobs.values() if trying or not job.tries}

    # ------------------------------------------------------------------------------------------------------ commands
    def ask(self, request: Request, now: float) -> list[CoordinatorEffect]:
        """Take a command; one that was asked before is answered again."""
        request_id = request.request_id
        if request_id in self._outcomes:
            return self._news(request.reply_to, self._outcomes[request_id])
        if request_id in self._jobs:
            return self._progress(self._jobs[request_id])
        if fault := self._fault(request):
            return self._news(request.reply_to, self._remember(outcome_of(request_id, reason=fault)))
        ended = ""
        for other in self.running(subject(request)):
            ended = other.tries or ended
            # Those of its own go before no person's; and a canary is ended by who rolls back.
            other.cancel("a person rolled it back" if other.tries else "another command came", now)
        self._jobs[request_id] = job = self._job(request, ended, now)
        return self._progress(job)

    def start(self, job: Job, now: float) -> None:
        """Work on a job that nobody asked for by a message."""
        del now
        self._outcomes.pop(job.request_id, None)
        self._jobs[job.request_id] = job

    def cancel(self, reason: str, now: float, *, request_id: str = "") -> None:
        """Stop a command, or every command; epochs that are not committed are abandoned."""
        for job in tuple(self._jobs.values()):
            if not request_id or job.request_id == request_id:
                job.cancel(reason, now)

    def tick(self, now: float) -> list[CoordinatorEffect]:
        """Let the first job of each name do what is due."""
        effects: list[CoordinatorEffect] = []
        if not self._keeper.may_go_on(now):
            return effects
        for job in tuple(self._jobs.values()):
            if job.request_id in self._jobs and self.running(job.name)[0] is job:
                effects += self._step(job, now)
        return effects

    # -------------------------------------------------------------------------------------------------------- events
    def receive(self, device: str, event: DeviceEvent, now: float) -> None:
        """See `Job.receive`."""
        for job in self._jobs.values():
            job.receive(device, event, now)

    def beat(self, device: str, heartbeat: Heartbeat, now: float) -> None:
        """See `Job.beat`."""
        for job in self._jobs.values():
            job.beat(device, heartbeat, now)

    def result(self, payload: bytes, now: float) -> None:
        """See `Job.result`."""
        for job in self._jobs.values():
            job.result(payload, now)

    def saw_serving(self, deployment: Deployment, now: float) -> None:
        """See `Job.saw_serving`."""
        for job in self._jobs.values():
            if job.name == deployment.name:
                job.saw_serving(deployment, now)

    # ----------------------------------------------------------------------------------------------------------- own
    def _job(self, request: Request, ended: str, now: float) -> Job:
        match request:
            case DeployRequest():
                return DeployJob(request, self._desk, now=now)
            case RollbackRequest():
                return RollbackJob(request, self._desk, ended=ended, now=now)
            case DeviceRequest():
                return DeviceJob(request, self._desk, now=now)
            case _:
                return UndeployJob(request, self._desk, now=now)

    def _step(self, job: Job, now: float) -> list[CoordinatorEffect]:
        effects: list[CoordinatorEffect] = []
        if self._keeper.other is not None:
            reason = f"coordinator {self._keeper.other} took over"
            if isinstance(job, DeployJob | RollbackJob):
                job.hand_over(reason, now)
            else:
                job.cancel(reason, now)
        for effect in job.tick(now):
            if isinstance(effect, Keep):
                self._keep(effect.deployment)
            effects.append(effect)
        if job.outcome is not None:
            self._jobs.pop(job.request_id, None)
            self._ended(job, job.outcome, now)
            effects += self._news(job.reply_to, self._remember(job.outcome))
        elif self._told.get(job.request_id) != job.phase():
            effects += self._progress(job)
        return effects

    def _fault(self, request: Request) -> str | None:
        if fault := request_fault(request):
            return fault
        if self._keeper.other is not None:
            return f"coordinator {self._keeper.other} holds the lease, ask it"
        name = subject(request)
        others = [job for job in self.running(name) if not job.replans]
        tried = [job.tries for job in others if job.tries]
        if tried and len(tried) == len(others) and not isinstance(request, RollbackRequest):
            return f"{name} tries a canary, epoch {tried[0]}: wait for it, or end it with `shardwire rollback {name}`"
        if len(others) > len(tried):
            return f"{name} is being changed by another command; try again when it is done"
        if len(self._jobs) >= MAX_JOBS:
            return f"more than {MAX_JOBS} commands at once"
        return None

    def _remember(self, outcome: CommandOutcome) -> CommandOutcome:
        self._told.pop(outcome.request_id, None)
        self._outcomes[outcome.request_id] = outcome
        while len(self._outcomes) > MAX_OUTCOMES:
            del self._outcomes[next(iter(self._outcomes))]
        return outcome

    def _progress(self, job: Job) -> list[CoordinatorEffect]:
        self._told[job.request_id] = job.phase()
        outcome = CommandOutcome(request_id=job.request_id, done=False, ok=True, reason=job.phase())
        return self._news(job.reply_to, outcome)

    def _news(self, reply_to: str, outcome: CommandOutcome) -> list[CoordinatorEffect]:
        return [Told(outcome=outcome), *replies(self._desk.caller.topics, reply_to, outcome)]
