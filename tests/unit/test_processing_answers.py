"""Outputs become labels, boxes, text, segments and vectors by declared steps; each against values worked by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from edge.errors import InvalidInput
from edge.formats.answers import (
    AnswerStep,
    Boxes,
    Compare,
    CtcText,
    Dequantise,
    Grid,
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
from edge.processing import polygons
from edge.processing.answer import read_answers, read_labels
from edge.processing.boxes import anchors_of, overlap
from edge.processing.polygons import regions
from edge.processing.scores import holds
from edge.processing.values import Answer, Box, Labelled, Line, Placement, Prepared, Segment
from host.rules import parse_rule

Arrays = Mapping[str, npt.NDArray[np.generic]]
NAMES = ("cat", "dog", "owl")


def answered(outputs: Arrays, *steps: AnswerStep, prepared: Prepared | None = None, top: int | None = None) -> Answer:
    """The one answer that a recipe of these steps reads."""
    processing = Processing(answers=(AnswerRecipe(name="it", steps=steps),))
    (answer,) = read_answers(processing, outputs, prepared=prepared, top=top)
    return answer


def fault(outputs: Arrays, *steps: AnswerStep) -> str:
    """What is said of outputs that a recipe cannot read."""
    with pytest.raises(InvalidInput) as caught:
        answered(outputs, *steps)
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------------- labels
def test_logits_become_probabilities() -> None:
    found = answered(
        {"y": np.log(np.array([[1, 6, 3]], np.float32))}, Softmax(output="y"), Top(output="y", names=NAMES)
    )
    labels = [cast("Labelled", item) for item in found.items]
    assert [item.label for item in labels] == ["dog", "owl", "cat"]
    assert [item.score for item in labels] == pytest.approx([0.6, 0.3, 0.1])


def test_large_logits_do_not_overflow() -> None:
    found = answered({"y": np.array([[1e4, -1e4, 0]])}, Softmax(output="y"), Top(output="y", names=NAMES, count=1))
    assert found.items == (Labelled(label="cat", score=1.0),)
    assert answered({"y": np.array([-1e30, 0.0])}, Sigmoid(output="y")).array == pytest.approx([0.0, 0.5])


def test_equal_scores_keep_the_order_of_the_names_and_any_shape_is_read() -> None:
    found = answered({"y": np.zeros((1, 3, 1, 1))}, Top(output="y", names=NAMES))
    assert [cast("Labelled", item).label for item in found.items] == list(NAMES)


def test_a_command_may_ask_for_more_or_fewer_classes() -> None:
    step = Top(output="y", names=NAMES, count=2)
    assert [len(answered({"y": np.eye(3)[:1]}, step, top=top).items) for top in (None, 1, 3)] == [2, 1, 3]


@pytest.mark.parametrize("outputs", [{"y": np.zeros((1, 4))}, {"y": np.zeros((0, 3))}])
def test_scores_that_do_not_fit_the_names_are_refused(outputs: Arrays) -> None:
    said = fault(outputs, Top(output="y", names=NAMES))
    assert said == "output 'y' does not hold one score for each of 3 classes"


def test_a_missing_output_is_named() -> None:
    assert fault({"z": np.zeros(3)}, Softmax(output="y")) == "the answer has no output 'y'"
    assert "no axis 1" in fault({"y": np.zeros(3)}, Softmax(output="y", axis=1))
    for odd in (np.array(1.0), np.array(["a"], object)):
        assert fault({"y": odd}, Softmax(output="y")).endswith("not an array of numbers")


def test_labels_are_those_of_the_first_answer_that_has_some() -> None:
    recipes = (
        AnswerRecipe(name="vector", steps=(L2Normalise(output="y"),)),
        AnswerRecipe(name="class", steps=(Top(output="y", names=NAMES),)),
    )
    assert read_labels(Processing(answers=recipes), {"y": np.array([[0.25, 0.5, 0.25]])}, top=1) == [("dog", 0.5)]
    assert read_labels(Processing(), {}) == []


def test_integers_become_numbers_again() -> None:
    found = answered({"y": np.array([[3, 5]], np.uint8)}, Dequantise(output="y", scale=0.5, zero_point=4))
    assert found.array is not None
    assert found.array.tolist() == [[-0.5, 0.5]]


# ------------------------------------------------------------------------------------------------------------- vectors
def test_features_are_averaged_where_the_mask_says_and_made_one_long() -> None:
    features = np.array([[[3.0, 0.0], [3.0, 8.0], [100.0, 100.0]]], np.float32)
    prepared = Prepared(tensors={"mask": np.array([[1, 1, 0]])})
    pool, unit = MeanPool(output="y", mask="mask"), L2Normalise(output="y")
    assert answered({"y": features}, pool, prepared=prepared).array == pytest.approx(np.array([[3.0, 4.0]]))
    assert answered({"y": features}, pool, unit, prepared=prepared).array == pytest.approx(np.array([[0.6, 0.8]]))
    assert answered({"y": np.zeros((1, 2))}, unit).array == pytest.approx(np.zeros((1, 2)))


def test_without_the_request_there_is_no_mean_over_its_places() -> None:
    said = fault({"y": np.zeros((1, 2, 3))}, MeanPool(output="y", mask="mask"))
    assert said == "the input 'mask' of this request is not known any more: no mean over its places"


# ---------------------------------------------------------------------------------------------------------------- text
def path(*classes: int, count: int = 4) -> Arrays:
    """Scores whose best class at each step is given, at 0.9."""
    scores = np.full((1, len(classes), count), 0.1 / (count - 1))
    scores[0, np.arange(len(classes)), classes] = 0.9
    return {"y": scores}


def test_repetitions_are_joined_and_blanks_left_out() -> None:
    step = CtcText(output="y", names=("a", "b", "c"))
    assert answered(path(0, 1, 1, 0, 1, 2, 2, 3, 0), step).items == (Line(label="aabc", score=0.9),)
    assert answered(path(0, 0), step).items == (Line(label="", score=0.0),)


def test_the_blank_may_be_any_class() -> None:
    assert (
        cast("Line", answered(path(0, 3, 0, 2), CtcText(output="y", names=("a", "b", "c"), blank=3)).items[0]).label
        == "aac"
    )
    assert (
        cast("Line", answered(path(0, 1, 2, 3), CtcText(output="y", names=("a", "b", "c"), blank=1)).items[0]).label
        == "abc"
    )


def test_another_number_of_letters_is_refused() -> None:
    assert (
        fault(path(0), CtcText(output="y", names=("a",)))
        == "output 'y' is [1, 1, 4], not scores for 1 letters and blank"
    )


# --------------------------------------------------------------------------------------------------------------- boxes
def rows(*numbers: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Rows of one output, [1, n, width]."""
    return np.array([numbers], np.float32)


def boxes_of(answer: Answer) -> list[tuple[float, ...]]:
    """Corners of every box."""
    return [(box.left, box.top, box.right, box.bottom) for box in answer.items if isinstance(box, Box)]


def test_anchors_stand_in_the_middle_of_their_cells_row_by_row() -> None:
    grids = (Grid(columns=2, rows=1, per_cell=2), Grid(columns=1, rows=2, width=0.5, height=0.25))
    assert anchors_of(grids).tolist() == [
        [0.25, 0.5, 1, 1],
        [0.25, 0.5, 1, 1],
        [0.75, 0.5, 1, 1],
        [0.75, 0.5, 1, 1],
        [0.5, 0.25, 0.5, 0.25],
        [0.5, 0.75, 0.5, 0.25],
    ]


def test_boxes_are_distances_from_their_anchors() -> None:
    outputs = {"b": rows((0, 0, 0, 0, 0, 0), (10, -10, 20, 40, 5, 0)), "s": rows((0.2,), (0.9,))}
    step = Boxes(
        output="b", scores="s", names=("face",), grids=(Grid(columns=2, rows=1),), scale=(100.0,) * 4, points=1
    )
    (box,) = answered(outputs, step).items
    assert isinstance(box, Box)
    assert (box.left, box.top, box.right, box.bottom) == pytest.approx((0.75, 0.2, 0.95, 0.6))
    assert box.points[0] == pytest.approx((0.8, 0.5))
    assert box.label == "face"
    assert box.score == pytest.approx(0.9)


def test_sizes_may_be_exponents_and_y_may_come_first() -> None:
    outputs = {"b": rows((0, 1, 0, float(np.log(2) * 5))), "s": rows((0.1, 0.8))}
    grid = Grid(columns=1, rows=1, width=0.2, height=0.4)
    step = Boxes(
        output="b",
        scores="s",
        names=("a", "b"),
        grids=(grid,),
        scale=(10.0, 10.0, 5.0, 5.0),
        order="yxhw",
        exponent=True,
    )
    (found,) = boxes_of(answered(outputs, step))
    assert found == pytest.approx((0.52 - 0.2, 0.5 - 0.2, 0.52 + 0.2, 0.5 + 0.2))


@pytest.mark.parametrize(
    ("order", "row"),
    [("xywh", (50, 40, 20, 40)), ("yxhw", (40, 50, 40, 20)), ("xyxy", (40, 20, 60, 60)), ("yxyx", (20, 40, 60, 60))],
)
def test_without_anchors_a_row_is_the_place_itself(order: str, row: tuple[float, ...]) -> None:
    step = Boxes(output="b", scores="s", names=("a",), scale=(100.0,) * 4, order=order)  # type: ignore[arg-type]  # one of four
    (found,) = boxes_of(answered({"b": rows(row), "s": rows((1.0,))}, step))
    assert found == pytest.approx((0.4, 0.2, 0.6, 0.6))


def test_boxes_that_are_no_numbers_are_left_out() -> None:
    outputs = {"b": rows((np.nan, 0, 1, 1), (0, 0, np.inf, 1), (0.5, 0.5, 1, 1)), "s": rows((1,), (1,), (1,))}
    assert boxes_of(answered(outputs, Boxes(output="b", scores="s", names=("a",)))) == [(0, 0, 1, 1)]


def test_outputs_of_other_shapes_are_refused() -> None:
    step = Boxes(output="b", scores="s", names=("a",), grids=(Grid(columns=2, rows=2),))
    assert fault({"b": rows((0, 0, 0)), "s": rows((1,))}, step) == "output 'b' is [1, 1, 3], not [1, n, 4]"
    assert fault({"b": rows((0,) * 4), "s": rows((1, 1))}, step) == "output 's' is [1, 1, 2], not [1, 1, 1]"
    assert fault({"b": rows((0,) * 4), "s": rows((1,))}, step) == "output 'b' has 1 boxes, and the grids 4 anchors"


OVERLAPPING = {
    # Two boxes of which one is moved by a tenth, one of another class in the same place, and one elsewhere.
    "b": rows((0.5, 0.5, 0.4, 0.4), (0.54, 0.5, 0.4, 0.4), (0.5, 0.5, 0.4, 0.4), (0.1, 0.1, 0.1, 0.1)),
    "s": rows((0.9, 0), (0.6, 0), (0, 0.7), (0.55, 0)),
}
FOUND = Boxes(output="b", scores="s", names=("cat", "dog"))


def test_of_boxes_that_overlap_the_best_of_each_label_stays() -> None:
    kept = answered(OVERLAPPING, FOUND, Suppress(overlap=0.5)).items
    assert [(box.label, round(box.score, 2)) for box in kept if isinstance(box, Box)] == [
        ("cat", 0.9),
        ("dog", 0.7),
        ("cat", 0.55),
    ]
    assert len(answered(OVERLAPPING, FOUND, Suppress(overlap=0.5, most=1)).items) == 1
    assert len(answered(OVERLAPPING, FOUND, Suppress(overlap=0.95)).items) == 4


def test_the_best_may_stand_at_the_mean_place_of_those_it_stands_for() -> None:
    best, *_ = boxes_of(answered(OVERLAPPING, FOUND, Suppress(overlap=0.5, method="weighted")))
    shift = 0.04 * 0.6 / 1.5
    assert best == pytest.approx((0.3 + shift, 0.3, 0.7 + shift, 0.7))


def test_overlap_is_the_intersection_over_the_union() -> None:
    one = Box(label="a", score=1, left=0, top=0, right=2, bottom=2)
    other = Box(label="a", score=1, left=1, top=1, right=3, bottom=3)
    apart = Box(label="a", score=1, left=2, top=0, right=3, bottom=1)
    assert overlap(one, other) == pytest.approx(1 / 7)
    assert overlap(one, one) == 1
    assert overlap(one, apart) == 0


def test_boxes_are_given_in_pixels_of_the_photo() -> None:
    placement = Placement(width=10, height=10, left=-20, top=0, across=8, down=4)
    found = answered(
        {"b": rows((0.5, 0.5, 0.5, 1.0)), "s": rows((1.0,))},
        Boxes(output="b", scores="s", names=("a",)),
        prepared=Prepared(tensors={}, placement=placement),
    )
    assert found.in_pixels
    assert boxes_of(found) == [(0, 0, 40, 40)]


# ------------------------------------------------------------------------------------------------------------ segments
MASK = np.array(
    [
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 1, 0, 1],
        [0, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ],
    np.float32,
)


def test_regions_are_outlined_along_the_edges_of_their_pixels() -> None:
    found = answered({"m": MASK[None, :, :, None]}, MaskPolygons(output="m", names=("thing",)))
    largest, *others = (cast("Segment", item) for item in found.items)
    assert largest.area == 9 / 24
    assert corners(largest.outline) == [(1, 0), (4, 0), (4, 2), (5, 2), (5, 3), (1, 3)]
    assert [corners(hole) for hole in largest.holes] == [[(2, 1), (2, 2), (3, 2), (3, 1)]]
    assert [item.area for item in others] == [1 / 24, 1 / 24], "pixels that touch at a corner are no region"


def corners(ring: tuple[tuple[float, float], ...]) -> list[tuple[int, int]]:
    """A ring in pixels of the mask."""
    return [(round(x * 6), round(y * 4)) for x, y in ring]


def test_small_regions_are_left_out_and_the_largest_kept() -> None:
    step = MaskPolygons(output="m", names=("thing",), least_pixels=2)
    assert len(answered({"m": MASK[None]}, step).items) == 1
    assert len(answered({"m": MASK}, MaskPolygons(output="m", names=("thing",), most=2)).items) == 2


def test_of_several_classes_the_largest_score_counts() -> None:
    scores = np.stack([1 - MASK, MASK * 2])[None]
    found = answered({"m": scores}, MaskPolygons(output="m", names=("ground", "thing"), axis=1))
    assert sum(item.area for item in found.items if isinstance(item, Segment)) == pytest.approx(1.0)
    assert {item.label for item in found.items if isinstance(item, Segment)} == {"ground", "thing"}


def test_an_outline_may_be_simplified() -> None:
    disc = np.hypot(*np.mgrid[-20:21, -20:21]) < 18
    exact, rough = (
        cast(
            "Segment",
            answered({"m": disc.astype(np.float32)}, MaskPolygons(output="m", names=("o",), tolerance=far)).items[0],
        )
        for far in (0.0, 1.5)
    )
    assert len(rough.outline) < len(exact.outline) / 3
    assert rough.area == exact.area


@pytest.mark.parametrize("seed", range(8))
def test_outlines_less_holes_have_exactly_the_pixels_of_the_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((13, 17)) < 0.55
    area = sum(shoelace(outline) + sum(map(shoelace, holes)) for outline, holes in regions(mask, where="m"))
    assert area == mask.sum()
    assert (
        drawn(mask.shape, [ring for outline, holes in regions(mask, where="m") for ring in (outline, *holes)]).tolist()
        == mask.tolist()
    )


def shoelace(ring: list[tuple[int, int]]) -> float:
    """The signed area of a ring."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True)) / 2


def drawn(shape: tuple[int, ...], rings: list[list[tuple[int, int]]]) -> npt.NDArray[np.bool_]:
    """The pixels that an odd number of rings hold, each upright edge turning over what lies to its right."""
    inside = np.zeros(shape, bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
            if x0 == x1:
                inside[min(y0, y1) : max(y0, y1), x0:] ^= True
    return inside


def test_a_mask_of_absurd_size_or_nothing_but_edges_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    step = MaskPolygons(output="m", names=("thing",))
    assert fault({"m": np.zeros((2, 3, 4))}, step) == "output 'm' is [2, 3, 4], not one score a pixel"
    assert "no axis 7" in fault({"m": MASK}, MaskPolygons(output="m", names=("a", "b"), axis=7))
    monkeypatch.setattr(polygons, "MAX_EDGES", 8)
    assert fault({"m": MASK}, step) == "output 'm': its regions have more than 8 edges"
    monkeypatch.setattr(polygons, "MAX_MASK_PIXELS", 23)
    assert fault({"m": MASK}, step) == "output 'm' is [4, 6], which is no mask of a picture"


# --------------------------------------------------------------------------------------------------------------- rules
PERSON = Box(label="person", score=0.9, left=0, top=0, right=0.5, bottom=0.2)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("label == person and score > 0.8", True),
        ("label == person and score > 0.9", False),
        ("label != person or width >= 0.5", True),
        ("not (label == person)", False),
        ("area < 0.11 and area > 0.09 and height <= 0.2", True),
        ("label == 'a person'", False),
    ],
)
def test_a_rule_holds_or_does_not(rule: str, expected: bool) -> None:
    assert holds(parse_rule(rule), PERSON) is expected


def test_what_an_item_does_not_have_is_never_so() -> None:
    assert not holds(Compare(field="width", operator=">=", value=0.0), Labelled(label="a", score=1.0))
    assert not holds(Compare(field="label", operator="!=", value=1.0), PERSON)


def test_items_that_keep_the_rule_are_kept() -> None:
    rule = Keep(when=parse_rule("label == cat and score > 0.58"))
    assert len(answered(OVERLAPPING, FOUND, rule).items) == 2
