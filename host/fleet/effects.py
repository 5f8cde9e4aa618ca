"""What a coordinator wants done, and what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from edge.formats.message import CommandOutcome, DeployRequest, DeviceRequest, Lease, RollbackRequest, UndeployRequest
from edge.formats.plan import Deployment
from edge.transport import Channel, Publication

Request = DeployRequest | UndeployRequest | RollbackRequest | DeviceRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Subscribe:
    """Ask for a topic filter."""

    channel: Channel
    filter: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """News of a command for whoever runs in this process."""

    outcome: CommandOutcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Remember a serving value over a restart."""

    deployment: Deployment


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepLease:
    """Remember the largest lease seen over a restart."""

    lease: Lease


@dataclass(frozen=True, kw_only=True, slots=True)
class Happened:
    """A line for the history of the fleet; whoever carries it out adds who and when, and tells it to the fleet.

    Attributes:
        what: one of `host.fleet.history.KINDS`.
        why: one line for a person.
        deployment, epoch, device: that it is about.
    """

    what: str
    why: str = ""
    deployment: str = ""
    epoch: str = ""
    device: str = ""


JobEffect = Publication | Keep | Happened
CoordinatorEffect = JobEffect | KeepLease | Subscribe | Told
