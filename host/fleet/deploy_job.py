"""Putting a bundle to work: collect it, find the devices, plan, roll out. No clock; IO only through blob sources."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edge.errors import BundleError, ShardwireError
from edge.formats.bundle import Blob, Manifest, decode_manifest
from edge.formats.frame import decode_frame
from edge.formats.message import About, CommandOutcome, DeployRequest, Heartbeat
from edge.formats.plan import Codec, Deployment, Plan
from edge.transport import Publication
from host.bundle import fleet_blobs
from host.errors import FleetError, PlanError
from host.fleet.admission import check_expiry, check_version_order
from host.fleet.desired import Cause, request_of, served_value, what_served_before
from host.fleet.effects import Happened, JobEffect, Keep
from host.fleet.holdings import known_holdings, merged, own_holdings
from host.fleet.jobs import (
    GATHER_SECONDS,
    KNOWN_SECONDS,
    PLAN_SECONDS,
    Desk,
    DeviceEvent,
    named_devices,
    plan_holders,
    probe_blobs,
)
from host.fleet.outcomes import outcome_of
from host.fleet.plans import Ground, new_plan
from host.fleet.probe import GoldenCase
from host.fleet.rollout import Phase, Rollout
from host.fleet.survey import PlanOrder, choose_devices

COPY_SECONDS = 30.0
"""How long a coordinator that leaves waits at most for devices to fetch what only it has."""


class DeployJob:
    """Collect the bundle, find the devices, plan, and roll out."""

    def __init__(self, request: DeployRequest, desk: Desk, *, now: float, cause: Cause | None = None) -> None:
        """Start with nothing done.

        Args:
            request: what is asked for.
            desk: what jobs share.
            now: monotonic seconds.
            cause: of a change that is no person's `deploy`: devices have what they need of the bundle, or fetch it from
                each other, and are known.
        """
        self.request_id, self.name, self.reply_to = request.request_id, request.name, request.reply_to
        self.outcome: CommandOutcome | None = None
        self.rollout: Rollout | None = None
        self._cause = cause
        self._asked: set[str] = set()
        self._request = request
        self._desk = desk
        self._began = now
        self._manifest: Manifest | None = None
        self._doing = "fetching the bundle"
        self._told: Phase | None = None
        self._served_at: float | None = None

    @property
    def replans(self) -> bool:
        """See `Job.replans`."""
        return self._cause is not None and self._cause.replans

    @property
    def tries(self) -> str:
        """See `Job.tries`."""
        trying = self.rollout is not None and self.rollout.phase is Phase.TRYING
        return self.rollout.deployment.epoch if trying and self.rollout is not None else ""

    @property
    def epoch(self) -> str:
        """See `Job.epoch`."""
        return self.rollout.deployment.epoch if self.rollout is not None else ""

    @property
    def devices(self) -> frozenset[str]:
        """See `Job.devices`."""
        return named_devices(self.rollout.deployment.plan) if self.rollout is not None else frozenset()

    def phase(self) -> str:
        """See `Job.phase`."""
        if self.rollout is None:
            return self._doing
        if self._served_at is not None:
            return "leaving copies with the devices"
        trying = self.rollout.phase is Phase.TRYING and self.rollout.reason
        return f"trying: {self.rollout.reason}" if trying else self.rollout.phase.value

    def tick(self, now: float) -> list[JobEffect]:
        """See `Job.tick`."""
        if self.outcome is not None:
            return []
        try:
            if self.rollout is None and not self._collected():
                return list(self._collect(now))
            if self.rollout is None:
                self._begin(now)
        except ShardwireError as error:
            self._end(str(error))
        return [] if self.rollout is None else self._drive(self.rollout, now)

    def receive(self, device: str, event: DeviceEvent, now: float) -> None:
        """See `Job.receive`."""
        if self.rollout is not None:
            self.rollout.receive(device, event, now)

    def beat(self, device: str, heartbeat: Heartbeat, now: float) -> None:
        """See `Job.beat`."""
        del now
        if self.rollout is not None:
            self.rollout.beat(device, heartbeat)

    def result(self, payload: bytes, now: float) -> None:
        """See `Job.result`."""
        if self.rollout is not None:
            self.rollout.result(payload, now)

    def saw_serving(self, deployment: Deployment, now: float) -> None:
        """See `Job.saw_serving`."""
        if self.rollout is not None:
            self.rollout.saw_serving(deployment.epoch, now)

    def cancel(self, reason: str, now: float) -> None:
        """See `Job.cancel`."""
        if self.rollout is None:
            self._end(reason)
        elif self._served_at is not None:
            self._end("", epoch=self.epoch)  # it serves, with fewer copies
        else:
            self.rollout.abandon(reason, now)

    # ------------------------------------------------------------------------------------------------- the bundle
    def _collected(self) -> bool:
        blobs = self._desk.blobs
        if self._manifest is None and blobs.has(self._request.manifest.digest):
            where = f"bundle {self._request.manifest.digest[7:19]}"
            self._manifest = decode_manifest(blobs.read(self._request.manifest.digest), where=where)
        return self._manifest is not None and all(blobs.has(blob.digest) for blob in self._needed(self._manifest))

    def _needed(self, manifest: Manifest) -> Sequence[Blob]:
        """What must be here before it begins: when it is no person's, not the shards, which devices have."""
        return tuple(fleet_blobs(manifest) if self._cause is None else probe_blobs(manifest))

    def _collect(self, now: float) -> Sequence[Publication]:
        collector = self._desk.collector
        wanted = [self._request.manifest] if self._manifest is None else self._needed(self._manifest)
        if collector is None:
            missing = next(blob.digest for blob in wanted if not self._desk.blobs.has(blob.digest))
            raise BundleError(f"blob {missing} is not in the bundle; package or copy it again")
        if fresh := [blob.digest for blob in wanted if blob.digest not in self._asked]:
            # Others may have asked in vain, and elsewhere.
            collector.drop(fresh)
            self._asked.update(fresh)
        if (failure := collector.failure(wanted)) is not None:
            raise FleetError(failure)
        return collector.want(wanted, self._desk.roster.likely(self._request.holders, now), now)

    def _cases(self, manifest: Manifest) -> list[GoldenCase]:
        read = self._desk.blobs.read
        return [
            GoldenCase(
                inputs=decode_frame(read(pair.inputs.digest)).tensors,
                whole=decode_frame(read(pair.whole.digest)).tensors,
            )
            for pair in manifest.golden
        ]

    # ------------------------------------------------------------------------------------------------- the devices
    def _begin(self, now: float) -> None:
        """Plan and start the rollout once the devices are known."""
        manifest, request, desk = self._manifest, self._request, self._desk
        if manifest is None or not self._gathered(now):
            self._doing = "gathering devices"
            return
        self._check(manifest)
        if not self._has_plan and not desk.may_plan(now):
            return
        epoch = desk.next_epoch(request.name, now)
        if epoch is None:
            self._doing = "waiting for the lease"
            return
        self._prepare(manifest, epoch, now)

    def _check(self, manifest: Manifest) -> None:
        """Refuse what no device should be asked to take."""
        serving, read = self._desk.serving(self.name), self._desk.blobs
        if self._request.canary is not None and (serving is None or serving.removed):
            raise PlanError(f"{self.name} serves nothing that a canary could be compared with: deploy without --canary")
        if self.replans or serving is None or serving.manifest is None or serving.manifest == self._request.manifest:
            served = None
        else:
            known = read.has(serving.manifest.digest)
            served = decode_manifest(read.read(serving.manifest.digest)) if known else None
        check_version_order(manifest, served, allow_older=self._rolls_back)
        if serving is None or serving.manifest != self._request.manifest:
            # What serves goes on, on other devices too.
            check_expiry(manifest, self._desk.utc())

    @property
    def _rolls_back(self) -> bool:
        return self._request.allow_older or (self._cause is not None and self._cause.rolls_back)

    @property
    def _has_plan(self) -> bool:
        return self._cause is not None and self._cause.plan is not None and self._request.codec != "auto"

    def _plan(self, manifest: Manifest, serving: Deployment | None, now: float) -> tuple[Plan, Codec]:
        request, desk = self._request, self._desk
        decided = self._cause.plan if self._cause is not None else None
        if decided is not None and request.codec != "auto":
            return decided, request.codec  # see `_has_plan`
        serves = serving is not None and not serving.removed
        same = serving is not None and serving.manifest == request.manifest
        ground = Ground(
            manifest=manifest,
            devices=self._devices(manifest, now),
            speeds=desk.roster.speeds(),
            serving=serving if serves else None,
            staying=desk.staying,
        )
        order = PlanOrder(
            digest=request.manifest.digest,
            objective=request.objective,
            window=request.window,
            constraints=request.constraints,
            mode=request.mode,
            current=serving.plan if same and serving is not None else None,
            seconds=PLAN_SECONDS,
        )
        return new_plan(ground, order, codec=request.codec)

    def _devices(self, manifest: Manifest, now: float) -> tuple[About, ...]:
        """Who may take part; the devices that were named long ago are those of them that may be used now."""
        roster, without = self._desk.roster, self._cause.without if self._cause is not None else ""
        wanted = self._request.constraints.devices
        if self._cause is not None and wanted:
            usable = [node.name for node in roster.agents_online(now) if node.about and not node.about.cordoned]
            wanted = tuple(name for name in wanted if name in usable and name != without)
            if not wanted:
                raise PlanError(f"of the devices that {self.name} may use, none is left")
        chosen = choose_devices(roster, wanted, manifest, now=now, fleet=self._desk.caller.topics.fleet)
        barred = {without, *self._request.constraints.without}
        if not any(about.node not in barred for about in chosen):
            raise PlanError(f"no device is here but {', '.join(sorted(about.node for about in chosen))}")
        return tuple(about for about in chosen if about.node != without)

    def _prepare(self, manifest: Manifest, epoch: str, now: float) -> None:
        request, desk = self._request, self._desk
        cases = self._cases(manifest)
        if not cases:
            raise PlanError(f"bundle {manifest.name!r} has no golden input to probe a new epoch with")
        serving = desk.serving(request.name)
        same = serving if serving is not None and serving.manifest == request.manifest else None
        plan, codec = self._plan(manifest, serving, now)

        def online(name: str) -> bool:
            return desk.roster.online(name, now)

        own = own_holdings(desk.caller.node, manifest, desk.blobs.has)
        known = known_holdings(same, manifest, desk.holders, online)
        # Who held it before may be the only one: it keeps the blobs of the epoch before the one that serves. Devices of
        # another bundle come last: what both share they have under the same digest.
        others = [name for name in plan_holders(serving.plan if serving is not None else None) if online(name)]
        before = others if same is not None else []
        desired = Deployment(
            name=request.name,
            epoch=epoch,
            manifest=request.manifest,
            plan=plan,
            holders=tuple(dict.fromkeys((desk.caller.node, *before, *plan_holders(plan), *others))),
            mode=request.mode,
            window=request.window,
            codec=codec,
            constraints=request.constraints,
            holdings=tuple(merged([*own, *known])),
            before=what_served_before(serving, request.manifest),
            rolls_back=self._rolls_back,
            issued=desk.utc(),
        )
        self.rollout = Rollout(
            desired,
            manifest,
            cases,
            desk.caller,
            serving=served_value(
                desired, own if desk.staying else (), known, staying=desk.staying, node=desk.caller.node
            ),
            canary=request.canary,
            mends=self.replans,
            now=now,
        )

    def _gathered(self, now: float) -> bool:
        waited = self._desk.since_hello(now)
        if waited < 0 or self.replans:
            return waited >= 0
        if not self._request.constraints.devices or self._cause is not None:
            return waited >= KNOWN_SECONDS
        here = {node.name for node in self._desk.roster.agents_online(now)}
        return here.issuperset(self._request.constraints.devices) or min(waited, now - self._began) >= GATHER_SECONDS

    # -------------------------------------------------------------------------------------------------- the rollout
    def _drive(self, rollout: Rollout, now: float) -> list[JobEffect]:
        desk = self._desk
        hears = desk.hears(now)
        effects: list[JobEffect] = list(rollout.tick(now, lambda name: not hears or desk.roster.online(name, now)))
        effects += self._news(rollout)
        if rollout.phase is Phase.SERVING:
            if self._served_at is None:
                self._served_at = now
                effects.append(Keep(deployment=rollout.serving))
            if not self._copied(rollout.serving, now):
                return effects
            told = [rollout.reason] if self._request.canary is not None else []
            if rollout.pause_seconds is not None:
                told.append(f"nothing answered for {rollout.pause_seconds:.1f} s while devices swapped")
            self._end("", epoch=rollout.serving.epoch, told="; ".join(told))
        elif rollout.phase is Phase.ABANDONED:
            self._end(rollout.reason, epoch=rollout.deployment.epoch)
        return effects

    def _copied(self, value: Deployment, now: float) -> bool:
        """Whether the fleet needs this coordinator no more: one that leaves takes the golden inputs with it."""
        desk = self._desk
        if desk.staying or value.plan is None or now - (self._served_at or now) >= COPY_SECONDS:
            return True
        golden, held = desk.holders.golden(self.name, value.epoch), desk.holders.stages(self.name, value.epoch)
        waiting = [name for name in value.plan.stages[0].devices if name not in golden]
        waiting += [
            name for stage in value.plan.stages for name in stage.keepers if stage.index not in held.get(name, ())
        ]
        return not any(desk.roster.online(name, now) for name in waiting)

    def _news(self, rollout: Rollout) -> list[JobEffect]:
        """What the history of the fleet tells of this."""
        phase = rollout.phase
        if phase is self._told:
            return []
        self._told = phase
        cause = self._cause or Cause(why="a person deployed it")
        rolled = self._cause is not None and self._cause.rolls_back
        what, why = {
            Phase.PREPARING: ("preparing", cause.why),
            Phase.TRYING: ("canary", f"gets {100 * self._share():g} % of the requests"),
            Phase.SERVING: ("rolled-back" if rolled else "serving", rollout.reason or cause.why),
            Phase.ABANDONED: ("abandoned", rollout.reason),
        }.get(phase, ("", ""))
        if not what:
            return []
        return [Happened(what=what, why=why, deployment=self.name, epoch=rollout.deployment.epoch)]

    def _share(self) -> float:
        return self._request.canary.share if self._request.canary is not None else 1.0

    def _end(self, reason: str, *, epoch: str = "", told: str = "") -> None:
        self.outcome = outcome_of(self.request_id, reason=reason, epoch=epoch, told=told)

    @classmethod
    def of_found(cls, value: Deployment, desk: Desk, *, now: float) -> DeployJob:
        """Return the job that goes on with an epoch which another coordinator prepared, as a canary; or ends it.

        Args:
            value: of the topic `canary`, or of `desired` to abandon it; it has a plan.
            desk: what jobs share.
            now: monotonic seconds.
        """
        request = msgspec.structs.replace(request_of(value, f"found-{value.name}-{value.epoch}"), canary=value.canary)
        job = cls(request, desk, now=now, cause=Cause(why="another coordinator began it", replans=False))
        whole = msgspec.structs.replace(value, canary=None)
        job.rollout = Rollout(whole, None, (), desk.caller, canary=value.canary, now=now)
        job.rollout.adopt_canary(now)
        return job

    def hand_over(self, reason: str, now: float) -> None:
        """Stop as another coordinator took over: it goes on with a canary, or finds what was committed."""
        if self.rollout is not None and self.rollout.phase is Phase.TRYING:
            self._end(reason, epoch=self.epoch)
        elif self.rollout is not None and self.rollout.phase is Phase.COMMITTING:
            self.rollout.let_go(reason, now)
        else:
            self.cancel(reason, now)
