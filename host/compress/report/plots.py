"""The pictures of a report: Pareto front, sensitivity, histograms, time by layer and operator."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from host.compress.judge.score import Score
from host.compress.report.placement import Label, placed
from host.compress.report.records import INFINITE, Candidate, Report, TensorHistogram
from host.compress.report.svg import STAND_INS, inlined
from host.compress.report.wording import best_metric, budget_limit, lower_is_better, printable, shortened

MAX_BARS = 20
"""Bars of one picture; the page lists the rest in a table."""

_INK, _MUTED, _GRID, _SURFACE = (STAND_INS[name] for name in ("ink", "muted", "grid", "surface"))
_BEFORE, _AFTER = STAND_INS["before"], STAND_INS["after"]
_STATUS_MARKS = {
    "proven": ("o", STAND_INS["good"]),
    "held": ("D", STAND_INS["warn"]),
    "broken": ("X", STAND_INS["bad"]),
    "failed": ("X", STAND_INS["bad"]),
}
# Not as powers of ten, which matplotlib sets as formulas.
_PLAIN = "{x:g}"
_WIDTH_INCHES = 4.6
_BAR_INCHES = 0.21
# Width of a letter of the labels in points, a little more than it is.
_LETTER = 5.8

_SETTINGS = {
    "axes.edgecolor": _GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": _MUTED,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "figure.figsize": (_WIDTH_INCHES, 3.1),
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": _MUTED,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "shardwire",
    "text.color": _INK,
    # Names may hold dollar signs: they are names, not formulas.
    "text.parse_math": False,
    "xtick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "xtick.labelsize": 8.5,
    "ytick.color": _GRID,
    "ytick.labelcolor": _MUTED,
    "ytick.labelsize": 8.5,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """One picture.

    Attributes:
        name: Unique in the page.
        title: For people.
        caption: What to see in it and what was left out.
        svg: The element, for the page as it is.
    """

    name: str
    title: str
    caption: str
    svg: str


def pareto_plots(report: Report) -> tuple[Plot, ...]:
    """Candidates by accuracy against size, measured latency and predicted latency: those of which figures exist."""
    metric = best_metric(report)
    if metric is None:
        return ()
    axes: tuple[tuple[str, str, str, Callable[[Candidate], float | None]], ...] = (
        ("size", "Size against accuracy", "weights, MiB", lambda each: _times(each.size_bytes, 1 / 2**20)),
        (
            "latency",
            "Measured latency against accuracy",
            "CPU time of one run here, ms",
            lambda each: _times(each.latency_seconds, 1000),
        ),
        (
            "predicted",
            f"Predicted latency against accuracy, {report.profile}",
            "predicted latency on the profile, ms",
            lambda each: _times(each.predicted_seconds, 1000),
        ),
    )
    drawn = []
    for name, title, label, cost in axes:
        points = [
            _Point(number=number, candidate=each, score=score, cost=found)
            for number, each in enumerate(report.candidates, start=1)
            if (found := cost(each)) is not None and (score := score_of(each, metric)) is not None
        ]
        if len(points) >= 2:
            drawn.append(_pareto_plot(f"pareto-{name}", title, label, points, report.budget))
    return tuple(drawn)


def score_of(candidate: Candidate, metric: str) -> Score | None:
    """The candidate's figure of a metric, if it has one that is finite."""
    return next((each for each in candidate.scores if each.metric == metric and abs(each.value) < INFINITE), None)


def sensitivity_plot(report: Report) -> Plot | None:
    """The nodes that quantization hurts most."""
    finite = [each for each in report.sensitivity if abs(each.snr_db) < INFINITE]
    worst = sorted(finite, key=lambda each: each.snr_db)[:MAX_BARS]
    if not worst:
        return None
    with _drawn(len(worst)) as figure:
        axes = figure.subplots()
        colours = [_AFTER if each.precision.startswith(("int", "uint")) else STAND_INS["warn"] for each in worst]
        axes.barh(range(len(worst)), [each.snr_db for each in worst], height=0.66, color=colours)
        _bar_labels(axes, [each.node for each in worst])
        axes.set_xlabel("signal-to-noise with this node alone quantized, dB")
        for word, colour in (("quantized in the result", _AFTER), ("kept at higher precision", STAND_INS["warn"])):
            axes.barh(0, 0, color=colour, label=word)
        _legend_above(figure)
        label = f"Signal-to-noise ratio of {len(worst)} nodes, the most sensitive first"
        svg = _svg(figure, "sensitivity", label)
    caption = _of_all("The {} most sensitive", len(worst), len(report.sensitivity), "nodes; short bars hurt most.")
    return Plot(name="sensitivity", title="Sensitivity by node", caption=caption, svg=svg)


def histogram_plots(report: Report, kind: str) -> tuple[Plot, ...]:
    """One picture for each ``weight`` or ``activation`` of the report."""
    chosen = [each for each in report.histograms if each.kind == kind]
    return tuple(_histogram_plot(each, f"{kind}-{number}") for number, each in enumerate(chosen, start=1))


def layer_plot(report: Report) -> Plot | None:
    """Time of the layers that take most of it, before and after."""
    rows = [(each.node, each.seconds_before, each.seconds_after) for each in report.layers]
    return _time_plot("layers", "Time by layer", "layers", rows)


def operator_plot(report: Report) -> Plot | None:
    """Time of each type of operator, before and after."""
    rows = [(each.operator, each.seconds_before, each.seconds_after) for each in report.operators]
    return _time_plot("operators", "Time by operator", "operators", rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Point:
    number: int
    candidate: Candidate
    score: Score
    cost: float


def _pareto_plot(name: str, title: str, label: str, points: Sequence[_Point], budget: str | None) -> Plot:
    metric = points[0].score.metric
    with _drawn() as figure:
        axes = figure.subplots()
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        _draw_budget(axes, budget, points)
        front = _front(points)
        axes.plot([each.cost for each in front], [each.score.value for each in front], color=_AFTER, lw=1.4, zorder=2)
        for point in points:
            _draw_point(axes, point)
        axes.set_xlim(0, max(point.cost for point in points) * 1.08 or 1)
        axes.set_xlabel(label)
        direction = "lower is better" if lower_is_better(metric) else "higher is better"
        axes.set_ylabel(f"{shortened(metric, 24)}, {direction}")
        _status_legend(figure, axes, points)
        _name_points(figure, axes, points)
        svg = _svg(figure, name, f"{title}: {len(points)} candidates, numbered as in the table")
    caption = "Numbers as in the table. The line joins those that no other beats in both; thin bars are intervals."
    return Plot(name=name, title=title, caption=caption, svg=svg)


def _front(points: Sequence[_Point]) -> list[_Point]:
    """The points that no other beats in both figures, the cheapest first."""
    sign = 1 if lower_is_better(points[0].score.metric) else -1
    front: list[_Point] = []
    for point in sorted(points, key=lambda each: (each.cost, sign * each.score.value, each.number)):
        if not front or sign * point.score.value < sign * front[-1].score.value:
            front.append(point)
    return front


def _draw_point(axes: Axes, point: _Point) -> None:
    marker, colour = _STATUS_MARKS[point.candidate.status]
    if max(abs(point.score.low), abs(point.score.high)) < INFINITE:
        axes.plot([point.cost] * 2, [point.score.low, point.score.high], color=_MUTED, lw=0.8, zorder=1)
    size = 7.5 if point.candidate.chosen else 6
    axes.plot(point.cost, point.score.value, ls="", marker=marker, ms=size, mfc=colour, mec=_SURFACE, mew=0.8, zorder=3)
    if point.candidate.chosen:
        axes.plot(point.cost, point.score.value, ls="", marker="o", ms=13, mfc="none", mec=_INK, mew=1.2, zorder=4)


def _name_points(figure: Figure, axes: Axes, points: Sequence[_Point]) -> None:
    """Number the points, and name the chosen one; where texts would cover each other, they move."""
    figure.draw_without_rendering()
    ordered = sorted(points, key=lambda each: (not each.candidate.chosen, not each.candidate.on_front, each.number))
    names = {each.number: shortened(each.candidate.name, 20) for each in ordered if each.candidate.chosen}
    texts = [f"{each.number} {names.get(each.number, '')}".strip() for each in ordered]
    scale = 72 / figure.dpi
    left, bottom, width, height = (side * scale for side in axes.bbox.bounds)
    places = axes.transData.transform([(each.cost, each.score.value) for each in ordered]) * scale
    labels = [
        Label(x=float(x) - left, y=float(y) - bottom, width=_LETTER * len(text) + 2, height=9.0)
        for (x, y), text in zip(places, texts, strict=True)
    ]
    for point, text, (x, y) in zip(ordered, texts, placed(labels, width=width, height=height), strict=True):
        axes.annotate(
            text,
            (x / width, y / height),
            xycoords="axes fraction",
            ha="center",
            va="center",
            fontsize=8.5,
            fontweight="bold" if point.candidate.chosen else "normal",
            color=_INK if point.candidate.on_front or point.candidate.chosen else _MUTED,
            zorder=5,
            annotation_clip=False,
        ).set_in_layout(False)


def _draw_budget(axes: Axes, budget: str | None, points: Sequence[_Point]) -> None:
    metric = points[0].score.metric
    limit = budget_limit(budget, metric)
    if limit is None:
        return
    axes.axhline(limit, color=STAND_INS["bad"], lw=1, ls=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"budget {limit:g}",
        (0.995, limit),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=STAND_INS["bad"],
    )
    if limit > 0 and max(point.score.value for point in points) > 4 * limit and lower_is_better(metric):
        # One ruined candidate must not press all others onto the axis.
        axes.set_yscale("symlog", linthresh=2 * limit, linscale=1.5, subs=[2, 5])
        axes.yaxis.set_major_locator(SymmetricalLogLocator(linthresh=2 * limit, base=10, subs=[1, 2, 5]))
        axes.yaxis.set_major_formatter(_PLAIN)
        axes.minorticks_off()


def _status_legend(figure: Figure, axes: Axes, points: Sequence[_Point]) -> None:
    present = {point.candidate.status for point in points}
    for status in (each for each in _STATUS_MARKS if each in present):
        marker, colour = _STATUS_MARKS[status]
        axes.plot([], [], marker=marker, ls="", ms=6, mfc=colour, mec=_SURFACE, mew=0.8, label=status)
    axes.plot([], [], color=_AFTER, lw=1.4, label="front")
    _legend_above(figure)


def _histogram_plot(histogram: TensorHistogram, name: str) -> Plot:
    count = len(histogram.before)
    width = (histogram.high - histogram.low) / count
    edges = [histogram.low + width * index for index in range(count + 1)]
    totals = [max(sum(counts), 1) for counts in (histogram.before, histogram.after)]
    with _drawn(size=(3.2, 1.75)) as figure:
        axes = figure.subplots()
        before = [each / totals[0] for each in histogram.before]
        after = [each / totals[1] for each in histogram.after]
        least = min((each for each in (*before, *after) if each), default=0.1) / 2
        axes.stairs(before, edges, fill=True, color=_BEFORE, alpha=0.55, baseline=least, label="before")
        axes.stairs(after, edges, color=_AFTER, lw=1.1, baseline=least, label="after")
        axes.set_yscale("log")
        axes.set_ylim(bottom=least)
        axes.yaxis.set_major_formatter(_PLAIN)
        axes.minorticks_off()
        axes.set_ylabel("share of values")
        _legend_above(figure)
        svg = _svg(figure, name, f"Values of {shortened(histogram.tensor, 60)} before and after")
    empty = sum(1 for each, other in zip(histogram.before, histogram.after, strict=True) if each and not other)
    caption = (
        f"{histogram.low:.3g} to {histogram.high:.3g}; {empty} of {count} bins are empty after that were not before"
    )
    return Plot(name=name, title=printable(histogram.tensor), caption=caption, svg=svg)


_Times = tuple[str, float | None, float | None]


def _time_plot(name: str, title: str, noun: str, rows: Sequence[_Times]) -> Plot | None:
    slowest = sorted(rows, key=lambda row: -max(row[1] or 0.0, row[2] or 0.0))[:MAX_BARS]
    if not slowest:
        return None
    with _drawn(round(len(slowest) * 1.45)) as figure:
        axes = figure.subplots()
        places = range(len(slowest))
        for column, offset, colour, word in ((1, -0.19, _BEFORE, "before"), (2, 0.19, _AFTER, "after")):
            values = [1000 * (row[column] or 0.0) for row in slowest]
            axes.barh([place + offset for place in places], values, height=0.36, color=colour, label=word)
        _bar_labels(axes, [row[0] for row in slowest])
        axes.set_xlabel("time in one run here, ms")
        _legend_above(figure)
        svg = _svg(figure, name, f"{title}, before and after, the slowest {len(slowest)}")
    return Plot(name=name, title=title, caption=_of_all("The {} slowest", len(slowest), len(rows), noun + "."), svg=svg)


def _bar_labels(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [shortened(name, 26) for name in names])
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)


def _legend_above(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=len(labels), handlelength=1.2, columnspacing=1.2, borderpad=0
    )


def _of_all(words: str, shown: int, total: int, noun: str) -> str:
    return f"{words.format(shown)} of {total} {noun}" if shown < total else f"All {total} {noun}"


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


@contextmanager
def _drawn(bars: int | None = None, *, size: tuple[float, float] | None = None) -> Iterator[Figure]:
    """A figure with our settings and no others, whatever the user's own say."""
    if bars is not None:
        size = (_WIDTH_INCHES, 0.95 + _BAR_INCHES * bars)
    with style.context(["default", _SETTINGS]), warnings.catch_warnings():
        # The browser has fonts for scripts that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield Figure(figsize=size, layout="constrained")


def _svg(figure: Figure, name: str, label: str) -> str:
    target = io.BytesIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return inlined(target.getvalue(), name=name, label=label)
