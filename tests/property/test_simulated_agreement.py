"""Simulated fleets do what the planner says: small ones, limited by compute, links, broker, medium or window."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest

from edge.formats.plan import Constraints, Plan
from host.planning.costs import DeviceCost, LinkCost, Medium, Network
from host.planning.planner import plan_pipeline, predicted_rps
from host.planning.workload import workload_of
from host.simulate.bundle import SimulatedBundle
from host.simulate.client import CLIENT
from host.simulate.fleet import Deployed, SimulatedFleet, Traffic
from host.simulate.report import SimulationReport
from tests.simulated_fleets import chain_bundle, device

FULL_WINDOW = 12
"""Enough requests in flight that nothing waits for an answer to come back, and few enough that they do not queue for
the second after which the client sends again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A fleet with its plan."""

    bundle: SimulatedBundle
    devices: tuple[DeviceCost, ...]
    network: Network
    plan: Plan

    def run(self, traffic: Traffic) -> SimulationReport:
        deployed = Deployed(name="net", bundle=self.bundle, plan=self.plan, window=FULL_WINDOW)
        fleet = SimulatedFleet(self.devices, [deployed], network=self.network, coordination="none")
        return fleet.run(traffic)


def link(draw: random.Random, *, least: float = 3e6) -> LinkCost:
    return LinkCost(
        up_bytes_per_second=draw.uniform(least, 10 * least),
        down_bytes_per_second=draw.uniform(least, 10 * least),
        latency_seconds=draw.uniform(0.0001, 0.003),
    )


def random_network(draw: random.Random, devices: tuple[DeviceCost, ...]) -> Network:
    network = Network(client=link(draw))
    match draw.choice(("plain", "broker", "medium")):
        case "broker":
            return replace(network, broker_bytes_per_second=draw.uniform(2e6, 8e6))
        case "medium":
            nodes = [CLIENT, *(cost.name for cost in devices)]
            cell = Medium(
                name="cell",
                bytes_per_second=draw.uniform(3e6, 9e6),
                nodes=frozenset(draw.sample(nodes, k=max(1, len(nodes) // 2))),
            )
            return replace(network, media=(cell,))
        case _:
            return network


def random_case(seed: int, *, compute: float = 0.02) -> Case:
    draw = random.Random(seed)
    shards = draw.randint(2, 5)
    bundle = chain_bundle([draw.randrange(20_000, 250_000, 4) for _ in range(shards + 1)])
    kinds = [
        device("kind", [draw.uniform(0.1, 1.0) * compute for _ in range(shards)], link=link(draw)) for _ in range(2)
    ]
    devices = tuple(replace(draw.choice(kinds), name=f"pi-{index}") for index in range(draw.randint(1, 4)))
    network = random_network(draw, devices)
    plan = plan_pipeline(
        workload_of(bundle.manifest),
        devices,
        window=FULL_WINDOW,
        network=network,
        constraints=Constraints(most_replicas=draw.choice((1, 3))),
    )
    return Case(bundle=bundle, devices=devices, network=network, plan=plan)


@pytest.mark.parametrize("seed", range(24))
def test_throughput_is_what_the_plan_says(seed: int) -> None:
    case = random_case(seed)
    report = case.run(Traffic(requests=160, window=FULL_WINDOW))
    assert report.whole
    assert report.throughput == pytest.approx(predicted_rps(case.plan, FULL_WINDOW), rel=0.05)


@pytest.mark.parametrize("seed", range(24))
def test_one_request_alone_takes_as_long_as_the_plan_says(seed: int) -> None:
    case = random_case(seed)
    report = case.run(Traffic(requests=6, window=1))
    assert report.latency.p50 == pytest.approx(case.plan.latency_seconds, rel=0.05)


@pytest.mark.parametrize("seed", range(24, 28))
def test_where_links_limit_throughput_is_what_the_plan_says(seed: int) -> None:
    case = random_case(seed, compute=0.0005)
    assert "compute" not in case.plan.binds
    report = case.run(Traffic(requests=160, window=FULL_WINDOW))
    assert report.throughput == pytest.approx(predicted_rps(case.plan, FULL_WINDOW), rel=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_a_window_of_one_limits_throughput_to_one_request_at_a_time(seed: int) -> None:
    case = random_case(seed)
    report = case.run(Traffic(requests=40, window=1))
    assert report.throughput == pytest.approx(1 / case.plan.latency_seconds, rel=0.05)
