"""The recipe file: what it says, how it is written, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.formats.profile import load_profile
from host.compress.recipe import (
    PruneBlocks,
    PruneWeights,
    Quantize,
    Range,
    Recipe,
    dump_recipe,
    load_recipe,
    parse_recipe,
    recipe_for,
)
from host.errors import RecipeError

CALIBRATED = Recipe(
    prune=(PruneBlocks(blocks=("add",)), PruneWeights(ratio=0.5)),
    quantize=Quantize(
        variant="u8s8",
        exclude=("head",),
        calibrated_for="sha256:" + "0" * 64,
        ranges=(
            Range(tensor="x", dtype="uint8", low=-1.5, high=2.0),
            Range(tensor='q"\\', dtype="int8", low=0, high=0),
        ),
    ),
)


def test_a_recipe_is_written_as_people_would_write_it() -> None:
    assert dump_recipe(CALIBRATED) == (
        'format = "1.2"\n'
        'wire = "float32"\n'
        'learned = ""\n'
        "\n"
        "[[prune]]\n"
        'kind = "blocks"\n'
        "count = 1\n"
        "blocks = [\n"
        '    "add",\n'
        "]\n"
        "\n"
        "[[prune]]\n"
        'kind = "weights"\n'
        "ratio = 0.5\n"
        "exclude = []\n"
        "\n"
        "[quantize]\n"
        'mode = "int8"\n'
        'variant = "u8s8"\n'
        'calibration = "minmax"\n'
        "percentile = 99.99\n"
        "equalize = false\n"
        "correct_bias = false\n"
        "block_size = 32\n"
        "embeddings = true\n"
        "exclude = [\n"
        '    "head",\n'
        "]\n"
        "wider = []\n"
        f'calibrated_for = "sha256:{"0" * 64}"\n'
        "ranges = [\n"
        '    { tensor = "x", dtype = "uint8", low = -1.5, high = 2.0 },\n'
        '    { tensor = "q\\"\\\\", dtype = "int8", low = 0, high = 0 },\n'
        "]\n"
    )


def test_a_recipe_may_say_as_little_as_it_wants() -> None:
    assert parse_recipe('format = "1.0"', file="r.toml") == Recipe()
    assert parse_recipe('format = "1.0"\n[quantize]\nmode = "none"', file="r.toml").quantize.mode == "none"


@pytest.mark.parametrize(
    ("profile", "variant"),
    [
        ("x86-gateway", "u8s8-reduce-range"),
        ("rpi4", "u8s8-reduce-range"),
        ("rpi-zero2w", "u8s8-reduce-range"),
        ("rpi5", "u8s8"),
        ("jetson-orin-nano", "u8s8"),
        ("phone-high", "u8s8"),
    ],
)
def test_full_range_weights_need_dot_products(profile: str, variant: str) -> None:
    assert recipe_for(load_profile(profile), "int8").quantize.variant == variant


def test_quantization_can_be_turned_off() -> None:
    assert recipe_for(load_profile("rpi4"), "none").quantize.mode == "none"


def test_an_unknown_way_to_quantize_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_for(load_profile("rpi4"), "int3")
    assert str(caught.value) == "--quantize int3: choose int8, int8-dynamic, int8-weights, int4, float16 or none"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.toml: format: expected a version such as '1.2', got None"),
        ("format = 1", "r.toml: format: expected a version such as '1.2', got 1"),
        ("format = ", "r.toml: not TOML: Invalid value (at end of document)"),
        (
            'format = "2.0"',
            (
                "r.toml: format version 2.0 cannot be read; this release reads 1.x: "
                "use the release of Shardwire that wrote it"
            ),
        ),
        (
            'format = "1.0"\n[quantize]\nmode = "int3"\npercentile = 101\nspeed = 1',
            (
                "r.toml: quantize.mode: expected one of float16, int4, int8, int8-dynamic, int8-weights, none, "
                "got 'int3'; "
                "quantize.percentile: expected float from 50 to 100, got 101; "
                "quantize.speed: unknown key; allowed: mode, variant, calibration, percentile, equalize, "
                "correct_bias, block_size, embeddings, exclude, wider, calibrated_for, ranges"
            ),
        ),
        (
            'format = "1.0"\n[[quantize.ranges]]\ntensor = "x"\ndtype = "uint8"\nlow = 2.0\nhigh = 1.0',
            (
                "r.toml: quantize: ranges and calibrated_for belong together; give both or none; "
                "quantize.ranges[0]: low 2.0 is above high 1.0"
            ),
        ),
        (
            'format = "1.0"\n[[quantize.ranges]]\ntensor = "x"\ndtype = "uint8"\nlow = nan\nhigh = 1.0',
            "r.toml: quantize.ranges[0].low: expected float from -inf to inf, got nan",
        ),
        (
            'format = "1.1"\n[[prune]]\nratio = 0.5\n[[prune]]\nkind = "rows"',
            (
                "r.toml: prune[0].kind: expected one of channels, torch-channels, weights, blocks, got None; "
                "prune[1].kind: expected one of channels, torch-channels, weights, blocks, got 'rows'"
            ),
        ),
        (
            'format = "1.1"\n[[prune]]\nkind = "weights"\n[[prune]]\nkind = "weights"\npattern = "4:2"',
            (
                "r.toml: prune[0]: give one of threshold, ratio and pattern, got none; "
                "prune[1].pattern: '4:2' keeps every weight; N must be below M"
            ),
        ),
        (
            'format = "1.1"\n[[prune]]\nkind = "channels"\nratio = 1.0\nspeed = 1',
            (
                "r.toml: prune[0].ratio: expected float from 0 below 1, got 1.0; prune[0].speed: unknown key; "
                "allowed: ratio, criterion, multiple, repair, exclude, groups"
            ),
        ),
        (
            'format = "1.1"\n[[prune]]\nkind = "channels"\n[[prune.groups]]\nnodes = ["a"]\nkeep = [2, 1]',
            "r.toml: prune[0].groups[0].keep: not ascending",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_with_all_its_faults(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, file="r.toml")
    assert str(caught.value) == message


def test_unknown_keys_of_a_newer_minor_version_are_ignored() -> None:
    assert parse_recipe('format = "1.7"\ncolour = "red"', file="r.toml").quantize == Quantize()


def test_a_recipe_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(dump_recipe(CALIBRATED))
    assert load_recipe(path) == CALIBRATED


def test_a_recipe_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml: cannot read the recipe: No such file or directory"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"binary\.toml: not UTF-8 text; this is no recipe"):
        load_recipe(tmp_path / "binary.toml")
