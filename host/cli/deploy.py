"""`shardwire deploy`."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from edge.errors import ShardwireError
from edge.formats.message import DeployRequest
from edge.formats.plan import Plan
from edge.formats.topics import check_name
from host.bundle import open_bundle
from host.cli.console import err, out
from host.cli.constraints import read_constraints
from host.cli.options import (
    DEFAULT_BROKER,
    DEFAULT_FLEET,
    DEFAULT_REPLICAS,
    DEFAULT_WINDOW,
    Broker,
    CodecOption,
    Devices,
    Fleet,
    Forbidden,
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
from host.cli.plan_words import names_text, natural, plain, summary_lines
from host.cli.signals import terminated_as_exit
from host.cli.status import plan_table
from host.fleet.blobs import BundleBlobs
from host.fleet.command import Course, run_command
from host.fleet.observe import FleetView, look


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    devices: Devices = "",
    name: Annotated[str | None, typer.Option(help="Name of the deployment; the model's when left out.")] = None,
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
    objective: ObjectiveOption = "throughput",
    mode: Mode = "default",
    pin: Pins = None,
    forbid: Forbidden = None,
    without: Without = None,
    use_all: UseAll = False,
    replicas: Replicas = DEFAULT_REPLICAS,
    no_side_by_side: NoSideBySide = False,
    window: Window = DEFAULT_WINDOW,
    codec: CodecOption = "raw",
) -> None:
    """Put a bundle to work on devices under a name."""
    quiet_transport()
    opened = open_bundle(bundle)
    for blob in opened.blobs():
        opened.read(blob)  # a damaged file is found here by name, not on some device as a wrong block
    request = DeployRequest(
        request_id=secrets.token_hex(8),
        name=check_name(name or opened.manifest.name, what="deployment name"),
        manifest=opened.manifest_blob,
        holders=(),
        constraints=read_constraints(
            opened.manifest,
            devices=devices,
            without=without or (),
            pins=pin or (),
            forbidden=forbid or (),
            use_all=use_all,
            most_replicas=replicas,
            side_by_side=not no_side_by_side,
        ),
        objective=objective,
        mode=mode,
        window=window,
        codec=codec,
        reply_to="",
    )
    course = ship(broker, request, fleet=fleet, blobs=BundleBlobs(opened))
    if course.plan is not None:
        out.print(plan_table(course.plan))
        out.print(f"{request.name} serves, epoch {course.epoch}", markup=False)
        lines = [*summary_lines(course.plan, request.window), *_others(broker, fleet, course)]
        for line in lines:
            out.print(line, markup=False, soft_wrap=True)


def _others(broker: str, fleet: str, course: Course) -> list[str]:
    if course.plan is None:
        return []
    # What has been deployed stands, whatever can be seen of the rest.
    with contextlib.suppress(ShardwireError):
        view = look(broker, fleet=fleet, until_online=_workers(course.plan))
        return list(shared_lines(course.name, course.plan, view))
    return []


def shared_lines(name: str, plan: Plan, view: FleetView) -> Iterator[str]:
    """Yield what else the devices of a new deployment do, as its plan does not count that.

    Args:
        name: of the deployment.
        plan: of it.
        view: of its fleet.
    """
    sharing: dict[tuple[str, ...], list[str]] = {}
    for device in sorted(_workers(plan), key=natural):
        others = tuple(
            other.name
            for other in view.deployments
            if other.name != name and other.plan is not None and device in _workers(other.plan)
        )
        if others:
            sharing.setdefault(others, []).append(device)
    for others, devices in sharing.items():
        serve, take = ("serves", "it") if len(devices) == 1 else ("serve", "them")
        told = f"{plain(names_text(devices))} {serve} {plain(names_text(others))} too"
        yield f"note: {told}: predictions take {take} for idle"


def _workers(plan: Plan) -> set[str]:
    return {name for stage in plan.stages for name in stage.runners}


def ship(broker: str, request: DeployRequest, *, fleet: str, blobs: BundleBlobs) -> Course:
    """Deploy with progress bars on the terminal, and return what happened.

    Raises:
        FleetError: it failed; the old epoch, if there was one, goes on.
    """
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[phase]}"),
        console=err,
        transient=True,
        disable=not err.is_interactive,  # elsewhere it would be nothing but an empty line at the end
    )
    with terminated_as_exit(), bars:
        view = _Bars(bars, request.name)
        outcome = run_command(broker, request, fleet=fleet, blobs=blobs, on_change=view.show)
    return replace(view.course, epoch=outcome.epoch)


class _Bars:
    """A line for the command and a bar for each device."""

    def __init__(self, bars: Progress, name: str) -> None:
        self.course = Course(name=name)
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._whole = bars.add_task(name, total=None, phase="")

    def show(self, course: Course) -> None:
        self.course = course
        for device, shipping in course.devices.items():
            if device not in self._tasks:
                self._tasks[device] = self._bars.add_task(f"  {device}", total=None, phase="")
            self._bars.update(
                self._tasks[device],
                total=shipping.total_bytes or None,
                completed=shipping.done_bytes,
                phase=f"stage {' and '.join(map(str, shipping.stages))}: {shipping.phase}",
            )
        sizes = [(shipping.done_bytes, shipping.total_bytes) for shipping in course.devices.values()]
        self._bars.update(
            self._whole,
            total=sum(total for _, total in sizes) or None,
            completed=sum(done for done, _ in sizes),
            phase=course.phase,
        )
