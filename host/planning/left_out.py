"""Why a device is not used, for a person: what the best plan that does use it would give instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from edge.formats.plan import LeftOut, Objective, Pin, Plan
from host.planning.lacking import mib
from host.planning.price import memory_of
from host.planning.search.objectives import Found
from host.planning.search.tables import Tables, on_kind

_SAME = 1e-6
"""Part by which two plans may differ and still be told as equal."""


_LITTLE = 0.01
"""Part that a device may add at most for that to be said instead of how long was searched."""


def left_out(
    plan: Plan, found: Found, tables: Tables, pins: Sequence[Pin] = (), *, worth: float = 0.0
) -> tuple[LeftOut, ...]:
    """Return every device without a stage and the reason.

    The search has the best cost for every set of used devices, so nothing is planned again.

    Args:
        plan: that leaves them out, with its gap.
        found: by the search.
        tables: that it searched.
        pins: of shards, which the plan keeps to.
        worth: part by which a device must raise the rate.
    """
    used = {name for stage in plan.stages for name in stage.runners}
    reasons: list[LeftOut] = []
    for type_, names in enumerate(tables.kinds.names):
        spare = [name for name in names if name not in used]
        if spare:
            reason = (
                _all_pinned(tables, type_, pins)
                or _no_place(tables, type_)
                or _reason(plan, found, tables, type_, len(names) - len(spare), worth=worth)
            )
            reasons += [LeftOut(device=name, reason=reason) for name in spare]
    return tuple(sorted(reasons, key=lambda out: out.device))


def _reason(plan: Plan, found: Found, tables: Tables, type_: int, used: int, *, worth: float) -> str:
    now = value_of(plan, tables)
    if found.by_used is None:
        return _may_be(plan, found, now, found.bound, worth)
    index = [slice(None)] * found.by_used.ndim
    index[type_] = slice(used + 1, None)
    least = float(found.by_used[tuple(index)].min(initial=np.inf))
    if not math.isfinite(least):
        return "no stage is left for it beside its like" if used else "no plan that uses it fits"
    if least > now * (1 + _SAME):
        return f"with it {_SAYS[plan.objective](least, now)}"
    return _may_be(plan, found, now, least, worth)


def _may_be(plan: Plan, found: Found, now: float, least: float, worth: float) -> str:
    """What to say of a device with which a plan may be so good at best."""
    if least >= now * (1 - _SAME):
        return f"it would not help: {_STAYS[plan.objective](now)}"
    if found.reached is not None and now <= least * (1 + worth) * (1 + _SAME):
        return f"it would add {now / least - 1:.1%}: less than {worth:.0%} is not worth a device"
    if now <= least * (1 + _LITTLE):
        return f"it would add {math.ceil((now / least - 1) * 1000) / 1000:.1%} at most"
    return "no better plan with it was found in the time given"


def effective_period(plan: Plan, window: int) -> float:
    """Return the seconds between two results with so many requests in flight: the period, or longer if these are few.

    A window of W requests that take so long gives W in that time at most (Little: "A proof for the queuing formula
    L = λW", Operations Research 9, 1961).
    """
    return max(plan.bottleneck_seconds, plan.latency_seconds / window)


def value_of(plan: Plan, tables: Tables) -> float:
    """Return what a plan's objective makes least: seconds, joules, or the used part of the fullest memory."""
    if plan.objective == "throughput":
        return effective_period(plan, tables.window)
    if plan.objective == "latency":
        return plan.latency_seconds
    if plan.objective == "energy":
        return plan.energy_joules
    room = {
        name: max(device.memory_bytes, 1)
        for device, names in zip(tables.kinds.devices, tables.kinds.names, strict=True)
        for name in names
    }
    return max(needed / room[name] for name, needed in memory_of(plan.stages).items())


_SAYS: dict[Objective, Callable[[float, float], str]] = {
    "throughput": lambda then, now: f"the plan would answer {_rate(then)} instead of {_rate(now)} requests/s",
    "latency": lambda then, now: f"a result would take {_ms(then)} instead of {_ms(now)} ms",
    "energy": lambda then, now: f"a request would take {then:.3g} instead of {now:.3g} J",
    "memory": lambda then, now: f"the fullest device would use {then:.1%} instead of {now:.1%} of its memory",
}

_STAYS: dict[Objective, Callable[[float], str]] = {
    "throughput": lambda now: f"the plan would still answer {_rate(now)} requests/s",
    "latency": lambda now: f"a result would still take {_ms(now)} ms",
    "energy": lambda now: f"a request would still take {now:.3g} J",
    "memory": lambda now: f"the fullest device would still use {now:.1%} of its memory",
}


def _all_pinned(tables: Tables, type_: int, pins: Sequence[Pin]) -> str:
    """Say so where no stage of a kind is clear of what the pins give to others."""
    spans: dict[str, tuple[int, int]] = {}
    for pin in pins:
        if pin.device not in tables.kinds.names[type_]:
            first, last = spans.get(pin.device, (pin.layer, pin.layer))
            spans[pin.device] = (min(first, pin.layer), max(last, pin.layer))
    if not spans:
        return ""
    # A device has the shards between two of its own, but for a section of which it has what is before and after.
    places = np.array(tables.cuts.places)
    clear = places[:, None] < places
    for first, last in spans.values():
        clear &= (places <= first) | (places[:, None] > last)
    fits = np.isfinite(tables.seconds[type_])
    beside = any(np.isfinite(part[:, type_]).any() for part in tables.part_seconds)
    nothing = not beside and (not clear.any() or (fits.any() and not (fits & clear).any()))
    return "the pins leave it nothing" if nothing else ""


def _no_place(tables: Tables, type_: int) -> str:
    """Why no stage at all can be on a kind."""
    if np.isfinite(tables.seconds[type_]).any() or any(
        np.isfinite(part[:, type_]).any() for part in tables.part_seconds
    ):
        return ""
    allowed = tables.allowed[type_]
    if not allowed.any():
        return "it may not run any shard"
    device, at = tables.kinds.devices[type_], np.array(tables.cuts.places)
    memory = float(on_kind(tables.memory, type_)[allowed].min()) + device.session_bytes
    flash = float(on_kind(tables.stored, type_)[np.ix_(at, at)][allowed].min())
    if memory > device.memory_bytes:
        return f"does not fit: the smallest stage needs {mib(memory)} of memory, it has {mib(device.memory_bytes)}"
    if flash > device.flash_bytes:
        return f"does not fit: the smallest stage needs {mib(flash)} of flash, it has {mib(device.flash_bytes)}"
    return "does not fit: it lacks memory for the stages that it has flash for"


def _rate(seconds: float) -> str:
    return f"{1 / seconds:.3g}" if seconds > 0 else "any number of"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g}"
