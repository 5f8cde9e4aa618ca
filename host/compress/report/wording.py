"""How figures and names of a report read, on a terminal and on a page."""

from __future__ import annotations

import re

from host.compress.judge.score import Score
from host.compress.report.records import INFINITE, PassRow, Report

NOTHING = "–"
"""Stands where there is no figure."""

NO_CHANGE = "nothing to do"
"""What a pass says that found nothing."""

_UNITS = ("B", "KiB", "MiB", "GiB")


def printable(text: str) -> str:
    """A text without control characters, direction marks and the like, which could change what stands around it."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def shortened(text: str, length: int) -> str:
    """A printable name of at most ``length`` characters: its ends tell names apart, its middle goes."""
    text = printable(text)
    if len(text) <= length:
        return text
    tail = (length - 1) * 2 // 3
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"


def size_text(size_bytes: float | None) -> str:
    """A size for people, such as ``4.7 MiB``."""
    if size_bytes is None:
        return NOTHING
    size, unit = float(size_bytes), 0
    while abs(size) >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} B" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def count_text(count: float | None) -> str:
    """A count for people, such as ``385 M``."""
    if count is None:
        return NOTHING
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(count) >= factor:
            return f"{count / factor:.3g}{unit}"
    return f"{count:g}"


def time_text(seconds: float | None) -> str:
    """A time for people, such as ``10.8 ms``."""
    if seconds is None:
        return NOTHING
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def ratio_text(after: float | None, before: float | None) -> str:
    """What is left, such as ``25 %`` or ``0.4 %``."""
    if after is None or not before:
        return NOTHING
    share = 100 * after / before
    return f"{share:.0f} %" if share >= 10 else f"{share:.1f} %"


def number_text(value: float) -> str:
    """A figure of accuracy: four decimals, fewer above ten."""
    if abs(value) >= INFINITE:
        return "∞" if value > 0 else "-∞"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4f}"


def score_text(score: Score) -> str:
    """A figure with its interval, such as ``0.9700 [0.9610, 0.9790]``."""
    return f"{number_text(score.value)} [{number_text(score.low)}, {number_text(score.high)}]"


def lower_is_better(metric: str) -> bool:
    """Whether a metric says what was lost; ``top1-drop@logits`` is the drop of one output."""
    return metric.partition("@")[0].endswith(("-drop", "-loss", "-error"))


def budget_limit(budget: str | None, metric: str) -> float | None:
    """The bound that a budget such as ``top1-drop<=0.5%,cosine>=0.99`` sets on a metric, if it does."""
    for part in (budget or "").split(","):
        found = re.fullmatch(r"\s*([^<>=\s]+)\s*[<>]=?\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(%?)\s*", part)
        if found is not None and found[1] == metric:
            return float(found[2]) / (100 if found[3] else 1)
    return None


def told(report: Report) -> tuple[tuple[PassRow, ...], tuple[str, ...]]:
    """The passes that did something or were dropped, and the names of those that found nothing to do."""
    rows = tuple(row for row in report.passes if row.reason != NO_CHANGE)
    return rows, tuple(row.name for row in report.passes if row.reason == NO_CHANGE)


def best_metric(report: Report) -> str | None:
    """The metric to compare candidates by: the budget's if they have it, else the one that most of them have."""
    counts: dict[str, int] = {}
    for candidate in report.candidates:
        for score in candidate.scores:
            counts[score.metric] = counts.get(score.metric, 0) + 1
    wanted = [metric for metric in counts if budget_limit(report.budget, metric) is not None]
    # The first of equals.
    return max(wanted or counts, key=lambda metric: counts[metric], default=None)
