"""Answer recipes, executed: from the outputs of a request to labels, boxes, text, segments or an array."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from edge.formats.answers import (
    AnswerStep,
    Boxes,
    CtcText,
    Dequantise,
    Keep,
    L2Normalise,
    MaskPolygons,
    MeanPool,
    Sigmoid,
    Softmax,
    Suppress,
    Top,
)
from edge.formats.processing import AnswerRecipe, Processing
from edge.formats.tensor import Array
from edge.processing import boxes, polygons, scores
from edge.processing.values import Answer, Box, Item, Labelled, Placement, Prepared, Reading, Segment

STEPS: dict[type[AnswerStep], Callable[[Any, Reading], Reading]] = {
    Dequantise: scores.dequantise,
    Softmax: scores.softmax,
    Sigmoid: scores.sigmoid,
    MeanPool: scores.mean_pool,
    L2Normalise: scores.l2_normalise,
    Top: scores.top,
    CtcText: scores.ctc_text,
    Keep: scores.keep,
    Boxes: boxes.boxes,
    Suppress: boxes.suppress,
    MaskPolygons: polygons.mask_polygons,
}
"""Every step of an answer recipe, and what executes it."""


def read_answers(
    processing: Processing, outputs: Mapping[str, Array], *, prepared: Prepared | None = None, top: int | None = None
) -> tuple[Answer, ...]:
    """Read every answer that a bundle declares.

    Args:
        processing: of the bundle.
        outputs: of the model, by name.
        prepared: the request; without it boxes and segments stay in shares of the model's image.
        top: how many classes of each answer with labels; None for as many as its recipe says.

    Raises:
        InvalidInput: outputs that a recipe cannot read.
    """
    prepared = prepared or Prepared(tensors={})
    return tuple(_read(recipe, dict(outputs), prepared, top) for recipe in processing.answers)


def _read(recipe: AnswerRecipe, outputs: dict[str, Array], prepared: Prepared, top: int | None) -> Answer:
    reading = Reading(arrays=outputs, inputs=prepared.tensors)
    for step in recipe.steps:
        asked = _asking(step, top) if isinstance(step, Top) else step
        reading = STEPS[type(step)](asked, reading)
    if reading.items is None:
        return Answer(name=recipe.name, array=reading.arrays[reading.last])
    placement = prepared.placement
    items = reading.items if placement is None else tuple(in_photo(item, placement) for item in reading.items)
    return Answer(name=recipe.name, items=items, in_pixels=placement is not None)


def _asking(step: Top, top: int | None) -> Top:
    return step if top is None else Top(output=step.output, names=step.names, count=top)


def in_photo(item: Item, placement: Placement) -> Item:
    """Return an item with its places in pixels of the photo; one without places as it is."""
    at = placement.in_photo
    if isinstance(item, Box):
        (left, top), (right, bottom) = at(item.left, item.top), at(item.right, item.bottom)
        points = tuple(at(x, y) for x, y in item.points)
        return replace(item, left=left, top=top, right=right, bottom=bottom, points=points)
    if isinstance(item, Segment):
        holes = tuple(tuple(at(x, y) for x, y in hole) for hole in item.holes)
        return replace(item, outline=tuple(at(x, y) for x, y in item.outline), holes=holes)
    return item


def read_labels(processing: Processing, outputs: Mapping[str, Array], *, top: int = 5) -> list[tuple[str, float]]:
    """Return the best classes of the first answer with labels, with their scores; none where there is none.

    Raises:
        InvalidInput: the output is missing or has another number of classes.
    """
    for recipe in processing.answers:
        if recipe.makes == "labels":
            answer = _read(recipe, dict(outputs), Prepared(tensors={}), top)
            return [(item.label, item.score) for item in answer.items if isinstance(item, Labelled)]
    return []
