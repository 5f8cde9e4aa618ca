"""The anytime search: what it returns, when it stops, and how near it comes to its bound."""

from __future__ import annotations

import math

import numpy as np
import pytest

from host.planning.search.anytime import Bounded, improve, improve_sum
from host.planning.search.assignment import Grid
from tests.large_grids import realistic_grid


def uneven(counts: tuple[int, int], speeds: tuple[float, float]) -> Grid:
    """Eight units of uneven work on two types; hops are free."""
    done = np.concatenate(([0.0], np.cumsum([7.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])))
    work = np.where(np.tri(9, k=0, dtype=bool), np.inf, done - done[:, None])
    run = np.stack([work / speed for speed in speeds])
    return Grid(run=run, link=np.zeros((2, 2, 9)), entry=np.zeros(2), exit=np.zeros(2), counts=counts)


def found(grid: Grid, most_replicas: int = 1) -> Bounded:
    bounded = improve(grid, most_replicas=most_replicas)
    assert bounded is not None
    return bounded


@pytest.mark.parametrize(("counts", "speeds"), [((3, 1), (1.0, 2.0)), ((1, 3), (2.0, 1.0))])
def test_the_fast_device_takes_the_heavy_end_whatever_the_types_are_called(
    counts: tuple[int, int], speeds: tuple[float, float]
) -> None:
    bounded = found(uneven(counts, speeds))
    assert (bounded.cost, bounded.bound, bounded.gap) == (4.0, 4.0, 0.0)


def test_devices_that_share_a_run_divide_its_cost() -> None:
    bounded = found(uneven((3, 3), (1.0, 1.0)), most_replicas=3)
    assert bounded.assignment is not None
    assert bounded.cost == bounded.bound == 20 / 6
    assert sum(run.count for run in bounded.assignment.runs) == 6


def test_nothing_is_possible_where_a_unit_has_no_place() -> None:
    grid = uneven((3, 1), (1.0, 2.0))
    grid.run[:, :4, 4:] = np.inf
    assert improve(grid) is None
    assert improve_sum(grid) is None


def test_nothing_is_possible_where_the_devices_do_not_suffice() -> None:
    grid = uneven((2, 1), (1.0, 1.0))
    grid.run[:] = np.where(grid.run > 7.0, np.inf, grid.run)  # room for no more than seven of the twenty
    grid.run[:, 0, 2:] = np.inf
    grid.run[:, :, 8] = np.where(np.arange(9) < 6, np.inf, grid.run[:, :, 8])
    assert improve(grid) is None


def test_costs_of_nothing_are_a_best_plan() -> None:
    grid = uneven((3, 1), (1.0, 2.0))
    grid.run[:] = np.where(np.isfinite(grid.run), 0.0, np.inf)
    bounded = found(grid)
    assert (bounded.cost, bounded.bound, bounded.gap) == (0.0, 0.0, 0.0)


def test_a_sum_keeps_to_the_counts() -> None:
    grid = uneven((3, 1), (1.0, 2.0))
    whole = improve_sum(grid)
    assert whole is not None
    assert (whole.cost, whole.bound) == (10.0, 10.0)  # all on the fast one
    limited = improve_sum(grid, limit=4.0)
    assert limited is not None
    assert limited.cost == pytest.approx(4 + 12)
    assert limited.gap < 1e-6


def test_time_that_is_up_leaves_a_valid_bound() -> None:
    grid = realistic_grid(0, units=60, devices=12, types=3)
    hurried, best = improve(grid, seconds=0.0), found(grid)
    assert hurried is not None
    assert hurried.bound <= best.cost <= hurried.cost
    assert Bounded(assignment=None, cost=math.inf, bound=1.0).gap == math.inf


def test_the_same_instance_gives_the_same_plan() -> None:
    grid = realistic_grid(1, units=80, devices=14, types=3)
    assert found(grid) == found(grid)


@pytest.mark.parametrize("links", [True, False])
def test_dozens_of_devices_are_planned_near_the_bound(links: bool) -> None:
    bounded = improve(realistic_grid(2, units=150, devices=30, types=4, links=links), seconds=60.0)
    assert bounded is not None
    assert bounded.gap <= 0.02


def test_devices_that_all_differ_are_planned_near_the_bound() -> None:
    bounded = improve(realistic_grid(3, units=60, devices=12, types=12), seconds=60.0)
    assert bounded is not None
    assert bounded.gap <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_units_on_a_hundred_devices_are_planned_within_five_percent(seed: int) -> None:
    grid = realistic_grid(seed, units=1_000, devices=100, types=6)
    bounded = improve(grid, seconds=120.0)
    assert bounded is not None
    assert bounded.gap <= 0.05


def test_the_solver_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    found(uneven((3, 1), (1.0, 2.0)))
    assert capfd.readouterr() == ("", "")
