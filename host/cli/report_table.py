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
    ("activations", "peak_activation_bytes", size_text),
    ("latency", "latency_seconds", time_text),
)


def print_report(report: Report) -> None:
    """Print a report to standard output."""
    for part in report_parts(report):
        out.print(part)


def report_parts(report: Report) -> Iterator[RenderableType]:
    """What a report says, part by part, an empty line before each but the first."""
    yield _head(report)
    passes = _passes(report)
    for found in (_cost(report), passes, _evaluations(report), _candidates(report)):
        if found is not None and found.row_count:
            yield Text()
            yield found
        if found is passes and (others := list(_other_passes(report))):
            yield from others if passes.row_count else (Text(), *others)
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
    """The passes that did something, with the figures that any of them changed."""
    shown = [row for row in told(report)[0] if row.kept]
    changed = [
        (label, field, text)
        for label, field, text in _FIGURES
        if any("→" in _change(row.before, row.after, field, text) for row in shown)
    ]
    # What a pass has to say is what its figures say, where it has them.
    said = ["" if row.before is not None and row.after is not None else _plain(row.reason) for row in shown]
    rows = table("pass", *(f">{label}" for label, _, _ in changed), *(["result"] if any(said) else []))
    for row, result in zip(shown, said, strict=True):
        figures = [_change(row.before, row.after, field, text) for _, field, text in changed]
        rows.add_row(_plain(row.name), *figures, *([result] if any(said) else []))
    return rows


def _other_passes(report: Report) -> Iterator[Text]:
    """The passes that were left out, a line each, and how many found nothing to do."""
    shown, idle = told(report)
    for row in shown:
        if not row.kept:
            yield Text(f"{printable(row.name)}: left out: {printable(row.reason)}", style="dim")
    if idle:
        yield Text(f"{len(idle)} {'pass' if len(idle) == 1 else 'passes'} found {NO_CHANGE}", style="dim")


def _change(
    before: GraphFigures | None, after: GraphFigures | None, field: str, text: Callable[[float | None], str]
) -> str:
    if before is None or after is None:
        return NOTHING
    was, now = text(getattr(before, field)), text(getattr(after, field))
    return now if was == now else f"{was} → {now}"


def _candidates(report: Report) -> Table:
    metrics = {score.metric for each in report.candidates for score in each.scores}
    # One metric is the column's name; several stand before their figures.
    accuracy = _plain(next(iter(metrics))) if len(metrics) == 1 else "accuracy"
    device = f"on {_plain(report.profile)}" if report.profile else "predicted"
    rows = table("", "candidate", "budget", ">file", ">CPU time here", f">{device}", accuracy)
    for each in report.candidates:
        # A star: on the Pareto front. An arrow: the result.
        mark = f"{'→' if each.chosen else ' '}{'*' if each.on_front else ' '}"
        here = time_text(each.latency_seconds)
        if each.latency_ratio is not None:
            here += f" ({each.latency_ratio:.2f}x)"
        scores = [
            f"{'' if len(metrics) == 1 else f'{_plain(score.metric)} '}{escape(score_text(score))}"
            for score in each.scores
        ]
        rows.add_row(
            mark,
            _plain(each.name),
            Text(each.status, style=_STATUS_STYLES[each.status]),
            size_text(each.size_bytes),
            here,
            time_text(each.predicted_seconds),
            "\n".join(scores) or _plain(each.judgement) or NOTHING,
            style="bold" if each.chosen else "",
        )
    if rows.row_count:
        rows.caption = "→ chosen   * on the Pareto front of size, latency and accuracy   (x) of the original's time"
        rows.caption_justify = "left"
    return rows


def _evaluations(report: Report) -> Table:
    sure = {score.confidence for evaluation in report.evaluations for score in evaluation.scores}
    interval = f"{100 * next(iter(sure)):g} % interval" if len(sure) == 1 else "interval"
    rows = table("measured", "metric", ">value", f">{interval}", ">independent", "samples of")
    for evaluation in report.evaluations:
        for index, score in enumerate(evaluation.scores):
            rows.add_row(
                _plain(evaluation.where) if index == 0 else "",
                _plain(score.metric),
                number_text(score.value),
                f"{number_text(score.low)} to {number_text(score.high)}",
                str(score.count),
                _plain(evaluation.dataset) if index == 0 else "",
            )
    for column in rows.columns[2:5]:
        column.no_wrap = True
    return rows


def _plain(text: str) -> str:
    """Text from a report as it is: no markup, no control characters."""
    return escape(printable(text))
