"""What compression may cost, and whether a candidate stays within it.

A budget is limits joined by commas::

    limit  = metric ("<=" | ">=") number ["%"]
    metric = any of host.compress.judge.metrics, such as top1-drop, agreement or cosine@logits

``top1-drop<=0.005`` and ``top1-drop<=0.5%`` both allow half a point. A limit is *proven* when the whole confidence
interval is inside, over at least `LEAST_PROOF` independent samples; *held* when the value is inside but that is not
proven; *broken* when the value is outside.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from host.compress.judge.evaluate import Evaluation
from host.compress.judge.interval import needed_for_share
from host.compress.judge.metrics import Asked, asked
from host.compress.judge.score import Score
from host.errors import BudgetError

LEAST_PROOF = 30
"""Independent samples below which nothing is proven: intervals of so few rest on what their distribution looks like."""

Status = Literal["proven", "held", "broken"]

_STATUSES: tuple[Status, ...] = ("proven", "held", "broken")
_LIMIT = re.compile(
    r"\s*(?P<metric>[^<>=\s]+)\s*(?P<sign><=|>=)\s*(?P<number>[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(?P<percent>%?)\s*"
)
_EXAMPLES = "top1-drop<=0.005, top5-drop<=1%, agreement>=0.99, cosine>=0.99"
# Where a limit leaves no room at all, margins are counted in tenths of a point.
_LEAST_ROOM = 0.001
_MOST_DIGITS = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """One bound on one metric.

    Attributes:
        of: The metric.
        bound: Value that is still allowed.
        is_most: Whether the bound is the largest value allowed, else the smallest.
    """

    of: Asked
    bound: float
    is_most: bool

    def __str__(self) -> str:
        return f"{self.of.name}{'<=' if self.is_most else '>='}{self.bound!r}"

    def allows(self, value: float) -> bool:
        """Whether a value is inside."""
        return value <= self.bound if self.is_most else value >= self.bound

    def margin(self, value: float) -> float:
        """How far a value is inside, in units of what the limit leaves for loss.

        1 for a perfect candidate, 0 at the limit, negative outside. Where the perfect value is unknown, the limit
        itself is the unit.
        """
        best = 0.0 if self.of.is_drop else self.of.metric.best
        room = abs(self.bound) if best is None else abs(best - self.bound)
        distance = self.bound - value if self.is_most else value - self.bound
        return distance / max(room, _LEAST_ROOM)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether one limit is kept.

    Attributes:
        limit: The limit, as it is written.
        score: What was measured.
        status: ``proven``, ``held`` or ``broken``.
        margin: See `Limit.margin`.
        needed: About how many independent samples would prove it at this value, if it is held; infinite if the value
            is the limit itself; None otherwise.
        text: One line for people.
    """

    limit: str
    score: Score
    status: Status
    margin: float
    needed: float | None
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Whether a candidate keeps a budget.

    Attributes:
        verdicts: One for each limit.
        status: The worst of them.
        margin: The smallest of them: candidates rank by it.
    """

    verdicts: tuple[Verdict, ...]
    status: Status
    margin: float

    @property
    def is_kept(self) -> bool:
        """Whether no limit is broken."""
        return self.status != "broken"

    @property
    def is_proven(self) -> bool:
        """Whether every limit is proven."""
        return self.status == "proven"

    def __str__(self) -> str:
        return "; ".join(verdict.text for verdict in self.verdicts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Limits that a candidate must keep, all of them."""

    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget.

        Args:
            text: Such as ``top1-drop<=0.005,cosine>=0.99``.

        Raises:
            BudgetError: Names the part that is wrong and what is possible.
        """
        parts = [part.strip() for part in text.split(",")]
        if not text.strip():
            raise BudgetError(f"the budget is empty; give limits such as {_EXAMPLES}")
        limits = tuple(_limit(part) for part in parts)
        seen: set[tuple[str, bool]] = set()
        for limit in limits:
            if (limit.of.name, limit.is_most) in seen:
                raise BudgetError(f"budget {text!r}: {limit.of.name} is limited twice")
            seen.add((limit.of.name, limit.is_most))
        return cls(limits=limits)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what must be measured, for `host.compress.judge.evaluate.evaluate`."""
        return tuple(dict.fromkeys(limit.of.name for limit in self.limits))

    @property
    def needs_labels(self) -> bool:
        """Whether some metric cannot do without labels."""
        return any(limit.of.needs_label for limit in self.limits)

    def judge(self, evaluation: Evaluation) -> Judgement:
        """Compare a measurement with the limits.

        Raises:
            BudgetError: If a metric was not measured.
        """
        verdicts = tuple(_verdict(limit, evaluation) for limit in self.limits)
        return Judgement(
            verdicts=verdicts,
            status=max((verdict.status for verdict in verdicts), key=_STATUSES.index),
            margin=min(verdict.margin for verdict in verdicts),
        )

    def __str__(self) -> str:
        return ",".join(map(str, self.limits))


def _limit(part: str) -> Limit:
    match = _LIMIT.fullmatch(part)
    if match is None:
        raise BudgetError(
            f"budget: {part[:80]!r} is no limit; write METRIC<=NUMBER or METRIC>=NUMBER, as in {_EXAMPLES}"
        )
    try:
        of = asked(match["metric"])
    except BudgetError as error:
        raise BudgetError(f"budget: {part[:80]!r}: {error}") from error
    try:
        # Decimal, so that 0.7% is 0.007 to the last bit.
        bound = float(Decimal(match["number"]) / (100 if match["percent"] else 1))
    except ArithmeticError as error:
        raise BudgetError(f"budget: {part[:80]!r}: {match['number']!r} is no number") from error
    limit = Limit(of=of, bound=bound, is_most=match["sign"] == "<=")
    if fault := _fault(limit, is_percent=bool(match["percent"])):
        raise BudgetError(f"budget: {part[:80]!r}: {fault}")
    return limit


def _fault(limit: Limit, *, is_percent: bool) -> str | None:
    """What is wrong with a limit, or None."""
    name, scale = limit.of.name, limit.of.metric.scale
    if is_percent and scale.high != 1.0:
        return f"{name} is no share: write the limit without %"
    if limit.of.is_drop and not limit.is_most:
        return f"a drop should be small: write {name}<=…"
    if not limit.of.is_drop and limit.is_most and limit.of.metric.best is not None:
        return f"{name} should be large: write {name}>=…"
    width = scale.high - scale.low
    low, high = (-width, width) if limit.of.is_drop else (scale.low, scale.high)
    if not (low <= limit.bound <= high and math.isfinite(limit.bound)):
        hint = f"; for {limit.bound:g} percent write {limit.bound:g}%" if high == 1.0 and limit.bound > 1 else ""
        return f"{name} lies between {low:g} and {high:g}{hint}"
    return None


def _verdict(limit: Limit, evaluation: Evaluation) -> Verdict:
    score = evaluation.score(limit.of.name)
    inside = limit.allows(score.low) and limit.allows(score.high)
    status: Status = "broken"
    if limit.allows(score.value):
        status = "proven" if inside and score.count >= LEAST_PROOF else "held"
    needed = _needed(limit, score) if status == "held" else None
    return Verdict(
        limit=str(limit),
        score=score,
        status=status,
        margin=limit.margin(score.value),
        needed=needed,
        text=_text(limit, score, status, needed, evaluation),
    )


def _needed(limit: Limit, score: Score) -> float:
    """Samples that would prove a limit if the value stayed: exact for shares, else since a width falls as 1 / √n."""
    if limit.of.metric.scale.is_share and not limit.of.is_drop:
        count = needed_for_share(score.value, limit.bound, score.confidence)
    else:
        distance = abs(limit.bound - score.value)
        reach = score.high - score.value if limit.is_most else score.value - score.low
        count = score.count * (reach / distance) ** 2 if distance > 0 else math.inf
    return max(float(LEAST_PROOF), float(score.count + 1) if count <= score.count else count)


def _text(limit: Limit, score: Score, status: Status, needed: float | None, evaluation: Evaluation) -> str:
    shown, unit = _shown(limit)
    while shown(score.value) == shown(limit.bound) and score.value != limit.bound and shown.digits < _MOST_DIGITS:
        shown = replace(shown, digits=shown.digits + 1)
    count = f"{score.count:,} samples" if score.count != 1 else "1 sample"
    if evaluation.has_groups:
        count = f"{evaluation.samples:,} samples of {score.count:,} sources"
    figure = (
        f"{score.metric} {shown(score.value)}{unit} ({score.confidence * 100:g} %: {shown(score.low)} to "
        f"{shown(score.high)}), limit {shown(limit.bound)}: {status} on {count}"
    )
    if needed is None:
        return figure
    kind = "sources" if evaluation.has_groups else "samples"
    if math.isinf(needed):
        return f"{figure}, not proven: no number of {kind} proves a value at its limit"
    return f"{figure}, not proven: that takes about {_rounded(needed):,} {kind}"


def _shown(limit: Limit) -> tuple[_Format, str]:
    """How values of a metric are written, and their unit."""
    if limit.of.metric.scale.is_share and limit.of.is_drop:
        return _Format(factor=100.0, digits=2), " points"
    if limit.of.metric.name == "snr":
        return _Format(factor=1.0, digits=1), " dB"
    return _Format(factor=1.0, digits=4), ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Format:
    factor: float
    digits: int

    def __call__(self, value: float) -> str:
        text = f"{value * self.factor:.{self.digits}f}"
        # No "-0.00".
        return text.removeprefix("-") if float(text) == 0 else text


def _rounded(count: float) -> int:
    """A count to two leading digits, upwards: it is an estimate."""
    unit: int = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return math.ceil(count / unit) * unit
