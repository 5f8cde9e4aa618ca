"""What is remembered of one deployment that is watched. Part of `host.fleet.watch`."""

from __future__ import annotations

from edge.formats.message import Failed
from edge.formats.plan import Deployment
from host.fleet.outlook import Outlook, View


class Watched:
    """One deployment; times are monotonic seconds.

    Attributes:
        value: that serves.
        since: when it was first seen.
        outlook: what devices offer for its bundle, None until the manifest is here.
        fetch_at: when blobs that lack are asked for again.
        held: digests that devices have from the epoch before.
        lost: devices that said they cannot run their stage.
        unable: devices that could not take a stage, and until when they are left out.
        seen: what counted when it was last decided.
        pending: what counts now, and since when.
        decided: what counted when it was last decided.
        tried: what counted when a plan was last tried.
        recheck_at: when it is decided again though nothing changed.
        failures: of changes, one after another.
        attempts: of changes.
        retry_at: earliest time of the next one.
        told: last line of the log.
        reason: why nothing was done.
        trouble: why it cannot answer and is not mended.
        here: devices that were not away when it was last looked at.
        due: whether something happened since.
        ails: whether it cannot answer.
    """

    def __init__(self, value: Deployment, *, since: float, ails: bool = False) -> None:
        """Begin with what was just seen.

        Args:
            value: that serves.
            since: monotonic seconds.
            ails: whether the epoch before it could not answer.
        """
        self.value = value
        self.since = since
        self.outlook: Outlook | None = None
        self.fetch_at: float = 0.0
        self.held: dict[str, frozenset[str]] = {}
        self.lost: set[str] = set()
        self.unable: dict[str, float] = {}
        self.seen: View | None = None
        self.pending: tuple[object, float] | None = None
        self.decided: object = None
        self.tried: object = None
        self.recheck_at: float = 0.0
        self.failures: int = 0
        self.attempts: int = 0
        self.here: frozenset[str] = frozenset()
        self.due: bool = True
        self.ails = ails
        self.retry_at: float = 0.0
        self.told: str = ""
        self.reason: str = ""
        self.trouble: Failed | None = None


def holders_of(value: Deployment, *, but: str) -> tuple[str, ...]:
    """Return the nodes to ask for blobs of a deployment, those with golden inputs first, without one of them."""
    golden = [holding.node for holding in value.holdings if holding.golden]
    others = [holding.node for holding in value.holdings]
    return tuple(name for name in dict.fromkeys((*golden, *others, *value.holders)) if name != but)
