"""Masks to polygons: the borders of regions are followed along the edges of their pixels; numpy only.

Pixels belong together where they share an edge. Outlines have whole coordinates, so that the area of an outline less
its holes is exactly the number of pixels, as long as nothing is simplified.
"""

from dataclasses import replace

import numpy as np

from edge.errors import InvalidInput
from edge.formats.answers import MaskPolygons
from edge.formats.tensor import Array
from edge.processing.scores import output_of
from edge.processing.values import Point, Reading, Segment

MAX_MASK_PIXELS = 1 << 24
MAX_EDGES = 1 << 20

_Ring = list[tuple[int, int]]
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def mask_polygons(step: MaskPolygons, reading: Reading) -> Reading:
    """Outline the regions of a mask, the largest first, in shares of it.

    Raises:
        InvalidInput: the output is no mask, or one of absurd size.
    """
    classes = _class_of_pixels(step, output_of(reading, step.output))
    height, width = classes.shape
    items: list[Segment] = []
    for number, label in enumerate(step.names):
        for outline, holes in regions(classes == number, where=f"output {step.output!r}"):
            pixels = _area(outline) + sum(_area(hole) for hole in holes)
            if pixels >= step.least_pixels:
                kept = [ring for ring in (_simplified(hole, step.tolerance) for hole in holes) if len(ring) > 2]
                items.append(
                    Segment(
                        label=label,
                        area=pixels / (width * height),
                        outline=_shares(_simplified(outline, step.tolerance), width, height),
                        holes=tuple(_shares(hole, width, height) for hole in kept),
                    )
                )
    items.sort(key=lambda segment: -segment.area)
    return replace(reading, items=tuple(items[: step.most]))


def _class_of_pixels(step: MaskPolygons, mask: Array) -> Array:
    """Return the number of the class of each pixel, `[H, W]`; -1 for none."""
    many = len(step.names) > 1
    if mask.size > MAX_MASK_PIXELS or not mask.size:
        raise InvalidInput(f"output {step.output!r} is {list(mask.shape)}, which is no mask of a picture")
    if many:
        if not -mask.ndim <= step.axis < mask.ndim:
            raise InvalidInput(f"output {step.output!r} is {list(mask.shape)} and has no axis {step.axis}")
        mask = mask.argmax(axis=step.axis)
    flat = mask
    while flat.ndim > 2 and 1 in (flat.shape[0], flat.shape[-1]):
        flat = flat[0] if flat.shape[0] == 1 else flat[..., 0]
    if flat.ndim != 2:
        raise InvalidInput(f"output {step.output!r} is {list(mask.shape)}, not one score a pixel")
    return flat if many else np.where(flat > step.threshold, 0, -1)


def regions(inside: Array, *, where: str) -> list[tuple[_Ring, list[_Ring]]]:
    """Return the outline and the holes of every region of a mask.

    Args:
        inside: bool `[H, W]`.
        where: for messages.

    Raises:
        InvalidInput: a mask of nothing but borders.
    """
    rings = _rings(inside, where)
    outlines = [ring for ring in rings if _area(ring) > 0]
    found: list[tuple[_Ring, list[_Ring]]] = [(outline, []) for outline in outlines]
    for hole in rings:
        if _area(hole) < 0:
            # Of the outlines around it the smallest: others hold regions within which that one lies in a hole.
            x, y = hole[0][0] + 0.5, hole[0][1] + 0.5
            around = [part for part in found if _holds(part[0], x, y)]
            min(around, key=lambda part: _area(part[0]))[1].append(hole)
    return found


def _rings(inside: Array, where: str) -> list[_Ring]:
    """Follow the borders with the inside on the right; a ring around a hole runs the other way."""
    padded = np.pad(inside, 1)
    core = padded[1:-1, 1:-1]
    edges: dict[tuple[int, int], list[int]] = {}
    # Of each pixel inside whose neighbour is outside: where its edge starts, and which way it goes.
    sides = (
        (padded[:-2, 1:-1], 0, 0, 0),  # above: from its left upper corner to the right
        (padded[1:-1, 2:], 1, 0, 1),  # right: downwards
        (padded[2:, 1:-1], 1, 1, 2),  # below: to the left
        (padded[1:-1, :-2], 0, 1, 3),  # left: upwards
    )
    total = 0
    for neighbour, across, down, way in sides:
        rows, columns = np.nonzero(core & ~neighbour)
        total += rows.size
        if total > MAX_EDGES:
            raise InvalidInput(f"{where}: its regions have more than {MAX_EDGES} edges")
        for x, y in zip((columns + across).tolist(), (rows + down).tolist(), strict=True):
            edges.setdefault((x, y), []).append(way)
    rings = []
    for start in sorted(edges, key=lambda corner: (corner[1], corner[0])):
        while edges.get(start):
            rings.append(_followed(edges, start))
    return rings


def _followed(edges: dict[tuple[int, int], list[int]], start: tuple[int, int]) -> _Ring:
    """Take one closed ring out of the edges; only its corners are kept."""
    ring: _Ring = []
    at, way = start, edges[start].pop(0)
    first = way
    ring.append(at)
    while True:
        at = (at[0] + _STEPS[way][0], at[1] + _STEPS[way][1])
        if at == start:
            break
        ways = edges[at]
        # Where two pixels touch at a corner only, turn right: they are not one region.
        turn = next(one for one in ((way + 1) % 4, way, (way + 3) % 4) if one in ways)
        ways.remove(turn)
        if turn != way:
            ring.append(at)
        way = turn
    return ring[1:] if way == first and len(ring) > 4 else ring


def _area(ring: _Ring) -> float:
    """Return the area of a ring by the shoelace formula, negative for one that runs around a hole."""
    x = np.array([point[0] for point in ring], np.float64)
    y = np.array([point[1] for point in ring], np.float64)
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _holds(ring: _Ring, x: float, y: float) -> bool:
    """Tell whether a point lies in a ring: a ray from it crosses the ring an odd number of times."""
    ends = np.array(ring)
    following = np.roll(ends, -1, axis=0)
    upright = ends[:, 0] == following[:, 0]
    low, high = np.minimum(ends[:, 1], following[:, 1]), np.maximum(ends[:, 1], following[:, 1])
    return int((upright & (ends[:, 0] > x) & (low < y) & (y < high)).sum()) % 2 == 1


def _simplified(ring: _Ring, tolerance: float) -> _Ring:
    """Leave out corners that lie within the tolerance of the line between kept ones (Douglas and Peucker, 1973)."""
    if tolerance <= 0 or len(ring) < 5:
        return ring
    points = np.array([*ring, ring[0]], np.float64)
    # The corner farthest from the first one divides the ring into two lines.
    far = int(((points - points[0]) ** 2).sum(axis=1).argmax())
    kept, pending = {0, far, len(points) - 1}, [(0, far), (far, len(points) - 1)]
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        along = points[last] - points[first]
        off = points[first + 1 : last] - points[first]
        length = float(np.hypot(*along))
        away = np.abs(off[:, 0] * along[1] - off[:, 1] * along[0]) / length if length else np.hypot(*off.T)
        worst = int(away.argmax())
        if away[worst] > tolerance:
            middle = first + 1 + worst
            kept.add(middle)
            pending += [(first, middle), (middle, last)]
    return [ring[place] for place in sorted(kept - {len(points) - 1})]


def _shares(ring: _Ring, width: int, height: int) -> tuple[Point, ...]:
    return tuple((x / width, y / height) for x, y in ring)
