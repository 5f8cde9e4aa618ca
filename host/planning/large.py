"""Plans for fleets that the exact search cannot hold: time-bounded, with a bound that says how far from the best.

Sections are not divided here, and the bound is over plans that do not divide them.
"""

from __future__ import annotations

from collections.abc import Callable

from edge.formats.plan import Objective
from host.planning.assignment import ROUNDING, Assignment
from host.planning.grid import energy_grid, latency_grid, load_grid, part_grid, shared_grids
from host.planning.limits import capped
from host.planning.search import Found, PeriodOf
from host.planning.tables import Tables


def best_of_large(
    objective: Objective, tables: Tables, *, most_replicas: int, seconds: float, period_of: PeriodOf
) -> Found | None:
    """Return the best assignment that was found in the time, or None when none was.

    Args:
        objective: what is least.
        tables: what everything takes.
        most_replicas: devices that may share a stage, for throughput.
        seconds: processor time.
        period_of: the bottleneck of an assignment, with all that hops share.
    """
    # Its solver takes longer to import than a plan takes to make.
    from host.planning.anytime import Bounded, improve, improve_sum

    searches: dict[Objective, Callable[[], Bounded | None]] = {
        "latency": lambda: improve_sum(latency_grid(tables), seconds=seconds),
        "energy": lambda: improve_sum(energy_grid(tables), seconds=seconds),
        "memory": lambda: improve(part_grid(tables), seconds=seconds),
        "throughput": lambda: improve(load_grid(tables), most_replicas=most_replicas, seconds=seconds),
    }
    bounded = searches[objective]()
    if bounded is None or bounded.assignment is None:
        return None
    if objective == "memory":
        part = part_grid(tables)
        emptiest = capped(load_grid(tables), part, bounded.cost * (1 + ROUNDING))
        quickest = improve(emptiest, seconds=seconds / 2, first=bounded.assignment)
        if quickest is not None and quickest.assignment is not None:
            return Found(assignment=quickest.assignment, bound=bounded.bound, by_used=None)
    if objective != "throughput":
        return Found(assignment=bounded.assignment, bound=bounded.bound, by_used=None)
    candidates, bound = [bounded.assignment], bounded.bound
    for grid in shared_grids(tables):
        if period_of(bounded.assignment) > bounded.cost:
            sparing = improve_sum(grid, seconds=seconds / 2)
            if sparing is not None:
                bound = max(bound, sparing.bound)
                candidates += [sparing.assignment] if sparing.assignment is not None else []
    best: Assignment = min(candidates, key=period_of)
    return Found(assignment=best, bound=bound, by_used=None)
