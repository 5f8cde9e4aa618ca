"""Bounds and assignments of the anytime search, on hundreds of small instances that can be solved exactly."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
import pytest

from host.planning.search.anytime import improve, improve_sum
from host.planning.search.assignment import Assignment, Grid, Run, Search
from host.planning.search.limits import divided, search_within
from tests.large_grids import small_grids

INSTANCES = 160


def least_by_trying(grid: Grid, most_replicas: int) -> float:
    """The least largest cost, by every way there is, forks left out."""
    types = range(len(grid.counts))

    @lru_cache(None)
    def onward(cut: int, last: int, free: tuple[int, ...]) -> float:
        if cut == grid.run.shape[1] - 1:
            return float(grid.exit[last])
        best = math.inf
        for on, stop in itertools.product(types, range(cut + 1, grid.run.shape[1])):
            hop = grid.entry[on] if cut == 0 else grid.link[last, on, cut]
            for count in range(1, min(most_replicas, free[on]) + 1):
                left = tuple(number - count * (type_ == on) for type_, number in enumerate(free))
                best = min(best, max(float(hop), float(grid.run[on, cut, stop]) / count, onward(stop, on, left)))
        return best

    return onward(0, 0, grid.counts)


def check_runs(grid: Grid, assignment: Assignment, most_replicas: int) -> None:
    used = np.zeros(len(grid.counts))
    for run in assignment.runs:
        used[run.type] += run.count
        assert 1 <= run.count <= most_replicas
    assert (used <= grid.counts).all()
    bounds = [(run.first, run.stop) for run in assignment.runs]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == grid.places[-1]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds))


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3))])
def test_the_bound_is_below_and_the_cost_above_what_is_best(part: int) -> None:
    met = with_forks = 0
    for seed in range(part, INSTANCES, 4):
        grid, _ = small_grids(seed)
        replicas = 1 + seed % 3
        best = Search(grid, np.maximum, divided(grid, replicas)).least() if np.isfinite(grid.entry).all() else None
        if not grid.forks:
            best = least_by_trying(grid, replicas)
        found = improve(grid, most_replicas=replicas)
        if best is None:
            continue
        if found is None:
            assert best == math.inf, seed
            continue
        assert found.bound <= best <= found.cost, seed
        # Instances this small are solved to the end.
        assert found.gap == 0.0, seed
        assert found.assignment is not None
        check_runs(grid, found.assignment, replicas)
        met += 1
        with_forks += any(run.beside for run in found.assignment.runs)
    assert met > 20
    assert with_forks > 0


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3))])
def test_sums_within_a_limit_are_bounded_too(part: int) -> None:
    met = 0
    for seed in range(part, INSTANCES, 4):
        limited, summed = small_grids(seed)
        replicas = 1 + seed % 3
        widest = improve(limited, most_replicas=replicas)
        if widest is None or not np.isfinite(limited.entry).all():
            continue
        period = widest.cost * 1.2
        best = search_within(limited, summed, period, replicas, ()).least()
        found = improve_sum(summed, within=limited, limit=period * (1 + 1e-9), most_replicas=replicas)
        if found is None:
            assert best == math.inf, seed
            continue
        assert found.bound <= best * (1 + 1e-9) + 1e-9, seed
        assert best <= found.cost * (1 + 1e-9) + 1e-9, seed
        assert found.gap <= 1e-6, seed
        met += 1
    assert met > 10


@pytest.mark.parametrize("seed", range(0, 40, 5))
def test_the_cost_does_not_depend_on_the_order_of_the_types(seed: int) -> None:
    grid, _ = small_grids(seed)
    order = np.random.default_rng(seed).permutation(len(grid.counts))
    turned = Grid(
        run=grid.run[order],
        link=grid.link[np.ix_(order, order)],
        entry=grid.entry[order],
        exit=grid.exit[order],
        counts=tuple(grid.counts[type_] for type_ in order),
        places=grid.places,
    )
    plain = Grid(run=grid.run, link=grid.link, entry=grid.entry, exit=grid.exit, counts=grid.counts, places=grid.places)
    found, again = improve(plain), improve(turned)
    assert (found is None) == (again is None)
    if found is not None and again is not None:
        assert found.cost == again.cost
        assert found.bound == again.bound


def test_what_is_known_is_never_made_worse() -> None:
    grid, _ = small_grids(1)
    best = improve(grid)
    assert best is not None
    assert best.assignment is not None
    hurried = improve(grid, seconds=0.0, first=best.assignment)
    assert hurried is not None
    if not grid.forks:
        assert hurried.cost == best.cost
    nonsense = Assignment(cost=0.0, runs=(Run(type=0, first=0, stop=99),))
    again = improve(grid, first=nonsense)
    assert again is not None
    assert again.cost == best.cost
