"""Who coordinates: the lease is for liveness, the order of terms for safety. No IO and no clock."""

from __future__ import annotations

from edge.formats.message import Lease, Session
from host.fleet.roster import HEARTBEAT_SECONDS, SILENT_SECONDS

LOOK_SECONDS = 1.0
"""How long a newcomer listens for a lease before it concludes that there is none."""

SETTLE_SECONDS = 2 * HEARTBEAT_SECONDS
"""How long a claimant of a silent coordinator's lease waits before it acts."""

STALL_SECONDS = 2.0
"""Who did not look at the time for so long was stopped, or had no broker: another may have taken the lease."""

HEAR_SECONDS = 1.0
"""How long it listens then before it acts again."""

VACANT = ""
"""Coordinator of a lease that was given back; it has a term of its own, so that it supersedes the old one."""


def outranks(lease: Lease, other: Lease | None) -> bool:
    """Tell whether `lease` goes before `other`."""
    return other is None or (lease.term, lease.coordinator) > (other.term, other.coordinator)


class LeaseKeeper:
    """Decides when this coordinator claims the lease, and whether it holds it."""

    def __init__(self, *, node: str, session: Session, now: float) -> None:
        """Start to look.

        Args:
            node: name of this coordinator.
            session: its own.
            now: monotonic seconds.
        """
        self._node = node
        self._session = session
        self._looking_since = now
        self._seen: Lease | None = None
        self._heard = now
        self._proven = False
        self._gone = False
        self._acts_from: float | None = None
        self._least_term = 1
        self._looked: float | None = None
        self._held = False

    @property
    def lease(self) -> Lease | None:
        """The highest lease seen or claimed."""
        return self._seen

    @property
    def other(self) -> str | None:
        """The coordinator that holds the lease and was heard of, when it is not this one."""
        seen = self._seen
        return seen.coordinator if seen is not None and self._proven and not self._gone and not self._mine() else None

    def holds(self, now: float) -> bool:
        """Tell whether this coordinator may act."""
        return self._acts_from is not None and now >= self._acts_from

    def may_go_on(self, now: float) -> bool:
        """Tell whether work that was begun may go on: not when the lease was ours and may be another's by now."""
        return not self._held or self.other is not None or self.holds(now)

    def reconnected(self, now: float) -> None:
        """Note that the broker was lost and found: whoever saw our last will has the lease now."""
        if self._acts_from is not None:
            self._acts_from = max(self._acts_from, now + HEAR_SECONDS)

    def saw(self, lease: Lease, now: float) -> bool:
        """Take a lease from the broker; return whether ours has to be published again."""
        if outranks(lease, self._seen):
            self._seen, self._heard, self._gone, self._acts_from = lease, now, False, None
            self._proven = False
            return False
        return self._mine() and outranks(self._seen or lease, lease)

    def heard(self, node: str, now: float) -> None:
        """Note that a node is alive."""
        if self._seen is not None and node == self._seen.coordinator:
            self._heard, self._gone, self._proven = now, False, True

    def left(self, node: str) -> None:
        """Note that a node signed off."""
        if self._seen is not None and node == self._seen.coordinator and not self._mine():
            self._gone = True

    def need_term(self, term: int) -> None:
        """Make every later claim, also a new one of ours, have at least this term."""
        self._least_term = max(self._least_term, term)

    def due(self, now: float) -> bool:
        """Tell whether it is time to claim the lease."""
        seen = self._seen
        if seen is None:
            return now - self._looking_since >= LOOK_SECONDS
        if self._mine():
            return seen.term < self._least_term
        # A lease under our own name and without our doing is from an earlier life of this process.
        return self._gone or seen.coordinator in (VACANT, self._node) or now - self._heard > SILENT_SECONDS

    def claim(self, now: float) -> Lease | None:
        """Return the lease to publish when it is time to claim it, else None; call it all the time."""
        if self._looked is not None and now - self._looked > STALL_SECONDS:
            self.reconnected(now)
            self._heard = max(self._heard, now - SILENT_SECONDS + HEAR_SECONDS)  # what was said may be on its way
        self._looked = now
        if not self.due(now):
            return None
        seen = self._seen
        vanished = seen is None or self._mine() or self._gone or seen.coordinator in (VACANT, self._node)
        return self._take(now, acts_from=now if vanished else now + SETTLE_SECONDS)

    def give_back(self) -> Lease | None:
        """Return the vacant lease to publish when leaving, None when the lease is not ours."""
        if self._seen is None or self._acts_from is None:
            return None
        self._acts_from, self._held = None, False
        self._seen = Lease(coordinator=VACANT, term=self._seen.term + 1, session=self._session)
        return self._seen

    def _mine(self) -> bool:
        return self._seen is not None and self._seen.coordinator == self._node and self._acts_from is not None

    def _take(self, now: float, *, acts_from: float) -> Lease:
        term = max(self._least_term, 1 + (self._seen.term if self._seen is not None else 0))
        self._seen = Lease(coordinator=self._node, term=term, session=self._session)
        self._acts_from, self._held = acts_from, True
        self._heard, self._gone = now, False
        return self._seen
