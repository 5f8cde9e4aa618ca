"""`shardwire plan`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from edge.formats.bundle import Manifest
from edge.formats.plan import Codec, Constraints, Objective
from host.bundle import open_bundle
from host.cli.console import err, out, print_json
from host.cli.constraints import check_devices, read_constraints
from host.cli.options import (
    DEFAULT_BROKER,
    DEFAULT_FLEET,
    DEFAULT_REPLICAS,
    DEFAULT_WINDOW,
    Broker,
    CodecOption,
    Devices,
    Forbidden,
    Json,
    Mode,
    NoSideBySide,
    ObjectiveOption,
    Pins,
    Replicas,
    Standbys,
    UseAll,
    Window,
    Without,
    quiet_transport,
)
from host.cli.plan_source import PlanSource, described_source, is_fleet_file, live_source
from host.cli.plan_text import (
    alone_lines,
    explanation_parts,
    full_lines,
    load_table,
    stage_table,
    steady_requests,
)
from host.cli.plan_words import summary_lines
from host.errors import PlanError
from host.planning.codecs import BOTH, CodecPlan, best_codec
from host.planning.costs import DeviceCost, LinkCost
from host.planning.explain import Explanation, period_of
from host.planning.explain import explain as explain_plan
from host.planning.planner import plan_worthwhile, predicted_rps
from host.planning.safeguards import safeguarded
from host.planning.schedule import Schedule, loads_of, timetable
from host.planning.survivors import Fleet

_BundleFolder = Annotated[Path, typer.Argument(help="Folder of the bundle.")]
_Explain = Annotated[bool, typer.Option("--explain", help="Show what would be otherwise.")]
_Plot = Annotated[Path | None, typer.Option("--plot", help="Draw the schedule into this .svg or .png file.")]
_ClientMbit = Annotated[
    float, typer.Option("--client-mbit", min=0.0, max=1e6, help="Mbit/s of the client's link; Gigabit if left out.")
]
PlannedFleet = Annotated[
    str,
    typer.Option("--fleet", envvar="SHARDWIRE_FLEET", help="Name of the fleet, or a fleet file that ends in .toml."),
]


def command(
    bundle: _BundleFolder,
    devices: Devices = "",
    broker: Broker = DEFAULT_BROKER,
    fleet: PlannedFleet = DEFAULT_FLEET,
    objective: ObjectiveOption = "throughput",
    pin: Pins = None,
    forbid: Forbidden = None,
    without: Without = None,
    use_all: UseAll = False,
    replicas: Replicas = DEFAULT_REPLICAS,
    standbys: Standbys = 0,
    no_side_by_side: NoSideBySide = False,
    mode: Mode = "default",
    window: Window = DEFAULT_WINDOW,
    codec: CodecOption = "raw",
    client_mbit: _ClientMbit = 0.0,
    explain: _Explain = False,
    plot: _Plot = None,
    json: Json = False,
) -> None:
    """Show the best plan for a bundle on some devices, and why it is the best."""
    quiet_transport()
    draw = None if plot is None else _drawer(plot)
    opened = open_bundle(bundle)
    manifest = opened.manifest
    constraints = read_constraints(
        manifest,
        devices=devices,
        without=without or (),
        pins=pin or (),
        forbidden=forbid or (),
        use_all=use_all,
        most_replicas=replicas,
        side_by_side=not no_side_by_side,
        standbys=standbys,
    )
    if is_fleet_file(fleet):
        source = described_source(Path(fleet), manifest)
    else:
        source = live_source(broker, fleet, opened, constraints.devices, mode=mode)
    if client_mbit > 0:
        source = _with_client(source, client_mbit)
    check_devices(constraints, {device.name for device in source.devices}, where=source.where)
    found = _best(manifest, source, constraints, objective, window, BOTH if codec == "auto" else (codec,))
    found = _safeguarded(found)
    explanation = explain_plan(found.question, found.plan, plan_worthwhile) if explain else None
    if json:
        print_json(_record(found, explanation))
    else:
        _show(found, manifest, explanation, client_known=source.client_known)
    if draw is not None:
        draw(found)


def _best(
    manifest: Manifest,
    source: PlanSource,
    constraints: Constraints,
    objective: Objective,
    window: int,
    codecs: Sequence[Codec],
) -> CodecPlan:
    def best(devices: Sequence[DeviceCost]) -> CodecPlan:
        return best_codec(
            manifest,
            devices,
            plan_worthwhile,
            network=source.network,
            constraints=constraints,
            objective=objective,
            window=window,
            codecs=codecs,
        )

    try:
        return best(source.devices)
    except PlanError:
        if source.devices == source.measured:
            raise
        # Devices made equal have the least room of all of them, and the last byte may be needed.
        return best(source.measured)


def _safeguarded(found: CodecPlan) -> CodecPlan:
    question = found.question
    fleet = Fleet(
        workload=question.workload,
        devices=question.devices,
        window=question.window,
        constraints=question.constraints,
        network=question.network,
    )
    # Who deploys it may leave again; what a coordinator that stays would add is left out of what is promised.
    return replace(found, plan=safeguarded(found.plan, fleet, staying=False))


def _with_client(source: PlanSource, mbit: float) -> PlanSource:
    rate = mbit * 125_000
    link = LinkCost(
        up_bytes_per_second=rate,
        down_bytes_per_second=rate,
        latency_seconds=source.network.client.latency_seconds,
    )
    return replace(source, network=replace(source.network, client=link), client_known=True)


def _drawer(path: Path) -> Callable[[CodecPlan], None]:
    """Miss a package, and refuse a file of another kind, before the work and not after it."""
    if path.suffix not in (".svg", ".png"):
        raise PlanError(f"--plot {path}: give a file that ends in .svg or .png")
    if not path.parent.is_dir():
        raise PlanError(f"--plot {path}: there is no folder {path.parent}")
    from host.cli.plan_figure import draw_schedule, requests_of  # matplotlib is there only with an extra

    def draw(found: CodecPlan) -> None:
        plan, question = found.plan, found.question
        schedule = _schedule(found, requests_of(plan, question.window))
        loads = loads_of(plan, _by_name(question.devices), question.network)
        try:
            draw_schedule(path, plan, schedule, loads, question.window)
        except OSError as error:
            raise PlanError(f"{path}: cannot be written: {error.strerror}") from error
        err.print(f"written to {path}", markup=False)

    return draw


def _schedule(found: CodecPlan, requests: int) -> Schedule:
    plan, question = found.plan, found.question
    return timetable(
        plan,
        _by_name(question.devices),
        question.network,
        requests=requests,
        window=question.window,
        period_seconds=period_of(plan, question.window),
    )


def _show(found: CodecPlan, manifest: Manifest, explanation: Explanation | None, *, client_known: bool) -> None:
    plan, question = found.plan, found.question
    window = question.window
    devices, network = _by_name(question.devices), question.network
    out.print(stage_table(plan, manifest, devices, network, window))
    for line in summary_lines(plan, window, client_known=client_known):
        out.print(line, markup=False, soft_wrap=True)
    if found.codec != "raw":
        out.print(f"tensors travel with {found.codec}")
    out.print()
    for line in (
        *alone_lines(plan, devices, network),
        "",
        *full_lines(_schedule(found, steady_requests(plan, window)), plan, loads_of(plan, devices, network), window),
    ):
        out.print(line, markup=False, soft_wrap=True)
    if explanation is not None:
        out.print()
        out.print(load_table(plan, devices, network, window))
        for part in explanation_parts(explanation, plan, window):
            out.print()
            out.print(part)


def _record(found: CodecPlan, explanation: Explanation | None) -> dict[str, Any]:
    plan, question = found.plan, found.question
    devices = _by_name(question.devices)
    loads = loads_of(plan, devices, question.network)
    rate = predicted_rps(plan, question.window)
    record: dict[str, Any] = {
        "codec": found.codec,
        "window": question.window,
        "plan": msgspec.to_builtins(plan),
        "predicted_requests_per_second": rate if math.isfinite(rate) else None,
        "available_memory_bytes": {name: devices[name].memory_bytes for stage in plan.stages for name in stage.runners},
        "load_seconds": {str(resource): seconds for resource, seconds in loads.items()},
    }
    if explanation is not None:
        record["explanation"] = msgspec.to_builtins(explanation)
    return record


def _by_name(devices: Sequence[DeviceCost]) -> dict[str, DeviceCost]:
    return {device.name: device for device in devices}
