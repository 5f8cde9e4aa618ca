"""Boxes of detectors: decoded from their anchors, and the best of those that overlap; numpy only.

Anchors and weighted suppression as in BlazeFace (Bazarevsky et al., 2019, section 3.4) and MediaPipe's calculators
`SsdAnchorsCalculator`, `TensorsToDetectionsCalculator` and `NonMaxSuppressionCalculator`.
"""

from dataclasses import replace

import numpy as np

from edge.errors import InvalidInput
from edge.formats.answers import Boxes, Grid, Suppress
from edge.formats.tensor import Array
from edge.processing.scores import output_of
from edge.processing.values import Box, Reading

MAX_CANDIDATES = 2000
"""Boxes that suppression compares with each other at most, the best."""


def boxes(step: Boxes, reading: Reading) -> Reading:
    """Decode the boxes whose score is high enough, the best first.

    Raises:
        InvalidInput: outputs of other shapes than the step says.
    """
    raw, scores = output_of(reading, step.output), output_of(reading, step.scores)
    width = 4 + 2 * step.points
    if raw.ndim != 3 or len(raw) < 1 or raw.shape[2] != width:
        raise InvalidInput(f"output {step.output!r} is {list(raw.shape)}, not [1, n, {width}]")
    count = raw.shape[1]
    if scores.size != len(scores) * count * len(step.names) or len(scores) != len(raw):
        raise InvalidInput(f"output {step.scores!r} is {list(scores.shape)}, not [1, {count}, {len(step.names)}]")
    rated = scores.reshape(len(scores), count, len(step.names))[0].astype(np.float64)
    best = rated.argmax(axis=1)
    score = rated[np.arange(count), best] if count else np.zeros(0)
    chosen = np.argsort(-score, kind="stable")
    chosen = chosen[score[chosen] >= step.least][:MAX_CANDIDATES]
    corners, points = _decoded(step, raw[0].astype(np.float64), chosen)
    usable = np.isfinite(corners).all(axis=1) & np.isfinite(points).all(axis=(1, 2))
    rows = zip(chosen[usable].tolist(), corners[usable].tolist(), points[usable].tolist(), strict=True)
    items = tuple(
        Box(
            label=step.names[best[row]],
            score=float(score[row]),
            left=left,
            top=top,
            right=right,
            bottom=bottom,
            points=tuple((x, y) for x, y in ends),
        )
        for row, (left, top, right, bottom), ends in rows
    )
    return replace(reading, items=items)


def _decoded(step: Boxes, raw: Array, chosen: Array) -> tuple[Array, Array]:
    """Return corners `[n, 4]` and points `[n, points, 2]` of the chosen rows, in shares of the image."""
    anchors = anchors_of(step.grids)
    if step.grids and len(anchors) != len(raw):
        raise InvalidInput(f"output {step.output!r} has {len(raw)} boxes, and the grids {len(anchors)} anchors")
    rows = raw[chosen]
    swapped = step.order.startswith("y")
    columns = [1, 0, 3, 2] if swapped else [0, 1, 2, 3]
    scale = np.array(step.scale)
    box = rows[:, columns] / scale
    points = rows[:, 4:].reshape(len(rows), step.points, 2)
    points = (points[:, :, ::-1] if swapped else points) / scale[:2]
    if step.order in ("xyxy", "yxyx"):
        return box, points
    with np.errstate(over="ignore"):
        size = np.exp(box[:, 2:]) if step.exponent else box[:, 2:]
        middle = box[:, :2]
        if step.grids:
            anchor = anchors[chosen]
            middle = anchor[:, :2] + middle * anchor[:, 2:]
            size = size * anchor[:, 2:]
            points = anchor[:, None, :2] + points * anchor[:, None, 2:]
    return np.concatenate([middle - size / 2, middle + size / 2], axis=1), points


def anchors_of(grids: tuple[Grid, ...]) -> Array:
    """Return the anchors of all grids, `[n, 4]`: x and y of the middle, width and height, in shares of the image."""
    parts = [np.zeros((0, 4))]
    for grid in grids:
        y, x = np.divmod(np.arange(grid.columns * grid.rows), grid.columns)
        size = np.full(x.size, grid.width), np.full(x.size, grid.height)
        cells = np.stack([(x + 0.5) / grid.columns, (y + 0.5) / grid.rows, *size], axis=1)
        parts.append(np.repeat(cells, grid.per_cell, axis=0))
    return np.concatenate(parts)


def suppress(step: Suppress, reading: Reading) -> Reading:
    """Keep the best of the boxes of one label that overlap."""
    left = sorted((item for item in reading.items or () if isinstance(item, Box)), key=lambda box: -box.score)
    kept: list[Box] = []
    while left and len(kept) < step.most:
        best = left[0]
        same = [best, *(box for box in left[1:] if box.label == best.label and overlap(best, box) > step.overlap)]
        kept.append(_averaged(best, same) if step.method == "weighted" else best)
        gone = set(map(id, same))
        left = [box for box in left if id(box) not in gone]
    return replace(reading, items=tuple(kept))


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over the union of two boxes."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / max(one.area + other.area - both, 1e-30)


def _averaged(best: Box, same: list[Box]) -> Box:
    """Return the best box at the mean place of all, weighted by score."""
    weights = np.array([box.score for box in same])
    if len(same) == 1 or weights.sum() <= 0:
        return best
    places = np.array([(b.left, b.top, b.right, b.bottom, *(n for point in b.points for n in point)) for b in same])
    mean = (weights @ places / weights.sum()).tolist()
    points = tuple(zip(mean[4::2], mean[5::2], strict=True))
    return replace(best, left=mean[0], top=mean[1], right=mean[2], bottom=mean[3], points=points)
