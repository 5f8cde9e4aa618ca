"""One figure of accuracy with its uncertainty."""

from __future__ import annotations

import msgspec


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """The mean of a metric over a dataset and the interval that its true value lies in.

    Attributes:
        metric: Name, such as ``top1``, ``agreement`` or ``top1-drop``.
        value: Mean over the samples.
        low: Lower end of the confidence interval.
        high: Upper end.
        count: Independent samples behind it.
        confidence: Probability that an interval made this way covers the true value, such as 0.95.
    """

    metric: str
    value: float
    low: float
    high: float
    count: int
    confidence: float = 0.95
