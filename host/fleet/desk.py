"""What a coordinator knows, and what its jobs may ask of it. No clock; IO only through blob sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from edge.formats.bundle import decode_manifest
from edge.formats.message import CommandOutcome
from edge.formats.plan import Deployment, Epoch
from host.bundle import fleet_blobs
from host.fleet.blobs import BlobSource
from host.fleet.collect import Collector
from host.fleet.holdings import KnownHolders
from host.fleet.identity import Caller, epoch_id
from host.fleet.jobs import GRACE_SECONDS, Desk, Job
from host.fleet.lease import LeaseKeeper
from host.fleet.ledger import Ledger
from host.fleet.roster import Roster
from host.fleet.worklist import Ended, Worklist

BEAT_SECONDS = 0.3
"""The last heartbeat before a plan that takes long is no older."""


def no_clock() -> str:
    """Return the time of a coordinator without a clock."""
    return ""


class CoordinatorDesk(Desk):
    """The knowledge and the means of one coordinator.

    Attributes:
        ledger: what is known of deployments.
        keeper: of the lease.
        work: the commands at work.
        hello_at: when nodes were asked who they are; None without a connection.
        connects: how many connections there were.
        planned: whether a plan was made since time passed last.
        beat_at: when the next heartbeat is due.
        beaten_at: when the last one went out, before time passed last.
    """

    def __init__(
        self,
        caller: Caller,
        *,
        blobs: BlobSource,
        collector: Collector | None,
        keeper: LeaseKeeper,
        staying: bool,
        known: Iterable[Deployment],
        utc: Callable[[], str],
        ended: Ended,
    ) -> None:
        """Start with nobody known; see `host.fleet.coordinator.Coordinator`."""
        self.caller = caller
        self.roster = Roster(caller.topics)
        self.blobs = blobs
        self.collector = collector
        self.staying = staying
        self.holders = KnownHolders()
        self.ledger = Ledger(known)
        self.keeper = keeper
        self.work = Worklist(self, keeper, keep=self.ledger.keep, ended=ended)
        self.hello_at: float | None = None
        self.connects = 0
        self.planned = False
        self.beat_at = 0.0
        self.beaten_at = float("-inf")
        self._utc = utc
        self._sequence = 0

    def since_hello(self, now: float) -> float:
        """See `Desk.since_hello`."""
        return -1.0 if self.hello_at is None else now - self.hello_at

    def next_epoch(self, name: str, now: float) -> str | None:
        """See `Desk.next_epoch`."""
        lease = self.keeper.lease
        if lease is None or not self.keeper.holds(now):
            return None
        epoch = Epoch(term=lease.term, coordinator=epoch_id(self.caller.node), sequence=self._sequence + 1)
        known = self.ledger.newest(name)
        if known is not None and epoch <= known:
            # Someone issued an epoch under a lease that we never saw: go past it.
            self.keeper.need_term(known.term + 1)
            return None
        self._sequence += 1
        return str(epoch)

    def serving(self, name: str) -> Deployment | None:
        """See `Desk.serving`."""
        return self.ledger.serving(name)

    def canary(self, name: str) -> Deployment | None:
        """See `Desk.canary`."""
        return self.ledger.canary(name)

    def names(self) -> Sequence[str]:
        """See `Desk.names`."""
        return self.ledger.names()

    def utc(self) -> str:
        """See `Desk.utc`."""
        return self._utc()

    def start(self, job: Job, now: float) -> None:
        """See `Desk.start`."""
        self.work.start(job, now)

    def running(self, name: str) -> Sequence[Job]:
        """See `Desk.running`."""
        return self.work.running(name)

    def worked_on(self) -> Sequence[str]:
        """See `Desk.worked_on`."""
        return sorted(self.work.names())

    def outcome(self, request_id: str) -> CommandOutcome | None:
        """See `Desk.outcome`."""
        return self.work.outcome(request_id)

    def forget(self, device: str) -> None:
        """See `Desk.forget`."""
        self.roster.forget(device)
        self.holders.forget(device)

    def hears(self, now: float) -> bool:
        """See `Desk.hears`."""
        return self.hello_at is not None and (self.connects <= 1 or now - self.hello_at >= GRACE_SECONDS)

    def may_plan(self, now: float, *, quick: bool = False) -> bool:
        """See `Desk.may_plan`."""
        if not quick and now - self.beaten_at > BEAT_SECONDS:
            self.beat_at = now
            return False
        may, self.planned = not self.planned, True
        return may

    def wanted(self) -> set[str] | None:
        """Return the digests of all blobs that what is served needs, None when that cannot be told now."""
        values = [value for value in self.ledger.values() if value.manifest is not None]
        manifests = [value.manifest for value in values if value.manifest is not None]
        if self.work.busy or not all(self.blobs.has(manifest.digest) for manifest in manifests):
            return None
        wanted = {manifest.digest for manifest in manifests}
        for digest in tuple(wanted):
            manifest = decode_manifest(self.blobs.read(digest), where=f"bundle {digest[7:19]}")
            wanted |= {blob.digest for blob in fleet_blobs(manifest)}
        for value in values:
            if value.before is not None and self.blobs.has(value.before.manifest.digest):
                digest = value.before.manifest.digest
                manifest = decode_manifest(self.blobs.read(digest), where=f"bundle {digest[7:19]}")
                wanted |= {digest, *(blob.digest for blob in fleet_blobs(manifest))}  # for a rollback
        return wanted
