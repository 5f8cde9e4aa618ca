"""Where the labels of a scatter plot go, so that they cover neither each other nor the points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Around the point, nearest first: right, left, above, below, then the corners, then farther away.
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
_DISTANCES = (7.0, 11.0, 18.0, 27.0)
_POINT_RADIUS = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """A text beside a point; lengths in points of 1/72 inch, from the lower left corner of the drawing.

    Attributes:
        x: Of the point.
        y: Of the point.
        width: Of the text.
        height: Of the text.
    """

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Box:
    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: _Box) -> float:
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(wide, 0.0) * max(high, 0.0)

    def outside(self, other: _Box) -> float:
        """Area of this box that lies outside another one."""
        return (self.right - self.left) * (self.top - self.bottom) - self.overlap(other)


def placed(labels: Sequence[Label], *, width: float, height: float) -> list[tuple[float, float]]:
    """Choose a place for each label, the first ones first.

    Args:
        labels: In the order of importance.
        width: Of the drawing.
        height: Of the drawing.

    Returns:
        The centre of each text. The place that covers least is taken; of equals the nearest to the point.
    """
    page = _Box(left=0, bottom=0, right=width, top=height)
    taken = [
        _Box(left=x - _POINT_RADIUS, bottom=y - _POINT_RADIUS, right=x + _POINT_RADIUS, top=y + _POINT_RADIUS)
        for x, y in ((label.x, label.y) for label in labels)
    ]
    centres = []
    for label in labels:
        best = min(
            _places(label),
            # Out of the drawing is worse than over something in it.
            key=lambda place: round(sum(place[0].overlap(box) for box in taken) + 3 * place[0].outside(page), 3),
        )
        taken.append(best[0])
        centres.append(best[1])
    return centres


def _places(label: Label) -> Iterator[tuple[_Box, tuple[float, float]]]:
    for distance in _DISTANCES:
        for right, up in _DIRECTIONS:
            diagonal = 0.75 if right and up else 1.0
            x = label.x + right * (distance * diagonal + label.width / 2)
            y = label.y + up * (distance * diagonal + label.height / 2)
            box = _Box(
                left=x - label.width / 2,
                bottom=y - label.height / 2,
                right=x + label.width / 2,
                top=y + label.height / 2,
            )
            yield box, (x, y)
