"""What a coordinator wants done, and what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from edge.formats.message import CommandOutcome, DeployRequest, UndeployRequest
from edge.formats.plan import Deployment
from edge.transport import Channel, Publication

Request = DeployRequest | UndeployRequest


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


JobEffect = Publication | Keep
CoordinatorEffect = JobEffect | Subscribe | Told
