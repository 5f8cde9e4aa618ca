"""`shardwire plan`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    summary_lines,
)
from host.errors import PlanError
from host.planning.codecs import BOTH, CodecPlan, best_codec
from host.planning.costs import DeviceCost
from host.planning.explain import Explanation
from host.planning.explain import explain as explain_plan
from host.planning.planner import plan_pipeline
from host.planning.schedule import Schedule, loads_of, timetable

_BundleFolder = Annotated[Path, typer.Argument(help="Folder of the bundle.")]
_Explain = Annotated[bool, typer.Option("--explain", help="Show what would be otherwise.")]
_Plot = Annotated[Path | None, typer.Option("--plot", help="Draw the schedule into this .svg or .png file.")]
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
    no_side_by_side: NoSideBySide = False,
    mode: Mode = "default",
    window: Window = DEFAULT_WINDOW,
    codec: CodecOption = "raw",
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
    )
    if is_fleet_file(fleet):
        source = described_source(Path(fleet), manifest)
    else:
        source = live_source(broker, fleet, opened, constraints.devices, mode=mode)
    check_devices(constraints, {device.name for device in source.devices}, where=source.where)
    found = _best(manifest, source, constraints, objective, window, BOTH if codec == "auto" else (codec,))
    explanation = explain_plan(found.question, found.plan, plan_pipeline) if explain else None
    if json:
        print_json(_record(found, explanation))
    else:
        _show(found, manifest, explanation)
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
            plan_pipeline,
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


def _drawer(path: Path) -> Callable[[CodecPlan], None]:
    """Miss a package, and refuse a file of another kind, before the work and not after it."""
    if path.suffix not in (".svg", ".png"):
        raise PlanError(f"--plot {path}: give a file that ends in .svg or .png")
    from host.cli.plan_figure import draw_schedule  # matplotlib is there only with an extra

    def draw(found: CodecPlan) -> None:
        plan, question = found.plan, found.question
        try:
            draw_schedule(path, plan, _schedule(found), loads_of(plan, _by_name(question.devices), question.network))
        except OSError as error:
            raise PlanError(f"{path}: cannot be written: {error.strerror}") from error
        err.print(f"written to {path}", markup=False)

    return draw


def _schedule(found: CodecPlan) -> Schedule:
    plan, question = found.plan, found.question
    return timetable(
        plan,
        _by_name(question.devices),
        question.network,
        requests=steady_requests(plan),
        window=question.window,
        period_seconds=plan.bottleneck_seconds,
    )


def _show(found: CodecPlan, manifest: Manifest, explanation: Explanation | None) -> None:
    plan, question = found.plan, found.question
    devices, network = _by_name(question.devices), question.network
    out.print(stage_table(plan, manifest, devices, network))
    for line in summary_lines(plan):
        out.print(line, markup=False, soft_wrap=True)
    if found.codec != "raw":
        out.print(f"tensors travel with {found.codec}")
    out.print()
    for line in (
        *alone_lines(plan, devices, network),
        "",
        *full_lines(_schedule(found), plan, loads_of(plan, devices, network)),
    ):
        out.print(line, markup=False, soft_wrap=True)
    if explanation is not None:
        out.print()
        out.print(load_table(plan, devices, network))
        for part in explanation_parts(explanation, plan, question.window):
            out.print()
            out.print(part)


def _record(found: CodecPlan, explanation: Explanation | None) -> dict[str, Any]:
    plan, question = found.plan, found.question
    devices = _by_name(question.devices)
    loads = loads_of(plan, devices, question.network)
    record: dict[str, Any] = {
        "codec": found.codec,
        "window": question.window,
        "plan": msgspec.to_builtins(plan),
        "predicted_requests_per_second": 1 / plan.bottleneck_seconds if plan.bottleneck_seconds > 0 else None,
        "available_memory_bytes": {name: devices[name].memory_bytes for stage in plan.stages for name in stage.runners},
        "load_seconds": {str(resource): seconds for resource, seconds in loads.items()},
    }
    if explanation is not None:
        record["explanation"] = msgspec.to_builtins(explanation)
    return record


def _by_name(devices: Sequence[DeviceCost]) -> dict[str, DeviceCost]:
    return {device.name: device for device in devices}
