"""What a search may try for a model, grouped so that each group is one step of saving.

A *family* is one idea, such as "a quarter of the channels less, then int8". Its *rungs* save the same and differ in how
they keep the accuracy, the cheapest first. Families are ordered by what they are expected to leave of bytes and time,
the least first; the estimates only order the work, what is reported is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from edge.formats.profile import DeviceProfile
from host.compress.recipe import PruneChannels, Quantize, Recipe, Recover, variant_for
from host.compress.search.front import Objective, joined
from host.model import Model

PRUNE_RATIOS = (0.5, 0.375, 0.25, 0.125)

Refinement = Literal["exclude", "wider", "none"]

# Bytes and time that each mode leaves, where it applies to all of a model.
_LEFT: Mapping[str, tuple[float, float]] = {
    "int8": (0.26, 0.55),
    "int8-dynamic": (0.27, 0.75),
    "int4": (0.16, 0.9),
    "float16": (0.5, 1.0),
    "none": (1.0, 1.0),
}
_MATRIX = frozenset({"MatMul", "Gemm", "Gather"})
_FILTER = frozenset({"Conv", "ConvTranspose"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One idea of saving.

    Attributes:
        name: For reports.
        expected: What it is expected to leave, in what the objective counts; see `host.compress.search.front.cost`.
        rungs: Recipes that save the same, by name, the cheapest to try first.
        refinement: How sensitive nodes are spared when no rung keeps the budget.
        prunes: Whether the quantization that worked without pruning is put in place of the rungs' own.
    """

    name: str
    expected: float
    rungs: Mapping[str, Recipe]
    refinement: Refinement = "none"
    prunes: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """Where the weights of a model are.

    Attributes:
        filters: Share of the weight bytes that convolutions read.
        matrices: Share that MatMul, Gemm and Gather read.
    """

    filters: float
    matrices: float


def weight_shares(model: Model) -> Shares:
    """Count the weight bytes of the main graph by the kind of operator that reads them."""
    counted = {"filters": 0, "matrices": 0, "all": 0}
    for value in model.ir.graph.initializers.values():
        size = value.const_value.nbytes if value.const_value is not None else 0
        readers = {use.node.op_type for use in value.uses()}
        counted["all"] += size
        counted["filters"] += size if readers & _FILTER else 0
        counted["matrices"] += size if readers & _MATRIX else 0
    whole = max(counted["all"], 1)
    return Shares(filters=counted["filters"] / whole, matrices=counted["matrices"] / whole)


def families(
    model: Model,
    profile: DeviceProfile,
    *,
    ratios: Iterable[float] = PRUNE_RATIOS,
    recover: tuple[Recover, ...] = (),
    objective: Objective = "balanced",
) -> tuple[Family, ...]:
    """What is worth trying for a model, least expected cost first; int8 comes first of all where the rest builds on it.

    Args:
        model: Optimised.
        profile: Of the device: its instruction set decides the int8 variant.
        ratios: Shares of channels to try to prune.
        recover: What follows pruning.
        objective: What the best is measured by.
    """
    shares = weight_shares(model)
    variant = variant_for(profile.isa)
    found: list[Family] = []
    if shares.filters > 0:
        found.append(
            Family(
                name="int8",
                expected=_expected("int8", 1.0, objective),
                rungs=int8_rungs(Quantize(mode="int8", variant=variant, correct_bias=True)),
                refinement="exclude",
            )
        )
        found += [_pruned(ratio, variant, recover, objective) for ratio in sorted(ratios, reverse=True)]
    if shares.matrices >= 0.5 and shares.filters < 0.5:
        whole = Quantize(mode="int4")
        found.append(
            Family(
                name="int4",
                expected=_expected("int4", shares.matrices, objective),
                rungs={
                    "int4": Recipe(quantize=whole),
                    "int4-blocks-of-16": Recipe(quantize=msgspec.structs.replace(whole, block_size=16)),
                },
                refinement="wider",
            )
        )
        found.append(
            Family(
                name="int8-dynamic",
                expected=_expected("int8-dynamic", shares.matrices, objective),
                rungs={"int8-dynamic": Recipe(quantize=Quantize(mode="int8-dynamic"))},
                refinement="exclude",
            )
        )
    found += [_plain("float16", objective), _plain("none", objective)]
    return tuple(sorted(found, key=lambda family: (family.name != "int8", family.expected, family.name)))


def int8_rungs(plan: Quantize) -> dict[str, Recipe]:
    """Static int8 in the ways that may keep more of the accuracy, plainest first."""
    ways = {
        "int8": plan,
        "int8-equalized": msgspec.structs.replace(plan, equalize=True),
        "int8-entropy": msgspec.structs.replace(plan, calibration="entropy"),
        "int8-percentile": msgspec.structs.replace(plan, calibration="percentile"),
        "int8-without-bias-correction": msgspec.structs.replace(plan, correct_bias=False),
    }
    return {name: Recipe(quantize=way) for name, way in ways.items()}


def _pruned(ratio: float, variant: str, recover: tuple[Recover, ...], objective: Objective) -> Family:
    plan = Quantize(mode="int8", variant=variant, correct_bias=True)  # type: ignore[arg-type]  # from variant_for
    recipe = Recipe(prune=(PruneChannels(ratio=ratio),), recover=recover, quantize=plan)
    name = f"{ratio:.1%}-of-channels-less".replace(".0%", "%")
    # Removing a share of all channels removes it from the inputs and the outputs of most layers.
    left = (1 - ratio) ** 2
    expected = _expected("int8", 1.0, objective) * left
    return Family(name=name, expected=expected, rungs={name: recipe}, prunes=True)


def _plain(mode: Literal["float16", "none"], objective: Objective) -> Family:
    recipe = Recipe(quantize=Quantize(mode=mode))
    return Family(name=mode, expected=_expected(mode, 1.0, objective), rungs={mode: recipe})


def _expected(mode: str, share: float, objective: Objective) -> float:
    size, time = (share * left + (1 - share) for left in _LEFT[mode])
    return joined(size, time, objective)
