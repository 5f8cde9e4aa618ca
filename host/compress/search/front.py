"""Which candidates are worth having, and which is the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from host.compress.search.trial import Costs, Trial

Objective = Literal["balanced", "size", "latency"]


def pareto_front(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The trials that no other one beats: none is at least as good in everything and better in something.

    Compared are bytes, predicted time on the device, measured time here, and how far inside the budget the accuracy is.
    """
    goods = {index: _goods(trial, trial.costs) for index, trial in enumerate(trials) if trial.costs is not None}
    beaten = {
        index
        for index, mine in goods.items()
        if any(theirs != mine and all(a >= b for a, b in zip(theirs, mine, strict=True)) for theirs in goods.values())
    }
    return tuple(trials[index] for index in goods if index not in beaten)


def best(trials: Sequence[Trial], original: Costs, objective: Objective) -> Trial | None:
    """The trial within the budget that costs least; None where there is none. The earlier one wins a tie."""
    kept = [trial for trial in trials if trial.keeps_budget and trial.costs is not None]
    return min(kept, key=lambda trial: cost(trial, original, objective), default=None)


def cost(trial: Trial, original: Costs, objective: Objective) -> float:
    """What is left of the original: its bytes, its predicted time, or the geometric mean of both."""
    if trial.costs is None:
        return float("inf")
    size = trial.costs.size_bytes / max(original.size_bytes, 1)
    time = trial.costs.predicted_seconds / max(original.predicted_seconds, 1e-12)
    return joined(size, time, objective)


def joined(size: float, time: float, objective: Objective) -> float:
    """One figure from the shares of bytes and of time that are left."""
    return float({"size": size, "latency": time, "balanced": (size * time) ** 0.5}[objective])


def closest(trials: Sequence[Trial], count: int = 3) -> tuple[Trial, ...]:
    """The trials that came closest to the budget."""
    return tuple(sorted((trial for trial in trials if trial.costs is not None), key=lambda t: -t.margin)[:count])


def _goods(trial: Trial, costs: Costs) -> tuple[float, ...]:
    # Two runs of one model differ by a few percent: that is no advantage.
    return (-costs.size_bytes, -costs.predicted_seconds, -round(costs.latency_ratio, 1), trial.margin)
