"""Whatever an image, an array or an output is, a recipe gives an answer within its bounds or refuses in one line."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge.errors import InvalidInput
from edge.formats.answers import Boxes, CtcText, MaskPolygons, Softmax, Suppress, Top
from edge.formats.processing import AnswerRecipe, Processing
from edge.formats.steps import Pad, Resize, Window
from edge.processing.answer import read_answers
from edge.processing.boxes import overlap
from edge.processing.prepare import STEPS, no_files
from edge.processing.values import Box, Placement, Value
from host.errors import PackageError
from host.rules import parse_rule

OUTPUTS = arrays.arrays(
    dtype=st.sampled_from([np.float32, np.float64, np.int8, np.int64, np.bool_]),
    shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
)
RECIPES = (
    (Softmax(output="y"), Top(output="y", names=("a", "b", "c"))),
    (Boxes(output="y", scores="y", names=("a", "b")), Suppress(method="weighted")),
    (CtcText(output="y", names=("a", "b")),),
    (MaskPolygons(output="y", names=("a",)),),
    (MaskPolygons(output="y", names=("a", "b"), axis=1, tolerance=1.0),),
)


@settings(max_examples=150, deadline=None)
@given(output=OUTPUTS, steps=st.sampled_from(RECIPES))
def test_any_output_is_read_or_refused(output: np.ndarray, steps: tuple[Top, ...]) -> None:
    processing = Processing(answers=(AnswerRecipe(name="it", steps=steps),))
    with np.errstate(all="ignore"):
        try:
            (answer,) = read_answers(processing, {"y": output})
        except InvalidInput as error:
            assert "\n" not in str(error)  # noqa: PT017 - either is right, and this is what is asked of a refusal
        else:
            assert len(answer.items) <= 100


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    fit=st.sampled_from(["stretch", "pad", "pad-end", "line"]),
)
def test_a_resized_image_has_its_size_and_knows_its_place(
    size: tuple[int, int], target: tuple[int, int], fit: str
) -> None:
    step = Resize(width=target[0], height=target[1], fit=fit)  # type: ignore[arg-type]  # one of its four
    image = np.zeros((size[1], size[0], 3), np.uint8)
    value = Value(held=image, where="x", read=no_files, placement=Placement(width=size[0], height=size[1]))
    made = STEPS[Resize](step, value)
    assert isinstance(made.held, np.ndarray)
    assert made.placement is not None
    height, width, _ = made.held.shape
    assert (made.placement.width, made.placement.height) == (width, height)
    assert height == target[1]
    assert width <= target[0] if fit == "line" else width == target[0]
    (left, top), (right, bottom) = made.placement.in_photo(0, 0), made.placement.in_photo(1, 1)
    # The whole photo is somewhere in the image.
    assert left <= 1e-6
    assert top <= 1e-6
    assert right >= size[0] - 1e-6
    assert bottom >= size[1] - 1e-6


@settings(max_examples=80, deadline=None)
@given(
    count=st.integers(1, 50), size=st.integers(1, 20), hop=st.integers(1, 20), last=st.sampled_from(["fill", "drop"])
)
def test_frames_hold_every_sample_up_to_the_last_frame(count: int, size: int, hop: int, last: str) -> None:
    samples = np.arange(1, count + 1, dtype=np.float32)
    value = Value(held=samples, where="x", read=no_files)
    step = Window(size=size, hop=hop, last=last)  # type: ignore[arg-type]  # one of its two
    if last == "drop" and count < size:
        return
    frames = STEPS[Window](step, value).held
    assert isinstance(frames, np.ndarray)
    assert frames.shape[1] == size
    for place, frame in enumerate(frames):
        known = samples[place * hop : place * hop + size]
        assert frame[: len(known)].tolist() == known.tolist()
        assert not frame[len(known) :].any()
        assert last == "fill" or len(known) == size
    assert last == "drop" or (len(frames) - 1) * hop + size >= count


@settings(max_examples=60, deadline=None)
@given(shape=arrays.array_shapes(max_dims=3, max_side=9), axis=st.integers(-4, 3), size=st.integers(1, 12))
def test_padding_keeps_what_was_there(shape: tuple[int, ...], axis: int, size: int) -> None:
    array = np.ones(shape)
    try:
        made = STEPS[Pad](Pad(axis=axis, sizes=(size,)), Value(held=array, where="x", read=no_files)).held
    except InvalidInput:
        assert not -len(shape) <= axis < len(shape) or shape[axis] > size
    else:
        assert isinstance(made, np.ndarray)
        assert made.sum() == array.size
        assert made.shape[axis] == size


CORNERS = st.floats(0, 1, width=32)
BOX = st.builds(Box, label=st.just("a"), score=st.just(1.0), left=CORNERS, top=CORNERS, right=CORNERS, bottom=CORNERS)


@settings(max_examples=100, deadline=None)
@given(one=BOX, other=BOX)
def test_overlap_is_a_share_and_the_same_both_ways(one: Box, other: Box) -> None:
    assert 0 <= overlap(one, other) <= 1 + 1e-6
    assert overlap(one, other) == overlap(other, one)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="labelscorandt ()<>=!'\"0.5", max_size=40))
def test_any_text_is_a_rule_or_refused_in_one_line(text: str) -> None:
    try:
        parse_rule(text)
    except PackageError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is right, and this is what is asked of a refusal
