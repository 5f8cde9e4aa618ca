"""Compare what two models answer. Needs numpy only, so that the fleet can judge a probe with it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge.formats.tensor import Array

Tensors = Mapping[str, Array]


def relative_error(found: Array, expected: Array) -> float:
    """``max|a - b| / max|b|``; 0 for equal arrays, infinite where one is not finite and the other is, or text differs.

    Args:
        found: ``a``, any shape.
        expected: ``b``, the same shape.
    """
    if found.size == 0 or np.array_equal(found, expected, equal_nan=found.dtype.kind == "f"):
        return 0.0
    if found.dtype.kind == "O":
        return float("inf")
    a, b = found.astype(np.float64), expected.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)) or not np.array_equal(
        a[~np.isfinite(a)], b[~np.isfinite(b)], equal_nan=True
    ):
        return float("inf")
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    largest = float(np.max(np.abs(b), initial=0.0))
    difference = float(np.max(np.abs(a - b), initial=0.0))
    return difference / largest if largest > 0 else float("inf")


def largest_difference(found: Array, expected: Array) -> float:
    """``max|a - b|``, in the unit of the values; 0 for equal arrays, infinite where only one is finite."""
    if found.size == 0 or np.array_equal(found, expected, equal_nan=found.dtype.kind == "f"):
        return 0.0
    if found.dtype.kind == "O":
        return float("inf")
    with np.errstate(invalid="ignore"):
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    both = np.isnan(difference) & (np.isnan(found) == np.isnan(expected)) if found.dtype.kind == "f" else False
    return float(np.max(np.where(both, 0.0, np.nan_to_num(difference, nan=np.inf))))


def cosine(found: Array, expected: Array) -> float:
    """Cosine of the angle between two arrays seen as vectors; 1 when both are zero, 0 when one is.

    Text has no angle: 1 where it is equal, else 0.
    """
    if found.dtype.kind == "O":
        return float(np.array_equal(found, expected))
    a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0.0 or not np.isfinite(norms):
        return 1.0 if np.array_equal(a, b, equal_nan=True) else 0.0
    return float(np.clip(np.dot(a, b) / norms, -1.0, 1.0))


def compare(found: Tensors, expected: Tensors, *, tolerance: float, least_cosine: float | None = None) -> str | None:
    """Say what is wrong with an answer, in one line, or None.

    Args:
        found: Array by output name.
        expected: What they should be.
        tolerance: Largest `relative_error`. Integers and booleans must be equal when it is below 1e-2.
        least_cosine: When given, judge float outputs by `cosine` instead.
    """
    if found.keys() != expected.keys():
        return f"outputs are {sorted(found)}, expected {sorted(expected)}"
    for name, want in expected.items():
        have = found[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            return f"output {name!r} is {have.dtype}{list(have.shape)}, expected {want.dtype}{list(want.shape)}"
        if want.dtype.kind not in "fiub":
            if not np.array_equal(have, want):
                return f"output {name!r} differs"
        elif least_cosine is not None:
            angle = cosine(have, want)
            if angle < least_cosine:
                return f"output {name!r} has cosine {angle:.4f}, below {least_cosine:g}"
        else:
            error = relative_error(have, want)
            exact = want.dtype.kind != "f" and tolerance < 1e-2
            if error > (0.0 if exact else tolerance):
                return f"output {name!r} has relative error {error:.2e}, above {0.0 if exact else tolerance:g}"
    return None
