"""The recipe: everything that decides how a model is compressed, as a TOML file.

After calibration it holds the range and type of every tensor too, so that replaying it needs no calibration and gives
the same bytes on any machine.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge.errors import UnsupportedVersion
from edge.formats import faults
from edge.formats.profile import DeviceProfile
from edge.formats.version import check_version
from host.errors import RecipeError

FORMAT = "1.0"
"""Version of the recipe format that this release reads and writes."""

MAX_RECIPE_BYTES = 64 * 1024 * 1024

Variant = Literal["u8s8-reduce-range", "u8s8", "s8s8"]
Calibration = Literal["minmax", "percentile"]

# Instructions that multiply and add 8-bit values into 32 bits without saturating at 16 on the way.
_FULL_RANGE_ISA = frozenset({"vnni", "amx", "dotprod", "i8mm"})

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class Range(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What calibration found for one tensor.

    Attributes:
        tensor: Name in the optimised graph.
        dtype: 8-bit type that stands for it.
        low: Smallest real value that is represented.
        high: Largest.
    """

    tensor: _Name
    dtype: Literal["uint8", "int8"]
    low: float
    high: float


class Quantize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How weights and activations become 8-bit integers.

    Attributes:
        mode: ``int8``: static, quantize-dequantize pairs, weights per channel; ``none``: as they are.
        variant: Activation and weight type; ``reduce-range`` uses 7 bits of each weight, so that the 16-bit sums of
            AVX2 cannot saturate.
        calibration: ``minmax``: the extremes seen; ``percentile``: what lies between the percentiles.
        percentile: Share of the values that a range covers, in percent, for ``percentile``.
        exclude: Names of nodes that stay as they are.
        calibrated_for: Digest of the model that ``ranges`` belong to; empty before calibration.
        ranges: One for each activation; empty before calibration.
    """

    mode: Literal["int8", "none"] = "int8"
    variant: Variant = "u8s8-reduce-range"
    calibration: Calibration = "minmax"
    percentile: Annotated[float, msgspec.Meta(ge=50, le=100)] = 99.99
    exclude: tuple[_Name, ...] = ()
    calibrated_for: str = ""
    ranges: tuple[Range, ...] = ()


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is compressed.

    Attributes:
        format: Version of the format.
        quantize: The quantization.
    """

    format: str = FORMAT
    quantize: Quantize = Quantize()


def recipe_for(profile: DeviceProfile, quantize: str | None = None) -> Recipe:
    """The recipe that suits a kind of device.

    Args:
        profile: Its instruction set decides the int8 variant. U8S8 with a reduced range is bit-equal on all
            processors and the only fast one without saturation on x86 without VNNI; full range needs dot products.
        quantize: ``"int8"`` or ``"none"``; when None, int8 if the profile prefers it.

    Raises:
        RecipeError: If ``quantize`` is something else.
    """
    if quantize not in (None, "int8", "none"):
        raise RecipeError(f"--quantize {quantize}: choose int8 or none")
    if quantize == "none" or (quantize is None and "int8" not in profile.preferred_dtypes):
        return Recipe(quantize=Quantize(mode="none"))
    full = not _FULL_RANGE_ISA.isdisjoint(profile.isa)
    return Recipe(quantize=Quantize(variant="u8s8" if full else "u8s8-reduce-range"))


def load_recipe(path: Path | str) -> Recipe:
    """Read a recipe file.

    Raises:
        RecipeError: If it cannot be read or has faults, all named in one line.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_RECIPE_BYTES + 1)
        if len(content) > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path}: more than {MAX_RECIPE_BYTES} bytes; this is no recipe")
        return parse_recipe(content.decode("utf-8"), file=path.name)
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text; this is no recipe") from error


def parse_recipe(text: str, *, file: str) -> Recipe:
    """Read the text of a recipe.

    Args:
        text: TOML.
        file: Name for messages.

    Raises:
        RecipeError: Not TOML, another major format version, or any number of faults, all named in one line.
    """
    try:
        tables = tomllib.loads(text)
        found = tables.get("format")
        if not isinstance(found, str):
            raise RecipeError(f"{file}: format: expected a version such as '{FORMAT}', got {found!r}")
        check_version(found, supported=FORMAT, what=file)
        newer_minor = int(found.partition(".")[2]) > int(FORMAT.partition(".")[2])
        recipe = faults.convert(tables, Recipe, drop_unknown=newer_minor)
        if contradictions := tuple(_contradictions(recipe.quantize)):
            raise faults.Faults(contradictions)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{file}: not TOML: {error}") from error
    except (UnsupportedVersion, faults.Faults) as error:
        raise RecipeError(f"{file}: {error}" if isinstance(error, faults.Faults) else str(error)) from error
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as TOML that `parse_recipe` reads back to an equal one; equal recipes give equal text."""
    quantize = recipe.quantize
    lines = [f"format = {_quoted(recipe.format)}", "", "[quantize]"]
    lines += [
        f"mode = {_quoted(quantize.mode)}",
        f"variant = {_quoted(quantize.variant)}",
        f"calibration = {_quoted(quantize.calibration)}",
        f"percentile = {float(quantize.percentile)!r}",
        f"exclude = [{', '.join(_quoted(name) for name in quantize.exclude)}]",
        f"calibrated_for = {_quoted(quantize.calibrated_for)}",
    ]
    for entry in quantize.ranges:
        lines += [
            "",
            "[[quantize.ranges]]",
            f"tensor = {_quoted(entry.tensor)}",
            f"dtype = {_quoted(entry.dtype)}",
            f"low = {float(entry.low)!r}",
            f"high = {float(entry.high)!r}",
        ]
    return "\n".join(lines) + "\n"


def _contradictions(quantize: Quantize) -> Iterable[str]:
    if bool(quantize.ranges) != bool(quantize.calibrated_for):
        yield "quantize: ranges and calibrated_for belong together; give both or none"
    seen: set[str] = set()
    for index, entry in enumerate(quantize.ranges):
        where = f"quantize.ranges[{index}]"
        if not entry.low <= entry.high or not math.isfinite(entry.low) or not math.isfinite(entry.high):
            yield f"{where}: low {entry.low!r} is above high {entry.high!r}"
        if entry.tensor in seen:
            yield f"{where}.tensor: {entry.tensor!r} has a range already"
        seen.add(entry.tensor)


def _quoted(text: str) -> str:
    # A JSON string is a TOML basic string, except that TOML wants DEL escaped as well.
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")
