"""Which deployments have blobs with one holder only, and whether that is news. No IO and no clock.

Keepers are renewed with the next epoch and not by one of their own, for which devices would load what they run already.
Until then the deployment is said to be at risk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge.formats.bundle import Manifest
from edge.formats.plan import Deployment, Holding
from host.fleet.effects import Happened
from host.fleet.holdings import own_holdings, said_holdings
from host.fleet.jobs import Desk
from host.planning.copies import at_risk

LOST_SECONDS = 60.0
"""A device that is away for less comes back with what it holds on its disk."""

SETTLE_SECONDS = 10.0
"""A risk must last this long before it is told: after a commit, keepers fetch what they shall keep."""

_LOOK_SECONDS = 5.0

AwaySince = Callable[[str], float | None]


@dataclass(slots=True)
class _Risk:
    """What is known of one deployment; times are monotonic seconds."""

    look_at: float = float("-inf")
    nodes: tuple[str, ...] = ()
    since: float = 0.0
    told: bool = False


class Risks:
    """Watches over the copies of what is served."""

    def __init__(self, desk: Desk, away_since: AwaySince) -> None:
        """Start with nothing known.

        Args:
            desk: who said to hold what, and the coordinator's own blobs.
            away_since: tells since when a device is away, None when it is here.
        """
        self._desk = desk
        self._away_since = away_since
        self._known: dict[str, _Risk] = {}

    def look(self, value: Deployment, manifest: Manifest, now: float) -> list[Happened]:
        """Count the copies of a deployment's shards now and then, and return what is news.

        Args:
            value: that serves.
            manifest: of its bundle.
            now: monotonic seconds.
        """
        risk = self._known.setdefault(value.name, _Risk())
        if now < risk.look_at or value.plan is None:
            return []
        risk.look_at = now + _LOOK_SECONDS
        nodes = at_risk(value.plan, self._holdings(value, manifest), self._there(value, now))
        if bool(nodes) != bool(risk.nodes):
            risk.since = now
        risk.nodes = nodes
        if bool(nodes) == risk.told or now - risk.since < SETTLE_SECONDS * bool(nodes):
            return []
        risk.told = bool(nodes)
        why = f"only {', '.join(nodes)} has some of its blobs" if nodes else "all its blobs have two holders"
        return [
            Happened(what="at-risk" if nodes else "safe", deployment=value.name, epoch=value.epoch, why=why),
        ]

    def nodes(self, name: str) -> tuple[str, ...]:
        """Return the nodes that alone hold some blob of a deployment, as last told."""
        risk = self._known.get(name)
        return risk.nodes if risk is not None and risk.told else ()

    def forget(self, name: str) -> None:
        """A deployment was removed."""
        self._known.pop(name, None)

    def _holdings(self, value: Deployment, manifest: Manifest) -> list[Holding]:
        """Who said so; what a device was only told to keep does not count."""
        desk = self._desk
        said = [] if value.plan is None else said_holdings(value.plan, desk.holders.stages(value.name, value.epoch))
        own = own_holdings(desk.caller.node, manifest, desk.blobs.has) if desk.staying else []
        return [*said, *own]

    def _there(self, value: Deployment, now: float) -> set[str]:
        names = {name for stage in value.plan.stages for name in stage.devices} if value.plan is not None else set()
        names |= self._desk.holders.stages(value.name, value.epoch).keys()
        since = {name: self._away_since(name) for name in names}
        here = {name for name, at in since.items() if at is None or now - at < LOST_SECONDS}
        return here | {self._desk.caller.node}
