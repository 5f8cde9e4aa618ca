"""`shardwire status`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edge.formats.plan import Deployment, Plan
from edge.formats.topics import check_name
from host.cli.console import err, out, print_json, size_text, table
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet, Json, quiet_transport
from host.errors import FleetError
from host.fleet.jobs import unknown_deployment
from host.fleet.observe import FleetView, look


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
    """Say in a few words whether a deployment can answer."""
    stages = deployment.plan.stages if deployment.plan is not None else ()
    away = sorted({s.device for s in stages if not any(map(view.online, (s.device, *s.standbys)))})
    if away:
        return f"broken: {', '.join(away)} offline"
    failed = [f"{s.device}: {reason}" for s in stages if (reason := view.failure(s.device, deployment)) is not None]
    return f"broken: {'; '.join(failed)}" if failed else "serving"


def _overview(chosen: list[Deployment], view: FleetView, fleet: str) -> None:
    if not chosen:
        err.print(f"nothing is deployed in fleet {fleet!r}")
        return
    rows = table("deployment", "state", "epoch", "devices", ">predicted requests/s")
    for value in chosen:
        plan = value.plan
        devices = " → ".join(stage.device for stage in plan.stages) if plan is not None else ""
        rows.add_row(value.name, condition(value, view), value.epoch, devices, rate(plan) if plan is not None else "")
    out.print(rows)


def _detail(value: Deployment, view: FleetView) -> None:
    plan = value.plan
    if plan is None:
        return
    out.print(f"{value.name}: {condition(value, view)}, epoch {value.epoch}, mode {value.mode}, window {value.window}")
    out.print(plan_table(plan, view))
    out.print(
        f"predicted: {rate(plan)} requests/s, {plan.latency_seconds * 1e3:.1f} ms a request; bound by {plan.binds}"
    )


def rate(plan: Plan) -> str:
    """Return the predicted throughput of a plan in requests a second."""
    return f"{1 / plan.bottleneck_seconds:.1f}" if plan.bottleneck_seconds > 0 else "?"


def plan_table(plan: Plan, view: FleetView | None = None) -> Any:
    """Return a table of the stages of a plan."""
    rows = table(">stage", "device", ">shards", ">predicted ms", ">memory", ">in", ">out", *(["state"] if view else []))
    for stage in plan.stages:
        state = [] if view is None else ["online" if view.online(stage.device) else "offline"]
        rows.add_row(
            str(stage.index),
            stage.device,
            f"{stage.first_shard}–{stage.stop_shard - 1}",
            f"{stage.predicted_seconds * 1e3:.1f}",
            size_text(stage.memory_bytes),
            size_text(stage.received_bytes),
            size_text(stage.sent_bytes),
            *state,
        )
    return rows


def _record(value: Deployment, view: FleetView) -> dict[str, Any]:
    plan = value.plan
    stages = plan.stages if plan is not None else ()
    return {
        "name": value.name,
        "state": condition(value, view),
        "epoch": value.epoch,
        "mode": value.mode,
        "window": value.window,
        "holders": list(value.holders),
        "predicted_bottleneck_seconds": plan.bottleneck_seconds if plan is not None else None,
        "predicted_latency_seconds": plan.latency_seconds if plan is not None else None,
        "stages": [
            {
                "index": stage.index,
                "device": stage.device,
                "online": view.online(stage.device),
                "first_shard": stage.first_shard,
                "stop_shard": stage.stop_shard,
                "predicted_seconds": stage.predicted_seconds,
                "memory_bytes": stage.memory_bytes,
            }
            for stage in stages
        ],
    }
