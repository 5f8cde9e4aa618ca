"""Watching what is served: when devices come, go or slow down, plan again. No clock; IO only through blob sources.

What is decided, and by which figures, is in `host.planning.replan`; who is away, in `host.fleet.absence`. Here is when:
what cannot answer is mended at once; where only a replica or a standby is away, the change must last; a plan that is
merely not the best any more has to have served for a while. What failed is not tried again at once.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from edge.errors import ShardwireError
from edge.formats.bundle import Blob, decode_manifest
from edge.formats.message import CommandOutcome, DeployRequest, Failed, Ready, encode_message
from edge.formats.plan import Deployment, Plan
from edge.protocol.builds import blobs_in
from edge.transport import Channel, Publication
from host.errors import PlanError
from host.fleet.absence import Absence, patience_with
from host.fleet.desired import request_of
from host.fleet.effects import Happened
from host.fleet.identity import Caller
from host.fleet.jobs import GRACE_SECONDS, PLAN_SECONDS, Desk, probe_blobs
from host.fleet.outlook import NO_CHANGE, Outlook, View, broken_stage, changes_between
from host.fleet.risks import Risks
from host.fleet.watched import Watched, holders_of
from host.planning.replan import HORIZON_SECONDS, Aim, Situation, decide
from host.planning.settle import held_with
from host.planning.workload import shard_constraints

_log = logging.getLogger(__name__)

GLANCE_SECONDS = 0.05
"""How often it is looked whether the devices of the plans that serve are there."""

LOOK_SECONDS = 1.0
"""How often everything is looked at: who else is there, and how fast they all are."""

SETTLE_SECONDS = 3.0
"""A change must last this long before a plan that answers is replaced."""

LEAST_SECONDS = 30.0
"""Least time that a plan serves before a better one may replace it; one that cannot answer is replaced at once."""

RECHECK_SECONDS = 60.0
"""When nothing changed, it is decided again this late: memory may have become free."""

BROKEN_RECHECK_SECONDS = 5.0
"""The same for what cannot answer."""

REPAIR_PLAN_SECONDS = 0.5
"""Processor time for a plan that is needed at once: any is better than none, and a better one can follow."""

BACKOFF_SECONDS = 15.0
"""After a change that failed; twice as long after each further one, up to `MOST_BACKOFF_SECONDS`."""

HASTY_TRIES = 3
"""So many times, what cannot answer is tried again at once where the failure taught us who cannot take part."""

MOST_BACKOFF_SECONDS = 600.0

UNABLE_SECONDS = 300.0
"""A device that could not take its stage is left out for this long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replan:
    """Replace the plan of a deployment.

    Attributes:
        request: what a person would have asked for.
        plan: to roll out.
        why: one line for the history.
    """

    request: DeployRequest
    plan: Plan
    why: str = ""


WatchEffect = Publication | Happened | Replan


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
        self._watched: dict[str, Watched] = {}
        self._absence = Absence(desk.roster)
        self._risks = Risks(desk, self._absence.away_since)
        self._glance_at = float("-inf")
        self._look_at = float("-inf")
        self._acted = False

    # ------------------------------------------------------------------------------------------------- from outside
    def tick(
        self,
        served: Sequence[Deployment],
        busy: Collection[str],
        now: float,
        *,
        acting: bool,
        tried: Collection[str] = (),
    ) -> list[WatchEffect]:
        """Look at what is served; call it as often as there is anything new.

        Args:
            served: the newest value of every deployment, tombstones too.
            busy: names of those that some command works on.
            now: monotonic seconds.
            acting: whether plans may be replaced; else their bundles are only collected, to be ready for it.
            tried: names of those beside which a canary is tried: only what cannot answer is mended then.
        """
        if now < self._glance_at:
            return []
        self._glance_at = now + GLANCE_SECONDS
        settled = self._desk.since_hello(now) >= GRACE_SECONDS
        acting = acting and settled
        full = now >= self._look_at or acting > self._acted
        self._acted = acting
        alive = {value.name: value for value in served if not value.removed}
        for name in self._watched.keys() - alive.keys():
            del self._watched[name]
            self._risks.forget(name)
        came_and_left = self._note_absence(alive.values(), now, settled=settled, full=full)
        steps: list[WatchEffect] = [*came_and_left] if acting else []
        if full:
            self._look_at = now + LOOK_SECONDS
        for name, value in sorted(alive.items()):
            watched = self._of(value, now)
            try:
                if full or watched.due:
                    steps += self._collect(watched, now)
                if acting and (full or watched.due or self._changed(watched)):
                    steps += self._look(watched, now, idle=name not in busy, tried=name in tried)
            except ShardwireError as error:
                self._tell(watched, f"cannot be watched: {error}", level=logging.WARNING)
        return steps

    def receive(self, device: str, event: Failed | Ready, now: float) -> None:
        """Note that a device can, or cannot, run a stage."""
        watched = self._watched.get(event.deployment)
        if watched is None or not self._desk.roster.get(device).is_agent:
            return
        serves = event.epoch == watched.value.epoch
        watched.due = True
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
        watched.due = True
        watched.failures += 1
        wait = min(MOST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** (watched.failures - 1))
        watched.retry_at, watched.decided = now + wait, None
        self._tell(watched, f"the new plan failed: {outcome.reason}; next try in {wait:.0f} s", level=logging.WARNING)
        if watched.trouble is not None:
            self._trouble(watched, watched.trouble.stage, f"the new plan failed: {outcome.reason}")

    def at_risk(self, name: str) -> tuple[str, ...]:
        """Return the nodes that alone hold some blob of a deployment; none when every blob has two holders."""
        return self._risks.nodes(name)

    def troubles(self) -> list[Failed]:
        """Return why deployments cannot answer and are not mended."""
        return [found.trouble for _, found in sorted(self._watched.items()) if found.trouble is not None]

    # ------------------------------------------------------------------------------------------------- remembering
    def _of(self, value: Deployment, now: float) -> Watched:
        before = self._watched.get(value.name)
        if before is not None and before.value.epoch == value.epoch:
            before.value = value
            return before
        made = Watched(value, since=now, ails=before is not None and before.ails)
        if before is not None and before.outlook is not None and before.outlook.serves(value):
            made.outlook, made.unable, made.seen = before.outlook, before.unable, before.seen
            if before.value.plan is not None:
                made.held = held_with(before.value.plan, before.outlook.workload)
        self._watched[value.name] = made
        return made

    def _note_absence(self, served: Collection[Deployment], now: float, *, settled: bool, full: bool) -> list[Happened]:
        patience = patience_with(served)
        names = set(patience)
        if full:
            names |= {node.name for node in self._desk.roster.agents()}
        return self._absence.look(sorted(names), now, patience=patience, settled=settled)

    def _changed(self, watched: Watched) -> bool:
        return watched.value.plan is not None and self._here(watched.value.plan) != watched.here

    def _collect(self, watched: Watched, now: float) -> list[Publication]:
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
            wanted = (*probe_blobs(manifest), *blobs_in(manifest, manifest.formats, 0, len(manifest.shards)))
        lacking = [blob for blob in wanted if not blobs.has(blob.digest)]
        if self._desk.collector is None or not lacking or now < watched.fetch_at:
            return []
        failed = self._desk.collector.failure(lacking) is not None
        watched.fetch_at = now + (RECHECK_SECONDS if failed else LOOK_SECONDS)
        holders = holders_of(value, but=self._desk.caller.node)
        return self._desk.collector.want(lacking, self._desk.roster.likely(holders, now), now)

    # ---------------------------------------------------------------------------------------------- what is there now
    def _look(self, watched: Watched, now: float, *, idle: bool, tried: bool) -> list[WatchEffect]:
        plan, outlook = watched.value.plan, watched.outlook
        if plan is None:
            return []
        watched.due, watched.here = False, self._here(plan)
        runs = watched.here - watched.lost
        news = self._note_state(watched, plan, runs)
        if outlook is not None:
            news += self._risks.look(watched.value, outlook.manifest, now)
        if not idle:
            return news
        if (lacking := self._lacking(watched)) is None:
            return news
        if lacking or outlook is None:
            reason = f"{lacking} of its bundle is held by nobody who is here: deploy it again"
            return [*news, *self._trouble(watched, broken_stage(plan, runs), reason)]
        unsteady = {node.name for node in self._desk.roster.agents() if not self._absence.steady(node.name, now)}
        view = outlook.view(
            watched.value,
            plan,
            here=runs,
            barred=watched.lost | unsteady | {name for name, until in watched.unable.items() if now < until},
            now=now,
        )
        broken = view.broken is not None
        if not self._is_due(watched, plan, view, now) or (tried and not broken):
            return news
        if not self._desk.may_plan(now, quick=broken):
            watched.due = True
            return news
        watched.decided = view.key()
        watched.recheck_at = now + (BROKEN_RECHECK_SECONDS if broken else RECHECK_SECONDS)
        steps = self._decide(watched, plan, outlook, view)
        if broken and watched.unable and not any(isinstance(step, Replan) for step in steps):
            # Nobody is left who did not fail: the next time, what failed is tried again.
            watched.unable.clear()
            watched.retry_at = max(watched.retry_at, now + BACKOFF_SECONDS)
        return [*news, *steps]

    def _lacking(self, watched: Watched) -> str | None:
        """Say what of its bundle cannot be had, empty when all is here; None while it is on its way."""
        outlook, manifest = watched.outlook, watched.value.manifest
        wanted = probe_blobs(outlook.manifest) if outlook is not None else () if manifest is None else (manifest,)
        missing = [blob for blob in wanted if not self._desk.blobs.has(blob.digest)]
        if not missing and outlook is not None:
            return ""
        collector = self._desk.collector
        if collector is not None and missing and collector.failure(missing) is None:
            return None
        return "the manifest" if outlook is None else "a golden input"

    def _is_due(self, watched: Watched, plan: Plan, view: View, now: float) -> bool:
        """Whether it is decided now: at once for what cannot answer, else when a change has lasted."""
        key, broken = view.key(), view.broken is not None
        if watched.pending is None or watched.pending[0] != key:
            watched.pending = (key, now)
        if not broken:
            watched.trouble = None
            watched.seen = watched.seen or view
        if key == watched.decided and now < watched.recheck_at:
            return False
        if now < watched.retry_at and not (broken and key != watched.tried and watched.failures <= HASTY_TRIES):
            return False
        lame = any(name not in view.known for stage in plan.stages for name in stage.devices)
        served = now - watched.since >= (SETTLE_SECONDS if lame else LEAST_SECONDS)
        return broken or (served and now - watched.pending[1] >= SETTLE_SECONDS)

    def _here(self, plan: Plan) -> frozenset[str]:
        """The devices of a plan that are not away."""
        names = {name for stage in plan.stages for name in stage.devices}
        return frozenset(name for name in names if self._absence.why(name) is None)

    def _note_state(self, watched: Watched, plan: Plan, runs: Collection[str]) -> list[WatchEffect]:
        """Say when a deployment cannot answer any more, and when it can again."""
        value, stage = watched.value, broken_stage(plan, runs)
        if (stage is not None) == watched.ails:
            return []
        watched.ails = stage is not None
        if stage is None:
            return [Happened(what="recovered", deployment=value.name, epoch=value.epoch, why=f"{value.epoch} answers")]
        gone = [f"{name}: {self._absence.why(name) or 'cannot run it'}" for name in plan.stages[stage].devices]
        why = f"stage {stage} has no device: {'; '.join(gone)}"
        return [Happened(what="degraded", deployment=value.name, epoch=value.epoch, why=why)]

    # ------------------------------------------------------------------------------------------------------ deciding
    def _decide(self, watched: Watched, plan: Plan, outlook: Outlook, view: View) -> list[WatchEffect]:
        value, broken = watched.value, view.broken is not None
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
                seconds=REPAIR_PLAN_SECONDS if broken else PLAN_SECONDS,
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
        watched.told, watched.tried = "", view.key()
        why = "found a better plan" if changes == NO_CHANGE else changes
        _log.info("%s: plans again, %s: %s", value.name, why, decision.reason)
        watched.attempts += 1
        return [
            Replan(
                request=request_of(value, f"replan-{value.name}-{value.epoch}-{watched.attempts}"),
                plan=decision.plan,
                why=f"{why}: {decision.reason}",
            )
        ]

    def _trouble(self, watched: Watched, stage: int | None, reason: str) -> list[WatchEffect]:
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

    def _tell(self, watched: Watched, text: str, *, level: int = logging.INFO) -> None:
        if text != watched.told:
            watched.told = text
            _log.log(level, "%s: %s", watched.value.name, text)


def trouble_event(caller: Caller, trouble: Failed) -> Publication:
    """Return the event by which a coordinator says that a deployment cannot answer, and why it is not mended."""
    topic = caller.topics.event(caller.node)
    return Publication(channel=Channel.CONTROL, topic=topic, payload=encode_message(trouble), qos=1)
