"""Where the time of one request went, as one clock saw it.

The client hears when each stage had its frame (`taken`), each ack with the same way back; a stage tells how long it
kept the request, as a duration. So a hop is the time between two such moments less what the stage between them kept.
An ack can only be late, so each moment is at the latest when the next one, less what the stage kept, allows: the parts
add up to the whole.
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
    arrivals = _arrivals(result)
    hops: list[HopTime] = []
    sender, left = "client", 0.0 if result.attempts == 1 else None
    for stage, arrived in zip(result.trace, arrivals, strict=True):
        hops.append(HopTime(sender=sender, receiver=stage.device, seconds=_between(left, arrived)))
        sender = stage.device
        left = None if arrived is None else arrived + stage.queued_seconds + stage.run_seconds
    hops.append(HopTime(sender=sender, receiver="client", seconds=_between(left, result.latency_seconds)))
    return hops


def _arrivals(result: InferenceResult) -> Sequence[float | None]:
    """Return when each stage had its frame, None where that is not known; in order, as far as the acks allow."""
    if result.attempts != 1:  # the moments belong to different sends
        return [None] * len(result.trace)
    arrivals: list[float | None] = []
    latest = result.latency_seconds
    for index in reversed(range(len(result.trace))):
        stage = result.trace[index]
        latest -= stage.queued_seconds + stage.run_seconds
        seen = result.taken_seconds[index] if index < len(result.taken_seconds) else None
        latest = latest if seen is None else min(seen, latest)
        arrivals.append(None if seen is None else latest)
    return arrivals[::-1]


def _between(left: float | None, arrived: float | None) -> float | None:
    return None if left is None or arrived is None else max(0.0, arrived - left)
