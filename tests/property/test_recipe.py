"""Recipes survive being written and read; any text is read or refused."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from host.compress.recipe import Quantize, Range, Recipe, dump_recipe, parse_recipe
from host.errors import RecipeError

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
BOUNDS = st.tuples(
    st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False)
).map(sorted)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    names = draw(st.lists(NAMES, max_size=4, unique=True))
    ranges = []
    for name in names:
        low, high = draw(BOUNDS)
        ranges.append(Range(tensor=name, dtype=draw(st.sampled_from(["uint8", "int8"])), low=low, high=high))
    return Recipe(
        quantize=Quantize(
            mode=draw(st.sampled_from(["int8", "none"])),
            variant=draw(st.sampled_from(["u8s8-reduce-range", "u8s8", "s8s8"])),
            calibration=draw(st.sampled_from(["minmax", "percentile"])),
            percentile=draw(st.floats(50, 100)),
            exclude=tuple(draw(st.lists(NAMES, max_size=3))),
            calibrated_for="sha256:0" if ranges else "",
            ranges=tuple(ranges),
        )
    )


@given(recipes())
def test_what_is_written_reads_back_equal(recipe: Recipe) -> None:
    assert parse_recipe(dump_recipe(recipe), file="r.toml") == recipe


@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_refused(text: str) -> None:
    # Whatever else comes out is a bug.
    with contextlib.suppress(RecipeError):
        assert parse_recipe(text, file="r.toml").format
