"""What accuracy is measured by: each metric gives one figure for each sample.

| name | figure of a sample | from |
| --- | --- | --- |
| ``top1``, ``top5``, ``topK`` | 1 if the label is among the K largest scores | label |
| ``agreement`` | 1 if the largest score stands where the original's does | original |
| ``agreement-topK`` | 1 if the original's answer is among the K largest scores | original |
| ``cosine`` | cosine of the angle between the outputs | original |
| ``snr`` | signal-to-noise ratio in decibels, -100 to 100 | original |
| ``iou`` | intersection over union of masks | label if it is a mask, else original |
| ``package.module:function`` | what ``function(found, expected, label)`` returns | anything |

``NAME@OUTPUT`` measures on that output in place of the first one that holds floats. ``NAME-drop`` is the original's
figure less the candidate's, for metrics that read the label. Where a sample has several answers (a batch, tokens,
pixels), its figure is their mean.

Scores stand along the last axis of an output of rank 1 to 3, and along axis 1, as in ``[N, C, H, W]``, from rank 4. An
output of integers holds the answers themselves. Equal scores rank by their place; one that is not a number ranks last.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge.formats.tensor import Array
from host.compare import cosine
from host.compress.data.samples import Label
from host.compress.judge.interval import SHARE, Scale
from host.dotted import DOTTED, resolve
from host.errors import BudgetError
from host.model import Tensors

SNR_LIMIT_DB = 100.0
FOREGROUND = 0.5

POSSIBLE = (
    "top1, top5 or topK for any K, agreement, agreement-topK, cosine, snr, iou, package.module:function; "
    "top1-drop, topK-drop, iou-drop and package.module:function-drop; each with @OUTPUT behind it for one output"
)

_DROP = "-drop"
_ANY = Scale(low=-math.inf, high=math.inf)

Measure = Callable[[Array, Array, Label], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One way to judge the answer to one sample.

    Attributes:
        name: As it was asked for, without ``-drop`` and the output.
        scale: What kind of figure it gives.
        best: Its value for a perfect answer; None if that is not known.
        reads_label: Whether it looks at the label.
        needs_label: Whether it cannot do without.
        measure: From the candidate's output, the original's and the label to the figure; raises BudgetError if they do
            not fit.
        measure_all: The same from all outputs, for the user's own; None for others.
    """

    name: str
    scale: Scale
    best: float | None
    reads_label: bool
    needs_label: bool
    measure: Measure
    measure_all: Callable[[Tensors, Tensors, Label], float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A metric as it is asked for: of which output, and whether its value or what it lost.

    Attributes:
        metric: The metric.
        output: Name of the output; None for the first that holds floats.
        is_drop: Whether the original's value less the candidate's is meant.
    """

    metric: Metric
    output: str | None
    is_drop: bool

    @property
    def name(self) -> str:
        """How it is written."""
        return f"{self.metric.name}{_DROP if self.is_drop else ''}{'' if self.output is None else f'@{self.output}'}"

    @property
    def needs_label(self) -> bool:
        """Whether it cannot do without a label; compared with itself, the original would have lost nothing."""
        return self.metric.needs_label or (self.is_drop and self.metric.measure_all is None)

    def __call__(self, found: Tensors, expected: Tensors, label: Label) -> float:
        """The figure of one sample.

        Args:
            found: The candidate's outputs by name.
            expected: The original's.
            label: What is right.

        Raises:
            BudgetError: If the outputs or the label do not fit the metric.
        """
        if self.needs_label and label is None:
            raise BudgetError("there is no label; agreement, cosine and snr need none")
        if self.metric.measure_all is not None and self.output is None:
            return self.metric.measure_all(found, expected, label)
        name = self.output if self.output is not None else first_output(expected)
        for outputs in (expected, found):
            if name not in outputs:
                raise BudgetError(f"there is no output {name!r}; there are {', '.join(outputs)}")
        have, want = found[name], expected[name]
        if have.shape != want.shape:
            raise BudgetError(f"output {name!r} is {list(have.shape)} and was {list(want.shape)}")
        if want.size == 0:
            raise BudgetError(f"output {name!r} is empty")
        return self.metric.measure(have, want, label)


def first_output(outputs: Tensors) -> str:
    """Name of the first output that holds floats, or of the first.

    Raises:
        BudgetError: If there is none.
    """
    if not outputs:
        raise BudgetError("the model has no outputs")
    return next((name for name, array in outputs.items() if array.dtype.kind == "f"), next(iter(outputs)))


def asked(text: str) -> Asked:
    """Find a metric by its name.

    Args:
        text: Such as ``top1``, ``top5-drop`` or ``cosine@logits``.

    Raises:
        BudgetError: If there is no such metric, or its drop makes no sense.
    """
    name, at, output = text.strip().partition("@")
    is_drop = name.endswith(_DROP) or (at != "" and output.endswith(_DROP))
    name, output = name.removesuffix(_DROP), output.removesuffix(_DROP)
    if at and not output:
        raise BudgetError(f"metric {text!r}: no output behind the @")
    metric = _found(name)
    if metric is None:
        raise BudgetError(f"metric {text[:60]!r}: there is no such one; possible are {POSSIBLE}")
    if is_drop and not metric.reads_label:
        raise BudgetError(f"metric {text!r}: {name} compares with the original already; write {name}>=…")
    return Asked(metric=metric, output=output or None, is_drop=is_drop)


def _found(name: str) -> Metric | None:
    for pattern, make in _METRICS:
        if match := pattern.fullmatch(name):
            return make(match)
    return None


def ranks(scores: Array, answers: Array) -> Array:
    """How many scores come before the one of an answer.

    Args:
        scores: Float ``[M, C]``.
        answers: Integers ``[M]``, 0 to C - 1.

    Returns:
        Integers ``[M]``; C for an answer whose score is not a number.
    """
    own = np.take_along_axis(scores, answers[:, None], axis=1)
    before = np.arange(scores.shape[1])[None, :] < answers[:, None]
    # What is not a number is neither larger than nor equal to anything.
    ahead = np.sum((scores > own) | ((scores == own) & before), axis=1)
    lost = np.isnan(own)[:, 0]
    places: Array = np.where(lost, scores.shape[1], ahead)
    return places


def snr_db(found: Array, expected: Array) -> float:
    """Signal-to-noise ratio ``10 log10(sum expected² / sum (found - expected)²)`` in decibels, kept within ±100."""
    want = expected.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        noise = float(np.sum((found.astype(np.float64) - want) ** 2))
        signal = float(np.sum(want**2))
    if not (math.isfinite(noise) and math.isfinite(signal)):
        return SNR_LIMIT_DB if np.array_equal(found, expected, equal_nan=True) else -SNR_LIMIT_DB
    if noise == 0.0 or signal == 0.0:
        return SNR_LIMIT_DB if noise == 0.0 else -SNR_LIMIT_DB
    # As a difference, since the quotient may leave the range of floats.
    return min(SNR_LIMIT_DB, max(-SNR_LIMIT_DB, 10 * (math.log10(signal) - math.log10(noise))))


def _answers(output: Array) -> Array:
    """The class at each position: integers of any shape without the class axis."""
    if output.dtype.kind in "biu":
        return output.astype(np.int64)
    axis = _class_axis(output)
    if np.isnan(output.max()):
        output = np.where(np.isnan(output), -np.inf, output)
    classes: Array = output.argmax(axis=axis)
    return classes


def _class_axis(output: Array) -> int:
    if output.ndim == 0:
        raise BudgetError("the output is a single number, not scores of classes")
    axis = 1 if output.ndim > 3 else output.ndim - 1
    if output.shape[axis] < 2:
        raise BudgetError(f"the output {list(output.shape)} holds one score at each place, not scores of classes")
    return axis


def _share_within(output: Array, answers: Array, most: int) -> float:
    """Share of the positions whose answer is among the best scores."""
    if output.dtype.kind in "biu":
        return float(np.mean(output.ravel() == answers.ravel()))
    axis = _class_axis(output)
    scores = np.moveaxis(output, axis, -1).reshape(-1, output.shape[axis])
    return float(np.mean(ranks(scores, answers.ravel()) < most))


def _top(most: int) -> Measure:
    def measure(found: Array, _expected: Array, label: Label) -> float:
        labels = np.asarray(label, dtype=np.int64).ravel()
        places = found.size
        if found.dtype.kind not in "biu":
            classes = found.shape[_class_axis(found)]
            places //= classes
            if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                raise BudgetError(f"a label is {int(labels.min())} to {int(labels.max())}; there are {classes} classes")
        if labels.size != places or not places:
            raise BudgetError(f"{labels.size} labels for {places} answers of the output {list(found.shape)}")
        return _share_within(found, labels, most)

    return measure


def _agreement(most: int) -> Measure:
    def measure(found: Array, expected: Array, _label: Label) -> float:
        return _share_within(found, _answers(expected), most)

    return measure


def _iou(found: Array, expected: Array, label: Label) -> float:
    """Mean over the classes that are in either mask; 1 where both are empty.

    One score at each place is a mask of what is above `FOREGROUND`; several are classes, the largest counts. Labels
    that are no class, such as 255, are places that do not count.
    """
    several = found.ndim > 3 and found.shape[1] > 1 and found.dtype.kind == "f"
    have = found.argmax(axis=1) if several else found > FOREGROUND
    if label is not None:
        want = np.asarray(label)
        if want.size != have.size:
            raise BudgetError(f"the mask is {list(want.shape)}, the output {list(found.shape)}")
        want = want.reshape(have.shape)
    else:
        want = expected.argmax(axis=1) if several else expected > FOREGROUND
    counted = (want >= 0) & (want < (found.shape[1] if several else 2))
    have, want = have[counted], want[counted]
    classes = np.union1d(have, want) if several else np.array([1])
    shares = []
    for one in classes.tolist():
        union = int(np.sum((have == one) | (want == one)))
        shares.append(int(np.sum((have == one) & (want == one))) / union if union else 1.0)
    return float(np.mean(shares)) if shares else 1.0


def _cosine(found: Array, expected: Array, _label: Label) -> float:
    return cosine(found, expected)


def _snr(found: Array, expected: Array, _label: Label) -> float:
    return snr_db(found, expected)


def _foreign(match: re.Match[str]) -> Metric:
    function = resolve(match[0], fault=BudgetError)

    def measure(found: object, expected: object, label: Label) -> float:
        try:
            value = float(function(found, expected, label))
        except Exception as error:
            raise BudgetError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        if not math.isfinite(value):
            raise BudgetError(f"it returned {value}")
        return value

    return Metric(
        name=match[0], scale=_ANY, best=None, reads_label=True, needs_label=False, measure=measure, measure_all=measure
    )


def _known(name: str, measure: Measure, scale: Scale, best: float, *, reads: bool, needs: bool) -> Metric:
    return Metric(name=name, scale=scale, best=best, reads_label=reads, needs_label=needs, measure=measure)


_METRICS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Metric]], ...] = (
    (
        re.compile(r"top([1-9]\d{0,5})"),
        lambda match: _known(match[0], _top(int(match[1])), SHARE, 1.0, reads=True, needs=True),
    ),
    (
        re.compile(r"agreement(?:-top([1-9]\d{0,5}))?"),
        lambda match: _known(match[0], _agreement(int(match[1] or 1)), SHARE, 1.0, reads=False, needs=False),
    ),
    (
        re.compile(r"cosine"),
        lambda match: _known(match[0], _cosine, Scale(low=-1.0, high=1.0), 1.0, reads=False, needs=False),
    ),
    (
        re.compile(r"snr"),
        lambda match: _known(
            match[0], _snr, Scale(low=-SNR_LIMIT_DB, high=SNR_LIMIT_DB), SNR_LIMIT_DB, reads=False, needs=False
        ),
    ),
    (
        re.compile(r"iou"),
        lambda match: _known(match[0], _iou, Scale(low=0.0, high=1.0), 1.0, reads=True, needs=False),
    ),
    (DOTTED, _foreign),
)
