"""Twenty epochs switched under 5,000 streaming requests, between two models of equal shapes and different weights.

Broker, coordinator, agents, the command that deploys and the client that asks are real processes on this machine; every
answer is checked against the model of the epoch that it names. A switch lasts from when a coordinator has the command
until it is done and the new epoch has answered. The requests that overlap one of the switches are compared, all
together, with those that overlap the equally long windows just before. All of it is done a few times and medians are
printed: a hundredth of a few hundred requests is three of them.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos_models import make_bundles
from benchmarks.measure import Figure, Key, main_of, percentile, say
from host.broker import start_broker
from host.bundle import OpenBundle, open_bundle
from host.chaos.answers import Answers, work_out
from host.chaos.load import LoadDriver
from host.chaos.local import deploy
from host.chaos.oracle import Row, Sample, judge
from host.chaos.plan import LoadPart
from host.chaos.watcher import Watcher
from host.fleet.local import LocalAgent, local_agents
from host.give_way import give_way
from host.processes import running_child

RUNS = 3
REQUESTS = 5000
SWITCHES = 20
RATE = 120.0
"""Requests a second: what two cores carry with about half of their time."""

SEED = 1
FLEET = "switching"
DEVICES = ("pi-1", "pi-2")
PROFILE = "x86-gateway"
_PERIOD_SECONDS = REQUESTS / RATE / (SWITCHES + 1)
_COORDINATOR_SECONDS = 30.0
_COMMAND_SECONDS = 120.0
LOOKING = "looking for a coordinator"
"""What the command says before a coordinator has it."""

KEYS = (
    Key(name="requests", meaning="offered while epochs switched, in each run"),
    Key(name="switches", meaning="epochs that were put to work, in each run"),
    Key(name="lost", meaning="accepted requests without an outcome, or out of time; of all runs"),
    Key(name="twice", meaning="requests with more than one outcome; of all runs"),
    Key(name="wrong", meaning="answers that are not those of the epoch's model; of all runs"),
    Key(name="overlapping", meaning="requests that overlap one of the switches; median of the runs"),
    Key(name="steady_p99_ms", meaning="99th percentile of the latency in the windows before switches; median"),
    Key(name="switch_p99_ms", meaning="the same of the requests that overlap a switch"),
    Key(name="p99_ratio", meaning="the second through the first, run by run; median"),
    Key(name="steady_worst_ms", meaning="longest in one of the windows before switches; median of the runs"),
    Key(name="switch_worst_ms", meaning="longest that overlaps a switch; median"),
    Key(name="worst_ratio", meaning="the second through the first, run by run; median"),
    Key(name="switch_seconds", meaning="from when a coordinator has the command to its end; median"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Switch:
    """When an epoch was switched, in seconds of the monotonic clock.

    Attributes:
        epoch: The new one.
    """

    began: float
    ended: float
    epoch: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one run saw: whether all was right, and latencies in seconds in the windows before and during switches."""

    row: Row
    before: Sequence[float]
    during: Sequence[float]
    switch_seconds: Sequence[float]


def around(samples: Sequence[Sample], switch: Switch) -> tuple[list[float], list[float]]:
    """Latencies of the requests that overlap an equally long window before a switch, and of those that overlap it.

    A request that overlaps both belongs to the switch. A switch is not over before its epoch has answered.

    Args:
        samples: Of the whole run.
        switch: One of its switches.
    """
    answered = [sample for sample in samples if sample.outcome == "result"]
    ended = max([switch.ended, *sorted(sample.done for sample in answered if sample.epoch == switch.epoch)[:1]])
    start = switch.began - (ended - switch.began)
    before = [sample.done - sample.submitted for sample in answered if start <= sample.done < switch.began]
    during = [
        sample.done - sample.submitted
        for sample in answered
        if sample.submitted <= ended and sample.done >= switch.began
    ]
    return before, during


def run_of(samples: Sequence[Sample], switches: Sequence[Switch]) -> Run:
    """Judge the requests of one run."""
    pairs = [around(samples, switch) for switch in switches]
    return Run(
        row=judge("epochs", samples),
        before=[seconds for before, _ in pairs for seconds in before],
        during=[seconds for _, during in pairs for seconds in during],
        switch_seconds=[switch.ended - switch.began for switch in switches],
    )


def figures_of(runs: Sequence[Run]) -> dict[str, Figure]:
    """All figures of some runs."""

    def median(of: Callable[[Run], float]) -> float:
        return statistics.median(map(of, runs))

    return {
        "requests": min(run.row.offered for run in runs),
        "switches": min(len(run.switch_seconds) for run in runs),
        "lost": sum(run.row.lost for run in runs),
        "twice": sum(run.row.twice for run in runs),
        "wrong": sum(run.row.wrong for run in runs),
        "overlapping": median(lambda run: len(run.during)),
        "steady_p99_ms": median(lambda run: percentile(run.before, 99) * 1e3),
        "switch_p99_ms": median(lambda run: percentile(run.during, 99) * 1e3),
        "p99_ratio": median(lambda run: percentile(run.during, 99) / percentile(run.before, 99)),
        "steady_worst_ms": median(lambda run: max(run.before) * 1e3),
        "switch_worst_ms": median(lambda run: max(run.during) * 1e3),
        "worst_ratio": median(lambda run: max(run.during) / max(run.before)),
        "switch_seconds": median(lambda run: statistics.median(run.switch_seconds)),
    }


def switch_to(url: str, load: LoadPart, folder: str) -> Switch:
    """Put a bundle to work; call it in a process of its own, as a command line is one."""
    bundle = open_bundle(Path(folder))
    told: list[tuple[float, str]] = []
    epoch = deploy(url, FLEET, load, bundle, devices=DEVICES, say=lambda phase: told.append((time.monotonic(), phase)))
    # Until a coordinator is found nothing happens to the fleet: with that time the windows would be mostly idle.
    began = next(moment for moment, phase in told if phase != LOOKING)
    return Switch(began=began, ended=time.monotonic(), epoch=epoch)


@contextmanager
def fleet_in(folder: Path) -> Iterator[tuple[str, Watcher]]:
    """Run a broker, a coordinator and the agents, and watch them; yields the broker's URL and the watcher."""
    command = [sys.executable, "-P", "-m", "host", "coordinator", "--fleet", FLEET, "--name", "boss"]
    agents = [LocalAgent(name=name, profile=PROFILE) for name in DEVICES]
    with (
        start_broker(folder=folder / "broker") as broker,
        Watcher(broker.url, fleet=FLEET, deployment=LoadPart(bundles=()).deployment) as watcher,
        running_child([*command, "--broker", broker.url, "--folder", str(folder / "boss")], log=folder / "boss.log"),
        local_agents(broker.url, agents, folder=folder, fleet=FLEET),
    ):
        if not watcher.wait(lambda: watcher.alive("boss"), _COORDINATOR_SECONDS):
            raise RuntimeError("the coordinator does not come up")
        yield broker.url, watcher


def run(bundles: Sequence[OpenBundle], answers: Answers, folder: Path) -> tuple[list[Sample], list[Switch]]:
    """Switch epochs while requests stream; return what became of them."""
    asked = LoadPart(bundles=tuple(str(bundle.folder) for bundle in bundles), rate=RATE)
    with (
        fleet_in(folder) as (url, watcher),
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=give_way) as commands,
    ):
        commands.submit(switch_to, url, asked, asked.bundles[0]).result(_COMMAND_SECONDS)
        load = LoadDriver(
            url,
            fleet=FLEET,
            deployment=asked.deployment,
            answers=answers,
            digest=watcher.digest,
            rate=RATE,
            deadline_seconds=asked.deadline,
        )
        switches = []
        with load:
            began = time.monotonic()
            for number in range(SWITCHES):
                load.until(began + (number + 1) * _PERIOD_SECONDS)
                switches.append(
                    commands.submit(switch_to, url, asked, asked.bundles[(number + 1) % 2]).result(_COMMAND_SECONDS)
                )
            load.until(began + REQUESTS / RATE)
            return load.finish(), switches


def measure() -> dict[str, Figure]:
    """Take all figures."""
    runs = []
    with tempfile.TemporaryDirectory(prefix="shardwire-bench-") as temporary:
        folder = Path(temporary)
        say("packaging two networks of equal shapes")
        bundles = make_bundles(folder / "bundles")
        answers = work_out(bundles, mode="exact", seed=SEED)
        for number in range(RUNS):
            say(f"{REQUESTS} requests at {RATE:g} a second, {SWITCHES} switches: run {number + 1} of {RUNS}")
            runs.append(run_of(*run(bundles, answers, folder / str(number))))
            say(f"p99 {percentile(runs[-1].before, 99) * 1e3:.1f} to {percentile(runs[-1].during, 99) * 1e3:.1f} ms")
    return figures_of(runs)


def main() -> None:
    """Print them."""
    main_of(__doc__, measure, KEYS)


if __name__ == "__main__":
    main()
