"""A report as one HTML page that needs nothing else: no script, no request, light and dark, on a phone too.

Every name and text of a report is foreign: it is escaped, and a strict content security policy stands behind that. The
only style that the page may use is the one whose digest the policy names.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host.compress.report import wording
from host.compress.report.records import INFINITE, STATUS_MEANINGS, Report, ReportError
from host.figures import GraphFigures

if TYPE_CHECKING:
    from host.compress.report.plots import Plot

MAX_RECIPE_CHARACTERS = 100_000
"""More of a recipe is left out of the page: it is a file of its own."""

MAX_ROWS = 500
"""Rows of one table of nodes."""

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tile:
    """One figure of the head of the page: before, after, what is left."""

    label: str
    after: str
    before: str
    share: str
    percent: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pictures:
    pareto: Sequence[Plot]
    sensitivity: Plot | None
    layers: Plot | None
    operators: Plot | None
    weights: Sequence[Plot]
    activations: Sequence[Plot]


def html_report(report: Report, *, recipe: str = "") -> str:
    """Draw the page. Equal reports give equal text with one version of matplotlib.

    Args:
        report: What to show.
        recipe: TOML text of the recipe that made the result; empty leaves the section out.

    Raises:
        ReportError: If matplotlib or jinja2 is not installed.
    """
    jinja2 = _needed("jinja2")
    markup = _needed("markupsafe").Markup
    plots = _needed("host.compress.report.plots")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: _shown(value, markup),
    )
    for name in ("count_text", "number_text", "score_text", "size_text", "time_text", "ratio_text"):
        environment.filters[name] = getattr(wording, name)
    css = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode("ascii")
    shown, idle = wording.told(report)
    page: str = environment.get_template("report.html.j2").render(
        report=report,
        css=markup(css),
        css_digest=digest,
        tiles=_tiles(report),
        tone=_tone(report),
        passes=shown,
        idle=idle,
        statuses=STATUS_MEANINGS,
        pictures=_Pictures(
            pareto=plots.pareto_plots(report),
            sensitivity=plots.sensitivity_plot(report),
            layers=plots.layer_plot(report),
            operators=plots.operator_plot(report),
            weights=plots.histogram_plots(report, "weight"),
            activations=plots.histogram_plots(report, "activation"),
        ),
        drawn=lambda plot: markup(plot.svg),
        recipe=recipe[:MAX_RECIPE_CHARACTERS],
        recipe_left_out=max(0, len(recipe) - MAX_RECIPE_CHARACTERS),
        most=MAX_ROWS,
        infinite=INFINITE,
    )
    return page


def write_html_report(report: Report, path: Path, *, recipe: str = "") -> None:
    """Write the page to a file.

    Raises:
        ReportError: If a package is missing or the file cannot be written.
    """
    page = html_report(report, recipe=recipe)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ReportError(f"{path}: cannot write the report: {error.strerror}") from error


def _needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ReportError(
            f"the HTML report needs {error.name or module}, which is not installed: pip install 'shardwire[report]'"
        ) from error


def _shown(value: Any, markup: type[str]) -> Any:
    """Keep what must not be in a text out of it, line ends apart; leave alone what is markup already."""
    if value is None:
        return wording.NOTHING
    if isinstance(value, str) and not isinstance(value, markup):
        return "\n".join(wording.printable(line.replace("\t", "    ")) for line in value.split("\n"))
    return value


def _tone(report: Report) -> str:
    """The status that colours the outcome: that of the chosen candidate, broken where a budget let none through."""
    chosen = [each.status for each in report.candidates if each.chosen]
    return chosen[0] if chosen else "broken" if report.budget is not None and report.candidates else ""


def _tiles(report: Report) -> list[_Tile]:
    before, after = report.original, report.result
    if before is None or after is None:
        return []
    rows: tuple[tuple[str, str, Any], ...] = (
        ("Weights", "weight_bytes", wording.size_text),
        ("Latency here", "latency_seconds", wording.time_text),
        ("Multiply-accumulates", "macs", wording.count_text),
        ("Peak activations", "peak_activation_bytes", wording.size_text),
        ("Nodes", "nodes", wording.count_text),
    )
    return [_tile(label, field, text, before, after) for label, field, text in rows if _both(field, before, after)]


def _both(field: str, before: GraphFigures, after: GraphFigures) -> bool:
    return getattr(before, field) is not None and getattr(after, field) is not None


def _tile(label: str, field: str, text: Any, before: GraphFigures, after: GraphFigures) -> _Tile:
    was, now = getattr(before, field), getattr(after, field)
    return _Tile(
        label=label,
        after=text(now),
        before=text(was),
        share=wording.ratio_text(now, was),
        percent=round(min(100.0, 100 * now / was), 1) if was else 100.0,
    )
