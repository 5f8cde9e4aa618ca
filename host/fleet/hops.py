"""Where the time of one request went, as one clock saw it.

The client hears when each stage had its frame (`taken`; of a join, its last part), each ack with the same way back; a
stage tells how long it kept the request, as a duration. So a hop is the time between two such moments less what the
stage between them kept. An ack can only be late, so each moment is at the latest when the next one, less what the stage
kept, allows: the parts add up to the whole. Of stages side by side, the one that left last is the one that was waited
for: the hops out of their step begin there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge.formats.frame import Hop
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
    """Return the hop into each stage of the trace of an observed request, in its order, and the one to the client."""
    steps = _steps(result)
    arrivals = _arrivals(result, steps)
    hops: list[HopTime] = []
    sender, left = "client", 0.0 if result.attempts == 1 else None
    for step in steps:
        hops += [
            HopTime(sender=sender, receiver=hop.device, seconds=_between(left, arrivals[hop.stage])) for hop in step
        ]
        sender, left = _last_to_leave(step, arrivals)
    hops.append(HopTime(sender=sender, receiver="client", seconds=_between(left, result.latency_seconds)))
    return hops


def _steps(result: InferenceResult) -> list[list[Hop]]:
    """Return the trace in the steps of the plan; one after another where they are not known."""
    by_stage = {hop.stage: hop for hop in result.trace}
    if [stage for step in result.steps for stage in step] != [hop.stage for hop in result.trace]:
        return [[hop] for hop in result.trace]
    return [[by_stage[stage] for stage in step] for step in result.steps]


def _arrivals(result: InferenceResult, steps: Sequence[Sequence[Hop]]) -> dict[int, float | None]:
    """Return when each stage had its frame, None where that is not known; in order, as far as the acks allow."""
    if result.attempts != 1:  # the moments belong to different sends
        return {hop.stage: None for hop in result.trace}
    seen = {hop.stage: at for hop, at in zip(result.trace, result.taken_seconds, strict=False)}
    arrivals: dict[int, float | None] = {}
    following = [result.latency_seconds]
    for step in reversed(steps):
        # Of several senders and several receivers it is not known who sent to whom: the mildest bound is right for all.
        bound = min(following) if len(step) == 1 else max(following)
        following = []
        for hop in step:
            at, latest = seen.get(hop.stage), bound - _kept(hop)
            latest = latest if at is None else min(at, latest)
            arrivals[hop.stage] = None if at is None else latest
            following.append(latest)
    return arrivals


def _last_to_leave(step: Sequence[Hop], arrivals: dict[int, float | None]) -> tuple[str, float | None]:
    """Return the device of a step that a join waited for, and when it left."""
    left = [(at + _kept(hop), hop.device) for hop in step if (at := arrivals[hop.stage]) is not None]
    if len(left) < len(step):
        return step[-1].device, None
    when, device = max(left)
    return device, when


def _kept(hop: Hop) -> float:
    return hop.queued_seconds + hop.run_seconds


def _between(left: float | None, arrived: float | None) -> float | None:
    return None if left is None or arrived is None else max(0.0, arrived - left)
