"""A compression report on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from host.cli.console import out, table
from host.compress.report.records import STATUS_MEANINGS, Report
from host.compress.report.wording import (
    NO_CHANGE,
    NOTHING,
    count_text,
    number_text,
    printable,
    ratio_text,
    score_text,
    size_text,
    time_text,
    told,
)
from host.figures import GraphFigures

_STATUS_STYLES = {"proven": "green", "held": "yellow", "broken": "red", "failed": "red"}

# Column, field of the figures, how it reads.
_FIGURES: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("nodes", "nodes", count_text),
    ("MACs", "macs", count_text),
    ("weights", "weight_bytes", size_text),
    ("peak activations", "peak_activation_bytes", size_text),
    ("latency", "latency_seconds", time_text),
)


def print_report(report: Report) -> None:
    """Print a report to standard output."""
    for part in report_parts(report):
        out.print(part)


def report_parts(report: Report) -> Iterator[RenderableType]:
    """What a report says, part by part, an empty line before each but the first."""
    yield _head(report)
    for found in (_cost(report), _passes(report), _evaluations(report), _candidates(report)):
        if found is not None and found.row_count:
            yield Text()
            yield found
    present = {each.status for each in report.candidates}
    yield from (
        Text(f"{status}: {meaning}", style="dim") for status, meaning in STATUS_MEANINGS.items() if status in present
    )
    if report.notes:
        yield Text()
        yield from (Text(f"note: {printable(note)}") for note in report.notes)


def _head(report: Report) -> Text:
    chosen = next((each for each in report.candidates if each.chosen), None)
    name = printable(report.model) or "model"
    head = Text.assemble((name, "bold"), f" for {printable(report.profile)}" if report.profile else "")
    if report.budget is not None:
        head.append(f", budget {printable(report.budget)}")
    if report.outcome:
        style = _STATUS_STYLES[chosen.status] if chosen is not None else "yellow" if report.budget else ""
        head.append(f"\n{printable(report.outcome)}", style=style)
    return head


def _cost(report: Report) -> Table | None:
    if report.original is None or report.result is None:
        return None
    rows = table("cost", ">before", ">after", ">left")
    for label, field, text in _FIGURES:
        before, after = getattr(report.original, field), getattr(report.result, field)
        rows.add_row(label, text(before), text(after), ratio_text(after, before))
    return rows


def _passes(report: Report) -> Table:
    rows = table("pass", *(f">{label}" for label, _, _ in _FIGURES), "result")
    shown, idle = told(report)
    for row in shown:
        figures = [_change(row.before, row.after, field, text) for _, field, text in _FIGURES]
        said = row.reason if row.kept else f"left out: {row.reason}"
        rows.add_row(_plain(row.name), *figures, _plain(said), style="" if row.kept else "dim")
    if idle:
        rows.add_row(f"{len(idle)} more", *[""] * len(_FIGURES), f"{NO_CHANGE}: {_plain(', '.join(idle))}", style="dim")
    return rows


def _change(
    before: GraphFigures | None, after: GraphFigures | None, field: str, text: Callable[[float | None], str]
) -> str:
    if before is None or after is None:
        return NOTHING
    was, now = text(getattr(before, field)), text(getattr(after, field))
    return now if was == now else f"{was} → {now}"


def _candidates(report: Report) -> Table:
    rows = table("", "candidate", "budget", ">weights", ">CPU here", ">ratio", ">predicted", "accuracy", "how")
    for each in report.candidates:
        # A star: on the Pareto front. An arrow: the result.
        mark = f"{'→' if each.chosen else ' '}{'*' if each.on_front else ' '}"
        ratio = NOTHING if each.latency_ratio is None else f"{each.latency_ratio:.2f}"
        scores = "\n".join(f"{_plain(score.metric)} {escape(score_text(score))}" for score in each.scores)
        how = "\n".join(_plain(text) for text in (each.summary, each.judgement) if text)
        rows.add_row(
            mark,
            _plain(each.name),
            Text(each.status, style=_STATUS_STYLES[each.status]),
            size_text(each.size_bytes),
            time_text(each.latency_seconds),
            ratio,
            time_text(each.predicted_seconds),
            scores or NOTHING,
            how,
            style="bold" if each.chosen else "",
        )
    if rows.row_count:
        rows.caption = "* on the Pareto front of size, latency and accuracy   → chosen"
        rows.caption_justify = "left"
    return rows


def _evaluations(report: Report) -> Table:
    rows = table("measured", "metric", ">value", ">interval", ">confidence", ">independent samples", "dataset")
    for evaluation in report.evaluations:
        for index, score in enumerate(evaluation.scores):
            rows.add_row(
                _plain(evaluation.where) if index == 0 else "",
                _plain(score.metric),
                number_text(score.value),
                f"{number_text(score.low)} to {number_text(score.high)}",
                f"{score.confidence:.0%}",
                str(score.count),
                _plain(evaluation.dataset) if index == 0 else "",
            )
    return rows


def _plain(text: str) -> str:
    """Text from a report as it is: no markup, no control characters."""
    return escape(printable(text))
