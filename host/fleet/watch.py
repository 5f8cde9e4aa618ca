"""Watching what is served: when devices come, go or slow down, plan again. No clock; IO only through blob sources.

What is decided, and by which figures, is in `host.planning.replan`; here is when: a device must be away for a while, a
change must last, plans do not follow each other too fast, and what failed is not tried again at once.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import msgspec

from edge.errors import ShardwireError
from edge.formats.bundle import Blob, decode_manifest
from edge.formats.message import CommandOutcome, DeployRequest, Failed, Ready, encode_message
from edge.formats.plan import Deployment, Plan
from edge.transport import Channel, Publication
from host.errors import PlanError
from host.fleet.identity import Caller
from host.fleet.jobs import PLAN_SECONDS, Desk, probe_blobs
from host.fleet.outlook import NO_CHANGE, Outlook, View, broken_stage, changes_between
from host.planning.replan import HORIZON_SECONDS, Aim, Situation, decide
from host.planning.settle import held_with
from host.planning.workload import shard_constraints

_log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often what is served is looked at."""

AWAY_SECONDS = 5.0
"""A device that is away for less may be starting again: it serves from its disk, with nobody's help."""

GRACE_SECONDS = 10.0
"""After a connection to the broker, everybody has this long to come back."""

SETTLE_SECONDS = 3.0
"""A change must last this long before a plan that answers is replaced."""

LEAST_SECONDS = 30.0
"""Least time that a plan serves before a better one may replace it; one that cannot answer is replaced at once."""

RECHECK_SECONDS = 60.0
"""When nothing changed, it is decided again this late: memory may have become free."""

BACKOFF_SECONDS = 15.0
"""After a change that failed; twice as long after each further one, up to `MOST_BACKOFF_SECONDS`."""

MOST_BACKOFF_SECONDS = 600.0

UNABLE_SECONDS = 300.0
"""A device that could not take its stage is left out for this long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replan:
    """Replace the plan of a deployment.

    Attributes:
        request: what a person would have asked for.
        plan: to roll out.
    """

    request: DeployRequest
    plan: Plan


@dataclass(slots=True)
class _Watched:
    """What is remembered of one deployment; times are monotonic seconds."""

    value: Deployment
    since: float
    outlook: Outlook | None = None
    fetch_at: float = 0.0
    held: dict[str, frozenset[str]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    unable: dict[str, float] = field(default_factory=dict)
    seen: View | None = None
    pending: tuple[object, float] | None = None
    decided: object = None
    recheck_at: float = 0.0
    failures: int = 0
    attempts: int = 0
    retry_at: float = 0.0
    told: str = ""
    reason: str = ""
    trouble: Failed | None = None


class Watch:
    """Decides, deployment by deployment, whether its plan is replaced now."""

    def __init__(self, desk: Desk, *, horizon_seconds: float = HORIZON_SECONDS) -> None:
        """Start with nothing seen.

        Args:
            desk: who is here, and the blobs.
            horizon_seconds: at full load, over which a gain must pay for its move.
        """
        self._desk = desk
        self._horizon_seconds = horizon_seconds
        self._watched: dict[str, _Watched] = {}
        self._away: dict[str, float] = {}
        self._look_at = float("-inf")

    # ------------------------------------------------------------------------------------------------- from outside
    def tick(
        self, served: Sequence[Deployment], busy: Collection[str], now: float, *, acting: bool
    ) -> list[Publication | Replan]:
        """Look at what is served, once a second.

        Args:
            served: the newest value of every deployment, tombstones too.
            busy: names of those that some command works on.
            now: monotonic seconds.
            acting: whether plans may be replaced; else their bundles are only collected, to be ready for it.
        """
        if now < self._look_at:
            return []
        self._look_at = now + LOOK_SECONDS
        alive = {value.name: value for value in served if not value.removed}
        for name in self._watched.keys() - alive.keys():
            del self._watched[name]
        self._note_absence(alive.values(), now)
        steps: list[Publication | Replan] = []
        for name, value in sorted(alive.items()):
            watched = self._of(value, now)
            try:
                steps += self._collect(watched, now)
                if acting and name not in busy and self._desk.since_hello(now) >= GRACE_SECONDS:
                    steps += self._look(watched, now)
            except ShardwireError as error:
                self._tell(watched, f"cannot be watched: {error}", level=logging.WARNING)
        return steps

    def receive(self, device: str, event: Failed | Ready, now: float) -> None:
        """Note that a device can, or cannot, run a stage."""
        watched = self._watched.get(event.deployment)
        if watched is None or not self._desk.roster.get(device).is_agent:
            return
        serves = event.epoch == watched.value.epoch
        if isinstance(event, Ready):
            watched.lost -= {device} if serves else set()
        elif serves:
            watched.lost.add(device)
        else:
            watched.unable[device] = now + UNABLE_SECONDS

    def ended(self, name: str, outcome: CommandOutcome, now: float) -> None:
        """Note what became of a change that this asked for."""
        watched = self._watched.get(name)
        if watched is None or outcome.ok:
            return
        watched.failures += 1
        wait = min(MOST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** (watched.failures - 1))
        watched.retry_at, watched.decided = now + wait, None
        self._tell(watched, f"the new plan failed: {outcome.reason}; next try in {wait:.0f} s", level=logging.WARNING)
        if watched.trouble is not None:
            self._trouble(watched, watched.trouble.stage, f"the new plan failed: {outcome.reason}")

    def troubles(self) -> list[Failed]:
        """Return why deployments cannot answer and are not mended."""
        return [found.trouble for _, found in sorted(self._watched.items()) if found.trouble is not None]

    # ------------------------------------------------------------------------------------------------- remembering
    def _of(self, value: Deployment, now: float) -> _Watched:
        before = self._watched.get(value.name)
        if before is not None and before.value.epoch == value.epoch:
            before.value = value
            return before
        made = _Watched(value=value, since=now)
        if before is not None and before.outlook is not None and before.outlook.serves(value):
            made.outlook, made.unable, made.seen = before.outlook, before.unable, before.seen
            if before.value.plan is not None:
                made.held = held_with(before.value.plan, before.outlook.workload)
        self._watched[value.name] = made
        return made

    def _note_absence(self, served: Collection[Deployment], now: float) -> None:
        roster = self._desk.roster
        planned = {name for value in served if value.plan is not None for s in value.plan.stages for name in s.devices}
        names = planned | {node.name for node in roster.agents()}
        self._away = {name: self._away.get(name, now) for name in names if not roster.online(name, now)}

    def _collect(self, watched: _Watched, now: float) -> list[Publication]:
        """Get the bundle as far as the fleet has it: who took over from another coordinator lacks it."""
        blobs, value = self._desk.blobs, watched.value
        if value.manifest is None:
            return []
        if watched.outlook is None and blobs.has(value.manifest.digest):
            where = f"bundle {value.manifest.digest[7:19]}"
            manifest = decode_manifest(blobs.read(value.manifest.digest), where=where)
            watched.outlook = Outlook(self._desk.roster, value, manifest)
        wanted: tuple[Blob, ...] = (value.manifest,)
        if watched.outlook is not None:
            manifest = watched.outlook.manifest
            wanted = (*probe_blobs(manifest), *manifest.blobs(0, len(manifest.shards)))
        lacking = [blob for blob in wanted if not blobs.has(blob.digest)]
        if self._desk.collector is None or not lacking or now < watched.fetch_at:
            return []
        failed = self._desk.collector.failure(lacking) is not None
        watched.fetch_at = now + (RECHECK_SECONDS if failed else LOOK_SECONDS)
        holders = tuple(holder for holder in value.holders if holder != self._desk.caller.node)
        return self._desk.collector.want(lacking, holders, now)

    # ---------------------------------------------------------------------------------------------- what is there now
    def _look(self, watched: _Watched, now: float) -> list[Publication | Replan]:
        plan, outlook = watched.value.plan, watched.outlook
        if plan is None:
            return []
        lacking = "the manifest" if outlook is None else "a golden input"
        if outlook is None or not all(self._desk.blobs.has(blob.digest) for blob in probe_blobs(outlook.manifest)):
            reason = f"{lacking} of its bundle is held by nobody who is here: deploy it again"
            return self._trouble(watched, broken_stage(plan, self._here(plan, now)), reason)
        view = outlook.view(
            watched.value,
            plan,
            here=self._here(plan, now) - watched.lost,
            barred=watched.lost | {name for name, until in watched.unable.items() if now < until},
            now=now,
        )
        key, broken = view.key(), view.broken is not None
        if watched.pending is None or watched.pending[0] != key:
            watched.pending = (key, now)
        if not broken:
            watched.trouble = None
            watched.seen = watched.seen or view
        is_due = key != watched.decided or now >= watched.recheck_at
        lasted = now - watched.pending[1] >= SETTLE_SECONDS and now - watched.since >= LEAST_SECONDS
        if not is_due or now < watched.retry_at or not (broken or lasted) or not self._desk.may_plan():
            return []
        watched.decided, watched.recheck_at = key, now + (BACKOFF_SECONDS if broken else RECHECK_SECONDS)
        return self._decide(watched, plan, outlook, view)

    def _here(self, plan: Plan, now: float) -> frozenset[str]:
        """The devices of a plan that are not away for long."""
        names = {name for stage in plan.stages for name in stage.devices}
        return frozenset(name for name in names if now - self._away.get(name, now) <= AWAY_SECONDS)

    # ------------------------------------------------------------------------------------------------------ deciding
    def _decide(self, watched: _Watched, plan: Plan, outlook: Outlook, view: View) -> list[Publication | Replan]:
        value = watched.value
        # Who may take part is settled: of devices that were named, those that are here.
        limits = msgspec.structs.replace(value.constraints, devices=(), without=())
        decision = decide(
            plan,
            outlook.workload,
            Situation(
                devices=outlook.costs(view, watched.held),
                slowness=view.slowness,
                barred=view.known.keys() - view.able,
            ),
            Aim(
                objective=plan.objective,
                window=value.window,
                constraints=shard_constraints(outlook.manifest, limits),
                horizon_seconds=self._horizon_seconds,
                seconds=PLAN_SECONDS,
            ),
        )
        changes = changes_between(watched.seen, view, plan)
        watched.seen = view
        if decision.plan is None and decision.broken:
            return self._trouble(watched, view.broken, decision.reason)
        if decision.plan is None:
            if changes != NO_CHANGE or decision.reason != watched.reason:
                self._tell(watched, f"{changes}: {decision.reason}")
            watched.reason = decision.reason
            return []
        watched.told = ""
        why = "found a better plan" if changes == NO_CHANGE else changes
        _log.info("%s: plans again, %s: %s", value.name, why, decision.reason)
        watched.attempts += 1
        return [Replan(request=_request(watched), plan=decision.plan)]

    def _trouble(self, watched: _Watched, stage: int | None, reason: str) -> list[Publication | Replan]:
        """Note why a deployment cannot answer, and say so when it is news."""
        if stage is None:
            watched.trouble = None
            self._tell(watched, reason)
            return []
        value = watched.value
        trouble = Failed(
            deployment=value.name, epoch=value.epoch, stage=stage, code=PlanError.__name__, reason=reason[:500]
        )
        if trouble == watched.trouble:
            return []
        watched.trouble = trouble
        self._tell(watched, f"degraded: {reason}", level=logging.WARNING)
        return [trouble_event(self._desk.caller, trouble)]

    def _tell(self, watched: _Watched, text: str, *, level: int = logging.INFO) -> None:
        if text != watched.told:
            watched.told = text
            _log.log(level, "%s: %s", watched.value.name, text)


def trouble_event(caller: Caller, trouble: Failed) -> Publication:
    """Return the event by which a coordinator says that a deployment cannot answer, and why it is not mended."""
    topic = caller.topics.event(caller.node)
    return Publication(channel=Channel.CONTROL, topic=topic, payload=encode_message(trouble), qos=1)


def _request(watched: _Watched) -> DeployRequest:
    value = watched.value
    if value.manifest is None or value.plan is None:
        raise PlanError(f"{value.name} is removed")
    return DeployRequest(
        request_id=f"replan-{value.name}-{value.epoch}-{watched.attempts}",
        name=value.name,
        manifest=value.manifest,
        holders=value.holders,
        constraints=value.constraints,
        objective=value.plan.objective,
        mode=value.mode,
        window=value.window,
        codec=value.codec,
        reply_to="",
    )
