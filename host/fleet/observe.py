"""A look at a fleet: who is there, who coordinates, what is served."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from edge.errors import ShardwireError
from edge.formats.message import Failed, Hello, Lease, Session, decode_message, encode_message
from edge.formats.plan import Deployment
from edge.formats.topics import Topics
from edge.transport import Channel, Publication, Received
from host.fleet.identity import Caller, fresh_name
from host.fleet.lease import outranks
from host.fleet.ledger import Ledger
from host.fleet.link import FleetLink
from host.fleet.roster import HEARTBEAT_SECONDS, Node, Roster

LOOK_SECONDS = 1.3 * HEARTBEAT_SECONDS
"""Long enough to hear one heartbeat of everybody who is alive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """One node as it was seen.

    Attributes:
        node: what it says of itself.
        online: whether it is there.
    """

    node: Node
    online: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetView:
    """A fleet at one moment.

    Attributes:
        devices: by name.
        deployments: newest serving values by name, tombstones left out.
        coordinator: who holds the lease and is alive, None when nobody does.
        failures: why an epoch does not run on a device, by (device, deployment, epoch).
    """

    devices: Sequence[Sighting]
    deployments: Sequence[Deployment]
    coordinator: str | None
    failures: Mapping[tuple[str, str, str], str] = field(default_factory=dict)

    def failure(self, device: str, deployment: Deployment) -> str | None:
        """Return why a device does not run its stage of a deployment, None when it said nothing of the kind."""
        return self.failures.get((device, deployment.name, deployment.epoch))

    def trouble(self, deployment: Deployment) -> str | None:
        """Return why the coordinator cannot mend a deployment that cannot answer, None when it said nothing."""
        return None if self.coordinator is None else self.failure(self.coordinator, deployment)

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
    roster, ledger = Roster(topics), Ledger()
    lease: Lease | None = None
    failures: dict[tuple[str, str, str], str] = {}
    with FleetLink(url, caller) as link:
        filters = [*roster.filters, topics.any_device("event"), topics.lease(), topics.any_deployment("serving")]
        for filter in filters if deployment is None else [*filters, topics.serving(deployment)]:
            link.subscribe(Channel.CONTROL, filter)
        hello = encode_message(Hello(node=caller.node))
        link.publish(Publication(channel=Channel.CONTROL, topic=topics.hello(), payload=hello, qos=1))
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            event = link.take(end - now)
            if not isinstance(event, Received) or not event.payload:
                continue
            with contextlib.suppress(ShardwireError):
                if event.topic == topics.lease():
                    seen = decode_message(event.payload, Lease)
                    lease = seen if outranks(seen, lease) else lease
                elif (levels := topics.parse(event.topic)) is not None and levels[-1] == "event":
                    failed = decode_message(event.payload, Failed)
                    failures[levels[1], failed.deployment, failed.epoch] = failed.reason
                else:
                    _note(event, roster, ledger, topics)
            if until_online and all(roster.get(name).beats(now) for name in until_online):
                break
    holder = roster.get(lease.coordinator) if lease is not None else None
    now = time.monotonic()
    return FleetView(
        devices=[Sighting(node=node, online=node.beats(now)) for node in roster.agents()],
        deployments=[value for value in ledger.values() if not value.removed],
        coordinator=holder.name if holder is not None and holder.beats(now) else None,
        failures=failures,
    )


def _note(event: Received, roster: Roster, ledger: Ledger, topics: Topics) -> None:
    levels = topics.parse(event.topic)
    if levels is not None and levels[0] == "deployment" and len(levels) == 3:
        ledger.receive(levels[1], levels[2], event.payload)
    else:
        roster.receive(event.topic, event.payload, retained=event.retained, now=time.monotonic())
