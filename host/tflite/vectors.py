"""Vectors of TFLite records, which are absent where they are empty, and arrays or lists otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge.formats.tensor import Array


def items(values: Sequence[int] | None) -> tuple[int, ...]:
    """Return a vector of a record, which is absent where it is empty."""
    return () if values is None else tuple(int(value) for value in np.atleast_1d(values))


def items_of(values: Any) -> Array:
    """Return a vector of numbers of a record as an array; empty where it is absent."""
    return np.empty(0) if values is None else np.atleast_1d(np.asarray(values))
