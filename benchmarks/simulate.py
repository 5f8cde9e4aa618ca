"""A thousand simulated devices of which one percent fail each minute, under steady traffic; nothing real is started.

Four deployments of a made-up model, five stages each, every stage on fifty devices that take turns. Devices that
fail are gone without a word; every other one comes back after half a minute. The same fleet without failures is the
baseline.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from benchmarks.chain import chain_manifest
from benchmarks.measure import Figure, Key, main_of, own_cpu_seconds, say
from edge.formats.plan import Stage
from host.planning.costs import LOCAL_NETWORK, DeviceCost, Network
from host.planning.price import price_plan
from host.planning.workload import workload_of
from host.simulate.bundle import SimulatedBundle, simulated_bundle
from host.simulate.faults import Fault, random_failures
from host.simulate.fleet import Deployed, SimulatedFleet, Traffic
from host.simulate.report import SimulationReport

KEYS = (
    Key(name="devices", meaning="in the fleet"),
    Key(name="requests", meaning="accepted by the client"),
    Key(name="answered", meaning="of them, with a result"),
    Key(name="lost", meaning="accepted and not answered"),
    Key(name="duplicated", meaning="with more than one outcome"),
    Key(name="wrong", meaning="answered with another number than every shard in order makes"),
    Key(name="resent", meaning="sent more than once"),
    Key(name="failures", meaning="devices that failed"),
    Key(name="simulated_seconds", meaning="from the first request to the last answer"),
    Key(name="wall_seconds", meaning="real time of the run with failures, on one core"),
    Key(name="cpu_seconds", meaning="processor time of that run"),
    Key(name="throughput", meaning="answers a second"),
    Key(name="latency_p50_seconds", meaning="from submission to answer, half of the requests"),
    Key(name="latency_p99_seconds", meaning="the same, all but one in a hundred"),
    Key(name="calm_throughput", meaning="answers a second of the same fleet without failures"),
    Key(name="calm_latency_p99_seconds", meaning="its latency, all but one in a hundred"),
    Key(name="calm_cpu_seconds", meaning="processor time of that run"),
)

CELLS, STAGES, RUNNERS = 4, 5, 50
SECONDS, RATE, PERCENT_PER_MINUTE = 180.0, 30.0, 1.0
DEADLINE_SECONDS = 120.0
SEED = 1


def cell(bundle: SimulatedBundle, devices: Sequence[DeviceCost], *, name: str) -> Deployed:
    """One deployment: as many devices for each stage, a shard each.

    Args:
        bundle: With as many shards as there are stages.
        devices: All alike.
        name: Of the deployment.
    """
    each = len(devices) // STAGES
    names = [device.name for device in devices]
    stages = [
        Stage(
            index=index,
            device=names[index * each],
            replicas=tuple(names[index * each + 1 : (index + 1) * each]),
            first_shard=index,
            stop_shard=index + 1,
        )
        for index in range(STAGES)
    ]
    window = 6 * each
    plan = price_plan(workload_of(bundle.manifest), devices, stages, window=window, network=Network())
    return Deployed(name=name, bundle=bundle, plan=plan, window=window)


def fleet_devices(count: int) -> list[DeviceCost]:
    """Devices of one kind, about a Raspberry Pi 4 on a cable."""
    return [
        DeviceCost(
            name=f"pi-{number}",
            shard_seconds=(0.1,) * STAGES,
            link=LOCAL_NETWORK,
            memory_bytes=1 << 30,
            flash_bytes=1 << 30,
            session_seconds=0.0004,
            message_seconds=0.001,
            message_seconds_per_byte=4e-9,
        )
        for number in range(count)
    ]


def simulate(*, cells: int, runners: int, seconds: float, faults: Sequence[Fault]) -> SimulationReport:
    """Run one fleet.

    Args:
        cells: Deployments.
        runners: Devices of each stage.
        seconds: Of traffic, at `RATE` requests a second.
        faults: What goes wrong.
    """
    size = STAGES * runners
    devices = fleet_devices(cells * size)
    bundle = simulated_bundle(chain_manifest([150_000, 120_000, 80_000, 40_000, 20_000, 4_000], weight_bytes=400_000))
    deployments = [
        cell(bundle, devices[number * size : (number + 1) * size], name=f"net-{number}") for number in range(cells)
    ]
    fleet = SimulatedFleet(devices, deployments, faults=faults, seed=SEED)
    return fleet.run(Traffic(seconds=seconds, rate=RATE, deadline_seconds=DEADLINE_SECONDS))


def measure(*, cells: int = CELLS, runners: int = RUNNERS, seconds: float = SECONDS) -> Mapping[str, Figure]:
    """Simulate the fleet with failures and without."""
    names = [device.name for device in fleet_devices(cells * STAGES * runners)]
    faults = random_failures(names, percent_per_minute=PERCENT_PER_MINUTE, seconds=seconds, seed=SEED)
    spent: list[tuple[float, float]] = []
    reports: list[SimulationReport] = []
    for what, happening in (("with failures", faults), ("without", ())):
        say(f"{len(names)} devices, {seconds:.0f} s of traffic, {what}")
        began, before = time.perf_counter(), own_cpu_seconds()
        reports.append(simulate(cells=cells, runners=runners, seconds=seconds, faults=happening))
        spent.append((time.perf_counter() - began, own_cpu_seconds() - before))
    report, calm = reports
    return {
        "devices": report.devices,
        "requests": report.requests,
        "answered": report.answered,
        "lost": report.lost,
        "duplicated": report.duplicated,
        "wrong": report.wrong,
        "resent": report.resent,
        "failures": report.failures,
        "simulated_seconds": report.simulated_seconds,
        "wall_seconds": spent[0][0],
        "cpu_seconds": spent[0][1],
        "throughput": report.throughput,
        "latency_p50_seconds": report.latency.p50,
        "latency_p99_seconds": report.latency.p99,
        "calm_throughput": calm.throughput,
        "calm_latency_p99_seconds": calm.latency.p99,
        "calm_cpu_seconds": spent[1][1],
    }


if __name__ == "__main__":
    main_of(__doc__, measure, KEYS)
