"""The schedule of a plan as a picture: what is busy when, at full load, one colour for each request."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edge.formats.plan import Plan
from host.cli.plan_text import binds, rate_text
from host.planning.schedule import Resource, Schedule, in_order

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


def draw_schedule(path: Path, plan: Plan, schedule: Schedule, loads: Mapping[Resource, float]) -> None:
    """Draw a time table into a file.

    Args:
        path: ends in `.svg` or `.png`; equal plans give equal SVG.
        plan: whose time table it is.
        schedule: bars.
        loads: seconds that one request takes of each resource.

    Raises:
        OSError: the file cannot be written.
    """
    rows = rows_of(plan, loads)
    tall = 1.1 + 0.3 * sum(row.height for row in rows)
    with style.context(["default", _SETTINGS]), warnings.catch_warnings():
        # Names of devices are ASCII; a reader of SVG has fonts for all else.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure = Figure(figsize=(_WIDTH_INCHES, tall), layout="constrained")
        axes = figure.subplots()
        _draw_rows(axes, rows, plan, loads)
        _draw_bars(axes, rows, schedule)
        _draw_period(axes, rows, schedule)
        axes.set_title(
            f"{rate_text(plan.bottleneck_seconds)} requests/s, {plan.latency_seconds * 1e3:.1f} ms a request, "
            f"bound by {plan.binds}",
            loc="left",
            fontsize=10,
            pad=24,
        )
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else None
        figure.savefig(path, format=path.suffix.removeprefix("."), dpi=160, metadata=metadata)


def _draw_rows(axes: Axes, rows: Sequence[Row], plan: Plan, loads: Mapping[Resource, float]) -> None:
    for row in rows:
        share = loads[row.resource] / plan.bottleneck_seconds if plan.bottleneck_seconds > 0 else 0.0
        bound = binds(loads[row.resource], plan)
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


def _draw_bars(axes: Axes, rows: Sequence[Row], schedule: Schedule) -> None:
    end = max(schedule.answered) * 1e3
    places = {row.resource: row for row in rows}
    for bar in schedule.bars:
        row = places.get(bar.resource)
        if row is None:
            continue
        compute = bar.resource.kind == "compute"
        wide = (bar.end - bar.start) * 1e3 > end * _SHORTEST_LABEL
        colour = _COLOURS[bar.request % len(_COLOURS)]
        axes.barh(
            row.place,
            (bar.end - bar.start) * 1e3,
            left=bar.start * 1e3,
            height=row.height * (0.8 if compute else 0.6),
            color=colour,
            # What is short is nothing but its edge.
            edgecolor="white" if wide else colour,
            linewidth=0.5,
            zorder=2,
        )
        if wide:
            middle, size = (bar.start + bar.end) / 2 * 1e3, 7.5 if compute else 6
            axes.text(
                middle, row.place, str(bar.request), ha="center", va="center", fontsize=size, color="white", zorder=3
            )
    axes.set_xlim(0, end)
    axes.set_xlabel("ms from the first request; the number is that of the request")
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)


def _draw_period(axes: Axes, rows: Sequence[Row], schedule: Schedule) -> None:
    """Show the time between two results, at the last two of them."""
    if len(schedule.answered) < 2:
        return
    answered = sorted(at * 1e3 for at in schedule.answered)
    first, last = answered[-2:]
    # The first ones were not held up by those before them.
    steady = answered[len(answered) // 2 :] if len(answered) > 3 else answered[-2:]
    period = (steady[-1] - steady[0]) / (len(steady) - 1)
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
        f"a result every {period:.1f} ms",
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
