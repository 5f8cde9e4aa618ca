"""A look at a fleet: who is there, who coordinates, what is served."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from edge.errors import ShardwireError
from edge.formats.message import (
    MAX_TRANSFERS,
    Dropped,
    Failed,
    Hello,
    Kept,
    Lease,
    Metrics,
    Ready,
    Session,
    decode_message,
    encode_message,
)
from edge.formats.plan import Deployment, Holding, decode_deployment, parse_epoch
from edge.formats.topics import Topics
from edge.transport import Channel, Publication, Received
from host.fleet.holdings import KnownHolders, said_holdings
from host.fleet.identity import Caller, fresh_name
from host.fleet.lease import outranks
from host.fleet.ledger import Ledger
from host.fleet.link import FleetLink
from host.fleet.roster import HEARTBEAT_SECONDS, Node, Roster
from host.planning.copies import at_risk

LOOK_SECONDS = 1.3 * HEARTBEAT_SECONDS
"""Long enough to hear one heartbeat of everybody who is alive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """One node as it was seen.

    Attributes:
        node: what it says of itself.
        online: whether it is there.
        metrics: its newest counters, None when it told none meanwhile.
    """

    node: Node
    online: bool
    metrics: Metrics | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetView:
    """A fleet at one moment.

    Attributes:
        devices: by name.
        deployments: newest serving values by name, tombstones left out.
        coordinator: who holds the lease and is alive, None when nobody does.
        failures: why an epoch does not run on a device, by (device, deployment, epoch).
        canaries: plans that are tried on a part of the requests, by deployment.
        holders: what devices said to hold.
    """

    devices: Sequence[Sighting]
    deployments: Sequence[Deployment]
    coordinator: str | None
    failures: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    canaries: Mapping[str, Deployment] = field(default_factory=dict)
    holders: KnownHolders = field(default_factory=KnownHolders)

    def failure(self, device: str, deployment: Deployment) -> str | None:
        """Return why a device does not run its stage of a deployment, None when it said nothing of the kind."""
        return self.failures.get((device, deployment.name, deployment.epoch))

    def trouble(self, deployment: Deployment) -> str | None:
        """Return why the coordinator cannot mend a deployment that cannot answer, None when it said nothing."""
        return None if self.coordinator is None else self.failure(self.coordinator, deployment)

    def at_risk(self, deployment: Deployment) -> tuple[str, ...]:
        """Return the nodes that alone hold some blob of what serves; a coordinator that is named as holder counts."""
        plan = deployment.plan
        if plan is None:
            return ()
        holdings = said_holdings(plan, self.holders.stages(deployment.name, deployment.epoch))
        here = {seen.node.name for seen in self.devices if seen.online}
        if self.coordinator is not None and self.coordinator in deployment.holders:
            here.add(self.coordinator)
            holdings.append(Holding(node=self.coordinator, first_shard=0, stop_shard=plan.stages[-1].stop_shard))
        return at_risk(plan, holdings, here)

    def online(self, device: str) -> bool:
        """Tell whether a device is there."""
        return any(seen.online for seen in self.devices if seen.node.name == device)


def look(
    url: str,
    *,
    fleet: str,
    deployment: str | None = None,
    seconds: float = LOOK_SECONDS,
    until_online: Collection[str] = (),
) -> FleetView:
    """Ask who is here, and listen.

    Args:
        url: of the broker.
        fleet: name of the fleet.
        deployment: one that is looked for in particular, as not every broker gives retained values to a wildcard.
        seconds: how long to listen.
        until_online: nodes whose heartbeats end the listening early, once all are heard.

    Raises:
        TransportError: there is no broker, or it refuses us.
    """
    topics = Topics(fleet=fleet)
    caller = Caller(node=fresh_name("host"), session=Session(boot=1, connect=1), topics=topics)
    seen = _Seen(topics)
    with FleetLink(url, caller) as link:
        for filter in seen.filters if deployment is None else [*seen.filters, topics.serving(deployment)]:
            link.subscribe(Channel.CONTROL, filter)
        hello = encode_message(Hello(node=caller.node))
        link.publish(Publication(channel=Channel.CONTROL, topic=topics.hello(), payload=hello, qos=1))
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            event = link.take(end - now)
            if not isinstance(event, Received) or not event.payload:
                continue
            with contextlib.suppress(ShardwireError):
                seen.take(event)
            if until_online and all(seen.roster.get(name).beats(now) for name in until_online):
                break
    return seen.view(time.monotonic())


class _Seen:
    """What came in while listening."""

    def __init__(self, topics: Topics) -> None:
        self.roster = Roster(topics)
        self._topics = topics
        self._ledger = Ledger()
        self._lease: Lease | None = None
        self._failures: dict[tuple[str, str, str], str] = {}
        self._metrics: dict[str, Metrics] = {}
        self._canaries: dict[str, Deployment] = {}
        self._holders = KnownHolders()

    @property
    def filters(self) -> list[str]:
        """What to subscribe to."""
        topics = self._topics
        kinds = [topics.any_device("event"), topics.any_device("metrics")]
        values = [topics.any_deployment("serving"), topics.any_deployment("canary")]
        return [*self.roster.filters, *kinds, topics.lease(), *values]

    def take(self, event: Received) -> None:
        """Take a message.

        Raises:
            FormatError: it is malformed, or not what its topic says.
        """
        levels = self._topics.parse(event.topic)
        if event.topic == self._topics.lease():
            lease = decode_message(event.payload, Lease)
            self._lease = lease if outranks(lease, self._lease) else self._lease
        elif levels is None or len(levels) != 3:
            return
        elif levels[2] == "event":
            told = decode_message(event.payload, object)
            if isinstance(told, Failed):
                self._failures[levels[1], told.deployment, told.epoch] = told.reason
            elif isinstance(told, Kept | Ready | Dropped):
                self._holders.hear(levels[1], told)
        elif levels[2] == "metrics":
            metrics = decode_message(event.payload, Metrics)
            if metrics.node == levels[1]:
                self._metrics[metrics.node] = replace(metrics, transfers=metrics.transfers[:MAX_TRANSFERS])
        elif levels[0] == "deployment" and levels[2] == "canary":
            canary = decode_deployment(event.payload)
            if canary.name == levels[1]:
                self._canaries[canary.name] = canary
        elif levels[0] == "deployment":
            self._ledger.receive(levels[1], levels[2], event.payload)
        else:
            self.roster.receive(event.topic, event.payload, retained=event.retained, now=time.monotonic())

    def view(self, now: float) -> FleetView:
        """Return what is known at the end."""
        serving = [value for value in self._ledger.values() if not value.removed]
        newer = {value.name: parse_epoch(value.epoch) for value in serving}
        canaries = {
            name: value
            for name, value in sorted(self._canaries.items())
            if name in newer and parse_epoch(value.epoch) > newer[name]
        }
        holder = self.roster.get(self._lease.coordinator) if self._lease is not None else None
        return FleetView(
            devices=[
                Sighting(node=node, online=node.beats(now), metrics=self._metrics.get(node.name))
                for node in self.roster.agents()
            ],
            deployments=serving,
            coordinator=holder.name if holder is not None and holder.beats(now) else None,
            failures=self._failures,
            canaries=canaries,
            holders=self._holders,
        )
