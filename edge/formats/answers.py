"""From the outputs of a model to an answer for people and programs: the steps, as data; `edge.processing` runs them.

A recipe begins with the outputs as arrays by name, changes some of them, and then makes items of them: labels, boxes,
a line of text, segments. Without a step that makes items, the array of the last step is the answer.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from edge.formats.steps import Axis, Name, Number, Positive, ZeroPoint

MAX_LABELS = 65_536
MAX_LABEL_LENGTH = 512
MAX_GRIDS = 32
MAX_GRID_SIDE = 4096
MAX_ANCHORS = 1 << 20
MAX_ITEMS = 1000
MAX_POINTS = 256
MAX_RULE_DEPTH = 16
MAX_RULE_PARTS = 256

Label = Annotated[str, msgspec.Meta(max_length=MAX_LABEL_LENGTH)]
Labels = Annotated[tuple[Label, ...], msgspec.Meta(max_length=MAX_LABELS)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Items = Annotated[int, msgspec.Meta(ge=1, le=MAX_ITEMS)]

Made = Literal["arrays", "labels", "boxes", "line", "segments"]
"""What there is between two steps."""


# ------------------------------------------------------------------------------------------------------------- arrays
class Dequantise(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="dequantise"
):
    """`scale · (x − zero_point)` of an output, in float32."""

    output: Name
    scale: Positive
    zero_point: ZeroPoint = 0


class Softmax(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="softmax"):
    """`exp(x) / Σ exp(x)` of an output along an axis, in float64."""

    output: Name
    axis: Axis = -1


class Sigmoid(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="sigmoid"):
    """`1 / (1 + exp(-x))` of an output, in float64, x within ±`clip`."""

    output: Name
    clip: Annotated[float, msgspec.Meta(gt=0, le=700)] = 100.0


class MeanPool(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="mean-pool"
):
    """The mean of `[1, length, features]` over the places where an input of the model, the mask, is not 0."""

    output: Name
    mask: Name


class L2Normalise(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="l2-normalise"
):
    """Divide an output by its Euclidean length along the last axis."""

    output: Name


# -------------------------------------------------------------------------------------------------------------- items
class Top(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="top"):
    """The classes with the largest scores of `[1, classes]`, the largest first."""

    output: Name
    names: Labels
    count: Items = 5


class Grid(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Anchors of one size in the middle of each cell, row by row.

    Attributes:
        columns, rows: cells across the image.
        per_cell: how many times each anchor is repeated.
        width, height: of an anchor, in shares of the image.
    """

    columns: Annotated[int, msgspec.Meta(ge=1, le=MAX_GRID_SIDE)]
    rows: Annotated[int, msgspec.Meta(ge=1, le=MAX_GRID_SIDE)]
    per_cell: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    width: Positive = 1.0
    height: Positive = 1.0


class Boxes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="boxes"):
    """Boxes from `[1, n, 4 + 2·points]` and their scores `[1, n, classes]`.

    With grids each row is the distance from its anchor: centre `c + x / scale · size of the anchor`, width
    `w / scale · size of the anchor`, or `exp(w / scale)` of it. Without grids a row is `x / scale` itself.

    Attributes:
        output: the boxes.
        scores: between 0 and 1.
        names: of the classes.
        grids: in the order of the rows.
        order: of the first four numbers: centre and size, or two corners, which needs no grids.
        scale: what x, y, width and height are divided by.
        exponent: whether sizes are exponents.
        points: points that follow the box, such as eyes, each x and y.
        least: lowest score of a box.
    """

    output: Name
    scores: Name
    names: Annotated[tuple[Label, ...], msgspec.Meta(min_length=1, max_length=MAX_LABELS)]
    grids: Annotated[tuple[Grid, ...], msgspec.Meta(max_length=MAX_GRIDS)] = ()
    order: Literal["xywh", "yxhw", "xyxy", "yxyx"] = "xywh"
    scale: tuple[Positive, Positive, Positive, Positive] = (1.0, 1.0, 1.0, 1.0)
    exponent: bool = False
    points: Annotated[int, msgspec.Meta(ge=0, le=MAX_POINTS)] = 0
    least: Share = 0.5


class Suppress(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="step",
    tag="non-maximum-suppression",
):
    """Keep the best of boxes of one label that overlap by more than `overlap` (intersection over union).

    Attributes:
        method: `plain` keeps the best box as it is; `weighted` averages it with those it stands for, by score.
        most: how many boxes are kept.
    """

    overlap: Share = 0.5
    method: Literal["plain", "weighted"] = "plain"
    most: Items = 100


class MaskPolygons(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="mask-polygons"
):
    """Outlines of the regions of a mask `[1, H, W]`, or `[1, H, W, classes]` along `axis`.

    Attributes:
        output: one score a pixel, or one a class and pixel, of which the largest counts.
        names: of the one class, or of all; a class without a name has no outline.
        axis: of the classes.
        threshold: with one class, above it a pixel is inside.
        least_pixels: smaller regions are left out.
        tolerance: how far an outline may leave the pixels' edges, in pixels of the mask; 0 for exactly.
        most: how many regions, the largest first.
    """

    output: Name
    names: Annotated[tuple[Label, ...], msgspec.Meta(min_length=1, max_length=MAX_LABELS)]
    axis: Axis = -1
    threshold: Number = 0.5
    least_pixels: Annotated[int, msgspec.Meta(ge=1, le=1 << 27)] = 1
    tolerance: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 0.0
    most: Items = 100


class CtcText(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="ctc-text"):
    """The text of `[1, steps, classes]`: the best class of each step, repetitions joined, blanks left out.

    Attributes:
        names: of all classes but the blank one, in order.
        blank: number of the blank class.
    """

    output: Name
    names: Annotated[tuple[Label, ...], msgspec.Meta(min_length=1, max_length=MAX_LABELS)]
    blank: Annotated[int, msgspec.Meta(ge=0, le=MAX_LABELS)] = 0


# -------------------------------------------------------------------------------------------------------------- rules
class Compare(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="rule", tag="compare"):
    """One property of an item against a value; sizes and areas are shares of the image that the model sees."""

    field: Literal["label", "score", "width", "height", "area"]
    operator: Literal["==", "!=", "<", "<=", ">", ">="]
    value: Label | Number


class AllOf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="rule", tag="all"):
    """Every one of them holds."""

    rules: "tuple[Rule, ...]"


class AnyOf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="rule", tag="any"):
    """One of them holds."""

    rules: "tuple[Rule, ...]"


class Not(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="rule", tag="not"):
    """It does not hold."""

    inner: "Rule"


Rule = Compare | AllOf | AnyOf | Not


class Keep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="keep"):
    """Keep the items for which a rule holds, such as `label == person and score > 0.8`."""

    when: Rule


AnswerStep = (
    Dequantise | Softmax | Sigmoid | MeanPool | L2Normalise | Top | Boxes | Suppress | MaskPolygons | CtcText | Keep
)

MAKES: dict[type[AnswerStep], Made] = {Top: "labels", Boxes: "boxes", MaskPolygons: "segments", CtcText: "line"}
"""The steps that make items of arrays."""

FIELDS: dict[Made, frozenset[str]] = {
    "labels": frozenset({"label", "score"}),
    "boxes": frozenset({"label", "score", "width", "height", "area"}),
    "line": frozenset({"label", "score"}),
    "segments": frozenset({"label", "area"}),
}
"""What a rule may ask of items; the label of a line is its text."""


def parts_of(rule: Rule, depth: int = 1) -> Iterator[tuple[Rule, int]]:
    """Yield a rule and every rule in it, with its depth."""
    yield rule, depth
    inner = rule.rules if isinstance(rule, AllOf | AnyOf) else (rule.inner,) if isinstance(rule, Not) else ()
    for part in inner:
        yield from parts_of(part, depth + 1)


def rule_fault(rule: Rule, made: Made) -> str:
    """Return what is wrong with a rule for items of one kind, empty when nothing is."""
    for count, (part, depth) in enumerate(parts_of(rule), start=1):
        if depth > MAX_RULE_DEPTH or count > MAX_RULE_PARTS:
            return f"a rule of more than {MAX_RULE_PARTS} parts, or {MAX_RULE_DEPTH} within each other"
        if isinstance(part, Compare):
            if part.field not in FIELDS[made]:
                return f"{made} have no {part.field}, only {', '.join(sorted(FIELDS[made]))}"
            if (part.field == "label") != isinstance(part.value, str):
                return f"{part.field} {part.operator} {part.value!r} compares a text with a number"
            if part.field == "label" and part.operator not in ("==", "!="):
                return f"a label is == or != another, never {part.operator}"
    return ""


def answer_step_fault(step: AnswerStep) -> str:
    """Return what is wrong with numbers of a step that only make sense together, empty when nothing is."""
    if isinstance(step, Boxes):
        anchors = sum(grid.columns * grid.rows * grid.per_cell for grid in step.grids)
        if anchors > MAX_ANCHORS:
            return f"{anchors} anchors are more than {MAX_ANCHORS}"
        if step.grids and step.order in ("xyxy", "yxyx"):
            return f"order {step.order} needs no grids: corners have no anchors"
        if step.exponent and not step.grids:
            return "exponents are of the size of an anchor, and there are no grids"
    if isinstance(step, CtcText) and step.blank > len(step.names):
        return f"the blank class {step.blank} is beyond the {len(step.names) + 1} classes"
    return ""
