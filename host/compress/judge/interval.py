"""How sure a mean over samples is: confidence intervals for shares, for other means, and for paired drops of both.

- Share of samples (top-1, agreement): Wilson's score interval. E. B. Wilson, "Probable inference, the law of
  succession, and statistical inference", JASA 22 (1927) 209-212.
- Drop of a share on the same samples: Newcombe's method 10, which squares and adds Wilson's intervals and allows for
  the correlation. R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based
  on paired data", Statistics in Medicine 17 (1998) 2635-2650.
- Any other mean (cosine, decibels, IoU), and its drop as the mean of the paired differences: up to `MOST_RESAMPLED`
  sources the expanded percentile bootstrap (T. C. Hesterberg, "What teachers should know about the bootstrap", The
  American Statistician 69 (2015) 371-386), which takes more extreme percentiles than the plain one because that is too
  narrow for few samples; above, Student's t, which is the same there and quicker.
- Samples that come from one source, such as crops of one photo, are not independent. Sources are then drawn in place
  of samples (cluster bootstrap: A. C. Davison, D. V. Hinkley, "Bootstrap methods and their application", 1997, section
  3.8). A resample cannot show a kind of source that was never seen: a thousand right crops of twenty photos would give
  an interval of width zero. The interval of a share is therefore never narrower than that of as many independent
  samples as there are sources, with the same share. The same holds for samples that answer several times, such as for
  each pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from edge.formats.tensor import Array
from host.compress.judge.score import Score
from host.errors import DatasetError

CONFIDENCE = 0.95
RESAMPLES = 2000
MOST_RESAMPLED = 4096

_SEED = 0x5EED
_CHUNK = 1 << 20
# The finite sums of Student's distribution are long for many degrees of freedom; the expansion is exact to 1e-9 there.
_MANY = 200

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """What kind of figure a metric gives.

    Attributes:
        low: Smallest value that a sample can have; infinite where none is known.
        high: Largest.
        is_share: Whether a sample's value is 0 or 1, or a share of several such answers.
    """

    low: float
    high: float
    is_share: bool = False


SHARE = Scale(low=0.0, high=1.0, is_share=True)


def score(
    metric: str, values: Array, *, scale: Scale, groups: Sequence[str] | None = None, confidence: float = CONFIDENCE
) -> Score:
    """The mean of a metric with its interval.

    Args:
        metric: Its name.
        values: Float ``[N]``, one for each sample.
        scale: What kind of figure it is.
        groups: The source of each sample; None if each stands alone.
        confidence: Between 0 and 1.

    Returns:
        The score; its count is the number of sources.

    Raises:
        DatasetError: If there is no sample, or a single one of a metric that has no limits.
    """
    sums, sizes = _by_source(metric, values, groups)
    value = float(sums.sum() / sizes.sum())
    if scale.is_share:
        interval = wilson(value, len(sums), confidence)
        if groups is not None or not _is_yes_or_no(values):
            interval = _hull(interval, mean_interval(sums, sizes, confidence))
    else:
        interval = mean_interval(sums, sizes, confidence)
    return _score(metric, value, interval, (scale.low, scale.high), len(sums), confidence)


def drop_score(
    metric: str,
    before: Array,
    after: Array,
    *,
    scale: Scale,
    groups: Sequence[str] | None = None,
    confidence: float = CONFIDENCE,
) -> Score:
    """What a metric lost on the same samples, ``mean(before - after)``, with its interval.

    Args:
        metric: Name of the drop.
        before: Float ``[N]``: the original's value on each sample.
        after: Float ``[N]``: the candidate's.
        scale: What kind of figure the metric is.
        groups: The source of each sample; None if each stands alone.
        confidence: Between 0 and 1.

    Raises:
        DatasetError: As for `score`.
    """
    sums, sizes = _by_source(metric, before - after, groups)
    value = float(sums.sum() / sizes.sum())
    if scale.is_share:
        # As many independent samples as there are sources, with the same shares.
        weight = len(sums) / len(before)
        interval = newcombe_paired(
            float(np.sum(before * after)) * weight,
            float(np.sum(before * (1 - after))) * weight,
            float(np.sum((1 - before) * after)) * weight,
            float(np.sum((1 - before) * (1 - after))) * weight,
            confidence,
        )
        if groups is not None or not (_is_yes_or_no(before) and _is_yes_or_no(after)):
            interval = _hull(interval, mean_interval(sums, sizes, confidence))
    else:
        interval = mean_interval(sums, sizes, confidence)
    width = scale.high - scale.low
    return _score(metric, value, interval, (-width, width), len(sums), confidence)


def wilson(share: float, count: float, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion (1927), without continuity correction.

    Args:
        share: Of the samples, 0 to 1.
        count: Samples; more than 0.
        confidence: Between 0 and 1.
    """
    z = _normal_quantile(confidence)
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    shrink = 1 + z * z / count
    # Rounding must not leave the possible, nor the share itself.
    return max(0.0, min(share, (centre - half) / shrink)), min(1.0, max(share, (centre + half) / shrink))


def newcombe_paired(
    both: float, first: float, second: float, neither: float, confidence: float = CONFIDENCE
) -> Interval:
    """Interval of the difference of two proportions on the same samples: Newcombe (1998), method 10.

    Args:
        both: Samples that are right both times (the paper's e, f, g, h in order).
        first: Right the first time only.
        second: Right the second time only.
        neither: Right neither time.
        confidence: Between 0 and 1.

    Returns:
        Interval of ``(first - second) / count``.
    """
    count = both + first + second + neither
    p1, p2 = (both + first) / count, (both + second) / count
    (low1, high1), (low2, high2) = wilson(p1, count, confidence), wilson(p2, count, confidence)
    below1, above1, below2, above2 = p1 - low1, high1 - p1, p2 - low2, high2 - p2
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    covariance = both * neither - first * second
    if covariance > 0:
        covariance = max(covariance - count / 2, 0.0)
    phi = covariance / math.sqrt(margins) if margins > 0 else 0.0
    down = below1**2 - 2 * phi * below1 * above2 + above2**2
    up = below2**2 - 2 * phi * below2 * above1 + above1**2
    difference = p1 - p2
    return (
        max(-1.0, difference - math.sqrt(max(down, 0.0))),
        min(1.0, difference + math.sqrt(max(up, 0.0))),
    )


def mean_interval(sums: Array, sizes: Array, confidence: float = CONFIDENCE) -> Interval:
    """Interval of ``sum(sums) / sum(sizes)`` where the sources, not their samples, are independent.

    Args:
        sums: Float ``[G]``: sum of the values of each source.
        sizes: Float ``[G]``: samples of each source; all 1 where each sample stands alone.
        confidence: Between 0 and 1.

    Returns:
        The interval by bootstrap or Student's t, see the module; everything, if there is one source only.
    """
    count = len(sums)
    if count < 2:
        return -math.inf, math.inf
    mean = float(sums.sum() / sizes.sum())
    t = student_quantile(confidence, count - 1)
    if count > MOST_RESAMPLED:
        # Linearised variance of a ratio; of a mean where all sizes are equal.
        variance = count / (count - 1) * float(np.sum((sums - mean * sizes) ** 2)) / float(sizes.sum()) ** 2
        half = t * math.sqrt(variance)
        return mean - half, mean + half
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * t)
    low, high = np.quantile(_resampled(sums, sizes), [tail, 1 - tail])
    return min(float(low), mean), max(float(high), mean)


def student_quantile(confidence: float, freedom: int) -> float:
    """The t that Student's distribution keeps within ±t with a probability.

    Sources: M. Abramowitz, I. A. Stegun, "Handbook of mathematical functions" (1964), 26.7.3 and 26.7.4 for the
    probability, solved by bisection; 26.7.5 for many degrees of freedom.

    Args:
        confidence: Between 0 and 1.
        freedom: Degrees of freedom, at least 1.
    """
    if freedom > _MANY:
        z = _normal_quantile(confidence)
        return (
            z
            + (z**3 + z) / (4 * freedom)
            + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        )
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, freedom) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def needed_for_share(share: float, limit: float, confidence: float = CONFIDENCE) -> float:
    """How many samples, all else equal, bring the limit just out of Wilson's interval.

    The interval's end is where ``(share - limit)² = z² · limit (1 - limit) / n``; so n follows from it. Infinite if the
    share is the limit.
    """
    distance = (share - limit) ** 2
    return _normal_quantile(confidence) ** 2 * limit * (1 - limit) / distance if distance > 0 else math.inf


def _student_within(angle: float, freedom: int) -> float:
    """Probability of ``|T| <= tan(angle) · sqrt(freedom)``."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for step in range(odd, freedom - 1, 2):
        total += term
        term *= (step + 1) / (step + 2) * cosine**2
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _resampled(sums: Array, sizes: Array) -> Array:
    """Means ``[RESAMPLES]`` of sources drawn with replacement, always the same draw for as many sources."""
    random = np.random.default_rng(_SEED)
    count = len(sums)
    means = np.empty(RESAMPLES)
    rows = max(1, _CHUNK // count)
    for start in range(0, RESAMPLES, rows):
        drawn = random.integers(0, count, (min(rows, RESAMPLES - start), count), dtype=np.int32)
        means[start : start + len(drawn)] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means


def _by_source(metric: str, values: Array, groups: Sequence[str] | None) -> tuple[Array, Array]:
    """Sum and number of the values of each source, float ``[G]`` both."""
    if len(values) == 0:
        raise DatasetError(f"{metric}: there is no sample to measure on")
    if groups is None:
        return values.astype(np.float64), np.ones(len(values))
    _, source = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(source, weights=values), np.bincount(source).astype(np.float64)


def _score(metric: str, value: float, interval: Interval, bounds: Interval, count: int, confidence: float) -> Score:
    low, high = max(interval[0], bounds[0]), min(interval[1], bounds[1])
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DatasetError(f"{metric}: one sample says nothing about others; measure on at least two")
    return Score(metric=metric, value=value, low=low, high=high, count=count, confidence=confidence)


def _is_yes_or_no(values: Array) -> bool:
    return bool(np.all((values == 0) | (values == 1)))


def _hull(one: Interval, other: Interval) -> Interval:
    # A single source has no spread to resample: the interval of shares stands alone.
    return one if math.isinf(other[0]) else (min(one[0], other[0]), max(one[1], other[1]))


def _normal_quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
