"""`shardwire simulate`."""

from __future__ import annotations

import logging
import math
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
from host.errors import PlanError, UserError
from host.planning.codecs import BOTH, CodecPlan, best_codec, deflating
from host.planning.costs import DeviceCost, Network
from host.planning.fleet_entries import DeviceEntry
from host.planning.fleet_file import DescribedDevice, DescribedFleet, described_costs
from host.planning.planner import plan_worthwhile
from host.simulate.bundle import simulated_bundle
from host.simulate.faults import Fault, FaultKind, parse_fault, random_failures
from host.simulate.fleet import Deployed, SimulatedFleet, Traffic
from host.simulate.network import Weather
from host.simulate.report import SimulationEvent, SimulationReport

NAME = "simulated"
DEFAULT_REQUESTS = 1000
DEFAULT_DEVICES = 3
MAX_DEVICES = 4096
MOST_FAILING_SECONDS = 3600.0
"""For how long devices fail where only requests are counted."""

_SAY_SECONDS = 1.0
_NAMED = 8
"""Names that are listed, of many."""

_File = Annotated[
    Path | None, typer.Option("--fleet", help="Fleet file (.toml); devices of the bundle's profile if left out.")
]
_Count = Annotated[
    int,
    typer.Option(
        "--devices",
        min=0,
        max=MAX_DEVICES,
        help="So many devices, like those of the file in turn.",
        show_default=f"those of the file, {DEFAULT_DEVICES} without one",
    ),
]
_Requests = Annotated[
    int,
    typer.Option(
        "--requests",
        min=0,
        help="End after so many requests.",
        show_default=f"{DEFAULT_REQUESTS} without --seconds, else no end",
    ),
]
_Seconds = Annotated[
    float,
    typer.Option(
        "--seconds", min=0.0, help="End after so many simulated seconds.", show_default="no end but that of --requests"
    ),
]
_Rate = Annotated[
    float,
    typer.Option(
        "--rate", min=0.0, help="Requests a second, at random times.", show_default="none: the window is kept full"
    ),
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
_Slow = Annotated[
    list[str] | None, typer.Option("--slow", help="Slow a device down. May be repeated.", metavar="NAME:FACTOR@SECONDS")
]
_Kill = Annotated[
    list[str] | None,
    typer.Option("--kill", help="Take a device's power away. May be repeated.", metavar="NAME@SECONDS"),
]
_Join = Annotated[
    list[str] | None, typer.Option("--join", help="Give a device power. May be repeated.", metavar="NAME@SECONDS")
]
_Pause = Annotated[
    list[str] | None,
    typer.Option("--pause", help="Stop an agent for a while. May be repeated.", metavar="NAME:LENGTH@SECONDS"),
]
_Cut = Annotated[
    list[str] | None,
    typer.Option("--cut", help="Cut a device off for a while. May be repeated.", metavar="NAME:LENGTH@SECONDS"),
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
    _check_finite({"seconds": seconds, "rate": rate, "deadline": deadline, "fail": fail})
    _check_finite({"loss": loss, "duplicate": duplicate, "reorder": reorder})
    manifest = open_bundle(bundle).manifest
    costs, network = _fleet(manifest, fleet, devices)
    names = [cost.name for cost in costs]
    faults = _faults({"slow": slow, "kill": kill, "join": join, "pause": pause, "cut": cut}, names)
    late = {fault.device for fault in faults if fault.kind == "join"}
    late -= {fault.device for fault in faults if fault.kind == "kill"}
    found = best_codec(
        manifest,
        [cost for cost in costs if cost.name not in late],
        plan_worthwhile,
        network=network,
        constraints=Constraints(use_all=use_all, most_replicas=replicas),
        objective=objective,
        window=window,
        codecs=BOTH if codec == "auto" else (codec,),
    )
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
    _run(simulated, traffic, found, json=json, replans=replan)


def _run(simulated: SimulatedFleet, traffic: Traffic, found: CodecPlan, *, json: bool, replans: bool) -> None:
    for name in ("edge", "host.fleet", "host.simulate"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what devices and coordinator log of each failure
    began = time.perf_counter()
    report = simulated.run(traffic, on_progress=_progress())
    if json:
        print_json({"binds": found.plan.binds, "codec": found.codec, **report.as_json()})
    else:
        _show(report, found.plan, time.perf_counter() - began)
        if replans:
            _show_plans(report)


def _check_finite(numbers: Mapping[str, float]) -> None:
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise UserError(f"--{name} {number}: expected a finite number")


def _faults(said: Mapping[FaultKind, Sequence[str] | None], names: Sequence[str]) -> list[Fault]:
    faults: list[Fault] = []
    for kind, texts in said.items():
        for text in texts or ():
            found = parse_fault(text, kind)
            if found[0].device not in names:
                raise PlanError(f"--{kind} {text!r}: no device {found[0].device!r}; there are {_named(names)}")
            faults += found
    return faults


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


def _rate(per_second: float) -> str:
    return f"{per_second:.2f}" if per_second >= 1 else f"{per_second:.3g}"


def _show(report: SimulationReport, plan: Plan, wall_seconds: float) -> None:
    rows = table("", ">simulated", ">planned")
    measured = _rate(report.throughput) if report.answered != 1 else ""  # of one answer there is no rate
    rows.add_row("requests/s", measured, _rate(report.predicted_throughput))
    for name, seconds in (
        ("latency p50", report.latency.p50),
        ("latency p90", report.latency.p90),
        ("latency p99", report.latency.p99),
        ("latency most", report.latency.most),
    ):
        rows.add_row(name, f"{1e3 * seconds:.1f} ms", "")
    rows.add_row("one request alone", "", f"{1e3 * report.predicted_latency:.1f} ms")
    out.print(rows)
    failed = ", ".join(f"{count} {name}" for name, count in report.errors.items())
    out.print(
        f"{_counted(report.requests, 'request')}: {report.answered} answered, "
        f"{report.lost} lost{f' ({failed})' if failed else ''}, "
        f"{report.duplicated} answered twice, {report.wrong} wrong, {report.resent} sent again"
    )
    out.print(
        f"{size_text(report.broker_bytes)} of tensors through the broker, "
        f"{_counted(report.messages_lost, 'message')} lost, "
        f"{_counted(report.failures, 'failure')} of {_counted(report.devices, 'device')}"
    )
    used = {name for stage in plan.stages for name in stage.runners}
    busy = sorted(((part, name) for name, part in report.utilisation.items() if part > 0), reverse=True)
    shown = ", ".join(f"{name} {part:.0%}" for part, name in busy[:5])
    out.print(f"busiest: {shown}; the plan is bound by {plan.binds}", markup=False, soft_wrap=True)
    out.print(
        f"{report.simulated_seconds:.1f} s simulated in {wall_seconds:.1f} s, {_counted(len(used), 'device')} in "
        f"{_counted(len(plan.stages), 'stage')}",
        style="dim",
    )


def _show_plans(report: SimulationReport) -> None:
    """Say when it was planned again, how long after what happened, and what the devices do since."""
    last: SimulationEvent | None = None
    planned = 0
    for event in report.happened:
        if event.what != "plan":
            last = event
            continue
        planned += 1
        since = "" if last is None else f", {event.after_seconds:.1f} s after {last.what} {last.name}"
        stages = " | ".join(_named(runners) for runners in event.stages)
        out.print(f"planned again at {event.at:.1f} s{since}: {stages}", markup=False, soft_wrap=True)
    if not planned:
        out.print("not planned again", style="dim")


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
