"""Running a coordinator: its protocol, a link, a clock, and a folder to remember things in."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edge.errors import ShardwireError, StoreError
from edge.formats.message import CommandOutcome, Session
from edge.formats.plan import Deployment
from edge.formats.topics import Topics
from edge.state import StateFolder
from edge.store import BlobStore
from edge.transport import Publication, TransportEvent
from host.fleet.blobs import BlobSource
from host.fleet.collect import Collector
from host.fleet.coordinator import Coordinator
from host.fleet.effects import CoordinatorEffect, Keep, Request, Subscribe, Told
from host.fleet.identity import Caller
from host.fleet.lease import LeaseKeeper
from host.fleet.link import FleetLink
from host.planning.replan import HORIZON_SECONDS

_log = logging.getLogger(__name__)

STEP_SECONDS = 0.1
_LEAVE_SECONDS = 6.0
_BATCH = 256

Watch = Callable[[TransportEvent], None]


class CoordinatorLoop:
    """Feeds a coordinator with events and time, and does what it says. One thread."""

    def __init__(
        self,
        coordinator: Coordinator,
        link: FleetLink,
        *,
        state: StateFolder | None = None,
        store: BlobStore | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Join a protocol and a link.

        Args:
            coordinator: the protocol.
            link: connected, with the coordinator's last will.
            state: where serving values are kept over a restart, None to forget them.
            store: what nobody needs any more is dropped from it after each command, None to keep everything.
            watch: shown every event of the transport, after the coordinator.
        """
        self.outcomes: dict[str, CommandOutcome] = {}
        self._coordinator = coordinator
        self._link = link
        self._state = state
        self._store = store
        self._watch = watch

    def ask(self, request: Request) -> None:
        """Give the coordinator a command."""
        self._perform(self._coordinator.ask(request, time.monotonic()))

    def feed(self, event: TransportEvent) -> None:
        """Give the coordinator an event that was taken from the link elsewhere."""
        self._perform(self._coordinator.handle(event, time.monotonic()))
        if self._watch is not None:
            self._watch(event)

    def step(self, timeout_seconds: float = STEP_SECONDS) -> None:
        """Wait for an event, take what else is there, and let time pass once."""
        event = self._link.take(timeout_seconds)
        for _ in range(_BATCH):
            if event is None:
                break
            self.feed(event)
            event = self._link.take(0.0)
        if event is not None:
            self.feed(event)
        self._perform(self._coordinator.tick(time.monotonic()))

    def run(self, stopped: Callable[[], bool]) -> None:
        """Go on until `stopped`, then leave."""
        try:
            while not stopped():
                self.step()
        finally:
            self.leave("the coordinator was stopped")

    def leave(self, reason: str) -> None:
        """Abandon what is not committed, wait until devices have dropped it, and give the lease back."""
        self._coordinator.cancel(reason, time.monotonic())
        deadline = time.monotonic() + _LEAVE_SECONDS
        while self._coordinator.busy and time.monotonic() < deadline:
            self.step()
        self._perform(self._coordinator.leave())

    def _remember(self, deployment: Deployment) -> None:
        if self._state is None:
            return
        try:
            self._state.save_serving(deployment)
        except StoreError as error:
            # The broker and the devices have it too; a full disk must not stop the fleet.
            _log.error("%s is not remembered over a restart: %s", deployment.name, error)

    def _collect(self) -> None:
        try:
            wanted = self._coordinator.wanted()
            if self._store is not None and wanted is not None:
                self._store.collect(wanted)
        except ShardwireError as error:
            _log.warning("old blobs are kept: %s", error)

    def _perform(self, effects: list[CoordinatorEffect]) -> None:
        for effect in effects:
            match effect:
                case Publication():
                    self._link.publish(effect)
                case Subscribe(channel=channel, filter=filter):
                    self._link.subscribe(channel, filter)
                case Told(outcome=outcome):
                    self.outcomes[outcome.request_id] = outcome
                    _log.info("command %s: %s", outcome.request_id, describe(outcome))
                    if outcome.done:
                        self._collect()
                case Keep(deployment=deployment):
                    self._remember(deployment)


def describe(outcome: CommandOutcome) -> str:
    """Return an outcome in a few words."""
    if not outcome.done:
        return outcome.reason
    return f"done, epoch {outcome.epoch}" if outcome.ok else f"failed: {outcome.reason}"


@contextlib.contextmanager
def open_coordinator(
    url: str,
    *,
    fleet: str,
    name: str,
    folder: Path,
    connect_seconds: float,
    horizon_seconds: float | None = HORIZON_SECONDS,
) -> Iterator[CoordinatorLoop]:
    """Run a daemon for the length of a `with` block; its blobs and deployments are kept in `folder`.

    Args:
        url: of the broker.
        fleet: name of the fleet.
        name: node name of the coordinator.
        folder: made when it does not exist.
        connect_seconds: how long the first connection may take.
        horizon_seconds: at full load, over which a better plan must pay for its change; None never to plan again.

    Raises:
        StoreError: the folder cannot be used.
        TransportError: there is no broker, or it refuses us.
    """
    state = StateFolder(folder)
    try:
        store = BlobStore(folder)
        caller = Caller(node=name, session=Session(boot=state.next_boot(), connect=1), topics=Topics(fleet=fleet))
        coordinator = Coordinator(
            caller,
            blobs=store,
            collector=Collector(store, caller),
            keeper=LeaseKeeper(node=name, session=caller.session, now=time.monotonic()),
            staying=True,
            known=state.serving(),
            horizon_seconds=horizon_seconds,
        )
        with FleetLink(url, caller, will=coordinator.will, connect_seconds=connect_seconds) as link:
            yield CoordinatorLoop(coordinator, link, state=state, store=store)
    finally:
        with contextlib.suppress(StoreError):
            state.close()


def single_bundle(caller: Caller, blobs: BlobSource, keeper: LeaseKeeper) -> Coordinator:
    """Return a coordinator for one command from this process, which leaves afterwards."""
    return Coordinator(caller, blobs=blobs, collector=None, keeper=keeper, staying=False)
