"""How the benchmarks call the compression, in one place, and what they measure of every outcome."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import interleaved, paired_ratio, say
from host.compress.learned import load_learned
from host.compress.pipeline import NO_TRAINING, Compressed, Training, compress
from host.compress.recipe import Quantize, Recipe, load_recipe, variant_for
from host.compress.report.summary import machine
from host.figures import measure as figures
from host.model import Ingested, Model, Tensors, to_bytes
from host.reference import Reference

ROUNDS = 30

PLAIN = Quantize(mode="int8", variant="u8s8", correct_bias=False)
"""What a quantizer does that is left to itself: the extremes seen, per channel, nothing corrected."""


def plan_here() -> Quantize:
    """Static int8 in the variant that suits the processor that this runs on, with biases corrected."""
    return Quantize(mode="int8", variant=variant_for(machine().isa), correct_bias=True)


def compressed(
    ingested: Ingested, recipe: Recipe, *, calibration: Sequence[Tensors] = (), training: Training = NO_TRAINING
) -> Compressed:
    """Compress a model.

    Args:
        ingested: The model.
        recipe: What to do.
        calibration: Inputs to decide on; those of the model when empty.
        training: What recovery looks at.
    """
    return compress(ingested, recipe, samples=calibration or None, training=training, say=say)


def quantized(ingested: Ingested, plan: Quantize, *, calibration: Sequence[Tensors] = ()) -> Compressed:
    """Quantize a model."""
    return compressed(ingested, Recipe(quantize=plan), calibration=calibration)


def replayed(ingested: Ingested, outcome: Compressed) -> Compressed:
    """Run the decided recipe of an outcome again, with the weights that data changed."""
    return compress(ingested, outcome.recipe, learned=outcome.learned)


def from_file(ingested: Ingested, path: Path) -> Compressed:
    """Run a decided recipe from a file, with the learned weights beside it."""
    recipe = load_recipe(path)
    return compress(ingested, recipe, learned=load_learned(path, recipe.learned), say=say)


def digest(model: Model) -> str:
    """SHA-256 of a model as an ONNX file."""
    return hashlib.sha256(to_bytes(model.ir)).hexdigest()


def macs(model: Model, sample: Tensors) -> int:
    """Multiply-accumulates for one sample."""
    return figures(model, sample, timed=False).macs


def memory_bytes(model: Model, sample: Tensors) -> int:
    """Weights, and the most bytes of activations that are alive at once, for one sample."""
    found = figures(model, sample, timed=False)
    return found.weight_bytes + found.peak_activation_bytes


def bytes_ratio(model: Model, base: Model) -> float:
    """Bytes of one model as an ONNX file through those of another."""
    return len(to_bytes(model.ir)) / len(to_bytes(base.ir))


def cpu_ratio(model: Model, base: Model, sample: Tensors, *, repeats: int, rounds: int = ROUNDS) -> float:
    """CPU time of one model through another's, one thread, as devices run them, in turns."""
    return cpu_ratios({"model": model}, base, sample, repeats=repeats, rounds=rounds)["model"]


def cpu_ratios(
    models: dict[str, Model], base: Model, sample: Tensors, *, repeats: int, rounds: int = ROUNDS
) -> dict[str, float]:
    """CPU time of several models through that of one, all in the same turns."""
    loaded = {name: Reference(model, mode="default") for name, model in {"": base, **models}.items()}
    works = {name: lambda reference=reference: reference.run(sample) for name, reference in loaded.items()}
    spent = interleaved(works, rounds=rounds, repeats=repeats)
    return {name: paired_ratio(spent[name], spent[""]) for name in models}
