"""The recipe: everything that decides how a model is compressed, as a TOML file.

A recipe is *open* while it only says what to do, and *decided* once it also holds what was found by looking at data:
kept channels, the range and type of every tensor, the nodes that stay as they are. Replaying a decided recipe needs no
data and gives the same bytes on any machine. Weights that data changed (repair, training, bias correction) are too many
for a text file: they lie beside it in a safetensors file that the recipe names by digest.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import tomli_w

from edge.errors import UnsupportedVersion
from edge.formats import faults
from edge.formats.profile import DeviceProfile
from edge.formats.version import check_version
from host.errors import RecipeError

FORMAT = "1.2"
"""Version of the recipe format that this release reads and writes; 1.1 had no ``int8-weights``."""

MAX_RECIPE_BYTES = 64 * 1024 * 1024

Mode = Literal["int8", "int8-dynamic", "int8-weights", "int4", "float16", "none"]
Variant = Literal["u8s8-reduce-range", "u8s8", "s8s8", "u8u8"]
Calibration = Literal["minmax", "percentile", "entropy"]

MODES: tuple[str, ...] = ("int8", "int8-dynamic", "int8-weights", "int4", "float16", "none")

# Instructions that multiply and add 8-bit values into 32 bits without saturating at 16 on the way.
_FULL_RANGE_ISA = frozenset({"vnni", "amx", "dotprod", "i8mm"})

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
_Index = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
_Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
_Digest = Annotated[str, msgspec.Meta(pattern=r"^(sha256:[0-9a-f]{64})?$")]


class ChannelGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of channels that must go or stay together, because an operator ties them.

    Attributes:
        nodes: Names of the nodes whose output channels they are, in graph order.
        keep: Channels that stay, ascending.
    """

    nodes: Annotated[tuple[_Name, ...], msgspec.Meta(min_length=1)]
    keep: Annotated[tuple[_Index, ...], msgspec.Meta(min_length=1)]


class PruneChannels(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="channels"
):
    """Remove whole channels from the graph.

    Attributes:
        ratio: Share of the channels of each group to remove, before rounding.
        criterion: What makes a channel worth keeping: ``activation``: how much its consumers' answers change without
            it, on samples; ``l1``, ``l2``: size of its weights.
        multiple: Kept channels are a multiple of it, so that blocked memory layouts stay.
        repair: Whether the consumers' weights are fitted again by least squares on samples.
        exclude: Nodes whose output channels all stay.
        groups: What was decided; empty before.
    """

    ratio: _Share = 0.25
    criterion: Literal["activation", "l1", "l2"] = "activation"
    multiple: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 8
    repair: bool = True
    exclude: tuple[_Name, ...] = ()
    groups: tuple[ChannelGroup, ...] = ()


class TorchGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One cut of torch-pruning: the channels that leave a layer, and with it all layers that depend on it.

    Attributes:
        layer: Dotted name of the module.
        is_output: Whether its output channels are meant, not its input channels.
        drop: Channels that leave, ascending.
    """

    layer: _Name
    is_output: bool
    drop: tuple[_Index, ...]


class PruneTorch(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="torch-channels"
):
    """Remove whole channels from a PyTorch module before it is exported, by torch-pruning's dependency graph.

    Attributes:
        ratio: Share of the channels of each group to remove, before rounding.
        criterion: Importance of a channel: size of its weights, or of its batch norm's scale.
        multiple: Kept channels are a multiple of it.
        exclude: Dotted names of modules whose channels all stay.
        groups: What was decided; empty before.
    """

    ratio: _Share = 0.25
    criterion: Literal["l1", "l2", "batch-norm"] = "l2"
    multiple: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 8
    exclude: tuple[_Name, ...] = ()
    groups: tuple[TorchGroup, ...] = ()


class PruneWeights(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="weights"
):
    """Set single weights to zero. It saves transfer, not time: dense kernels multiply the zeros too.

    Attributes:
        threshold: Weights smaller than this become zero; exclusive with ``ratio`` and ``pattern``.
        ratio: Share of the weights of each tensor that becomes zero, the smallest first.
        pattern: ``"N:M"``: of each M consecutive weights along the input axis the N largest stay.
        exclude: Nodes whose weights stay.
    """

    threshold: Annotated[float, msgspec.Meta(gt=0)] | None = None
    ratio: _Share | None = None
    pattern: Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]?:[1-9][0-9]?$")] | None = None
    exclude: tuple[_Name, ...] = ()


class PruneBlocks(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="blocks"
):
    """Drop whole residual branches: ``x + f(x)`` becomes ``x``.

    Attributes:
        count: How many to drop, those first whose loss changes the answers least.
        blocks: Names of the Add nodes that were dropped; empty before that is decided.
    """

    count: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    blocks: tuple[_Name, ...] = ()


Prune = PruneChannels | PruneTorch | PruneWeights | PruneBlocks


class Recover(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to win accuracy back after pruning; changes weights, never the graph.

    Attributes:
        method: ``batch-norm``: per-channel mean and deviation of each layer's output as in the original;
            ``reconstruct``: least squares, layer by layer; ``distill``: training towards the original's answers;
            ``bias``: the same, biases only; ``low-rank``: the same, a low-rank change of each weight.
        epochs: Passes over the samples, for the methods that train.
        learning_rate: Its largest value; falls to zero along a half cosine.
        batch: Samples a step.
        rank: Of the change, for ``low-rank``.
        patience: Epochs without gain before training stops.
        seed: Of the order of samples.
    """

    method: Literal["batch-norm", "reconstruct", "distill", "bias", "low-rank"]
    epochs: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 3
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=10)] = 1e-3
    batch: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 64
    rank: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 4
    patience: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 3
    seed: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0


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
    """How weights and activations become smaller numbers.

    Attributes:
        mode: ``int8``: static, quantize-dequantize pairs, weights per channel; ``int8-dynamic``: 8-bit MatMul and Gemm
            whose activations are scaled at run time; ``int8-weights``, ``int4``: weights of MatMul, Gemm and embeddings
            only, in blocks; ``float16``: weights stored in half precision, computed in fp32; ``none``: as they are.
            In a TFLite model the three that leave activations alone, and ``int8-dynamic``, hold convolutions, too, and
            weights have a scale for each output channel.
        variant: Activation and weight type, for ``int8``; ``reduce-range`` uses 7 bits of each weight, so that the
            16-bit sums of AVX2 cannot saturate.
            Of a TFLite model always ``s8s8``.
        calibration: ``minmax``: the extremes seen; ``percentile``: what lies between the percentiles; ``entropy``: the
            range whose 8-bit histogram diverges least from what was seen.
        percentile: Share of the values that a range covers, in percent, for ``percentile``.
        equalize: Whether the ranges of channels are balanced between consecutive layers first; not of a TFLite model.
        correct_bias: Whether the mean shift that quantization causes in each channel is taken out of the biases; not
            of a TFLite model.
        block_size: Weights that share a scale, for ``int8-weights`` and ``int4`` of an ONNX model; a power of two from
            16.
        embeddings: Whether ``int4`` quantizes tables that Gather reads, too.
        exclude: Names of nodes that stay as they are.
        wider: Names of nodes that get 8-bit instead of 4-bit weights, for ``int4``.
        calibrated_for: Digest of the model that ``ranges`` belong to; empty before calibration.
        ranges: One for each activation; empty before calibration.
    """

    mode: Mode = "int8"
    variant: Variant = "u8s8-reduce-range"
    calibration: Calibration = "minmax"
    percentile: Annotated[float, msgspec.Meta(ge=50, le=100)] = 99.99
    equalize: bool = False
    correct_bias: bool = False
    block_size: Literal[16, 32, 64, 128, 256] = 32
    embeddings: bool = True
    exclude: tuple[_Name, ...] = ()
    wider: tuple[_Name, ...] = ()
    calibrated_for: _Digest = ""
    ranges: tuple[Range, ...] = ()


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is compressed.

    Attributes:
        format: Version of the format.
        wire: Type in which fp32 tensors travel between stages.
        learned: Digest of the safetensors file with the weights that data changed; empty where none were.
        prune: What is removed, in order.
        recover: How accuracy is won back after that, in order.
        quantize: The quantization.
    """

    format: str = FORMAT
    wire: Literal["float32", "float16"] = "float32"
    learned: _Digest = ""
    prune: tuple[Prune, ...] = ()
    recover: tuple[Recover, ...] = ()
    quantize: Quantize = Quantize()


def recipe_for(profile: DeviceProfile, quantize: str | None = None, *, tflite: bool = False) -> Recipe:
    """The recipe that suits a kind of device.

    Args:
        profile: Its instruction set decides the int8 variant. U8S8 with a reduced range is bit-equal on all
            processors and the only fast one without saturation on x86 without VNNI; full range needs dot products.
        quantize: One of `MODES`; when None, int8 if the profile prefers it, and for a TFLite model nothing.
        tflite: Whether it is for a TFLite model, whose kernels know one variant, and whose biases are not corrected.

    Raises:
        RecipeError: If ``quantize`` is something else.
    """
    if quantize is not None and quantize not in MODES:
        raise RecipeError(f"--quantize {quantize}: choose {', '.join(MODES[:-1])} or {MODES[-1]}")
    if quantize is None:
        quantize = "int8" if "int8" in profile.preferred_dtypes and not tflite else "none"
    if tflite:
        return Recipe(quantize=Quantize(mode=quantize, variant="s8s8"))  # type: ignore[arg-type]  # one of MODES
    plan = Quantize(mode=quantize, variant=variant_for(profile.isa), correct_bias=quantize == "int8")  # type: ignore[arg-type]  # one of MODES
    return Recipe(quantize=plan)


def variant_for(isa: Iterable[str]) -> Variant:
    """The int8 variant that is fast and right on processors with these instruction sets."""
    return "u8s8" if not _FULL_RANGE_ISA.isdisjoint(isa) else "u8s8-reduce-range"


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
        if contradictions := (*_prune_contradictions(recipe.prune), *_range_contradictions(recipe.quantize)):
            raise faults.Faults(contradictions)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{file}: not TOML: {error}") from error
    except (UnsupportedVersion, faults.Faults) as error:
        raise RecipeError(f"{file}: {error}" if isinstance(error, faults.Faults) else str(error)) from error
    # What is written again is of this release.
    return msgspec.structs.replace(recipe, format=FORMAT)


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as TOML that `parse_recipe` reads back to an equal one; equal recipes give equal text."""
    tables = _without_none(msgspec.to_builtins(recipe))
    for key in ("prune", "recover"):
        if not tables[key]:
            del tables[key]
    if not tables["quantize"]["ranges"]:
        del tables["quantize"]["ranges"]
    return tomli_w.dumps(tables)


def _without_none(value: Any) -> Any:
    # TOML has no null: a field that is absent is None again when it is read.
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


def _prune_contradictions(steps: Iterable[Prune]) -> Iterable[str]:
    for index, step in enumerate(steps):
        where = f"prune[{index}]"
        if isinstance(step, PruneWeights):
            given = [name for name in ("threshold", "ratio", "pattern") if getattr(step, name) is not None]
            if len(given) != 1:
                yield f"{where}: give one of threshold, ratio and pattern, got {', '.join(given) or 'none'}"
            if step.pattern is not None:
                kept, block = map(int, step.pattern.split(":"))
                if kept >= block:
                    yield f"{where}.pattern: {step.pattern!r} keeps every weight; N must be below M"
        if isinstance(step, PruneChannels):
            for at, group in enumerate(step.groups):
                if list(group.keep) != sorted(set(group.keep)):
                    yield f"{where}.groups[{at}].keep: not ascending"


def _range_contradictions(quantize: Quantize) -> Iterable[str]:
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
