"""From an ingested model and a recipe to the model that is cut: optimise, prune, recover, quantize, fuse.

Three steps, so that a search makes what its candidates share only once: `prepare`, `shrink`, `finish`; `compress` does
all. What data decides goes into the recipe, what data changed into the learned weights, and with both a replay needs no
data and gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
import onnx_ir as ir

from edge.formats.bundle import digest_of
from host.compress import prune
from host.compress.data.inputs import chosen
from host.compress.learned import Learned, changed_weights, encode_learned, with_weights
from host.compress.prune.repair import repair
from host.compress.quantize import quantize
from host.compress.quantize.bias import with_biases
from host.compress.quantize.wire import half_wire
from host.compress.recipe import Prune, PruneBlocks, PruneChannels, PruneTorch, PruneWeights, Recipe, Recover
from host.compress.recover import Lesson, Progress, recover
from host.errors import RecipeError
from host.model import Ingested, Model, Tensors, copied
from host.passes.fuse import fuse
from host.passes.normalise import normalise
from host.passes.optimise import optimize
from host.passes.transaction import PassOutcome

Say = Callable[[str], None]

HOLDOUT_EVERY = 8
LEAST_FOR_HOLDOUT = 64
MOST_HOLDOUT = 1024
_TRAINING = frozenset({"distill", "bias", "low-rank"})


def silent(line: str) -> None:
    """Say nothing."""
    del line


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What recovery may use.

    Attributes:
        samples: Inputs; those of the model when empty.
        lesson: Labels, inputs to stop by, and how to train.
        progress: Told about each batch.
    """

    samples: Sequence[Tensors] = ()
    lesson: Lesson = field(default_factory=Lesson)
    progress: Progress | None = None


NO_TRAINING = Training()


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A model ready for any recipe.

    Attributes:
        ingested: What it came from.
        normal: Normalised: the original that everything is compared with.
        optimised: After the graph passes, in fp32.
        outcomes: Of those passes.
    """

    ingested: Ingested
    normal: Model
    optimised: Model
    outcomes: tuple[PassOutcome, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shrunk:
    """A model after pruning and recovery.

    Attributes:
        model: In fp32.
        recipe: With the decisions of pruning.
        weights: Values that repair and recovery changed, by initializer.
    """

    model: Model
    recipe: Recipe
    weights: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Compressed:
    """The model before cutting, and how it came about.

    Attributes:
        original: Normalised, the reference for fidelity.
        shrunk: Optimised and pruned, in fp32.
        unfused: Quantized, before fusing; simulates quantization the same on every processor.
        model: Fused, as it is cut.
        recipe: Decided, so that replaying it needs no data.
        learned: Weights that data changed.
        outcomes: Of every graph pass, in order.
    """

    original: Model
    shrunk: Model
    unfused: Model
    model: Model
    recipe: Recipe
    learned: Learned
    outcomes: tuple[PassOutcome, ...]

    @property
    def learned_bytes(self) -> bytes:
        """The learned weights as a file; empty when there are none."""
        return encode_learned(self.learned)


def compress(
    ingested: Ingested,
    recipe: Recipe,
    *,
    samples: Sequence[Tensors] | None = None,
    training: Training = NO_TRAINING,
    learned: Learned | None = None,
    say: Say = silent,
    measured: bool = False,
) -> Compressed:
    """Optimise, prune, quantize and fuse a model as a recipe says.

    Args:
        ingested: The model and its samples; a decided recipe needs none of the samples but for the checks of passes.
        recipe: Open or decided.
        samples: What decisions look at; those of the model when None.
        training: What recovery looks at.
        learned: The weights that a decided recipe names.
        say: Told each step as it begins.
        measured: Whether the outcome of every pass carries figures before and after it.

    Raises:
        UserError: The model or recipe does not allow it.
    """
    if recipe.learned and learned is None:
        raise RecipeError("the recipe names learned weights and none were given: keep its .safetensors file beside it")
    prepared = prepare(ingested, say=say, measured=measured)
    chosen = ingested.samples if samples is None else samples
    shrunk = shrink(prepared, recipe, chosen, training=training, learned=learned, say=say)
    return finish(prepared, shrunk, chosen, learned=learned, say=say, measured=measured)


def prepare(ingested: Ingested, *, say: Say = silent, measured: bool = False) -> Prepared:
    """Normalise and optimise a model."""
    say("optimising")
    normal = normalise(ingested.model)
    optimised, outcomes = optimize(normal, ingested.samples, measured=measured)
    return Prepared(ingested=ingested, normal=normal, optimised=optimised, outcomes=outcomes)


def shrink(
    prepared: Prepared,
    recipe: Recipe,
    samples: Sequence[Tensors],
    *,
    training: Training = NO_TRAINING,
    learned: Learned | None = None,
    say: Say = silent,
) -> Shrunk:
    """Prune a model and recover it.

    Args:
        prepared: The model.
        recipe: Its steps; those that are decided are taken as they are.
        samples: What the decisions and repair look at.
        training: What recovery looks at.
        learned: Replaces repair and recovery.
        say: Told each step as it begins.

    Raises:
        UserError: The model does not allow a step.
    """
    if not recipe.prune and not recipe.recover:
        return Shrunk(model=prepared.optimised, recipe=recipe, weights={})
    model, recipe, first_kept = _pruned_in_torch(prepared, recipe, say)
    structure = values = model
    steps: list[Prune] = []
    for step in recipe.prune:
        decided = step
        if not isinstance(step, PruneTorch):
            say(f"pruning: {_what(step)}")
            decided = prune.decide(values, step, samples, say=say)
            structure, before = prune.apply(structure, decided), values
            values = prune.apply(values, decided)
            if isinstance(decided, PruneChannels) and decided.repair and learned is None:
                values = repair(values, before, decided, samples, say=say)
        steps.append(decided)
    recipe = msgspec.structs.replace(recipe, prune=tuple(steps))
    if recipe.recover:
        structure, values = with_biases(structure), with_biases(values)
    if learned is not None:
        weights = dict(learned.weights)
        return Shrunk(model=with_weights(structure, weights), recipe=recipe, weights=weights)
    zeros = _zeros(values) if any(isinstance(step, PruneWeights) for step in steps) else {}
    kept = _kept_channels(steps, first_kept)
    for way in recipe.recover:
        say(f"recovering: {way.method}")
        taught, lesson = _lesson(way, training.samples or samples, replace(training.lesson, channels=kept))
        values = recover(values, prepared.optimised, way, taught, lesson=lesson, progress=training.progress, say=say)
    values = _with_zeros(values, zeros)
    return Shrunk(model=values, recipe=recipe, weights=changed_weights(structure, values))


def finish(
    prepared: Prepared,
    shrunk: Shrunk,
    samples: Sequence[Tensors],
    *,
    learned: Learned | None = None,
    say: Say = silent,
    measured: bool = False,
) -> Compressed:
    """Quantize and fuse a model.

    Raises:
        UserError: The model or recipe does not allow it.
    """
    plan = shrunk.recipe.quantize
    unfused, biases = shrunk.model, {}
    if plan.mode != "none":
        say(f"quantizing to {plan.mode}" + ("" if plan.ranges or not samples else f" with {len(samples)} samples"))
        found = quantize(shrunk.model, plan, samples, biases=learned.biases if learned is not None else None, say=say)
        unfused, plan, biases = found.model, found.plan, dict(found.biases)
    say("fusing")
    checks = prepared.ingested.samples
    fused, outcomes = fuse(unfused, checks, measured=measured)
    if shrunk.recipe.wire == "float16":
        fused = half_wire(fused, checks)
    kept = Learned(weights=shrunk.weights, biases=biases)
    data = encode_learned(kept)
    recipe = msgspec.structs.replace(shrunk.recipe, quantize=plan, learned=digest_of(data) if data else "")
    return Compressed(
        original=prepared.normal,
        shrunk=shrunk.model,
        unfused=unfused,
        model=fused,
        recipe=recipe,
        learned=kept,
        outcomes=(*prepared.outcomes, *outcomes),
    )


def _pruned_in_torch(prepared: Prepared, recipe: Recipe, say: Say) -> tuple[Model, Recipe, dict[str, tuple[int, ...]]]:
    """The optimised model, from a pruned PyTorch module where the recipe prunes one, and the channels that it keeps."""
    first = [step for step in recipe.prune if isinstance(step, PruneTorch)]
    rest = recipe.prune[len(first) :]
    if any(isinstance(step, PruneTorch) for step in rest):
        raise RecipeError("prune: torch-channels come before every other step, because they change the module itself")
    if not first:
        return prepared.optimised, recipe, {}
    source = prepared.ingested.torch
    if source is None:
        raise RecipeError("prune: torch-channels need a PyTorch model, given as package.module:factory; use channels")
    from host.compress.torch import prune as torch_prune

    say("pruning the PyTorch module")
    steps: list[Prune] = []
    module, kept = source.module, {}
    for step in first:
        decided = step if step.groups else torch_prune.decide(module, source.arguments, step)
        if len(first) == 1:
            kept = torch_prune.kept_channels(module, source.arguments, decided)
        module = torch_prune.apply(module, source.arguments, decided)
        steps.append(decided)
    model, _ = optimize(normalise(source.exported(module)), prepared.ingested.samples)
    # The exporter names a weight after its module.
    by_weight = {f"{name}.weight": channels for name, channels in kept.items()}
    by_node = {
        str(node.name): by_weight[str(value.name)]
        for node in model.ir.graph
        for value in node.inputs[1:2]
        if value is not None and value.name in by_weight
    }
    return model, msgspec.structs.replace(recipe, prune=(*steps, *rest)), by_node


def _kept_channels(steps: Sequence[Prune], before: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Which output channels of the optimised model each pruned node still has."""
    channels = dict(before)
    for step in steps:
        for group in step.groups if isinstance(step, PruneChannels) else ():
            for node in group.nodes:
                # Indices of a later step count what an earlier one left.
                left = channels.get(node)
                channels[node] = group.keep if left is None else tuple(left[index] for index in group.keep)
    return channels


def _lesson(way: Recover, samples: Sequence[Tensors], lesson: Lesson) -> tuple[Sequence[Tensors], Lesson]:
    """Set every eighth sample aside for training to stop by, where nothing was given for that."""
    if lesson.holdout or way.method not in _TRAINING or len(samples) < LEAST_FOR_HOLDOUT:
        return samples, lesson
    held = range(0, len(samples), HOLDOUT_EVERY)
    rest = [place for place in range(len(samples)) if place % HOLDOUT_EVERY]
    labels = None if lesson.labels is None else [lesson.labels[place] for place in rest]
    return chosen(samples, rest), replace(lesson, holdout=chosen(samples, held[:MOST_HOLDOUT]), labels=labels)


def _what(step: Prune) -> str:
    if isinstance(step, PruneWeights):
        return "single weights"
    if isinstance(step, PruneChannels):
        return f"{step.ratio:.0%} of the channels" if not step.groups else "channels as decided"
    return f"{step.count} residual blocks" if isinstance(step, PruneBlocks) else "channels of the module"


def _zeros(model: Model) -> dict[str, np.ndarray]:
    """Where weights are zero, for those of which a fifth or more are."""
    found = {}
    for name, value in model.ir.graph.initializers.items():
        array = value.const_value.numpy() if value.const_value is not None else np.zeros(0)
        if array.dtype.kind == "f" and array.ndim >= 2 and np.count_nonzero(array == 0) * 5 >= array.size > 0:
            found[name] = array == 0
    return found


def _with_zeros(model: Model, zeros: dict[str, np.ndarray]) -> Model:
    """The model with its zeros back, which training has filled."""
    if not zeros:
        return model
    graph = copied(model.ir)
    for name, mask in zeros.items():
        value = graph.graph.initializers[name]
        held = value.const_value
        if held is not None:
            value.const_value = ir.tensor(np.where(mask, 0, held.numpy()), dtype=held.dtype, name=name)
    return model.with_ir(graph)
