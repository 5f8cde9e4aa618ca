"""What a simulation found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from host.simulate.client import Ask

_WARM_UP = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Times from submission to answer, seconds; 0 when nothing was answered."""

    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    most: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationEvent:
    """Something that happened while requests were under way.

    Attributes:
        at: seconds after the first request.
        what: a `host.simulate.faults.FaultKind`, or `plan` for a new plan that came into service.
        name: the device, or the deployment.
        epoch: of a new plan.
        stages: devices that run each stage of a new plan.
        after_seconds: from the last fault before a new plan; None where there was none.
    """

    at: float
    what: str
    name: str
    epoch: str = ""
    stages: tuple[tuple[str, ...], ...] = ()
    after_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationReport:
    """Figures of one run; equal for equal fleets, traffic, faults and seeds.

    Attributes:
        devices: in the fleet.
        requests: accepted by the client.
        answered: that got a right or wrong answer.
        lost: accepted and not answered: with an error, or with no outcome at all.
        duplicated: with more than one outcome.
        wrong: whose answer was not the right one.
        resent: sent more than once.
        errors: outcomes that are none of the above, by class.
        failures: devices that were killed, cut or paused; those without power do not fail again.
        simulated_seconds: from the first request to the last outcome.
        throughput: answers in a second while requests were submitted, after the first fifth of those answers.
        latency: of all answers.
        broker_bytes: of tensors that the broker took in.
        messages_lost: of QoS 0, by the network.
        link_bytes: sent and received by each node.
        utilisation: part of the time that each device's processor was busy.
        epochs: that answered, or were served by, each deployment.
        predicted_throughput: what the first plans say for the requests in flight; 0 where they do not.
        predicted_latency: what they say of one request alone.
        happened: faults and new plans, in order.
        events: actions of the simulation, a measure of its work.
    """

    devices: int
    requests: int
    answered: int
    lost: int
    duplicated: int
    wrong: int
    resent: int
    errors: Mapping[str, int]
    failures: int
    simulated_seconds: float
    throughput: float
    latency: Latency
    broker_bytes: int
    messages_lost: int
    link_bytes: Mapping[str, tuple[int, int]]
    utilisation: Mapping[str, float]
    epochs: Mapping[str, str]
    predicted_throughput: float
    predicted_latency: float
    happened: tuple[SimulationEvent, ...]
    events: int

    @property
    def whole(self) -> bool:
        """Whether every request was answered once, and rightly."""
        return not (self.lost or self.duplicated or self.wrong)

    def as_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return asdict(self)


def outcome_figures(asks: Sequence[Ask], *, submitting_until: float) -> dict[str, Any]:
    """Return the figures that the requests alone give, by the names of `SimulationReport`.

    Args:
        asks: every request.
        submitting_until: when no more were submitted.
    """
    answered = [ask for ask in asks if ask.outcomes and not ask.error]
    return {
        "requests": len(asks),
        "answered": len(answered),
        "lost": len(asks) - len(answered),
        "duplicated": sum(ask.outcomes > 1 for ask in asks),
        "wrong": sum(not ask.right for ask in answered),
        "resent": sum(ask.sends > 1 for ask in answered),
        "errors": dict(sorted(Counter(ask.error for ask in asks if ask.error).items())),
        "throughput": steady_rate([ask.settled for ask in answered], until=submitting_until),
        "latency": latency_of([ask.settled - ask.submitted for ask in answered]),
    }


def steady_rate(times: Sequence[float], *, until: float) -> float:
    """Return how many of the times there are in a second until then, from the end of the first fifth of them on.

    Where requests were submitted all at once there are hardly two by then: all times count until the last one.
    """
    counted = sorted(time for time in times if time <= until)
    if len(counted) < 2 and len(times) >= 2:
        counted, until = sorted(times), max(times)
    steady = counted[int(len(counted) * _WARM_UP) :]
    if len(steady) < 2 or until <= steady[0]:
        return 0.0
    return (len(steady) - 1) / (until - steady[0])


def latency_of(seconds: Sequence[float]) -> Latency:
    """Return the percentiles of some times: the smallest of them that so many percent do not exceed."""
    if not seconds:
        return Latency()
    ordered = sorted(seconds)

    def at(share: int) -> float:
        return ordered[max(0, -(-len(ordered) * share // 100) - 1)]

    return Latency(p50=at(50), p90=at(90), p99=at(99), most=ordered[-1])
