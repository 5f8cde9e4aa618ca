"""A plan in words, tables and lines of characters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edge.formats.bundle import Manifest
from edge.formats.plan import Plan, Stage
from host.cli.console import size_text, table
from host.planning.costs import DeviceCost, Network
from host.planning.explain import Change, Choice, Explanation, Figures
from host.planning.schedule import Resource, Schedule, in_order, loads_of, timetable

_COLUMNS = 72
_LANES = 40
"""Lines of a text schedule, at most."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LEFT_OUT = 20
_ROUNDING = 1e-6
_NAMES = 4
_OBJECTIVES = ("requests/s", "ms a request", "J a request", "memory")


def stage_table(plan: Plan, manifest: Manifest, devices: Mapping[str, DeviceCost], network: Network) -> Table:
    """Return what each stage is, takes and has."""
    loads = loads_of(plan, devices, network)
    rows = table(">stage", "device", ">shards", ">layers", ">ms", "from", ">load", ">memory", ">of", ">in", ">out")
    for stage in plan.stages:
        room = min(devices[name].memory_bytes for name in stage.runners)
        rows.add_row(
            f"∥ {stage.index}" if stage.beside else str(stage.index),
            runner_names(stage),
            _range(stage.first_shard, stage.stop_shard),
            _layers(stage, manifest),
            f"{stage.predicted_seconds * 1e3:.1f}",
            stage.source,
            _percent(_share(loads[Resource(kind="compute", name=stage.device)], plan)),
            size_text(stage.memory_bytes),
            size_text(room),
            size_text(stage.received_bytes),
            size_text(stage.sent_bytes),
        )
    return rows


def runner_names(stage: Stage) -> str:
    """Return the devices that take turns with a stage, in short."""
    names = stage.runners
    more = f" +{len(names) - _NAMES}" if len(names) > _NAMES else ""
    return " | ".join(names[:_NAMES]) + more


def summary_lines(plan: Plan) -> Iterator[str]:
    """Yield what a plan promises and what it leaves out."""
    yield (
        f"predicted: {rate_text(plan.bottleneck_seconds)} requests/s, {plan.latency_seconds * 1e3:.1f} ms a request, "
        f"{energy_text(plan.energy_joules)} and {size_text(plan.network_bytes)} over the network a request"
    )
    gap = f"; at most {plan.gap:.1%} worse than the best plan" if plan.gap > 0 else ""
    yield f"bound by {_plain(plan.binds)}{gap}"
    for left in plan.left_out[:_LEFT_OUT]:
        yield f"left out: {left.device}: {_plain(left.reason)}"
    if len(plan.left_out) > _LEFT_OUT:
        yield f"left out: {len(plan.left_out) - _LEFT_OUT} more"


def load_table(plan: Plan, devices: Mapping[str, DeviceCost], network: Network) -> Table:
    """Return how busy everything is at full load, the busiest first."""
    rows = table("busy at full load", ">ms a request", ">load")
    loads = sorted(loads_of(plan, devices, network).items(), key=lambda load: (-load[1], load[0]))
    for resource, seconds in loads[:_LANES]:
        rows.add_row(str(resource), f"{seconds * 1e3:.1f}", _percent(_share(seconds, plan)))
    return rows


def alone_lines(plan: Plan, devices: Mapping[str, DeviceCost], network: Network) -> Iterator[str]:
    """Yield one request through all stages, one line for each thing that is busy with it."""
    schedule = timetable(plan, devices, network, requests=1, window=1)
    end = schedule.answered[0]
    # What a medium or the broker adds is no part of what the planner calls latency.
    shared = "" if abs(end - plan.latency_seconds) <= 0.005 * end else ", with what is shared"
    yield f"one request alone, {end * 1e3:.1f} ms{shared}"
    bars = schedule.bars[:_LANES]
    width = max((len(str(bar.resource)) for bar in bars), default=0)
    for bar in bars:
        first, last = (_column(at, end) for at in (bar.start, bar.end))
        line = " " * first + "█" * max(1, last - first)
        yield f"  {bar.resource!s:<{width}} ▕{line:<{_COLUMNS}}▏ {(bar.end - bar.start) * 1e3:8.2f} ms"
    if len(schedule.bars) > len(bars):
        yield f"  {len(schedule.bars) - len(bars)} more"


def full_lines(schedule: Schedule, plan: Plan, loads: Mapping[Resource, float]) -> Iterator[str]:
    """Yield requests that follow each other, one line for each thing that is busy; a character is a request."""
    lanes: dict[Resource, list[str]] = {}
    end = max(schedule.answered)
    for bar in schedule.bars:
        lane = lanes.setdefault(bar.resource, [" "] * _COLUMNS)
        first, last = (_column(at, end) for at in (bar.start, bar.end))
        for column in range(first, max(first + 1, last)):
            lane[min(column, _COLUMNS - 1)] = _DIGITS[bar.request % len(_DIGITS)]
    yield f"at full load, a result every {plan.bottleneck_seconds * 1e3:.1f} ms; each character is a request"
    width = max(len(str(resource)) for resource in lanes)
    for resource in in_order(plan, lanes)[:_LANES]:
        mark = "  ← binds" if binds(loads[resource], plan) else ""
        yield f"  {resource!s:<{width}} ▕{''.join(lanes[resource])}▏{mark}"
    if len(lanes) > _LANES:
        yield f"  {len(lanes) - _LANES} more"


def steady_requests(plan: Plan) -> int:
    """Return how many requests fill a pipeline and show a few periods of it when it is full."""
    if plan.bottleneck_seconds <= 0:
        return 1
    return min(math.ceil(plan.latency_seconds / plan.bottleneck_seconds) + 4, 16)


def binds(seconds: float, plan: Plan) -> bool:
    """Tell whether what one request takes of something is all of the time between two results."""
    return seconds >= plan.bottleneck_seconds * (1 - _ROUNDING)


def explanation_parts(explanation: Explanation, plan: Plan, window: int) -> Iterator[Table | Text]:
    """Yield what would be otherwise: tables and a line on the window."""
    own = explanation.figures
    yield _objectives(explanation.objectives, plan)
    for title, word, changes in (
        ("with one device less", "without", explanation.without),
        ("with one device more", "one more like", explanation.more),
    ):
        if changes:
            yield _changes(title, word, changes, own)
    full = explanation.window_rate / own.requests_per_second if math.isfinite(own.requests_per_second) else 1.0
    yield Text(
        f"window {window}: lets {explanation.window_rate:.1f} requests/s through, {full:.0%} of what the stages do; "
        f"{explanation.window_needed} would be enough"
    )
    if explanation.untried:
        yield Text(f"{explanation.untried} more questions were not tried", style="dim")


def _objectives(choices: Sequence[Choice], plan: Plan) -> Table:
    rows = table("for", *(f">{name}" for name in _OBJECTIVES), ">devices", "bound by")
    for choice in choices:
        name = f"{choice.objective} ←" if choice.objective == plan.objective else choice.objective
        if choice.figures is None:
            rows.add_row(name, *[""] * (len(_OBJECTIVES) + 1), escape(choice.reason))
        else:
            rows.add_row(name, *_figures(choice.figures), str(choice.figures.devices), escape(choice.figures.binds))
    return rows


def _changes(title: str, word: str, changes: Sequence[Change], own: Figures) -> Table:
    rows = table(title, *(f">{name}" for name in _OBJECTIVES), ">change", "bound by")
    for change in changes:
        names = " or ".join(change.devices[:_NAMES]) + (" or …" if len(change.devices) > _NAMES else "")
        if change.figures is None:
            rows.add_row(f"{word} {names}", *[""] * (len(_OBJECTIVES) + 1), escape(change.reason))
            continue
        found = change.figures
        finite = math.isfinite(found.requests_per_second) and math.isfinite(own.requests_per_second)
        gain = found.requests_per_second / own.requests_per_second - 1 if finite else 0.0
        rows.add_row(f"{word} {names}", *_figures(found), f"{gain:+.0%} requests/s", escape(found.binds))
    return rows


def _figures(figures: Figures) -> list[str]:
    return [
        f"{figures.requests_per_second:.1f}",
        f"{figures.latency_seconds * 1e3:.1f}",
        energy_text(figures.energy_joules).removesuffix(" J"),
        _percent(figures.memory_share),
    ]


def rate_text(period_seconds: float) -> str:
    """Return requests a second from the time between two."""
    return f"{1 / period_seconds:.1f}" if period_seconds > 0 else "?"


def energy_text(joules: float) -> str:
    """Return an energy, `?` where nothing is known."""
    return f"{joules:.3g} J" if joules > 0 else "? J"


def _share(seconds: float, plan: Plan) -> float:
    return seconds / plan.bottleneck_seconds if plan.bottleneck_seconds > 0 else 0.0


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _range(first: int, stop: int) -> str:
    return str(first) if stop - first == 1 else f"{first}–{stop - 1}"


def _layers(stage: Stage, manifest: Manifest) -> str:
    shards = manifest.shards
    return _range(shards[stage.first_shard].first_layer, shards[stage.stop_shard - 1].stop_layer)


def _plain(text: str) -> str:
    """Text of a plan that came over the network, without what would move the cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _column(at: float, end: float) -> int:
    return round(at / end * _COLUMNS) if end > 0 else 0
