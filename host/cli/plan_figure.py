"""The schedule of a plan as a picture: what is busy when, at full load, one colour for each request."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edge.formats.plan import Plan
from host.cli.plan_text import binds
from host.cli.plan_words import bound_text, ms_text, rate_text
from host.planning.explain import period_of
from host.planning.schedule import MAX_REQUESTS, Resource, Schedule, in_order

MAX_ROWS = 48
"""Of more than that, the busiest are drawn."""

_INK, _MUTED, _GRID, _BAND = "#1f2328", "#59636e", "#d8dee4", "#fdecea"
_ALARM = "#b3261e"
# Okabe and Ito's colours, which people who do not tell all colours apart do tell apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999933")
_SETTINGS = {
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "shardwire",
    "text.color": _INK,
    # Names may hold dollar signs: they are names, not formulas.
    "text.parse_math": False,
    "xtick.color": _GRID,
    "xtick.labelcolor": _MUTED,
}
_WIDTH_INCHES = 10.0
_COMPUTE, _LINK = 1.0, 0.6
_SHORTEST_LABEL = 0.012
"""A bar that takes less of the width has no room for its number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the picture.

    Attributes:
        resource: what is busy.
        place: middle of the line, downwards.
        height: of the line.
    """

    resource: Resource
    place: float
    height: float


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The part of a time table that is drawn.

    Attributes:
        start, end: in seconds; between them the pipeline is full.
        first, last: the results between which the time is shown.
        results: how many come in it: one from each device where devices take turns.
        period: seconds between two results, as the plan promises.
    """

    start: float
    end: float
    first: float
    last: float
    results: int
    period: float


def requests_of(plan: Plan, window: int) -> int:
    """Return how many requests it takes until a pipeline is full, what is drawn has passed, and it drains."""
    filled, shown = _filled(plan, window), _shown(plan, window)
    return min(MAX_REQUESTS, 2 * filled + _cycle(plan) + shown + 4)


def view_of(plan: Plan, schedule: Schedule, window: int) -> View:
    """Return the part to draw: neither the first requests, which none held up, nor the last, with none behind them."""
    period, cycle = period_of(plan, window), _cycle(plan)
    answered = sorted(schedule.answered)
    # An end that is drawn with requests behind it, even where there are too few of them.
    begin = min(_filled(plan, window) + cycle, max(0, len(answered) - _shown(plan, window) - 1) // 2)
    start = answered[begin] if begin else 0.0
    end = min(start + _shown(plan, window) * period, answered[-1]) if period > 0 else answered[-1]
    if end <= start:
        start, end = 0.0, answered[-1]
    last = max((at for at in answered if at <= end * (1 + 1e-9)), default=end)
    return View(start=start, end=end, first=last - cycle * period, last=last, results=cycle, period=period)


def _filled(plan: Plan, window: int) -> int:
    period = period_of(plan, window)
    return min(window, math.ceil(plan.latency_seconds / period)) if period > 0 else 1


def _shown(plan: Plan, window: int) -> int:
    """How many periods are drawn: what a request takes where that is not too long, and all devices in turn."""
    return max(4, min(_filled(plan, window) + 2, 16), min(_cycle(plan) + 1, 24))


def _cycle(plan: Plan) -> int:
    return min(math.lcm(*(len(stage.runners) for stage in plan.stages)), 12)


def rows_of(plan: Plan, loads: Mapping[Resource, float]) -> tuple[Row, ...]:
    """Return the lines in the order in which a request meets them; of too many, the busiest."""
    busiest = sorted(loads, key=lambda resource: (-loads[resource], resource))[:MAX_ROWS]
    rows: list[Row] = []
    top = 0.0
    for resource in in_order(plan, busiest):
        height = _COMPUTE if resource.kind == "compute" else _LINK
        rows.append(Row(resource=resource, place=top + height / 2, height=height))
        top += height
    return tuple(rows)


def draw_schedule(path: Path, plan: Plan, schedule: Schedule, loads: Mapping[Resource, float], window: int) -> None:
    """Draw a time table into a file.

    Args:
        path: ends in `.svg` or `.png`; equal plans give equal SVG.
        plan: whose time table it is.
        schedule: bars of `requests_of` requests.
        loads: seconds that one request takes of each resource.
        window: requests in flight.

    Raises:
        OSError: the file cannot be written.
    """
    rows, view = rows_of(plan, loads), view_of(plan, schedule, window)
    tall = 1.1 + 0.3 * sum(row.height for row in rows)
    with style.context(["default", _SETTINGS]), warnings.catch_warnings():
        # Names of devices are ASCII; a reader of SVG has fonts for all else.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure = Figure(figsize=(_WIDTH_INCHES, tall), layout="constrained")
        axes = figure.subplots()
        _draw_rows(axes, rows, plan, loads, view.period)
        _draw_bars(axes, rows, schedule, view)
        _draw_period(axes, rows, view)
        axes.set_title(
            f"{rate_text(view.period)} requests/s, {ms_text(plan.latency_seconds)} ms a request, "
            f"bound by {bound_text(plan, window, client_known=True)}",
            loc="left",
            fontsize=10,
            pad=24,
        )
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else None
        figure.savefig(path, format=path.suffix.removeprefix("."), dpi=160, metadata=metadata)


def _draw_rows(
    axes: Axes, rows: Sequence[Row], plan: Plan, loads: Mapping[Resource, float], period_seconds: float
) -> None:
    for row in rows:
        share = loads[row.resource] / period_seconds if period_seconds > 0 else 0.0
        bound = binds(loads[row.resource], period_seconds)
        if bound:
            axes.axhspan(row.place - row.height / 2, row.place + row.height / 2, color=_BAND, zorder=0)
        axes.annotate(
            f"{share:.0%}" + (" binds" if bound else ""),
            (1.0, row.place),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=_ALARM if bound else _MUTED,
            fontweight="bold" if bound else "normal",
            annotation_clip=False,
        )
    axes.set_yticks([row.place for row in rows], [_label(row.resource, plan) for row in rows])
    for row, text in zip(rows, axes.get_yticklabels(), strict=True):
        compute = row.resource.kind == "compute"
        text.set_fontsize(9 if compute else 7.5)
        text.set_color(_INK if compute else _MUTED)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(rows[-1].place + rows[-1].height / 2, 0)


def _draw_bars(axes: Axes, rows: Sequence[Row], schedule: Schedule, view: View) -> None:
    end = (view.end - view.start) * 1e3
    places = {row.resource: row for row in rows}
    for bar in schedule.bars:
        row = places.get(bar.resource)
        start, stop = ((max(view.start, min(at, view.end)) - view.start) * 1e3 for at in (bar.start, bar.end))
        if row is None or bar.end < view.start or bar.start > view.end:
            continue
        compute = bar.resource.kind == "compute"
        wide = stop - start > end * _SHORTEST_LABEL
        colour = _COLOURS[bar.request % len(_COLOURS)]
        axes.barh(
            row.place,
            stop - start,
            left=start,
            height=row.height * (0.8 if compute else 0.6),
            color=colour,
            # What is short is nothing but its edge.
            edgecolor="white" if wide else colour,
            linewidth=0.5,
            zorder=2,
        )
        if wide:
            middle, size = (start + stop) / 2, 7.5 if compute else 6
            axes.text(
                middle, row.place, str(bar.request), ha="center", va="center", fontsize=size, color="white", zorder=3
            )
    axes.set_xlim(0, end)
    axes.set_xlabel("ms, of a pipeline that is full; the number is that of the request")
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)


def _draw_period(axes: Axes, rows: Sequence[Row], view: View) -> None:
    """Show the time between results, at the last of them."""
    first, last = ((at - view.start) * 1e3 for at in (view.first, view.last))
    if view.period <= 0 or first < 0:
        return
    each = f"a result every {ms_text(view.period)} ms"
    text = each if view.results == 1 else f"{view.results} results in {ms_text(view.results * view.period)} ms, {each}"
    for at in (first, last):
        axes.plot([at, at], [0, rows[-1].place], color=_ALARM, lw=0.8, ls=(0, (4, 3)), zorder=1, clip_on=False)
    axes.annotate(
        "",
        (first, -0.12),
        (last, -0.12),
        arrowprops={"arrowstyle": "<->", "color": _ALARM, "lw": 1.0},
        annotation_clip=False,
    )
    axes.annotate(
        text,
        (last, -0.12),
        xytext=(0, 6),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=_ALARM,
        annotation_clip=False,
    )


def _label(resource: Resource, plan: Plan) -> str:
    match resource.kind:
        case "compute":
            stage = next(stage.index for stage in plan.stages if resource.name in stage.runners)
            return f"{resource.name}, stage {stage}"
        case "uplink":
            return f"{resource.name} sends"
        case "downlink":
            return f"{resource.name} receives"
        case _:
            return str(resource)
