"""`shardwire deploy`."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from edge.errors import ShardwireError
from edge.formats.canary import Canary
from edge.formats.message import DeployRequest
from edge.formats.plan import Plan
from edge.formats.topics import check_name
from host.bundle import OpenBundle, open_bundle
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
    Standbys,
    UseAll,
    Window,
    Without,
    quiet_transport,
)
from host.cli.plan_words import names_text, natural, plain, summary_lines
from host.cli.signals import terminated_as_exit
from host.cli.status import plan_table
from host.errors import UserError
from host.fleet.blobs import BundleBlobs
from host.fleet.command import Course, run_command
from host.fleet.observe import FleetView, look
from host.give_way import give_way

CanaryShare = Annotated[
    str | None, typer.Option("--canary", help="Part of the requests that it gets first, such as 10%; all if left out.")
]
CanarySeconds = Annotated[float, typer.Option("--canary-seconds", min=0.0, help="How long it is tried then.")]
CanaryErrors = Annotated[
    str, typer.Option("--canary-errors", help="Part of its frames that may fail; beyond, it is taken back.")
]
AllowOlder = Annotated[bool, typer.Option("--allow-older", help="Also when its version is below that of what serves.")]

NOBODY_STAYS = "no coordinator stays that would plan again when a device dies: start one with `shardwire coordinator`"

UNSIGNED = "the bundle is unsigned; devices take it all the same, as the fleet has no keys yet"


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
    standbys: Standbys = 0,
    window: Window = DEFAULT_WINDOW,
    codec: CodecOption = "raw",
    canary: CanaryShare = None,
    canary_seconds: CanarySeconds = 60.0,
    canary_errors: CanaryErrors = "1%",
    allow_older: AllowOlder = False,
) -> None:
    """Put a bundle to work on devices under a name."""
    quiet_transport()
    trial = _trial(canary, canary_seconds, canary_errors)
    opened = _opened(bundle)
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
            standbys=standbys,
        ),
        objective=objective,
        mode=mode,
        window=window,
        codec=codec,
        canary=trial,
        allow_older=allow_older,
        reply_to="",
    )
    give_way()
    course = ship(broker, request, fleet=fleet, blobs=BundleBlobs(opened))
    _show(course, window, _others(broker, fleet, course))
    if not opened.signatures:
        err.print(f"note: {UNSIGNED}", markup=False, soft_wrap=True)


def _show(course: Course, window: int, others: Sequence[str]) -> None:
    """Say what serves now, and what else a person should know of it."""
    if course.plan is None:
        return
    out.print(plan_table(course.plan))
    told = [course.told] if course.told else []
    ends = [f"note: {NOBODY_STAYS}"] if course.alone else []
    served = f"{course.name} serves, epoch {course.epoch}"
    for line in (served, *told, *summary_lines(course.plan, window), *others, *ends):
        out.print(line, markup=False, soft_wrap=True)


def _opened(folder: Path) -> OpenBundle:
    """Open a bundle and read all of it: a damaged file is found here by name, not on some device as a wrong block."""
    opened = open_bundle(folder)
    for blob in opened.blobs():
        opened.read(blob)
    return opened


def _trial(share: str | None, seconds: float, errors: str) -> Canary | None:
    """Return how the bundle is tried first, None when it is not."""
    if share is None:
        return None
    part = read_part(share, what="--canary")
    if not 0.0 < part < 1.0:
        raise UserError(f"--canary {share}: it gets more than 0 % and less than 100 % of the requests")
    return Canary(share=part, seconds=seconds, most_failed=read_part(errors, what="--canary-errors"))


def read_part(text: str, *, what: str) -> float:
    """Return a part of a whole, given as `10%` or `0.1`.

    Args:
        text: as it was typed.
        what: the option, for the message.

    Raises:
        UserError: it is no number, below 0 or above 1.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    with contextlib.suppress(ValueError):
        part = float(number) / (100.0 if percent else 1.0)
        if 0.0 <= part <= 1.0:
            return part
    raise UserError(f"{what} {text!r} is no part of a whole: write 10% or 0.1")


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
    return replace(view.course, epoch=outcome.epoch, told=outcome.reason)


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
