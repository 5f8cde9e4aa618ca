"""Recipes survive being written and read; any text is read or refused."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from host.compress.recipe import (
    ChannelGroup,
    PruneBlocks,
    PruneChannels,
    PruneTorch,
    PruneWeights,
    Quantize,
    Range,
    Recipe,
    Recover,
    TorchGroup,
    dump_recipe,
    parse_recipe,
)
from host.errors import RecipeError

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
BOUNDS = st.tuples(
    st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False)
).map(sorted)


INDICES = st.lists(st.integers(0, 500), min_size=1, max_size=6, unique=True).map(lambda found: tuple(sorted(found)))
STEPS = st.one_of(
    st.builds(
        PruneChannels,
        ratio=st.floats(0, 0.99),
        criterion=st.sampled_from(["activation", "l1", "l2"]),
        groups=st.lists(
            st.builds(ChannelGroup, nodes=st.lists(NAMES, min_size=1, max_size=3).map(tuple), keep=INDICES), max_size=3
        ).map(tuple),
    ),
    st.builds(PruneWeights, threshold=st.floats(1e-9, 1.0)),
    st.builds(PruneWeights, pattern=st.sampled_from(["1:2", "2:4", "1:16"])),
    st.builds(PruneBlocks, blocks=st.lists(NAMES, max_size=3).map(tuple)),
    st.builds(
        PruneTorch,
        groups=st.lists(st.builds(TorchGroup, layer=NAMES, is_output=st.booleans(), drop=INDICES), max_size=2).map(
            tuple
        ),
    ),
)
WAYS = st.builds(
    Recover,
    method=st.sampled_from(["batch-norm", "reconstruct", "distill", "bias", "low-rank"]),
    learning_rate=st.floats(1e-9, 10),
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    names = draw(st.lists(NAMES, max_size=4, unique=True))
    ranges = []
    for name in names:
        low, high = draw(BOUNDS)
        ranges.append(Range(tensor=name, dtype=draw(st.sampled_from(["uint8", "int8"])), low=low, high=high))
    return Recipe(
        wire=draw(st.sampled_from(["float32", "float16"])),
        prune=tuple(draw(st.lists(STEPS, max_size=3))),
        recover=tuple(draw(st.lists(WAYS, max_size=2))),
        quantize=Quantize(
            mode=draw(st.sampled_from(["int8", "int8-dynamic", "int8-weights", "int4", "float16", "none"])),
            variant=draw(st.sampled_from(["u8s8-reduce-range", "u8s8", "s8s8", "u8u8"])),
            calibration=draw(st.sampled_from(["minmax", "percentile", "entropy"])),
            percentile=draw(st.floats(50, 100)),
            exclude=tuple(draw(st.lists(NAMES, max_size=3))),
            calibrated_for=f"sha256:{0:064}" if ranges else "",
            ranges=tuple(ranges),
        ),
    )


@given(recipes())
def test_what_is_written_reads_back_equal(recipe: Recipe) -> None:
    assert parse_recipe(dump_recipe(recipe), file="r.toml") == recipe


@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_refused(text: str) -> None:
    # Whatever else comes out is a bug.
    with contextlib.suppress(RecipeError):
        assert parse_recipe(text, file="r.toml").format
