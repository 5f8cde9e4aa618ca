"""What a coordinator does for one command, from its arrival to its outcome. No clock; IO only through blob sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from edge.errors import BundleError, ShardwireError
from edge.formats.bundle import Blob, Manifest, decode_manifest
from edge.formats.frame import decode_frame
from edge.formats.message import (
    CommandOutcome,
    DeployRequest,
    Dropped,
    Failed,
    Progress,
    Ready,
    UndeployRequest,
)
from edge.formats.plan import Codec, Deployment, Plan, encode_deployment
from edge.transport import Publication
from host.bundle import fleet_blobs
from host.errors import FleetError, PlanError
from host.fleet.blobs import BlobSource
from host.fleet.codec_choice import plan_any_codec
from host.fleet.collect import Collector
from host.fleet.effects import JobEffect, Keep
from host.fleet.identity import Caller, retained
from host.fleet.outcomes import outcome_of, unknown_deployment
from host.fleet.probe import GoldenCase
from host.fleet.rollout import Phase, Rollout
from host.fleet.roster import Roster
from host.fleet.survey import PlanOrder, choose_devices

GATHER_SECONDS = 3.0
"""How long named devices have to answer a hello before they count as away."""

KNOWN_SECONDS = 1.5
"""How long retained values and answers to a hello may take to arrive."""

DROP_SECONDS = 10.0
PLAN_SECONDS = 1.5
"""Processor time that a plan may take here: heartbeats wait for it, and who is silent for 3 s counts as gone."""

_REPEAT_SECONDS = 2.0

DeviceEvent = Progress | Ready | Failed | Dropped


class Desk(Protocol):
    """What jobs share: the coordinator's knowledge and its means."""

    roster: Roster
    caller: Caller
    blobs: BlobSource
    collector: Collector | None
    staying: bool

    def since_hello(self, now: float) -> float:
        """Seconds since nodes were first asked who they are."""

    def next_epoch(self, name: str, now: float) -> str | None:
        """Name a new epoch that is after every one known of a deployment; None while the lease is not held."""

    def serving(self, name: str) -> Deployment | None:
        """Return the newest serving value known, which may be a tombstone."""

    def names(self) -> Sequence[str]:
        """Return the names of all deployments that are served."""

    def may_plan(self) -> bool:
        """Whether a plan may be made now, and by nobody else before time has passed again."""


class Job(Protocol):
    """One command at work."""

    request_id: str
    name: str
    reply_to: str
    outcome: CommandOutcome | None

    @property
    def replans(self) -> bool:
        """Whether nobody but the coordinator itself asked for this."""

    def phase(self) -> str:
        """Say in a word what is going on."""

    def tick(self, now: float) -> list[JobEffect]:
        """Do what is due."""

    def receive(self, device: str, event: DeviceEvent, now: float) -> None:
        """Take an event of a device."""

    def result(self, payload: bytes, now: float) -> None:
        """Take a packet from the coordinator's result topic."""

    def saw_serving(self, deployment: Deployment) -> None:
        """Note a serving value of this deployment that the broker delivered."""

    def cancel(self, reason: str, now: float) -> None:
        """Stop, leaving things as they were."""


class DeployJob:
    """Collect the bundle, find the devices, plan, and roll out."""

    def __init__(self, request: DeployRequest, desk: Desk, *, now: float, plan: Plan | None = None) -> None:
        """Start with nothing done.

        Args:
            request: what is asked for.
            desk: what jobs share.
            now: monotonic seconds.
            plan: that was decided on already, when the coordinator asks itself to replace one.
        """
        self.request_id, self.name, self.reply_to = request.request_id, request.name, request.reply_to
        self.outcome: CommandOutcome | None = None
        self.rollout: Rollout | None = None
        self._decided = plan
        self._asked: set[str] = set()
        self._request = request
        self._desk = desk
        self._began = now
        self._manifest: Manifest | None = None
        self._doing = "fetching the bundle"

    @property
    def replans(self) -> bool:
        """See `Job.replans`."""
        return self._decided is not None

    def phase(self) -> str:
        """See `Job.phase`."""
        return self._doing if self.rollout is None else self.rollout.phase.value

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

    def result(self, payload: bytes, now: float) -> None:
        """See `Job.result`."""
        if self.rollout is not None:
            self.rollout.result(payload, now)

    def saw_serving(self, deployment: Deployment) -> None:
        """See `Job.saw_serving`."""
        if self.rollout is not None:
            self.rollout.saw_serving(deployment.epoch)

    def cancel(self, reason: str, now: float) -> None:
        """See `Job.cancel`."""
        if self.rollout is None:
            self._end(reason)
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
        """What must be here before it begins: to replace a plan, not the shards, which devices have."""
        return tuple(probe_blobs(manifest) if self.replans else fleet_blobs(manifest))

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
        return collector.want(wanted, self._request.holders, now)

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
        if not self._has_plan and not desk.may_plan():
            return
        epoch = desk.next_epoch(request.name, now)
        if epoch is None:
            self._doing = "waiting for the lease"
            return
        self._prepare(manifest, epoch, now)

    @property
    def _has_plan(self) -> bool:
        return self._decided is not None and self._request.codec != "auto"

    def _plan(self, manifest: Manifest, current: Plan | None, now: float) -> tuple[Plan, Codec]:
        request, desk = self._request, self._desk
        if self._decided is not None and request.codec != "auto":
            return self._decided, request.codec  # see `_has_plan`
        wanted, fleet = request.constraints.devices, desk.caller.topics.fleet
        chosen = choose_devices(desk.roster, wanted, manifest, now=now, fleet=fleet)
        order = PlanOrder(
            digest=request.manifest.digest,
            objective=request.objective,
            window=request.window,
            constraints=request.constraints,
            mode=request.mode,
            current=current,
            seconds=PLAN_SECONDS,
        )
        return plan_any_codec(manifest, chosen, order, codec=request.codec, speeds=desk.roster.speeds())

    def _prepare(self, manifest: Manifest, epoch: str, now: float) -> None:
        request, desk = self._request, self._desk
        cases = self._cases(manifest)
        if not cases:
            raise PlanError(f"bundle {manifest.name!r} has no golden input to probe a new epoch with")
        serving = desk.serving(request.name)
        current = serving.plan if serving is not None and serving.manifest == request.manifest else None
        plan, codec = self._plan(manifest, current, now)
        # Who held it before may be the only one: it keeps the blobs of the epoch before the one that serves.
        before = [name for name in _holders(current) if desk.roster.online(name, now)]
        desired = Deployment(
            name=request.name,
            epoch=epoch,
            manifest=request.manifest,
            plan=plan,
            holders=tuple(dict.fromkeys((desk.caller.node, *before, *_holders(plan)))),
            mode=request.mode,
            window=request.window,
            codec=codec,
            constraints=request.constraints,
        )
        self.rollout = Rollout(desired, manifest, cases, desk.caller, staying=desk.staying, now=now)

    def _gathered(self, now: float) -> bool:
        waited = self._desk.since_hello(now)
        if waited < 0 or self.replans:
            return waited >= 0
        if not self._request.constraints.devices:
            return waited >= KNOWN_SECONDS
        here = {node.name for node in self._desk.roster.agents_online(now)}
        return here.issuperset(self._request.constraints.devices) or min(waited, now - self._began) >= GATHER_SECONDS

    def _drive(self, rollout: Rollout, now: float) -> list[JobEffect]:
        effects: list[JobEffect] = list(rollout.tick(now, lambda name: self._desk.roster.online(name, now)))
        if rollout.phase is Phase.SERVING:
            effects.append(Keep(deployment=rollout.serving))
            self._end("", epoch=rollout.serving.epoch)
        elif rollout.phase is Phase.ABANDONED:
            self._end(rollout.reason, epoch=rollout.deployment.epoch)
        return effects

    def _end(self, reason: str, *, epoch: str = "") -> None:
        self.outcome = outcome_of(self.request_id, reason=reason, epoch=epoch)


class UndeployJob:
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

    @property
    def replans(self) -> bool:
        """See `Job.replans`."""
        return False

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

    def result(self, payload: bytes, now: float) -> None:
        """See `Job.result`."""

    def saw_serving(self, deployment: Deployment) -> None:
        """See `Job.saw_serving`."""
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
        self._tombstone = Deployment(name=self.name, epoch=epoch, manifest=None, plan=None)
        self._waiting = set(_holders(serving.plan))
        return [Keep(deployment=self._tombstone)]

    def _publications(self, tombstone: Deployment) -> list[Publication]:
        topics, payload = self._desk.caller.topics, encode_deployment(tombstone)
        return [retained(topic, payload) for topic in (topics.desired(self.name), topics.serving(self.name))]


def probe_blobs(manifest: Manifest) -> Iterator[Blob]:
    """Yield what a coordinator needs of a bundle to probe an epoch of it."""
    for pair in manifest.golden:
        yield from (pair.inputs, pair.whole)


def _holders(plan: Plan | None) -> tuple[str, ...]:
    """The devices of a plan, which hold what their stages need."""
    return tuple(dict.fromkeys(name for stage in (plan.stages if plan is not None else ()) for name in stage.devices))
