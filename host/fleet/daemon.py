"""Running a coordinator: its protocol, a link, a clock, and a folder to remember things in."""

from __future__ import annotations

import contextlib
import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edge.errors import ShardwireError, StoreError
from edge.formats.message import CommandOutcome, FleetEvent, Lease, Session, encode_message
from edge.formats.plan import Deployment
from edge.formats.topics import Topics
from edge.state import StateFolder
from edge.store import BlobStore
from edge.transport import Channel, Publication, TransportEvent
from host.fleet.blobs import BlobSource
from host.fleet.collect import Collector
from host.fleet.coordinator import Coordinator
from host.fleet.effects import CoordinatorEffect, Happened, Keep, KeepLease, Request, Subscribe, Told
from host.fleet.history import HistoryLog
from host.fleet.identity import Caller
from host.fleet.lease import LeaseKeeper
from host.fleet.lease_file import LeaseFile
from host.fleet.link import FleetLink
from host.fleet.many_brokers import ManyBrokersLink, coordinator_link
from host.fleet.roster import is_urgent
from host.planning.replan import HORIZON_SECONDS

_log = logging.getLogger(__name__)

STEP_SECONDS = 0.05
"""Longest time between two ticks. Whatever may change a decision is followed by one at once; heartbeats are not."""

_MOST_OUTCOMES = 1024
_LEAVE_SECONDS = 6.0
_DRAIN_SECONDS = 0.5
"""For so long events are taken one after another before time passes again: silence counts only once all was heard."""

Watch = Callable[[TransportEvent], None]


class CoordinatorLoop:
    """Feeds a coordinator with events and time, and does what it says. One thread."""

    def __init__(
        self,
        coordinator: Coordinator,
        link: FleetLink | ManyBrokersLink,
        *,
        state: StateFolder | None = None,
        store: BlobStore | None = None,
        history: HistoryLog | None = None,
        lease: LeaseFile | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Join a protocol and a link.

        Args:
            coordinator: the protocol.
            link: connected, with the coordinator's last will.
            state: where serving values are kept over a restart, None to forget them.
            store: what nobody needs any more is dropped from it after each command, None to keep everything.
            history: where what happens is written down, None for nowhere; it is told to the fleet all the same.
            lease: where the largest lease is kept over a restart, None to forget it.
            watch: shown every event of the transport, after the coordinator.
        """
        self.outcomes: dict[str, CommandOutcome] = {}
        self._coordinator = coordinator
        self._link = link
        self._state = state
        self._store = store
        self._history = history
        self._lease = lease
        self._watch = watch
        self._tick_at = float("-inf")

    def ask(self, request: Request) -> None:
        """Give the coordinator a command."""
        self._perform(self._coordinator.ask(request, time.monotonic()))

    def feed(self, event: TransportEvent) -> None:
        """Give the coordinator an event that was taken from the link elsewhere."""
        self._perform(self._coordinator.handle(event, time.monotonic()))
        if self._watch is not None:
            self._watch(event)

    def step(self, timeout_seconds: float = STEP_SECONDS) -> None:
        """Wait for an event, take what else is there, and let time pass once when it is time or something is new."""
        now = time.monotonic()
        event = self._link.take(min(timeout_seconds, max(0.0, self._tick_at - now)))
        urgent, until = False, time.monotonic() + _DRAIN_SECONDS
        while event is not None:
            urgent = is_urgent(event) or urgent
            self.feed(event)
            event = self._link.take(0.0) if time.monotonic() < until else None
        now = time.monotonic()
        if urgent or now >= self._tick_at:
            self._tick_at = now + STEP_SECONDS
            self._perform(self._coordinator.tick(now))

    def run(self, stopped: Callable[[], bool]) -> None:
        """Go on until `stopped`, then leave."""
        gc.freeze()  # looking through what stays for garbage would only take time from agents on this machine
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

    def _tell(self, happened: Sequence[Happened]) -> None:
        """Tell the fleet what happened, and write it down: many devices may leave in one moment."""
        caller = self._link.caller
        at, topic = utc_now(), caller.topics.history()
        events = [
            FleetEvent(
                at=at,
                who=caller.node,
                what=one.what,
                why=one.why,
                deployment=one.deployment,
                epoch=one.epoch,
                device=one.device,
            )
            for one in happened
        ]
        for event in events:
            payload = encode_message(event)
            self._link.publish(Publication(channel=Channel.CONTROL, topic=topic, payload=payload, qos=1))
        try:
            if self._history is not None:
                self._history.append(*events)
        except StoreError as error:
            # Who listens has it; a full disk must not stop the fleet.
            _log.error("%s is not written down: %s", events[0].what, error)

    def _keep_lease(self, lease: Lease) -> None:
        try:
            if self._lease is not None:
                self._lease.save(lease)
        except StoreError as error:
            _log.error("the lease is not remembered over a restart: %s", error)

    def _collect(self) -> None:
        try:
            wanted = self._coordinator.wanted()
            if self._store is not None and wanted is not None:
                self._store.collect(wanted)
                self._store.sweep(spare_seconds=0.0)  # who is told what is served need not wait and see
        except ShardwireError as error:
            _log.warning("old blobs are kept: %s", error)

    def _perform(self, effects: list[CoordinatorEffect]) -> None:
        happened = [effect for effect in effects if isinstance(effect, Happened)]
        for effect in effects:
            match effect:
                case Publication():
                    self._link.publish(effect)
                case Subscribe(channel=channel, filter=filter):
                    self._link.subscribe(channel, filter)
                case Told(outcome=outcome):
                    if self.outcomes.get(outcome.request_id) != outcome:
                        # Who asks again is told again; the log has it already.
                        _log.info("command %s: %s", outcome.request_id, describe(outcome))
                    self.outcomes[outcome.request_id] = outcome
                    while len(self.outcomes) > _MOST_OUTCOMES:
                        del self.outcomes[next(iter(self.outcomes))]
                    if outcome.done:
                        self._collect()
                case Keep(deployment=deployment):
                    self._remember(deployment)
                case KeepLease(lease=lease):
                    self._keep_lease(lease)
                case _:
                    pass
        if happened:
            self._tell(happened)


def utc_now() -> str:
    """Return the UTC time of this machine, `YYYY-MM-DDTHH:MM:SSZ`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def describe(outcome: CommandOutcome) -> str:
    """Return an outcome in a few words."""
    if not outcome.done:
        return outcome.reason
    if not outcome.ok:
        return f"failed: {outcome.reason}"
    return f"done, epoch {outcome.epoch}" if outcome.epoch else "done"


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
        keeper, leases = LeaseKeeper(node=name, session=caller.session, now=time.monotonic()), LeaseFile(folder)
        if (known := leases.read()) is not None:
            keeper.need_term(known.term + 1)
        coordinator = Coordinator(
            caller,
            blobs=store,
            collector=Collector(store, caller),
            keeper=keeper,
            staying=True,
            known=state.serving(),
            horizon_seconds=horizon_seconds,
            utc=utc_now,
        )
        with coordinator_link(
            url,
            caller,
            will=coordinator.will,
            leads=lambda: keeper.holds(time.monotonic()),
            connect_seconds=connect_seconds,
        ) as link:
            history = HistoryLog(folder)
            yield CoordinatorLoop(coordinator, link, state=state, store=store, history=history, lease=leases)
    finally:
        with contextlib.suppress(StoreError):
            state.close()


def single_bundle(caller: Caller, blobs: BlobSource, keeper: LeaseKeeper) -> Coordinator:
    """Return a coordinator for one command from this process, which leaves afterwards."""
    return Coordinator(caller, blobs=blobs, collector=None, keeper=keeper, staying=False, utc=utc_now)
