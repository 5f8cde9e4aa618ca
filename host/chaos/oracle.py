"""Whether the promise was kept: from what a client saw to one row of the report. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

LEAST_ACCEPTED = 0.9
"""Part of the requests outside of outages that must have been accepted, or a row says nothing."""

DEADLINE = "deadline-exceeded"
POISON = "poison"
_BUSY = "busy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One request as its client saw it; times are seconds on one monotonic clock.

    Attributes:
        submitted: when it was offered.
        accepted: whether `submit` returned.
        done: when its outcome came; infinite where none did.
        outcome: `result`, the code of an error, or empty for none.
        outcomes: how many it had.
        epoch: that its answer names.
        right: whether the answer is that of the epoch's model.
        attempts: how often it was sent.
        poisonous: whether it was made to bring an agent down.
    """

    submitted: float
    accepted: bool = True
    done: float = math.inf
    outcome: str = ""
    outcomes: int = 0
    epoch: str = ""
    right: bool = True
    attempts: int = 1
    poisonous: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A fault.

    Attributes:
        at: when it was done.
        since: from when recovery counts: `at`, or the end of an outage that nothing can answer in.
    """

    at: float
    since: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What one fault did to the requests.

    Attributes:
        fault: its name.
        offered: requests that the load made.
        accepted: of them, those that `submit` took.
        answered: of them, those with a result.
        busy: those that ended with `busy` or were refused so.
        timed_out: those that ended with their deadline; they count as lost.
        lost: accepted without an outcome, or timed out.
        twice: those with more than one outcome.
        wrong: answers that are not those of the model of the epoch they name.
        epochs: how many epochs answered.
        recover_seconds: longest time from a fault until a request submitted after it was answered and every earlier
            one had its outcome; -1 when that never came, 0 where nothing was to recover from.
        worst_seconds: longest from submission to a result.
        poisoned: accepted requests that ended with `poison`.
        note: what was done or measured besides, one line.
        broken: promises that were broken, a line each.
    """

    fault: str
    offered: int
    accepted: int
    answered: int
    busy: int
    timed_out: int
    lost: int
    twice: int
    wrong: int
    epochs: int
    recover_seconds: float
    worst_seconds: float
    poisoned: int = 0
    note: str = ""
    broken: tuple[str, ...] = ()


def recovery(samples: Sequence[Sample], mark: Mark) -> float:
    """Return the seconds until the fleet had recovered from a fault; infinite when it never did."""
    accepted = [sample for sample in samples if sample.accepted]
    first = min(
        (sample.done for sample in accepted if sample.submitted > mark.at and sample.outcome == "result"),
        default=math.inf,
    )
    earlier = max((sample.done for sample in accepted if sample.submitted <= mark.at), default=mark.at)
    return max(0.0, max(first, earlier) - mark.since)


def judge(
    fault: str,
    samples: Sequence[Sample],
    marks: Sequence[Mark] = (),
    *,
    recover_within: float | None = None,
    allowed: Sequence[str] = (),
    faults: Sequence[str] = (),
    note: str = "",
) -> Row:
    """Make the row of one fault.

    Args:
        fault: its name.
        samples: every request that was offered.
        marks: when it was done.
        recover_within: seconds that recovery may take; None for any.
        allowed: codes of errors that are a good outcome here, beside those of requests made to be poisonous.
        faults: what else went wrong, a line each.
        note: of the row.
    """
    accepted = [sample for sample in samples if sample.accepted]
    answered = [sample for sample in accepted if sample.outcome == "result"]
    times = [recovery(samples, mark) for mark in marks]
    recover = max(times, default=0.0)
    timed_out = sum(sample.outcome == DEADLINE for sample in accepted)
    row = Row(
        fault=fault,
        offered=len(samples),
        accepted=len(accepted),
        answered=len(answered),
        busy=sum(sample.outcome == _BUSY for sample in samples),
        timed_out=timed_out,
        lost=timed_out + sum(not sample.outcome for sample in accepted),
        twice=sum(sample.outcomes > 1 for sample in samples),
        wrong=sum(not sample.right for sample in answered),
        epochs=len({sample.epoch for sample in answered}),
        recover_seconds=round(recover, 3) if math.isfinite(recover) else -1.0,
        worst_seconds=round(max((sample.done - sample.submitted for sample in answered), default=0.0), 3),
        poisoned=sum(sample.outcome == POISON for sample in accepted),
        note=note,
    )
    broken = [*faults, *_broken(row, recover_within, times)]
    broken += _strange(accepted, allowed)
    outside = [sample for sample in samples if not _within_outage(sample, marks, times)]
    taken = sum(sample.accepted for sample in outside)
    if not samples or taken < LEAST_ACCEPTED * len(outside):
        broken.append(f"says nothing: {taken} of {len(outside)} requests outside of outages were accepted")
    return msgspec.structs.replace(row, broken=tuple(broken))


def _broken(row: Row, recover_within: float | None, times: Sequence[float]) -> list[str]:
    found = [
        f"{count} {what}"
        for count, what in ((row.lost, "lost"), (row.twice, "answered twice"), (row.wrong, "wrong"))
        if count
    ]
    if any(not math.isfinite(seconds) for seconds in times):
        found.append("never recovered")
    elif recover_within is not None and row.recover_seconds > recover_within:
        found.append(f"recovered after {row.recover_seconds:.2f} s, {recover_within:g} s are allowed")
    return found


def _strange(accepted: Sequence[Sample], allowed: Sequence[str]) -> list[str]:
    """Say which outcomes nobody should have had."""
    good: tuple[str, ...] = ("", "result", DEADLINE, *allowed)
    odd = [sample for sample in accepted if sample.outcome not in good and not _deserved(sample)]
    codes = sorted({sample.outcome for sample in odd})
    unharmed = sum(sample.poisonous and sample.outcome == "result" for sample in accepted)
    found = [f"{len(odd)} ended with {', '.join(codes)}"] if odd else []
    return [*found, f"{unharmed} poisonous requests were answered"] if unharmed else found


def _deserved(sample: Sample) -> bool:
    return sample.poisonous and sample.outcome == POISON


def _within_outage(sample: Sample, marks: Sequence[Mark], times: Sequence[float]) -> bool:
    return any(mark.at <= sample.submitted <= mark.since + seconds for mark, seconds in zip(marks, times, strict=True))


Verdict = Literal["kept", "broken"]


def verdict(row: Row) -> Verdict:
    """Tell whether the promise was kept."""
    return "broken" if row.broken else "kept"
