"""Prune the CIFAR-10 network, recover it, and write ``benchmarks/models/cifar10-pruned.toml`` and ``.safetensors``.

Training takes longer than a benchmark should: it is done once, and `benchmarks.cifar10` replays the recipe.
"""

from __future__ import annotations

from benchmarks.compression import compressed
from benchmarks.data import cache_folder, cifar10
from benchmarks.images import MODELS, cifar10_samples, drawn, samples, trained
from benchmarks.measure import say
from edge.formats.profile import load_profile
from host.compress.pipeline import Training, prepare
from host.compress.recipe import Prune, PruneChannels, Recipe, Recover, dump_recipe, recipe_for
from host.compress.recover import Lesson
from host.model import Ingested

PROFILE = "rpi4"
PRUNED = MODELS / "cifar10-pruned.toml"
LEARNED = MODELS / "cifar10-pruned.safetensors"
RECOVER = (Recover(method="distill", epochs=12, learning_rate=2e-3, batch=64),)
_HOLDOUT_IMAGES = 1000


def steps(ingested: Ingested) -> tuple[Prune, ...]:
    """More than a quarter of all channels, rounded to eight; a third inside the second residual block.

    With it the multiply-accumulates are just below half.
    """
    convs = [str(node.name) for node in prepare(ingested).optimised.ir.graph if node.op_type == "Conv"]
    inner = convs[5]
    others = tuple(name for name in convs if name != inner)
    return PruneChannels(ratio=0.28, exclude=(inner,)), PruneChannels(ratio=0.36, exclude=others)


def main() -> None:
    """Prune, train, write."""
    ingested = trained("cifar10", cifar10_samples)
    images = drawn(cifar10(train=True), 50_000)
    held, rest = images.at(slice(0, _HOLDOUT_IMAGES)), images.at(slice(_HOLDOUT_IMAGES, None))
    plan = recipe_for(load_profile(PROFILE), "int8").quantize
    recipe = Recipe(prune=steps(ingested), recover=RECOVER, quantize=plan)
    # Stopped and started again it goes on where it was.
    checkpoint = cache_folder() / "cifar10-pruned.checkpoint"
    lesson = Lesson(
        holdout=samples(held),
        labels=[int(label) for label in rest.labels],
        augment=True,
        temperature=4.0,
        label_weight=0.4,
        threads=2,
        checkpoint=checkpoint,
    )
    outcome = compressed(ingested, recipe, training=Training(samples=samples(rest), lesson=lesson))
    PRUNED.write_text(dump_recipe(outcome.recipe), encoding="utf-8")
    LEARNED.write_bytes(outcome.learned_bytes)
    say(f"wrote {PRUNED} and {LEARNED}")


if __name__ == "__main__":
    main()
