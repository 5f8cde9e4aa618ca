"""`shardwire deploy`."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from edge.formats.message import DeployRequest
from edge.formats.topics import check_name
from host.bundle import open_bundle
from host.cli.console import err, out
from host.cli.options import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Fleet, quiet_transport
from host.cli.signals import terminated_as_exit
from host.cli.status import plan_table, rate
from host.fleet.blobs import BundleBlobs
from host.fleet.command import Course, run_command


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    devices: Annotated[
        str, typer.Option(help="Devices that may take part, as a,b,c; all that are online if left out.")
    ] = "",
    name: Annotated[str | None, typer.Option(help="Name of the deployment; the model's when left out.")] = None,
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
    objective: Annotated[
        Literal["throughput", "latency"], typer.Option(help="What the plan is good at.")
    ] = "throughput",
    mode: Annotated[
        Literal["default", "exact"], typer.Option(help="exact: unoptimised, bit-equal to the whole model.")
    ] = "default",
    window: Annotated[int, typer.Option(min=1, max=1024, help="Requests in flight in the whole pipeline.")] = 8,
    use_all: Annotated[
        bool, typer.Option("--use-all", help="Give every device a stage, even if fewer are faster.")
    ] = False,
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
        devices=device_names(devices),
        use_all=use_all,
        objective=objective,
        mode=mode,
        window=window,
        reply_to="",
    )
    course = ship(broker, request, fleet=fleet, blobs=BundleBlobs(opened))
    if course.plan is not None:
        out.print(plan_table(course.plan))
        out.print(
            f"{request.name} serves, epoch {course.epoch}; predicted: {rate(course.plan)} requests/s, "
            f"{course.plan.latency_seconds * 1e3:.1f} ms a request, bound by {course.plan.binds}"
        )


def device_names(text: str) -> tuple[str, ...]:
    """Split `a,b,c`.

    Raises:
        FormatError: a part is no device name.
    """
    if not text.strip():
        return ()
    return tuple(dict.fromkeys(check_name(part.strip(), what="device name") for part in text.split(",")))


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
                phase=f"stage {shipping.stage}: {shipping.phase}",
            )
        sizes = [(shipping.done_bytes, shipping.total_bytes) for shipping in course.devices.values()]
        self._bars.update(
            self._whole,
            total=sum(total for _, total in sizes) or None,
            completed=sum(done for done, _ in sizes),
            phase=course.phase,
        )
