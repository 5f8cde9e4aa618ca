"""A plan in words, tables and lines of characters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edge.formats.bundle import Manifest
from edge.formats.plan import Plan, Stage
from host.cli.console import fitted, out, size_text
from host.cli.plan_words import digits_text, energy_text, ms_text, range_text, rate_text, runner_names
from host.planning.costs import DeviceCost, Network
from host.planning.explain import WINDOW, Change, Choice, Explanation, Figures, period_of, what_binds
from host.planning.schedule import Resource, Schedule, in_order, loads_of, timetable

_COLUMNS = 72
_FEWEST_COLUMNS = 10
_LANES = 40
"""Lines of a text schedule, at most."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BINDS = "  ← binds"
_ROUNDING = 1e-6
_NAMES = 4
_OBJECTIVES = ("requests/s", "ms a request", "J a request", "memory")
_LESS = (">memory", ">J a request", ">ms a request", ">devices")


def stage_table(
    plan: Plan, manifest: Manifest, devices: Mapping[str, DeviceCost], network: Network, window: int
) -> Table:
    """Return what each stage is, takes and has; on a narrow terminal, less of it.

    Where the bundle leaves a choice, also with which runtime it runs, and in the form of which build tensors come.
    """
    loads, period = loads_of(plan, devices, network), period_of(plan, window)
    mixed = ("runtime", "takes") if plan.runtimes else ()
    rest = (">shards", ">layers", ">ms", "from", ">load", ">memory", ">of", ">in", ">out")
    columns = (">stage", "device", *mixed, *rest)
    rows: list[list[str]] = []
    for stage in plan.stages:
        room = min(devices[name].memory_bytes for name in stage.runners)
        rows.append(
            [
                f"∥ {stage.index}" if stage.beside else str(stage.index),
                runner_names(stage),
                *((_runtimes(stage, plan), stage.takes or manifest.shard_format) if mixed else ()),
                range_text(stage.first_shard, stage.stop_shard),
                _layers(stage, manifest),
                f"{stage.predicted_seconds * 1e3:.1f}",
                stage.source,
                _percent(_share(loads[Resource(kind="compute", name=stage.device)], period)),
                size_text(stage.memory_bytes),
                size_text(room),
                size_text(stage.received_bytes),
                size_text(stage.sent_bytes),
            ]
        )
    return fitted(columns, rows, without=("takes", ">layers", ">in", ">out", ">of", "from"))


def _runtimes(stage: Stage, plan: Plan) -> str:
    """The runtimes that run a stage; those that a device chooses by itself have no name yet."""
    return " or ".join(dict.fromkeys(plan.runtimes.get(name, "its own") for name in stage.runners))


def load_table(plan: Plan, devices: Mapping[str, DeviceCost], network: Network, window: int) -> Table:
    """Return how busy everything is at full load, the busiest first."""
    period = period_of(plan, window)
    loads = sorted(loads_of(plan, devices, network).items(), key=lambda load: (-load[1], load[0]))
    rows = [[str(resource), f"{seconds * 1e3:.1f}", _percent(_share(seconds, period))] for resource, seconds in loads]
    return fitted(("busy at full load", ">ms a request", ">load"), rows[:_LANES])


def alone_lines(plan: Plan, devices: Mapping[str, DeviceCost], network: Network) -> Iterator[str]:
    """Yield one request through all stages, one line for each thing that is busy with it."""
    schedule = timetable(plan, devices, network, requests=1, window=1)
    end = schedule.answered[0]
    # What a medium or the broker adds is no part of what the planner calls latency.
    shared = "" if abs(end - plan.latency_seconds) <= 0.005 * end else ", with what is shared"
    yield f"one request alone, {ms_text(end)} ms{shared}"
    bars = schedule.bars[:_LANES]
    width = max((len(str(bar.resource)) for bar in bars), default=0)
    columns = _columns(width, len(" 12345.67 ms"))
    for bar in bars:
        first, last = (_column(at, end, columns) for at in (bar.start, bar.end))
        first = min(first, columns - 1)
        line = " " * first + "█" * max(1, last - first)
        yield f"  {bar.resource!s:<{width}} ▕{line:<{columns}}▏ {(bar.end - bar.start) * 1e3:8.2f} ms"
    if len(schedule.bars) > len(bars):
        yield f"  {len(schedule.bars) - len(bars)} more"


def full_lines(schedule: Schedule, plan: Plan, loads: Mapping[Resource, float], window: int) -> Iterator[str]:
    """Yield requests that follow each other, one line for each thing that is busy; a character is a request."""
    lanes: dict[Resource, list[str]] = {}
    end, period = max(schedule.answered), period_of(plan, window)
    width = max(len(str(bar.resource)) for bar in schedule.bars)
    columns = _columns(width, len(_BINDS))
    for bar in schedule.bars:
        lane = lanes.setdefault(bar.resource, [" "] * columns)
        first, last = (_column(at, end, columns) for at in (bar.start, bar.end))
        for column in range(first, max(first + 1, last)):
            lane[min(column, columns - 1)] = _DIGITS[bar.request % len(_DIGITS)]
    why = f", as the {what_binds(plan, window)} binds" if what_binds(plan, window).startswith(WINDOW) else ""
    yield f"at full load, a result every {ms_text(period)} ms{why}; each character is a request"
    for resource in in_order(plan, lanes)[:_LANES]:
        mark = _BINDS if binds(loads[resource], period) else ""
        yield f"  {resource!s:<{width}} ▕{''.join(lanes[resource])}▏{mark}"
    if len(lanes) > _LANES:
        yield f"  {len(lanes) - _LANES} more"


def steady_requests(plan: Plan, window: int) -> int:
    """Return how many requests fill a pipeline and show a few periods of it when it is full."""
    period = period_of(plan, window)
    return min(math.ceil(plan.latency_seconds / period) + 4, 16) if period > 0 else 1


def binds(seconds: float, period_seconds: float) -> bool:
    """Tell whether what one request takes of something is all of the time between two results."""
    return seconds >= period_seconds * (1 - _ROUNDING)


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
    full = explanation.window_rate * plan.bottleneck_seconds if plan.bottleneck_seconds > 0 else 1.0
    yield Text(
        f"window {window}: lets {rate_text(period_of(plan, window))} requests/s through, "
        f"{full:.0%} of what devices and links do; "
        f"{explanation.window_needed} would be enough"
    )
    if explanation.untried:
        yield Text(f"{explanation.untried} more questions were not tried", style="dim")


def _objectives(choices: Sequence[Choice], plan: Plan) -> Table:
    rows: list[list[str]] = []
    for choice in choices:
        name = f"{choice.objective} ←" if choice.objective == plan.objective else choice.objective
        if choice.figures is None:
            rows.append([name, *[""] * (len(_OBJECTIVES) + 1), escape(choice.reason)])
        else:
            rows.append([name, *_figures(choice.figures), str(choice.figures.devices), escape(choice.figures.binds)])
    columns = ("for", *(f">{name}" for name in _OBJECTIVES), ">devices", "bound by")
    return fitted(columns, rows, without=_LESS)


def _changes(title: str, word: str, changes: Sequence[Change], own: Figures) -> Table:
    rows: list[list[str]] = []
    for change in changes:
        names = " or ".join(change.devices[:_NAMES]) + (" or …" if len(change.devices) > _NAMES else "")
        if change.figures is None:
            rows.append([f"{word} {names}", *[""] * (len(_OBJECTIVES) + 1), escape(change.reason)])
            continue
        found = change.figures
        finite = math.isfinite(found.requests_per_second) and math.isfinite(own.requests_per_second)
        gain = found.requests_per_second / own.requests_per_second - 1 if finite else 0.0
        rows.append([f"{word} {names}", *_figures(found), _gain(gain), escape(found.binds)])
    return fitted((title, *(f">{name}" for name in _OBJECTIVES), ">change", "bound by"), rows, without=_LESS)


def _gain(part: float) -> str:
    return f"{part:+.0%} requests/s" if abs(part) >= 0.005 else "none"


def _figures(figures: Figures) -> list[str]:
    return [
        digits_text(figures.requests_per_second) if math.isfinite(figures.requests_per_second) else "?",
        ms_text(figures.latency_seconds),
        energy_text(figures.energy_joules).removesuffix(" J"),
        _percent(figures.memory_share),
    ]


def _share(seconds: float, period_seconds: float) -> float:
    return seconds / period_seconds if period_seconds > 0 else 0.0


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _layers(stage: Stage, manifest: Manifest) -> str:
    shards = manifest.shards
    return range_text(shards[stage.first_shard].first_layer, shards[stage.stop_shard - 1].stop_layer)


def _columns(names: int, behind: int) -> int:
    """Return how long a line may be between its name and what stands behind it."""
    return max(_FEWEST_COLUMNS, min(_COLUMNS, out.width - names - behind - len("   ▕▏")))


def _column(at: float, end: float, columns: int) -> int:
    return round(at / end * columns) if end > 0 else 0
