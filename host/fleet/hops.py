"""Where the time of one request went, as one clock saw it.

The client hears when each stage had its frame (`taken`), each ack with the same way back; a stage tells how long it
kept the request, as a duration. So a hop is the time between two such moments less what the stage between them kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge.protocol.requests import InferenceResult


@dataclass(frozen=True, kw_only=True, slots=True)
class HopTime:
    """The way from one node to the next.

    Attributes:
        sender, receiver: names of nodes; the client is `client`.
        seconds: from leaving the sender to being queued at the receiver; None where no ack came.
    """

    sender: str
    receiver: str
    seconds: float | None


def hop_times(result: InferenceResult) -> Sequence[HopTime]:
    """Return every hop of an observed request in order, the client's two included."""
    hops: list[HopTime] = []
    sender, left = "client", 0.0
    known = result.attempts == 1  # after a resend the moments belong to different sends
    for index, stage in enumerate(result.trace):
        arrived = result.taken_seconds[index] if index < len(result.taken_seconds) else None
        seconds = arrived - left if arrived is not None and known else None
        hops.append(HopTime(sender=sender, receiver=stage.device, seconds=_floor(seconds)))
        known = arrived is not None and result.attempts == 1
        sender, left = stage.device, (arrived or 0.0) + stage.queued_seconds + stage.run_seconds
    last = result.latency_seconds - left if known else None
    hops.append(HopTime(sender=sender, receiver="client", seconds=_floor(last)))
    return hops


def _floor(seconds: float | None) -> float | None:
    # An ack that overtook or trailed the frame can make a short hop come out a hair below zero.
    return None if seconds is None else max(0.0, seconds)
