"""What a coordinator's commands have in common: what a job is, and what jobs may ask of the one who runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from edge.formats.bundle import Blob, Manifest
from edge.formats.message import CommandOutcome, Dropped, Failed, Fetched, Heartbeat, Kept, Progress, Ready
from edge.formats.plan import Deployment, Plan
from host.fleet.blobs import BlobSource
from host.fleet.collect import Collector
from host.fleet.effects import JobEffect
from host.fleet.holdings import KnownHolders
from host.fleet.identity import Caller
from host.fleet.roster import Roster

GATHER_SECONDS = 3.0
"""How long named devices have to answer a hello before they count as away."""

KNOWN_SECONDS = 1.5
"""How long retained values and answers to a hello may take to arrive."""

DROP_SECONDS = 10.0
PLAN_SECONDS = 1.5
"""Processor time that a plan may take here: heartbeats wait for it, and who is silent for 2.5 s counts as gone."""

GRACE_SECONDS = 5.0
"""After a connection to the broker, everybody has this long to come back."""

DeviceEvent = Progress | Fetched | Ready | Kept | Failed | Dropped


class Desk(Protocol):
    """What jobs share: the coordinator's knowledge and its means."""

    roster: Roster
    caller: Caller
    blobs: BlobSource
    collector: Collector | None
    staying: bool
    holders: KnownHolders

    def utc(self) -> str:
        """Return the UTC time, `YYYY-MM-DDTHH:MM:SSZ`; empty when there is no clock."""

    def since_hello(self, now: float) -> float:
        """Seconds since nodes were first asked who they are."""

    def next_epoch(self, name: str, now: float) -> str | None:
        """Name a new epoch that is after every one known of a deployment; None while the lease is not held."""

    def serving(self, name: str) -> Deployment | None:
        """Return the newest serving value known, which may be a tombstone."""

    def canary(self, name: str) -> Deployment | None:
        """Return what is tried on a part of the requests, None when nothing is."""

    def names(self) -> Sequence[str]:
        """Return the names of all deployments that are served."""

    def hears(self, now: float) -> bool:
        """Whether who is not heard of is away: not while the broker is gone, nor shortly after it came back."""

    def may_plan(self, now: float, *, quick: bool = False) -> bool:
        """Whether a plan may be made now, and by nobody else before time has passed again.

        Unless it is quick, a heartbeat goes out before, as the next one waits for the plan.
        """

    def start(self, job: Job, now: float) -> None:
        """Let a job begin that another needs done; its outcome is found under its request id."""

    def running(self, name: str) -> Sequence[Job]:
        """Return the jobs of a deployment, the one that is at work first."""

    def worked_on(self) -> Sequence[str]:
        """Return what jobs are about."""

    def outcome(self, request_id: str) -> CommandOutcome | None:
        """Return what became of a job, None while it goes on."""

    def forget(self, device: str) -> None:
        """Drop what is known of a device."""


class Job(Protocol):
    """One command at work.

    Attributes:
        name: of the deployment, or `device <name>`; jobs of one name follow each other.
    """

    request_id: str
    name: str
    reply_to: str
    outcome: CommandOutcome | None

    @property
    def replans(self) -> bool:
        """Whether nobody but the coordinator itself asked for this."""

    @property
    def tries(self) -> str:
        """Epoch that is tried on a part of the requests, empty when none is."""

    @property
    def epoch(self) -> str:
        """Epoch that this prepares, empty when there is none yet."""

    @property
    def devices(self) -> frozenset[str]:
        """Devices that the epoch names which this prepares."""

    def phase(self) -> str:
        """Say in a word what is going on."""

    def tick(self, now: float) -> list[JobEffect]:
        """Do what is due."""

    def receive(self, device: str, event: DeviceEvent, now: float) -> None:
        """Take an event of a device."""

    def beat(self, device: str, heartbeat: Heartbeat, now: float) -> None:
        """Take a heartbeat of a device."""

    def result(self, payload: bytes, now: float) -> None:
        """Take a packet from the coordinator's result topic."""

    def saw_serving(self, deployment: Deployment, now: float) -> None:
        """Note a serving value of this deployment that the broker delivered."""

    def cancel(self, reason: str, now: float) -> None:
        """Stop, leaving things as they were."""


class QuietJob:
    """What a job does that listens to nobody and prepares nothing."""

    replans = False
    tries = ""
    epoch = ""
    devices = frozenset[str]()

    def receive(self, device: str, event: DeviceEvent, now: float) -> None:
        """See `Job.receive`."""

    def beat(self, device: str, heartbeat: Heartbeat, now: float) -> None:
        """See `Job.beat`."""

    def result(self, payload: bytes, now: float) -> None:
        """See `Job.result`."""

    def saw_serving(self, deployment: Deployment, now: float) -> None:
        """See `Job.saw_serving`."""


def probe_blobs(manifest: Manifest) -> Iterator[Blob]:
    """Yield what a coordinator needs of a bundle to probe an epoch of it, and the files that clients ask for."""
    for pair in manifest.golden:
        yield from (pair.inputs, pair.whole)
    yield from manifest.processing.blobs


def plan_holders(plan: Plan | None) -> tuple[str, ...]:
    """Return the devices of a plan, which hold what their stages need; keepers are not among them."""
    return tuple(dict.fromkeys(name for stage in (plan.stages if plan is not None else ()) for name in stage.devices))


def named_devices(plan: Plan | None) -> frozenset[str]:
    """Return every device that a plan names in any role."""
    stages = plan.stages if plan is not None else ()
    return frozenset(name for stage in stages for name in (*stage.devices, *stage.keepers))
