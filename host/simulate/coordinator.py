"""The coordinator of a simulated fleet: the real one's protocol on a virtual clock."""

from __future__ import annotations

from collections.abc import Sequence

from edge.errors import StoreError
from edge.formats.message import CommandOutcome, Session
from edge.formats.topics import Topics
from edge.transport import Publication, TransportEvent
from host.fleet.blobs import BlobSource
from host.fleet.coordinator import Coordinator
from host.fleet.effects import CoordinatorEffect, Happened, Keep, Request, Subscribe, Told
from host.fleet.identity import Caller
from host.fleet.lease import LeaseKeeper
from host.fleet.roster import is_urgent
from host.planning.costs import LOCAL_NETWORK
from host.simulate.bundle import SimulatedBundle
from host.simulate.clock import Clock
from host.simulate.network import SimulatedBroker, SimulatedTransport

COORDINATOR = "coordinator-5177"
_STEP_SECONDS = 0.05


class Blobs:
    """The blobs of several bundles; a `host.fleet.blobs.BlobSource`."""

    def __init__(self, bundles: Sequence[SimulatedBundle]) -> None:
        self._bundles = tuple(bundles)

    def has(self, digest: str) -> bool:
        """See `BlobSource.has`."""
        return any(bundle.has(digest) for bundle in self._bundles)

    def read(self, digest: str) -> bytes:
        """See `BlobSource.read`."""
        for bundle in self._bundles:
            if bundle.has(digest):
                return bundle.read(digest)
        raise StoreError(f"blob {digest[:80]} is not here")

    def read_block(self, digest: str, index: int) -> tuple[int, bytes] | None:
        """See `BlobSource.read_block`."""
        found = (bundle.read_block(digest, index) for bundle in self._bundles if bundle.has(digest))
        return next(found, None)


class SimulatedCoordinator:
    """Carries out what a coordinator decides.

    Attributes:
        core: the protocol.
        outcomes: of its commands, by request.
        kept: how often it took a new serving value.
        happened: what it would write into the history, and when.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        broker: SimulatedBroker,
        topics: Topics,
        blobs: BlobSource,
        horizon_seconds: float | None = None,
    ) -> None:
        """Prepare; `start` connects it.

        Args:
            clock: of the simulation.
            broker: to connect to.
            topics: of the fleet.
            blobs: what it holds for others.
            horizon_seconds: over which a better plan must pay for its change; None never to plan again.
        """
        session = Session(boot=1, connect=1)
        self.core = Coordinator(
            Caller(node=COORDINATOR, session=session, topics=topics),
            blobs=blobs,
            collector=None,
            keeper=LeaseKeeper(node=COORDINATOR, session=session, now=clock.now),
            staying=True,
            horizon_seconds=horizon_seconds,
        )
        self.outcomes: dict[str, CommandOutcome] = {}
        self.kept = 0
        self._alive = True
        self.happened: list[tuple[float, Happened]] = []
        self._clock = clock
        self._transport = SimulatedTransport(
            broker, COORDINATOR, LOCAL_NETWORK, on_event=self._hear, will=self.core.will
        )

    def start(self) -> None:
        """Connect, and let time pass for it."""
        self._transport.connect()
        self._tick()

    def crash(self) -> None:
        """End its process."""
        self._alive = False
        self._transport.close()

    def ask(self, request: Request) -> None:
        """Give it a command."""
        self._perform(self.core.ask(request, self._clock.now))

    def _hear(self, event: TransportEvent) -> None:
        if not self._alive:
            return
        self._perform(self.core.handle(event, self._clock.now))
        if is_urgent(event):
            self._perform(self.core.tick(self._clock.now))

    def _tick(self) -> None:
        if not self._alive:
            return
        self._clock.after(_STEP_SECONDS, self._tick)
        self._perform(self.core.tick(self._clock.now))

    def _perform(self, effects: list[CoordinatorEffect]) -> None:
        for effect in effects:
            match effect:
                case Publication():
                    self._transport.publish(effect)
                case Subscribe(channel=channel, filter=filter):
                    self._transport.subscribe(channel, filter)
                case Told(outcome=outcome):
                    self.outcomes[outcome.request_id] = outcome
                case Keep():
                    self.kept += 1
                case Happened():
                    self.happened.append((self._clock.now, effect))
