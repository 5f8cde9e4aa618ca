"""`shardwire status`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from edge.formats.plan import Deployment, Plan, Stage
from edge.formats.topics import check_name
from host.cli.console import err, fitted, out, print_json, size_text
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet, Json, quiet_transport
from host.cli.plan_words import range_text, rate_text, runner_names, summary_lines
from host.errors import FleetError
from host.fleet.observe import FleetView, look
from host.fleet.outcomes import unknown_deployment
from host.planning.explain import period_of
from host.planning.planner import predicted_rps


def command(
    name: Annotated[str | None, typer.Argument(help="Deployment; all when left out.")] = None,
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
    json: Json = False,
) -> None:
    """Show deployments and their stages."""
    quiet_transport()
    if name is not None:
        check_name(name, what="deployment name")
    view = look(broker, fleet=fleet, deployment=name)
    chosen = [value for value in view.deployments if name in (None, value.name)]
    if name is not None and not chosen:
        raise FleetError(unknown_deployment(name, [value.name for value in view.deployments]))
    if json:
        print_json([_record(value, view) for value in chosen])
    elif name is None:
        _overview(chosen, view, fleet)
    else:
        _detail(chosen[0], view)


def condition(deployment: Deployment, view: FleetView) -> str:
    """Say in a few words whether a deployment can answer: each stage needs one of its runners or standbys."""
    stages = deployment.plan.stages if deployment.plan is not None else ()
    trouble = view.trouble(deployment)
    unmended = f"; it cannot be mended: {trouble}" if trouble is not None else ""
    if view.coordinator is None:
        unmended = "; no coordinator is there to plan again"
    gone = [stage for stage in stages if not any(map(view.online, stage.devices))]
    if gone:
        return f"broken: {', '.join(sorted({name for stage in gone for name in stage.runners}))} offline{unmended}"
    failed = {name: reason for s in stages for name in s.runners if (reason := view.failure(name, deployment))}
    stuck = [stage for stage in stages if all(name in failed or not view.online(name) for name in stage.devices)]
    if stuck:
        reasons = [f"{name}: {failed[name]}" for stage in stuck for name in stage.runners if name in failed]
        return f"broken: {'; '.join(reasons)}{unmended}"
    away = sorted({name for stage in stages for name in stage.runners if name in failed or not view.online(name)})
    state = f"serving without {', '.join(away)}" if away else "serving"
    if (canary := view.canaries.get(deployment.name)) is not None:
        state += f", {canary.share:.0%} to canary {canary.epoch}"
    if lone := view.at_risk(deployment):
        state += f"; at risk: only {', '.join(lone)} {'has' if len(lone) == 1 else 'have'} some of its blobs"
    return state


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What the devices of a stage say of it.

    Attributes:
        frames: that they ran.
        run_seconds: inside the runtime, the mean over the devices.
    """

    frames: int
    run_seconds: float


def measured(stage: Stage, deployment: Deployment, view: FleetView) -> Measured | None:
    """Return what a stage takes as its devices measure it now, None when none has said so."""
    loads = [
        load
        for seen in view.devices
        if seen.online and seen.node.name in stage.devices and seen.node.heartbeat is not None
        for load in seen.node.heartbeat.stages
        if (load.deployment, load.epoch, load.stage) == (deployment.name, deployment.epoch, stage.index)
        and load.frames > 0
    ]
    if not loads:
        return None
    return Measured(
        frames=sum(load.frames for load in loads), run_seconds=sum(load.run_seconds for load in loads) / len(loads)
    )


def _overview(chosen: list[Deployment], view: FleetView, fleet: str) -> None:
    if not chosen:
        err.print(f"nothing is deployed in fleet {fleet!r}")
        return
    rows: list[list[str]] = []
    for value in chosen:
        plan = value.plan
        devices = _way(plan) if plan is not None else ""
        rate = rate_text(period_of(plan, value.window)) if plan is not None else ""
        rows.append([value.name, condition(value, view), value.epoch, devices, rate])
    columns = ("deployment", "state", "epoch", "devices", ">predicted requests/s")
    out.print(fitted(columns, rows, without=("epoch",)))


def _detail(value: Deployment, view: FleetView) -> None:
    plan = value.plan
    if plan is None:
        return
    out.print(
        f"{value.name}: {condition(value, view)}, epoch {value.epoch}, mode {value.mode}, window {value.window}, "
        f"codec {value.codec}, for {plan.objective}",
        markup=False,
        soft_wrap=True,
    )
    out.print(plan_table(plan, view, value))
    for line in summary_lines(plan, value.window):
        out.print(line, markup=False, soft_wrap=True)


def _way(plan: Plan) -> str:
    """Return the devices in the order in which a request meets them."""
    return " → ".join(" ∥ ".join(runner_names(stage) for stage in step) for step in plan.steps())


def plan_table(plan: Plan, view: FleetView | None = None, deployment: Deployment | None = None) -> Table:
    """Return a table of the stages of a plan.

    Args:
        plan: whose stages they are.
        view: of the fleet, for the state of the devices.
        deployment: of the plan, for what its stages measure; needs `view`.
    """
    known: dict[int, Measured] = {}
    if view is not None and deployment is not None:
        known = {stage.index: found for stage in plan.stages if (found := measured(stage, deployment, view))}
    measures = [">measured ms", ">of predicted"] if known else []
    state = ["state"] if view is not None else []
    columns = (">stage", "device", ">shards", ">predicted ms", "from", *measures, ">memory", ">in", ">out", *state)
    rows = [
        [
            f"∥ {stage.index}" if stage.beside else str(stage.index),
            runner_names(stage),
            range_text(stage.first_shard, stage.stop_shard),
            f"{stage.predicted_seconds * 1e3:.1f}",
            stage.source,
            *(_measured_cells(stage, known.get(stage.index)) if known else ()),
            size_text(stage.memory_bytes),
            size_text(stage.received_bytes),
            size_text(stage.sent_bytes),
            *(() if view is None else (_state(stage, view),)),
        ]
        for stage in plan.stages
    ]
    return fitted(columns, rows, without=(">in", ">out", "from", ">memory"))


def _measured_cells(stage: Stage, found: Measured | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    ratio = _ratio(stage, found)
    return f"{found.run_seconds * 1e3:.1f}", "" if ratio is None else f"{ratio:.0%}"


def _ratio(stage: Stage, found: Measured) -> float | None:
    return found.run_seconds / stage.predicted_seconds if stage.predicted_seconds > 0 else None


def _state(stage: Stage, view: FleetView) -> str:
    online = sum(map(view.online, stage.runners))
    if len(stage.runners) == 1:
        return "online" if online else "offline"
    return f"{online} of {len(stage.runners)} online"


def _record(value: Deployment, view: FleetView) -> dict[str, Any]:
    plan = value.plan
    stages = plan.stages if plan is not None else ()
    rate = predicted_rps(plan, value.window) if plan is not None else math.inf
    return {
        "name": value.name,
        "state": condition(value, view),
        "epoch": value.epoch,
        "manifest": value.manifest.digest if value.manifest is not None else None,
        "mode": value.mode,
        "window": value.window,
        "codec": value.codec,
        "objective": plan.objective if plan is not None else None,
        "holders": list(value.holders),
        "at_risk": list(view.at_risk(value)),
        "canary": _canary_record(view.canaries.get(value.name)),
        "before": value.before.epoch if value.before is not None else None,
        "losses": [msgspec.to_builtins(loss) for loss in (plan.losses if plan is not None else ())],
        "predicted_requests_per_second": rate if math.isfinite(rate) else None,
        "predicted_bottleneck_seconds": plan.bottleneck_seconds if plan is not None else None,
        "predicted_latency_seconds": plan.latency_seconds if plan is not None else None,
        "predicted_energy_joules": plan.energy_joules if plan is not None else None,
        "stages": [_stage_record(stage, value, view) for stage in stages],
    }


def _canary_record(canary: Deployment | None) -> dict[str, Any] | None:
    return None if canary is None else {"epoch": canary.epoch, "share": canary.share}


def _stage_record(stage: Stage, deployment: Deployment, view: FleetView) -> dict[str, Any]:
    found = measured(stage, deployment, view)
    return {
        "index": stage.index,
        "device": stage.device,
        "online": view.online(stage.device),
        "replicas": [{"device": name, "online": view.online(name)} for name in stage.replicas],
        "standbys": [{"device": name, "online": view.online(name)} for name in stage.standbys],
        "keepers": [{"device": name, "online": view.online(name)} for name in stage.keepers],
        "beside": stage.beside,
        "first_shard": stage.first_shard,
        "stop_shard": stage.stop_shard,
        "predicted_seconds": stage.predicted_seconds,
        "source": stage.source,
        "measured_seconds": None if found is None else found.run_seconds,
        "measured_of_predicted": None if found is None else _ratio(stage, found),
        "frames": 0 if found is None else found.frames,
        "memory_bytes": stage.memory_bytes,
    }
