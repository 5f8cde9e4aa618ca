"""`shardwire simulate`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edge.formats.bundle import Manifest
from edge.formats.plan import Constraints, Plan
from edge.formats.profile import load_profile
from host.bundle import open_bundle
from host.cli.console import err, out, print_json, size_text, table
from host.cli.options import (
    DEFAULT_REPLICAS,
    DEFAULT_WINDOW,
    CodecOption,
    Json,
    ObjectiveOption,
    Replicas,
    UseAll,
    Window,
)
from host.cli.plan_source import read_fleet_file
from host.errors import PlanError
from host.planning.codecs import BOTH, CodecPlan, best_codec, deflating
from host.planning.costs import DeviceCost, Network
from host.planning.fleet_entries import DeviceEntry
from host.planning.fleet_file import DescribedDevice, DescribedFleet, described_costs
from host.planning.planner import plan_pipeline
from host.simulate.bundle import simulated_bundle
from host.simulate.faults import Fault, FaultKind, parse_fault, random_failures
from host.simulate.fleet import Deployed, SimulatedFleet, Traffic
from host.simulate.network import Weather
from host.simulate.report import SimulationReport

NAME = "simulated"
DEFAULT_REQUESTS = 1000
DEFAULT_DEVICES = 3
MAX_DEVICES = 4096
MOST_FAILING_SECONDS = 3600.0
"""For how long devices fail where only requests are counted."""

_SAY_SECONDS = 1.0

_File = Annotated[
    Path | None, typer.Option("--fleet", help="Fleet file (.toml); devices of the bundle's profile if left out.")
]
_Count = Annotated[
    int, typer.Option("--devices", min=0, max=MAX_DEVICES, help="So many devices, like those of the file in turn.")
]
_Requests = Annotated[int, typer.Option("--requests", min=0, help="End after so many requests.")]
_Seconds = Annotated[float, typer.Option("--seconds", min=0.0, help="End after so many simulated seconds.")]
_Rate = Annotated[
    float, typer.Option("--rate", min=0.0, help="Requests a second, at random times; else the window is kept full.")
]
_Deadline = Annotated[float, typer.Option("--deadline", min=0.001, help="Seconds in which a request wants its answer.")]
_Loss = Annotated[float, typer.Option("--loss", min=0.0, max=0.99, help="Part of the packets that get lost.")]
_Twice = Annotated[float, typer.Option("--duplicate", min=0.0, max=0.99, help="Part of the messages that come twice.")]
_Late = Annotated[
    float, typer.Option("--reorder", min=0.0, max=0.99, help="Part of the messages that come behind others.")
]
_Fail = Annotated[
    float, typer.Option("--fail", min=0.0, max=1000.0, help="Percent of the devices that fail each minute.")
]
_Slow = Annotated[list[str] | None, typer.Option("--slow", help="Slow a device down.", metavar="NAME:FACTOR@SECONDS")]
_Kill = Annotated[list[str] | None, typer.Option("--kill", help="Take a device's power away.", metavar="NAME@SECONDS")]
_Join = Annotated[list[str] | None, typer.Option("--join", help="Give a device power.", metavar="NAME@SECONDS")]
_Pause = Annotated[
    list[str] | None, typer.Option("--pause", help="Stop an agent for a while.", metavar="NAME:LENGTH@SECONDS")
]
_Cut = Annotated[
    list[str] | None, typer.Option("--cut", help="Cut a device off for a while.", metavar="NAME:LENGTH@SECONDS")
]
_Replan = Annotated[bool, typer.Option("--replan", help="Let the coordinator plan again when that pays.")]
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Of everything that is drawn.")]


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    fleet: _File = None,
    devices: _Count = 0,
    objective: ObjectiveOption = "throughput",
    use_all: UseAll = False,
    replicas: Replicas = DEFAULT_REPLICAS,
    window: Window = DEFAULT_WINDOW,
    codec: CodecOption = "raw",
    requests: _Requests = 0,
    seconds: _Seconds = 0.0,
    rate: _Rate = 0.0,
    deadline: _Deadline = 30.0,
    loss: _Loss = 0.0,
    duplicate: _Twice = 0.0,
    reorder: _Late = 0.0,
    fail: _Fail = 0.0,
    slow: _Slow = None,
    kill: _Kill = None,
    join: _Join = None,
    pause: _Pause = None,
    cut: _Cut = None,
    replan: _Replan = False,
    seed: _Seed = 0,
    json: Json = False,
) -> None:
    """Run a bundle on a fleet that is not there, on a virtual clock, with what may go wrong."""
    manifest = open_bundle(bundle).manifest
    costs, network = _fleet(manifest, fleet, devices)
    faults = _faults({"slow": slow, "kill": kill, "join": join, "pause": pause, "cut": cut})
    late = {fault.device for fault in faults if fault.kind == "join"}
    late -= {fault.device for fault in faults if fault.kind == "kill"}
    found = best_codec(
        manifest,
        [cost for cost in costs if cost.name not in late],
        plan_pipeline,
        network=network,
        constraints=Constraints(use_all=use_all, most_replicas=replicas),
        objective=objective,
        window=window,
        codecs=BOTH if codec == "auto" else (codec,),
    )
    names = [cost.name for cost in costs]
    drawn = random_failures(names, percent_per_minute=fail, seconds=seconds or MOST_FAILING_SECONDS, seed=seed)
    deployed = Deployed(name=NAME, bundle=simulated_bundle(manifest), plan=found.plan, window=window, codec=found.codec)
    simulated = SimulatedFleet(
        costs if found.codec == "raw" else deflating(costs),
        [deployed],
        network=network,
        faults=(*faults, *drawn),
        weather=Weather(loss=loss, duplication=duplicate, reordering=reorder),
        coordination="replans" if replan else "commands",
        seed=seed,
    )
    count = requests if requests or seconds else DEFAULT_REQUESTS
    traffic = Traffic(requests=count, seconds=seconds, rate=rate, deadline_seconds=deadline)
    _run(simulated, traffic, found, json=json)


def _run(simulated: SimulatedFleet, traffic: Traffic, found: CodecPlan, *, json: bool) -> None:
    for name in ("edge", "host.fleet", "host.simulate"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what devices and coordinator log of each failure
    began = time.perf_counter()
    report = simulated.run(traffic, on_progress=_progress())
    if json:
        print_json({"binds": found.plan.binds, "codec": found.codec, **report.as_json()})
    else:
        _show(report, found.plan, time.perf_counter() - began)


def _faults(said: Mapping[FaultKind, Sequence[str] | None]) -> list[Fault]:
    return [fault for kind, texts in said.items() for text in texts or () for fault in parse_fault(text, kind)]


def _fleet(manifest: Manifest, file: Path | None, count: int) -> tuple[tuple[DeviceCost, ...], Network]:
    """Return the devices and the network: those of the file, or of the bundle's profile, and as many as asked for."""
    if file is not None:
        described = read_fleet_file(file)
    else:
        profile = load_profile(manifest.profile)
        device = DescribedDevice(
            name="device-1", entry=DeviceEntry(name="device-1", profile=manifest.profile), profile=profile
        )
        described = DescribedFleet(devices=(device,), network=Network())
        count = count or DEFAULT_DEVICES
    costs = described_costs(described, manifest)
    return (costs if not count else _as_many(costs, count)), described.network


def _as_many(costs: Sequence[DeviceCost], count: int) -> tuple[DeviceCost, ...]:
    if count <= len(costs):
        return tuple(costs[:count])
    taken = {cost.name for cost in costs}
    more = list(costs)
    number = len(costs)
    while len(more) < count:
        like = costs[len(more) % len(costs)]
        number += 1
        name = f"{like.name.rstrip('0123456789')}{number}"
        if name in taken:
            continue
        if len(name) > 63:
            raise PlanError(f"device {like.name!r}: its name is too long to number more like it")
        taken.add(name)
        more.append(replace(like, name=name))
    return tuple(more)


def _progress() -> Callable[[float, int, int], None]:
    """Say on a terminal, about once a second, how far the simulation is."""
    said_at = time.perf_counter()

    def tell(now: float, accepted: int, open: int) -> None:  # noqa: A002 - named as in host.simulate.fleet.Progress
        nonlocal said_at
        if sys.stderr.isatty() and time.perf_counter() - said_at >= _SAY_SECONDS:
            said_at = time.perf_counter()
            err.print(f"{now:.0f} s simulated, {accepted} requests, {open} under way", style="dim")

    return tell


def _show(report: SimulationReport, plan: Plan, wall_seconds: float) -> None:
    rows = table("", ">simulated", ">planned")
    rows.add_row("requests/s", f"{report.throughput:.2f}", f"{report.predicted_throughput:.2f}")
    for name, seconds, planned in (
        ("latency p50", report.latency.p50, f"{1e3 * report.predicted_latency:.1f} ms"),
        ("latency p90", report.latency.p90, ""),
        ("latency p99", report.latency.p99, ""),
        ("latency most", report.latency.most, ""),
    ):
        rows.add_row(name, f"{1e3 * seconds:.1f} ms", planned)
    out.print(rows)
    failed = ", ".join(f"{count} {name}" for name, count in report.errors.items())
    out.print(
        f"{report.requests} requests: {report.answered} answered, "
        f"{report.lost} lost{f' ({failed})' if failed else ''}, "
        f"{report.duplicated} answered twice, {report.wrong} wrong, {report.resent} sent again"
    )
    out.print(
        f"{size_text(report.broker_bytes)} of tensors through the broker, {report.messages_lost} messages lost, "
        f"{report.failures} failures of {report.devices} devices"
    )
    used = {name for stage in plan.stages for name in stage.runners}
    busy = sorted(((part, name) for name, part in report.utilisation.items() if part > 0), reverse=True)
    shown = ", ".join(f"{name} {part:.0%}" for part, name in busy[:5])
    out.print(f"busiest: {shown}; the plan is bound by {plan.binds}", markup=False, soft_wrap=True)
    out.print(
        f"{report.simulated_seconds:.1f} s simulated in {wall_seconds:.1f} s, {len(used)} devices in "
        f"{len(plan.stages)} stages",
        style="dim",
    )
