"""The planner against every placement there is, on thousands of small problems, and under every renaming of them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from edge.formats.plan import Constraints, Objective, Plan
from host.errors import PlanError
from host.planning import planner
from host.planning.costs import DeviceCost, LinkCost, Network, ShardCost, Workload
from host.planning.left_out import effective_period
from host.planning.planner import plan_pipeline
from host.planning.price import memory_of
from host.planning.search import trade_offs
from tests.placements import Costs, costs, placement_of, placements
from tests.random_plans import Problem, random_problem

SAME = 1e-9
"""Relative difference of two sums of the same numbers in another order, at most."""

# Features, shards, devices, problems, 5,200 in all: each brings what the others do not have. The first of them are
# checked in the fast suite.
BLOCKS = [
    ("", 6, 4, 400),
    ("alike", 6, 4, 400),
    ("alike", 8, 5, 40),
    ("sections", 6, 4, 150),
    ("sections alike", 7, 4, 100),
    ("sections alike", 8, 5, 40),
    ("sections", 7, 4, 400),
    ("pins alike", 6, 4, 300),
    ("pairs alike", 6, 4, 250),
    ("pairs sections", 6, 4, 120),
    ("budget alike", 6, 4, 300),
    ("budgets alike", 6, 4, 200),
    ("budget sections", 6, 4, 120),
    ("budgets pairs pins sections alike", 6, 4, 150),
    ("budgets pairs sections alike", 6, 4, 800),
    ("bends sections alike", 6, 4, 25),
    ("bends sections", 6, 4, 300),
    ("bends sections alike", 7, 4, 250),
    ("bends sections alike", 8, 5, 40),
    ("bends pins sections alike", 6, 4, 60),
    ("bends budget codec sections alike", 6, 4, 50),
    ("bends budgets sections", 6, 4, 35),
    ("bends budgets pairs pins sections alike", 6, 4, 70),
    ("bends budgets pairs pins sections alike", 6, 4, 400),
    ("codec", 6, 4, 100),
    ("codec sections alike", 6, 4, 100),
    ("builds alike", 6, 4, 100),
    ("builds bends sections alike", 6, 4, 100),
]
QUICK = 12


def parts() -> Iterator[Any]:
    """The quick part of each block, and the rest."""
    for features, shards, devices, problems in BLOCKS:
        quick = min(QUICK, problems) if devices < 5 else 4
        yield pytest.param(features, shards, devices, range(quick), id=f"{features} {shards}x{devices}")
        if problems > quick:
            name = f"{features} {shards}x{devices}, the rest"
            yield pytest.param(features, shards, devices, range(quick, problems), id=name, marks=pytest.mark.slow)


def plan_of(problem: Problem, *, worth: float = 0.0) -> Plan:
    return plan_pipeline(
        problem.workload,
        problem.devices,
        objective=problem.objective,
        window=problem.window,
        network=problem.network,
        constraints=problem.constraints,
        worth=worth,
    )


def planned(problem: Problem) -> Plan | None:
    try:
        return plan_of(problem)
    except PlanError:
        return None


def refusal(problem: Problem) -> str:
    with pytest.raises(PlanError) as caught:
        plan_of(problem)
    return str(caught.value)


def all_costs(problem: Problem) -> list[Costs]:
    every = placements(problem.workload, problem.devices, problem.network, problem.constraints, problem.objective)
    found = [costs(problem.workload, placement, problem.network, problem.window) for placement in every]
    return [cost for cost in found if cost is not None]


def check(problem: Problem) -> bool:
    """Compare with every placement; return whether there was a plan at all."""
    every, plan = all_costs(problem), planned(problem)
    assert (plan is not None) == bool(every)
    if plan is None:
        return False
    placement = placement_of(plan, problem.devices)
    got = costs(problem.workload, placement, problem.network, problem.window)
    assert got is not None, "it fits"
    assert plan.bottleneck_seconds == pytest.approx(got.period, rel=SAME)
    assert plan.latency_seconds == pytest.approx(got.latency, rel=SAME)
    assert plan.energy_joules == pytest.approx(got.energy, rel=SAME)
    assert memory_of(plan.stages) == got.memory
    assert plan.gap == 0
    assert {out.device for out in plan.left_out} == {on.name for on in problem.devices} - got.memory.keys()
    rivals = every
    for place, value in enumerate(got.key(problem.objective)):
        best = min(rival.key(problem.objective)[place] for rival in rivals)
        assert value == pytest.approx(best, rel=1e-8), f"part {place} of what is least"
        rivals = [rival for rival in rivals if rival.key(problem.objective)[place] <= best * (1 + 2 * SAME)]
    return True


@pytest.mark.parametrize(("features", "shards", "devices", "seeds"), list(parts()))
def test_the_plan_is_as_good_as_the_best_of_all_placements(
    features: str, shards: int, devices: int, seeds: range
) -> None:
    solved, problems = 0, len(seeds)
    for seed in seeds:
        problem = random_problem(seed, features=features.split(), most_shards=shards, most_devices=devices)
        try:
            solved += check(problem)
        except AssertionError as error:
            raise AssertionError(f"seed {seed} of {features!r}: {error}") from error
    if problems > QUICK:
        assert 0.15 * problems < solved, "there are plans"
        assert solved < 0.95 * problems or "bends" in features, "and problems that have none"


@pytest.mark.parametrize(("features", "exact"), [("alike", True), ("sections alike", True), ("budgets", False)])
def test_no_device_is_used_for_less_than_it_is_worth(features: str, exact: bool) -> None:
    worth, fewer = 0.2, 0
    for seed in range(60):
        problem = random_problem(3000 + seed, features=features.split(), objectives=["throughput"])
        best = planned(problem)
        if best is None:
            continue
        plan = plan_of(problem, worth=worth)
        period, reached = effective_period(plan, problem.window), effective_period(best, problem.window)
        assert reached * (1 - SAME) <= period <= reached * (1 + worth) * (1 + 2 * SAME)
        assert plan.gap == best.gap
        assert len(memory_of(plan.stages)) <= len(memory_of(best.stages))
        near = [cost for cost in all_costs(problem) if cost.effective <= reached * (1 + worth) * (1 + SAME)]
        least = min(cost.devices for cost in near)
        if not exact:
            continue
        assert len(memory_of(plan.stages)) == least, f"seed {seed}"
        if least < len(memory_of(best.stages)):
            fewer += 1
            soonest = min(cost.latency for cost in near if cost.devices == least)
            assert plan.latency_seconds == pytest.approx(soonest, rel=2 * SAME), f"seed {seed}"
        else:
            assert plan == msgspec.structs.replace(best, left_out=plan.left_out), f"seed {seed}"
    assert fewer > 3 or not exact


@pytest.mark.slow
def test_the_search_for_large_fleets_decides_between_equal_rates_in_the_same_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    solved = 0
    for seed in range(60):
        problem = random_problem(9000 + seed, features=["alike"], objectives=["throughput"])
        problem = replace(problem, constraints=Constraints(most_replicas=problem.constraints.most_replicas))
        best = planned(problem)
        if best is None:
            continue
        with monkeypatch.context() as patched:
            patched.setattr(planner, "MAX_STATES", 0)
            plan, spared = plan_of(problem), plan_of(problem, worth=0.2)
        reached, found = effective_period(best, problem.window), effective_period(plan, problem.window)
        assert reached * (1 - SAME) <= found <= reached * (1 + plan.gap) * (1 + SAME), f"seed {seed}"
        assert effective_period(spared, problem.window) <= found * 1.2 * (1 + SAME)
        assert len(memory_of(spared.stages)) <= len(memory_of(plan.stages))
        if found <= reached * (1 + SAME):
            assert plan.latency_seconds <= best.latency_seconds * (1 + 1e-6), f"seed {seed}"
            assert len(memory_of(plan.stages)) <= len(memory_of(best.stages)), f"seed {seed}"
            solved += 1
    assert solved > 25


def outcome(problem: Problem) -> tuple[float, ...] | None:
    plan = planned(problem)
    if plan is None:
        return None
    found = costs(problem.workload, placement_of(plan, problem.devices), problem.network, problem.window)
    assert found is not None
    return found.key(problem.objective)


def renamed(problem: Problem, names: dict[str, str]) -> Problem:
    """The same problem, with other names for its devices."""
    network = problem.network
    return replace(
        problem,
        devices=tuple(replace(device, name=names[device.name]) for device in problem.devices),
        network=replace(
            network,
            pairs={(names[a], names[b]): link for (a, b), link in network.pairs.items()},
            media=tuple(
                replace(medium, nodes=frozenset(names.get(node, node) for node in medium.nodes))
                for medium in network.media
            ),
        ),
        constraints=msgspec.structs.replace(
            problem.constraints,
            pins=tuple(msgspec.structs.replace(p, device=names[p.device]) for p in problem.constraints.pins),
            forbidden=tuple(msgspec.structs.replace(p, device=names[p.device]) for p in problem.constraints.forbidden),
        ),
    )


def assert_same_under_every_renaming(problem: Problem) -> None:
    first = outcome(problem)
    names = [device.name for device in problem.devices]
    for order in itertools.permutations(range(len(names))):
        called = renamed(problem, {name: f"x{place}" for name, place in zip(names, order, strict=True)})
        moved = replace(problem, devices=tuple(problem.devices[place] for place in order))
        for other in (called, moved):
            assert outcome(other) == (None if first is None else pytest.approx(first, rel=SAME)), order


@pytest.mark.parametrize(
    "features",
    [
        "alike",
        "sections alike",
        "bends sections alike",
        "pairs",
        "budgets alike",
        "pins alike",
        "budgets pairs pins sections",
    ],
)
def test_neither_names_nor_order_of_the_devices_change_what_the_plan_costs(features: str) -> None:
    for seed in range(8):
        assert_same_under_every_renaming(random_problem(5000 + seed, features=features.split()))


def three_slow_and_one_fast(objective: Objective, most_replicas: int) -> Problem:
    """The shape on which a published scheduler is 1.75 times slower once two types of devices are renamed."""
    layers = (9.0, 2.0, 7.0, 4.0, 4.0, 1.0, 8.0, 5.0)
    link = LinkCost(up_bytes_per_second=100, down_bytes_per_second=100, latency_seconds=0.01)
    devices = [
        DeviceCost(
            name=f"{name}",
            shard_seconds=tuple(seconds / speed for seconds in layers),
            link=link,
            memory_bytes=1000,
            flash_bytes=1000,
            busy_watts=speed,
        )
        for name, speed in (("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 4.0))
    ]
    shard = ShardCost(blobs={}, received_bytes=20, sent_bytes=20)
    return Problem(
        workload=Workload(shards=(shard,) * len(layers)),
        devices=tuple(devices),
        objective=objective,
        window=4,
        network=Network(client=link),
        constraints=Constraints(most_replicas=most_replicas),
    )


@pytest.mark.parametrize("objective", ["throughput", "latency", "energy", "memory"])
@pytest.mark.parametrize("most_replicas", [1, 4])
def test_three_slow_devices_and_a_fast_one_do_the_same_whatever_they_are_called(
    objective: Objective, most_replicas: int
) -> None:
    problem = three_slow_and_one_fast(objective, most_replicas)
    assert check(problem)
    assert_same_under_every_renaming(problem)


def scaled(problem: Problem) -> Problem:
    """All bytes in MiB, and so much flash that only memory binds."""
    shards = tuple(
        replace(
            shard,
            blobs={digest: size << 20 for digest, size in shard.blobs.items()},
            extra_bytes=shard.extra_bytes << 20,
            peak_activation_bytes=shard.peak_activation_bytes << 20,
            received_bytes=shard.received_bytes << 20,
            sent_bytes=shard.sent_bytes << 20,
        )
        for shard in problem.workload.shards
    )
    devices = tuple(
        replace(on, memory_bytes=on.memory_bytes << 18, session_bytes=on.session_bytes << 20, flash_bytes=1 << 40)
        for on in problem.devices
    )
    return replace(problem, workload=Workload(shards=shards), devices=devices)


def test_the_memory_that_the_error_asks_for_is_enough_and_no_less_is() -> None:
    asked = 0
    for seed in range(250):
        problem = scaled(random_problem(seed, features=["alike"]))
        if planned(problem) is not None or problem.constraints.use_all:
            continue
        found = re.search(r"; ([0-9.]+) MiB more on each would do", refusal(problem))
        assert found
        lacking = math.ceil(float(found[1]) * 2**20)
        enough = [replace(on, memory_bytes=on.memory_bytes + lacking) for on in problem.devices]
        assert planned(replace(problem, devices=tuple(enough)))
        short = [replace(on, memory_bytes=on.memory_bytes + lacking - 2**18) for on in problem.devices]
        assert planned(replace(problem, devices=tuple(short))) is None
        asked += 1
    assert asked > 30


@pytest.mark.slow
def test_where_the_trade_offs_are_too_many_the_plan_says_how_far_from_the_best_it_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trade_offs, "MAX_LABELS", 0)
    bound_by_budget = 0
    for seed in range(200):
        features = "budget alike" if seed % 2 else "budgets alike"
        problem = random_problem(7000 + seed, features=features.split(), objectives=["throughput"])
        plan = planned(problem)
        if plan is None:
            continue
        best = min(cost.effective for cost in all_costs(problem))
        assert best * (1 - SAME) <= effective_period(plan, problem.window) <= best * (1 + plan.gap) * (1 + 1e-8)
        bound_by_budget += plan.binds == "the broker" or plan.binds.startswith("Wi-Fi")
    assert bound_by_budget > 12
