"""Two agents of one thread each against one local process of one thread: EfficientNet-Lite0, over a real broker.

Agents, broker and client are processes of their own on this machine. The local process runs all shards in one session.
Both take turns. CPU time counts every process that takes part, so `cpu_ratio` is what going through a fleet costs.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fleet import FLEET, PROFILE, deploy, packaged
from benchmarks.measure import (
    Figure,
    Key,
    arguments,
    cpu_seconds,
    paired_ratio,
    percentile,
    report,
    say,
)
from edge.client import Client
from edge.formats.tensor import Array
from edge.stage import Stage
from host.answers import load_whole, read_tensors
from host.broker import start_broker
from host.bundle import OpenBundle
from host.fleet.local import LocalAgent, local_agents

AGENTS = (LocalAgent(name="pi-1", profile=PROFILE), LocalAgent(name="pi-2", profile=PROFILE))
WINDOWS = (1, 4)
WEIGHTS = {"int8": "int8", "fp32": "none"}
ROUNDS = 6
REQUESTS = 60
HEADLINE = "int8_window4"

_MEANINGS = {
    "throughput_ratio": "requests a second / the local process's",
    "cpu_ratio": "CPU time of agents, broker and client for a request / the local process's",
    "latency_ms_p50": "median latency of a request as the client sees it",
    "latency_ms_p99": "99th percentile of it",
    "requests_per_second": "of the pipeline",
    "local_requests_per_second": "of the local process, in the same rounds",
}
KEYS = (
    *(Key(name=name, meaning=f"{meaning} (int8, window 4)") for name, meaning in _MEANINGS.items()),
    *(
        Key(name=f"{name}_{weights}_window{window}", meaning=f"{meaning} ({weights}, window {window})")
        for weights in WEIGHTS
        for window in WINDOWS
        for name, meaning in _MEANINGS.items()
    ),
    *(Key(name=f"cpu_ms_{part}_{weights}", meaning=f"CPU time of a request at window 4: {part}, {weights}")
      for weights in WEIGHTS for part in ("local", "agents", "broker", "client")),
)  # fmt: skip

Tensors = Mapping[str, Array]


@dataclass(slots=True)
class Turns:
    """What the rounds of one way gave: seconds and CPU seconds a request."""

    wall: list[float] = field(default_factory=list)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)

    def total_cpu(self) -> list[float]:
        """CPU seconds a request of all processes, by round."""
        return [sum(parts) for parts in zip(*self.cpu.values(), strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """Who takes part, by process id; 0 is this process, which is the client."""

    agents: Sequence[int]
    broker: int

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far of each part."""
        return {
            "agents": sum(cpu_seconds(pid) for pid in self.agents),
            "broker": cpu_seconds(self.broker),
            "client": cpu_seconds("self"),
        }


def local_turn(stage: Stage, inputs: Tensors, turns: Turns) -> None:
    """Run the requests of one round here."""
    before, began = cpu_seconds("self"), time.perf_counter()
    for _ in range(REQUESTS):
        stage.run(inputs)
    turns.wall.append((time.perf_counter() - began) / REQUESTS)
    turns.cpu.setdefault("local", []).append((cpu_seconds("self") - before) / REQUESTS)


def pipeline_turn(
    client: Client, name: str, inputs: Tensors, turns: Turns, *, window: int, processes: Processes
) -> None:
    """Send the requests of one round through the agents."""
    before, began = processes.cpu(), time.perf_counter()
    results = list(client.stream(name, (inputs for _ in range(REQUESTS)), window=window))
    turns.wall.append((time.perf_counter() - began) / REQUESTS)
    for part, seconds in processes.cpu().items():
        turns.cpu.setdefault(part, []).append((seconds - before[part]) / REQUESTS)
    turns.latencies += [result.latency_seconds for result in results]


def compare(client: Client, bundle: OpenBundle, processes: Processes) -> dict[str, Turns]:
    """Take turns: local, then each window."""
    inputs = read_tensors(bundle, bundle.manifest.golden[0].inputs)
    name = bundle.manifest.name
    stage = load_whole(bundle, threads=1)
    turns = {way: Turns() for way in ("local", *map(str, WINDOWS))}
    for number in range(ROUNDS + 1):
        if number == 1:  # the first round warms everything up and is forgotten
            turns = {way: Turns() for way in turns}
        local_turn(stage, inputs, turns["local"])
        for window in WINDOWS:
            pipeline_turn(client, name, inputs, turns[str(window)], window=window, processes=processes)
    stage.close()
    return turns


def figures_of(weights: str, turns: Mapping[str, Turns]) -> Iterator[tuple[str, Figure]]:
    """The figures of one kind of weights."""
    local = turns["local"]
    for window in WINDOWS:
        way = turns[str(window)]
        found: dict[str, Figure] = {
            "throughput_ratio": paired_ratio(local.wall, way.wall),
            "cpu_ratio": paired_ratio(way.total_cpu(), local.total_cpu()),
            "latency_ms_p50": percentile(way.latencies, 50) * 1e3,
            "latency_ms_p99": percentile(way.latencies, 99) * 1e3,
            "requests_per_second": 1 / statistics.median(way.wall),
            "local_requests_per_second": 1 / statistics.median(local.wall),
        }
        yield from ((f"{name}_{weights}_window{window}", value) for name, value in found.items())
    for part, spent in {**local.cpu, **turns["4"].cpu}.items():
        yield f"cpu_ms_{part}_{weights}", statistics.median(spent) * 1e3


def measure() -> dict[str, Figure]:
    """Take all figures."""
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory(prefix="shardwire-bench-") as temporary:
        folder = Path(temporary)
        say("packaging EfficientNet-Lite0 in int8 and fp32")
        bundles = {weights: packaged(folder, quantize) for weights, quantize in WEIGHTS.items()}
        with (
            start_broker(folder=folder / "broker") as broker,
            local_agents(broker.url, AGENTS, folder=folder / "agents", fleet=FLEET) as agents,
        ):
            processes = Processes(agents=[agent.pid for agent in agents.values()], broker=broker.process.pid)
            for weights, bundle in bundles.items():
                plan = deploy(broker.url, bundle, tuple(agents))
                shards = ", ".join(f"{stage.first_shard}-{stage.stop_shard - 1}" for stage in plan.stages)
                say(f"{weights}: shards {shards} on two agents, {broker.kind}")
                with Client.connect(broker.url, fleet=FLEET) as client:
                    figures |= dict(figures_of(weights, compare(client, bundle, processes)))
    return {name: figures[f"{name}_{HEADLINE}"] for name in _MEANINGS} | figures


def main() -> None:
    """Print them."""
    as_json = arguments(__doc__)
    report(measure(), KEYS, as_json=as_json)


if __name__ == "__main__":
    main()
