"""Steps on scores: probabilities, the best classes, rules, text of CTC networks, pooled features; numpy only.

`CtcText` is greedy decoding of connectionist temporal classification (Graves et al., 2006, section 3.2, "best path").
"""

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from edge.errors import InvalidInput
from edge.formats.answers import (
    AllOf,
    AnyOf,
    CtcText,
    Dequantise,
    Keep,
    L2Normalise,
    MeanPool,
    Not,
    Rule,
    Sigmoid,
    Softmax,
    Top,
)
from edge.formats.tensor import Array
from edge.processing.values import Item, Labelled, Line, Reading

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def output_of(reading: Reading, name: str) -> Array:
    """Return an output of the model.

    Raises:
        InvalidInput: the answer has no such output, or it is a single number or text.
    """
    array = reading.arrays.get(name)
    if array is None:
        raise InvalidInput(f"the answer has no output {name!r}")
    if not array.ndim or array.dtype.kind not in "biuf":
        raise InvalidInput(f"output {name!r} is {array.dtype}{list(array.shape)}, not an array of numbers")
    return array


def changed(reading: Reading, name: str, array: Array) -> Reading:
    """Return a reading with another array for an output."""
    return replace(reading, arrays={**reading.arrays, name: array}, last=name)


def dequantise(step: Dequantise, reading: Reading) -> Reading:
    """Turn integers to floats."""
    array = output_of(reading, step.output).astype(np.float32)
    return changed(reading, step.output, np.float32(step.scale) * (array - np.float32(step.zero_point)))


def softmax(step: Softmax, reading: Reading) -> Reading:
    """Turn logits to probabilities.

    Raises:
        InvalidInput: there is no such axis.
    """
    array = output_of(reading, step.output).astype(np.float64)
    if not array.size or not -array.ndim <= step.axis < array.ndim:
        raise InvalidInput(
            f"output {step.output!r} is {list(array.shape)} and has no axis {step.axis} to compare along"
        )
    powers = np.exp(array - array.max(axis=step.axis, keepdims=True))
    return changed(reading, step.output, powers / powers.sum(axis=step.axis, keepdims=True))


def sigmoid(step: Sigmoid, reading: Reading) -> Reading:
    """Turn logits to probabilities, each for itself."""
    array = np.clip(output_of(reading, step.output).astype(np.float64), -step.clip, step.clip)
    return changed(reading, step.output, 1.0 / (1.0 + np.exp(-array)))


def mean_pool(step: MeanPool, reading: Reading) -> Reading:
    """Average features over the places that the mask names.

    Raises:
        InvalidInput: mask and features do not fit, or the inputs of the request are not known any more.
    """
    features = output_of(reading, step.output)
    mask = reading.inputs.get(step.mask)
    if mask is None:
        raise InvalidInput(f"the input {step.mask!r} of this request is not known any more: no mean over its places")
    if features.ndim != 3 or mask.shape != features.shape[:2]:
        raise InvalidInput(
            f"output {step.output!r} is {list(features.shape)} and its mask {list(mask.shape)}: no mean over places"
        )
    weights = (mask != 0).astype(np.float64)[:, :, None]
    # At least one place, as sentence-transformers does it: a mask of zeros gives zeros.
    pooled = (features * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
    return changed(reading, step.output, pooled.astype(np.float32))


def l2_normalise(step: L2Normalise, reading: Reading) -> Reading:
    """Give vectors the length 1; a vector of zeros stays."""
    array = output_of(reading, step.output).astype(np.float64)
    length = np.sqrt((array * array).sum(axis=-1, keepdims=True))
    return changed(reading, step.output, (array / np.maximum(length, 1e-12)).astype(np.float32))


def top(step: Top, reading: Reading) -> Reading:
    """Name the best classes of the first item; equal scores keep the order of the names.

    Raises:
        InvalidInput: the output has another number of classes.
    """
    scores = output_of(reading, step.output)
    row = scores.reshape(scores.shape[0], -1)[0] if scores.size else scores.reshape(-1)
    if row.size != len(step.names) or not row.size:
        raise InvalidInput(f"output {step.output!r} does not hold one score for each of {len(step.names)} classes")
    best = np.argsort(-row.astype(np.float64), kind="stable")[: step.count]
    items = tuple(Labelled(label=step.names[index], score=float(row[index])) for index in best)
    return replace(reading, items=items)


def ctc_text(step: CtcText, reading: Reading) -> Reading:
    """Read the text of the first item.

    Raises:
        InvalidInput: the output has another number of classes.
    """
    scores = output_of(reading, step.output)
    if scores.ndim != 3 or not scores.size or scores.shape[2] != len(step.names) + 1:
        raise InvalidInput(
            f"output {step.output!r} is {list(scores.shape)}, not scores for {len(step.names)} letters and blank"
        )
    path = scores[0].argmax(axis=1)
    first = np.concatenate([[True], path[1:] != path[:-1]])
    kept = np.flatnonzero(first & (path != step.blank))
    letters = [step.names[number - (number > step.blank)] for number in path[kept].tolist()]
    score = float(scores[0][kept, path[kept]].mean()) if kept.size else 0.0
    return replace(reading, items=(Line(label="".join(letters), score=score),))


def keep(step: Keep, reading: Reading) -> Reading:
    """Keep the items for which the rule holds."""
    return replace(reading, items=tuple(item for item in reading.items or () if holds(step.when, item)))


def holds(rule: Rule, item: Item) -> bool:
    """Tell whether a rule holds for an item; one of a property that the item does not have never does."""
    if isinstance(rule, AllOf):
        return all(holds(part, item) for part in rule.rules)
    if isinstance(rule, AnyOf):
        return any(holds(part, item) for part in rule.rules)
    if isinstance(rule, Not):
        return not holds(rule.inner, item)
    found = getattr(item, rule.field, None)
    if found is None or isinstance(found, str) != isinstance(rule.value, str):
        return False
    return _OPERATORS[rule.operator](found, rule.value)
