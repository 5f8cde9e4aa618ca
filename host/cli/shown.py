"""Answers in words and as JSON: labels, boxes, lines of text, segments, arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge.formats.tensor import Array
from edge.processing.values import Answer, Box, Item, Labelled, Line, Segment

_SHOWN_NUMBERS = 4
_JSON_NUMBERS = 65_536


def lines_of(answers: Sequence[Answer], outputs: Mapping[str, Array]) -> list[tuple[str, float | None]]:
    """Return each item in words, with its score; the outputs themselves where no answer is declared."""
    if not answers:
        return [("; ".join(describe(name, array) for name, array in outputs.items()), None)]
    several = len(answers) > 1
    lines: list[tuple[str, float | None]] = []
    for answer in answers:
        head = f"{answer.name}: " if several else ""
        if answer.array is not None:
            lines.append((f"{head}{_numbers(answer.name, answer.array)}", None))
        elif not answer.items:
            lines.append((f"{answer.name}: nothing", None))
        lines += [(head + _words(item, answer), getattr(item, "score", None)) for item in answer.items]
    return lines


def _words(item: Item, answer: Answer) -> str:
    places = 0 if answer.in_pixels else 3
    if isinstance(item, Box):
        corners = f"{item.left:.{places}f}, {item.top:.{places}f} to {item.right:.{places}f}, {item.bottom:.{places}f}"
        return f"{item.label} at {corners}"
    if isinstance(item, Segment):
        holes = f" and {len(item.holes)} holes" if item.holes else ""
        return f"{item.label}, {item.area:.1%} of the image, outline of {len(item.outline)} points{holes}"
    return item.label


def _numbers(name: str, array: Array) -> str:
    flat = array.reshape(-1)
    first = ", ".join(f"{number:.4g}" for number in flat[:_SHOWN_NUMBERS].tolist()) if flat.dtype.kind in "fiu" else ""
    more = ", …" if flat.size > _SHOWN_NUMBERS else ""
    return f"{name} {array.dtype}{list(array.shape)} = {first}{more}"


def record_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return answers as JSON has them; `labels` repeats those of the first answer with labels."""
    record: dict[str, Any] = {"answers": {answer.name: _record(answer) for answer in answers}}
    for answer in answers:
        labels = [item for item in answer.items if isinstance(item, Labelled)]
        if labels:
            return {"labels": [{"label": item.label, "probability": item.score} for item in labels], **record}
    return record


def _record(answer: Answer) -> dict[str, Any]:
    if answer.array is not None:
        shape = list(answer.array.shape)
        # Longer ones are for a program of one's own, with `edge.client`.
        values = {"values": answer.array.reshape(-1).tolist()} if answer.array.size <= _JSON_NUMBERS else {}
        return {"shape": shape, **values}
    placed = any(isinstance(item, Box | Segment) for item in answer.items)
    unit = {"unit": "pixels" if answer.in_pixels else "shares"} if placed else {}
    return {"items": [_item(item) for item in answer.items], **unit}


def _item(item: Item) -> dict[str, Any]:
    if isinstance(item, Line):
        return {"text": item.label, "score": item.score}
    if isinstance(item, Box):
        box = [item.left, item.top, item.right, item.bottom]
        points = {"points": [list(point) for point in item.points]} if item.points else {}
        return {"label": item.label, "score": item.score, "box": box, **points}
    if isinstance(item, Segment):
        rings = {"outline": [list(point) for point in item.outline]}
        holes = {"holes": [[list(point) for point in hole] for hole in item.holes]} if item.holes else {}
        return {"label": item.label, "area": item.area, **rings, **holes}
    return {"label": item.label, "score": item.score}


def describe(name: str, array: Array) -> str:
    """Return one output in a few words: name, shape, range."""
    if array.size == 0 or array.dtype.kind not in "fiu":
        return f"{name} {array.dtype}{list(array.shape)}"
    return f"{name} {array.dtype}{list(array.shape)} in [{np.min(array):.4g}, {np.max(array):.4g}]"
