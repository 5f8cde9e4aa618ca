"""Three unequal devices: does the plan keep what it predicts, and what do an even split and one by memory give?

Each agent is a small host of its own (`benchmarks.hosts`): 60 %, 30 % and 15 % of a core, links of 100, 100 and 20
Mbit/s, and memory the other way round, as old boards with much of it are found. The devices measure themselves with
`shardwire bench`'s code; all three plans are deployed side by side from these measurements and answer in turns. The
even split gives every device as many shards, the other one as many bytes of weights as its part of the memory, in the
order of the fleet. The model is all-MiniLM-L6-v2 in fp32, whose layers are alike, so that an even split is a fair one.
The simulator runs the same three plans with the same measurements.
"""

from __future__ import annotations

import secrets
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.fleet import FLEET
from benchmarks.hosts import GATEWAY, SmallHost, small_hosts
from benchmarks.measure import Figure, Key, main_of, say
from edge.client import Client
from edge.formats.message import DeployRequest
from edge.formats.plan import Constraints, Pin, Plan
from host.answers import read_tensors
from host.broker import start_broker
from host.bundle import OpenBundle
from host.fleet.bench import BenchOrder, run_bench
from host.fleet.blobs import BundleBlobs
from host.fleet.command import Course, run_command
from host.fleet.local import LocalAgent, local_agents
from host.fleet.survey import fleet_costs
from host.package import PackageRequest, package
from host.planning.costs import DeviceCost
from host.planning.planner import predicted_rps
from host.simulate.bundle import simulated_bundle
from host.simulate.fleet import Deployed, SimulatedFleet, Traffic

HOSTS = (
    SmallHost(name="fast", number=1, cpu_share=0.6, megabits=100),
    SmallHost(name="middle", number=2, cpu_share=0.3, megabits=100),
    SmallHost(name="slow", number=3, cpu_share=0.15, megabits=20),
)
MEMORY_BYTES = {"fast": 512 << 20, "middle": 512 << 20, "slow": 1024 << 20}
PROFILE = "x86-gateway"
WINDOW = 8
ROUNDS = 5
REQUESTS = 40
BENCH_SECONDS = 20.0

KEYS = (
    Key(name="predicted_rps", meaning="requests a second that the plan predicts from what the devices measured"),
    Key(name="measured_rps", meaning="what it gives: median over the rounds"),
    Key(name="even_split_rps", meaning="what the even split gives in the same rounds"),
    Key(name="memory_split_rps", meaning="what the split by memory gives in the same rounds"),
    Key(name="simulated_rps", meaning="what the simulator gives for the plan"),
    Key(name="simulated_even_split_rps", meaning="what it gives for the even split"),
    Key(name="simulated_memory_split_rps", meaning="what it gives for the split by memory"),
    Key(name="measured_by_predicted", meaning="measured / predicted"),
    Key(name="gain_over_even", meaning="measured through the plan / through the even split"),
    Key(name="predicted_gain_over_even", meaning="the same as predicted"),
    Key(name="gain_over_memory", meaning="measured through the plan / through the split by memory"),
    Key(name="predicted_gain_over_memory", meaning="the same as predicted"),
    Key(name="stages", meaning="devices that the plan uses"),
    Key(name="binds", meaning="what its bottleneck is"),
)


def split(shards: int, weights: Sequence[float], sizes: Sequence[float]) -> list[int]:
    """First shard of each part, and the end: parts of the total size in proportion to the weights, each not empty."""
    total, whole = sum(sizes), sum(weights)
    bounds, part, done = [0], 0.0, 0.0
    for index, size in enumerate(sizes):
        wanted = (part + weights[len(bounds) - 1]) / whole * total
        left, parts = shards - index, len(weights) - len(bounds)
        if len(bounds) < len(weights) and index > bounds[-1] and (done + size / 2 > wanted or left <= parts):
            part += weights[len(bounds) - 1]
            bounds.append(index)
        done += size
    return [*bounds, shards]


def pinned(bundle: OpenBundle, bounds: Sequence[int]) -> Constraints:
    """Constraints that leave one plan: the shards between two bounds on each host in turn."""
    shards = bundle.manifest.shards
    pins = [
        Pin(layer=shards[index].first_layer, device=host.name)
        for host, (first, stop) in zip(HOSTS, pairwise(bounds), strict=True)
        for index in range(first, stop)
    ]
    return Constraints(devices=tuple(host.name for host in HOSTS), pins=tuple(pins), side_by_side=False)


def measure_devices(url: str, bundle: OpenBundle) -> tuple[DeviceCost, ...]:
    """Let the devices time the bundle, as `shardwire bench BUNDLE` does; return what they cost then."""
    order = BenchOrder(manifest=bundle.manifest_blob, fits=False, most_seconds=BENCH_SECONDS)
    names = [host.name for host in HOSTS]
    results = run_bench(url, order, BundleBlobs(bundle), fleet=FLEET, names=names, on_change=lambda *_: None)
    for result in results:
        if result.speed is None or result.reason:
            raise RuntimeError(f"{result.about.node} measured nothing: {result.reason}")
        speed = result.speed
        model = next(found for found in speed.models if found.manifest == bundle.manifest_blob.digest)
        link = speed.link.bytes_per_second * 8e-6 if speed.link is not None else 0.0
        say(
            f"{speed.node}: {sum(model.shard_seconds) * 1e3:.1f} ms the model, {model.session_seconds * 1e3:.2f} ms a "
            f"session, {speed.message_seconds * 1e3:.2f} ms and {speed.message_seconds_per_byte * 1e9:.1f} ns a byte "
            f"a message, {link:.0f} Mbit/s, in {result.seconds:.0f} s"
        )
    speeds = {result.about.node: result.speed for result in results if result.speed is not None}
    abouts = [result.about for result in results]
    return fleet_costs(bundle.manifest, abouts, mode="default", digest=bundle.manifest_blob.digest, speeds=speeds)


def simulated_rps(bundle: OpenBundle, plan: Plan, costs: Sequence[DeviceCost]) -> float:
    """Answers a second of the same plan in the simulator."""
    deployed = Deployed(name="simulated", bundle=simulated_bundle(bundle.manifest), plan=plan, window=WINDOW)
    fleet = SimulatedFleet(costs, [deployed], coordination="none")
    return fleet.run(Traffic(requests=4 * REQUESTS)).throughput


def deploy(url: str, bundle: OpenBundle, name: str, constraints: Constraints) -> Plan:
    """Put the bundle to work under a name; return the plan."""
    course = Course(name=name)

    def watch(now: Course) -> None:
        nonlocal course
        course = now

    request = DeployRequest(
        request_id=secrets.token_hex(8),
        name=name,
        manifest=bundle.manifest_blob,
        holders=(),
        constraints=constraints,
        window=WINDOW,
        reply_to="",
    )
    run_command(url, request, fleet=FLEET, blobs=BundleBlobs(bundle), on_change=watch)
    if course.plan is None:
        raise RuntimeError(f"{name} has no plan")
    stages = ", ".join(
        f"{s.device} {s.first_shard}-{s.stop_shard - 1} ({s.predicted_seconds * 1e3:.1f} ms, {s.source})"
        for s in course.plan.stages
    )
    say(
        f"{name}: {stages}; {predicted_rps(course.plan, WINDOW):.1f} requests/s predicted, bound by {course.plan.binds}"
    )
    return course.plan


def in_turns(client: Client, bundle: OpenBundle, names: Sequence[str]) -> dict[str, float]:
    """Requests a second through each deployment, median over the rounds; the first round warms up."""
    inputs = read_tensors(bundle, bundle.manifest.golden[0].inputs)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(ROUNDS + 1):
        for name in names:
            began = time.perf_counter()
            for _ in client.stream(name, (inputs for _ in range(REQUESTS)), window=WINDOW):
                pass
            if number:
                found[name].append(REQUESTS / (time.perf_counter() - began))
    return {name: statistics.median(rates) for name, rates in found.items()}


def measure() -> dict[str, Figure]:
    """Take all figures."""
    with tempfile.TemporaryDirectory(prefix="shardwire-bench-") as temporary:
        folder = Path(temporary)
        say("packaging all-MiniLM-L6-v2 in fp32")
        bundle = package(
            PackageRequest(
                source="benchmarks.models:minilm",
                inputs="benchmarks.sentences:samples",
                profile=PROFILE,
                target=folder / "minilm",
                quantize="none",
                name="minilm",
            )
        ).bundle
        agents = [
            LocalAgent(name=host.name, profile=PROFILE, memory_limit_bytes=MEMORY_BYTES[host.name], within=host.within)
            for host in HOSTS
        ]
        with (
            small_hosts(*HOSTS),
            start_broker("mosquitto", folder=folder / "broker", address=GATEWAY) as broker,
            local_agents(broker.url, agents, folder=folder / "agents", fleet=FLEET),
        ):
            say("the devices measure themselves")
            costs = measure_devices(broker.url, bundle)
            return _compared(broker.url, bundle, costs)


def _compared(url: str, bundle: OpenBundle, costs: Sequence[DeviceCost]) -> dict[str, Figure]:
    shards = bundle.manifest.shards
    even = split(len(shards), [1.0] * len(HOSTS), [1.0] * len(shards))
    by_memory = split(len(shards), [float(MEMORY_BYTES[h.name]) for h in HOSTS], [float(s.size_bytes) for s in shards])
    wanted: Mapping[str, Constraints] = {
        "planned": Constraints(devices=tuple(host.name for host in HOSTS)),
        "even": pinned(bundle, even),
        "by-memory": pinned(bundle, by_memory),
    }
    plans = {name: deploy(url, bundle, name, constraints) for name, constraints in wanted.items()}
    with Client.connect(url, fleet=FLEET) as client:
        measured = in_turns(client, bundle, list(plans))
    predicted = {name: predicted_rps(plan, WINDOW) for name, plan in plans.items()}
    simulated = {name: simulated_rps(bundle, plan, costs) for name, plan in plans.items()}
    return {
        "predicted_rps": predicted["planned"],
        "measured_rps": measured["planned"],
        "even_split_rps": measured["even"],
        "memory_split_rps": measured["by-memory"],
        "simulated_rps": simulated["planned"],
        "simulated_even_split_rps": simulated["even"],
        "simulated_memory_split_rps": simulated["by-memory"],
        "measured_by_predicted": measured["planned"] / predicted["planned"],
        "gain_over_even": measured["planned"] / measured["even"],
        "predicted_gain_over_even": predicted["planned"] / predicted["even"],
        "gain_over_memory": measured["planned"] / measured["by-memory"],
        "predicted_gain_over_memory": predicted["planned"] / predicted["by-memory"],
        "stages": len(plans["planned"].stages),
        "binds": plans["planned"].binds,
    }


if __name__ == "__main__":
    main_of(__doc__, measure, KEYS)
