"""In what form tensors travel between stages that run different builds, and which runtime each device takes. Pure.

Both sides of a boundary hold the same tensors, each in the form of its build. Who holds them in another form than they
travel in converts them, so that each is converted once, or not at all where both sides agree. Where they do not, they
travel in the form of one of the sides: in that which is fewer bytes (a quantized one), and of forms of one size so that
the side converts which has more time to spare. The client sends the bundle's own form, and gets it.

Before all comes a form in which nothing is converted on its way out and back again on arrival. That counts for what a
sender only forwards, too, which is in the form in which it came. Where one side has several forms, as stages side by
side may, there is not always such a form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from edge.formats.plan import Plan, Stage, Takes
from host.planning.costs import DeviceCost, Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """A device on one side of a boundary.

    Attributes:
        form: in which its session holds tensors; empty for the bundle's own.
        busy_seconds: what it computes for one request, on average.
    """

    form: Takes
    busy_seconds: float


def cheapest_form(
    senders: Sequence[Side],
    receivers: Sequence[Side],
    size_bytes: Mapping[Takes, int],
    *,
    forwarded: Takes | None = None,
) -> Takes:
    """Return the form in which tensors travel from some devices to others.

    Args:
        senders: at least one.
        receivers: at least one.
        size_bytes: of all tensors of the boundary in each form; of forms that are as good, the first is taken.
        forwarded: form in which tensors come that a sender forwards; None where none does.
    """
    used = {side.form for side in (*senders, *receivers)}
    origins = {side.form for side in senders} | ({forwarded} if forwarded is not None else set())
    agreed = origins & {side.form for side in receivers}

    def cost(form: Takes) -> tuple[int, int, float]:
        twice = len(agreed - {form})  # there and back, between those who hold it alike
        # Who has most to do of those that would have to convert, which is one side only where each has one form.
        busy = [side.busy_seconds for side in (*senders, *receivers) if side.form != form]
        return twice, size_bytes[form], max(busy, default=0.0)

    return min((form for form in size_bytes if form in used), key=cost)


def form_of(device: DeviceCost, workload: Workload) -> Takes:
    """Return the form of a device's build; empty for the bundle's own."""
    return device.shard_format if device.shard_format in workload.builds else ""


def with_takes(
    steps: Sequence[Sequence[Stage]],
    workload: Workload,
    devices: Mapping[str, DeviceCost],
    received: Callable[[int, Takes], int],
) -> tuple[Stage, ...]:
    """Return the stages of a plan with the form in which tensors arrive at each.

    Args:
        steps: with the time that each stage takes; who only stands by for one does not count.
        workload: one request.
        devices: by name, at least those that run a stage.
        received: returns the bytes that come to a step, by its place, in one form.
    """
    sides = [
        [
            Side(form=form_of(devices[name], workload), busy_seconds=stage.predicted_seconds / len(stage.runners))
            for stage in step
            for name in stage.runners
        ]
        for step in steps
    ]
    stages: list[Stage] = []
    forms: tuple[Takes, ...] = ("", *workload.builds)
    for place, step in enumerate(steps):
        takes: Takes = ""
        if place and {side.form for side in (*sides[place - 1], *sides[place])} != {""}:
            sizes = {form: received(place, form) for form in forms}
            before = steps[place - 1]
            forwards = workload.cuts and workload.cuts[before[0].first_shard] & workload.cuts[before[-1].stop_shard]
            came = stages[-1].takes if forwards else None
            takes = cheapest_form(sides[place - 1], sides[place], sizes, forwarded=came)
        stages += [msgspec.structs.replace(stage, takes=takes) for stage in step]
    return tuple(stages)


def with_runtimes(plan: Plan, devices: Sequence[DeviceCost]) -> Plan:
    """Return a plan that names the runtimes of all its devices, keepers too; of a device that is not given as before.

    Args:
        plan: any.
        devices: with their runtimes; without one a device chooses by itself.
    """
    known = plan.runtimes | {device.name: device.runtime for device in devices if device.runtime}
    names = {name for stage in plan.stages for name in (*stage.devices, *stage.keepers)}
    runtimes = {name: known[name] for name in sorted(names) if name in known}
    return plan if runtimes == plan.runtimes else msgspec.structs.replace(plan, runtimes=runtimes)
