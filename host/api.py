"""Compression for those who script: a model in, a model and a report out.

::

    from host.api import PruneChannels, Quantize, load, load_dataset, optimize, prune, quantize, search

    net = load("net.onnx", inputs="samples.npz")
    small = prune(optimize(net), PruneChannels(ratio=0.25))
    tiny = quantize(small, Quantize(mode="int8", correct_bias=True))
    tiny.save("tiny.onnx")
    print(tiny.report.result, tiny.report.evaluations)

    best = search(net, "agreement>=0.99", profile="rpi4", data=load_dataset("photos/", net))
    best.save("best.onnx")

Every function leaves its input as it was. Accuracy in a report is that against the model that was loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.formats.profile import load_profile
from host.compress.data import dataset as datasets
from host.compress.data.dataset import Dataset
from host.compress.data.inputs import own_samples
from host.compress.judge.budget import Budget
from host.compress.learned import Learned, changed_weights, encode_learned, learned_path
from host.compress.pipeline import Prepared, Say, Training, finish, shrink, silent
from host.compress.recipe import (
    Prune,
    PruneBlocks,
    PruneChannels,
    PruneTorch,
    PruneWeights,
    Quantize,
    Recipe,
    Recover,
    dump_recipe,
)
from host.compress.report.records import Report
from host.compress.report.summary import Judge, full_report, machine, pass_row
from host.compress.search.onnx_workpiece import OnnxWorkpiece
from host.compress.search.search import Found, Wish
from host.compress.search.search import search as find
from host.compress.search.trial import TrialCache, default_cache_folder
from host.compression import material_for
from host.errors import RecipeError, UnsupportedModelError
from host.figures import measure
from host.ingest import ingest, is_tflite
from host.ingest.inputs import input_specs
from host.model import Ingested, Model, Tensors, to_bytes
from host.passes import optimise
from host.passes.normalise import normalise
from host.passes.transaction import PassOutcome

__all__ = [
    "Prune",
    "PruneBlocks",
    "PruneChannels",
    "PruneTorch",
    "PruneWeights",
    "Quantize",
    "Recover",
    "Step",
    "Training",
    "Wish",
    "load",
    "load_dataset",
    "optimize",
    "prune",
    "quantize",
    "search",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A model on its way, and what the last step did to it.

    Attributes:
        source: What was loaded.
        model: As it is now.
        base: After the graph passes, where a recipe begins; None before `optimize`.
        given_inputs: Whether samples were given to calibrate with.
        recipe: What was done so far that a recipe can say.
        learned: Weights that data changed so far.
        report: What the last step changed, with costs before and after it.
    """

    source: Ingested
    model: Model
    base: Model | None
    given_inputs: bool
    recipe: Recipe
    learned: Learned
    report: Report

    def save(self, path: Path | str) -> None:
        """Write the model as an ONNX file."""
        Path(path).write_bytes(to_bytes(self.model.ir))

    def save_recipe(self, path: Path | str) -> None:
        """Write the recipe, and the learned weights beside it where there are any.

        ``shardwire compress --recipe`` makes the same model from it; fused, where `quantize` was not the last step.

        Raises:
            RecipeError: The model was never optimised; a recipe begins with that.
        """
        if self.base is None:
            raise RecipeError(f"{path}: a recipe begins with an optimised model: call optimize before the other steps")
        Path(path).write_text(dump_recipe(self.recipe), encoding="utf-8")
        if self.learned:
            learned_path(Path(path)).write_bytes(encode_learned(self.learned))


def load(source: str, *, inputs: str | None = None, shapes: Mapping[str, int | tuple[int, ...]] | None = None) -> Step:
    """Read a model.

    Args:
        source: A path that ends in ``.onnx``; ``package.module:factory`` of a torch module; or ``efficientnet-lite0``.
        inputs: ``file.npz`` or ``package.module:callable`` with inputs to calibrate and check with.
        shapes: Sizes for dynamic dimensions, by dimension or input name.

    Raises:
        IngestError: The source or the inputs cannot be read.
        UnsupportedModelError: It is a TFLite file, which has no graph that these steps could change.
    """
    if is_tflite(source):
        raise UnsupportedModelError(
            f"{source}: these steps change ONNX graphs; quantize a TFLite file with host.compression.compress_model, "
            "or load the model that it was converted from"
        )
    found = ingest(source, shapes=shapes or {}, inputs=inputs)
    model = normalise(found.model)
    figures = measure(model, found.golden[0].inputs, timed=True)
    report = Report(
        model=model.name,
        source_digest=model.origin.digest,
        machine=machine(),
        original=figures,
        result=figures,
        notes=found.notes,
    )
    return Step(
        source=found,
        model=model,
        base=None,
        given_inputs=inputs is not None,
        recipe=Recipe(quantize=_NOTHING),
        learned=Learned(),
        report=report,
    )


def load_dataset(source: str, step: Step) -> Dataset:
    """Open a dataset for a model: a folder of images, an ``.npz`` or ``.csv`` file, or ``package.module:callable``.

    Raises:
        DatasetError: It cannot be read or does not fit the model.
    """
    return datasets.load_dataset(
        source,
        specs=input_specs(step.source.model.ir),
        preprocess=step.source.processing.photo,
        labels=step.source.labels,
    )


def optimize(step: Step) -> Step:
    """Run the graph passes, each checked; the report tells what each did.

    Raises:
        RecipeError: It is not the first step.
        PassError: The model does not run to begin with.
    """
    if step.recipe != Recipe(quantize=_NOTHING):
        raise RecipeError("optimize comes first: what is pruned or quantized already is no model to begin with")
    model, outcomes = optimise.optimize(step.model, step.source.samples, measured=True)
    return dataclasses.replace(_next(step, model, outcomes=outcomes), base=model)


def prune(
    step: Step,
    *steps: Prune,
    recover: Sequence[Recover] = (),
    samples: Sequence[Tensors] | None = None,
    training: Training | None = None,
    say: Say = silent,
) -> Step:
    """Remove channels, weights or blocks, and win accuracy back.

    Args:
        step: Best after `optimize`; not after `quantize`.
        steps: What to remove, in order.
        recover: How accuracy is won back after that, in order.
        samples: What decisions and repair look at; those of the model when None.
        training: What recovery looks at; the samples when None.
        say: Told what goes on.

    Raises:
        UserError: The model does not allow a step.
    """
    _check_unquantized(step, "prune")
    if step.recipe.prune and any(isinstance(each, PruneTorch) for each in steps):
        raise RecipeError("prune: torch-channels come before every other step, because they change the module itself")
    shrunk = shrink(
        _prepared(step),
        Recipe(prune=tuple(steps), recover=tuple(recover), quantize=_NOTHING),
        step.source.samples if samples is None else samples,
        training=training or Training(),
        say=say,
    )
    recipe = msgspec.structs.replace(
        step.recipe,
        prune=(*step.recipe.prune, *shrunk.recipe.prune),
        recover=(*step.recipe.recover, *recover),
    )
    weights = dict(shrunk.weights)
    if step.learned:
        # A second cut changes the shape of what the first one learned, too: compare with the structure of both.
        begin = step.base if step.base is not None else normalise(step.source.model)
        bare = shrink(_prepared(step, begin), recipe, (), learned=Learned())
        weights = changed_weights(bare.model, shrunk.model)
    return _next(step, shrunk.model, recipe=recipe, learned=Learned(weights=weights))


def quantize(step: Step, plan: Quantize, *, samples: Sequence[Tensors] | None = None, say: Say = silent) -> Step:
    """Quantize and fuse: the last step.

    Args:
        step: Best after `optimize`.
        plan: What to do.
        samples: To calibrate with; those of the model when None.
        say: Told what goes on.

    Raises:
        UserError: The model cannot be quantized so, or was already.
    """
    _check_unquantized(step, "quantize")
    prepared = _prepared(step)
    data = step.source.samples if samples is None else samples
    shrunk = dataclasses.replace(
        shrink(prepared, Recipe(quantize=_NOTHING), data),
        recipe=msgspec.structs.replace(step.recipe, quantize=plan),
        weights=dict(step.learned.weights),
    )
    made = finish(prepared, shrunk, data, say=say, measured=True)
    found = _next(step, made.model, recipe=made.recipe, learned=made.learned, outcomes=made.outcomes)
    source = normalise(step.source.model)
    judge = Judge(source, own_samples(step.source))
    evaluations = judge.both(dataclasses.replace(made, original=source))
    return dataclasses.replace(found, report=msgspec.structs.replace(found.report, evaluations=evaluations))


def search(
    step: Step,
    wish: Wish | str,
    *,
    profile: str = "rpi4",
    data: Dataset | None = None,
    training: Training | None = None,
    cached: bool = True,
    say: Say = silent,
) -> Step:
    """Find the smallest and fastest model that keeps a budget.

    Args:
        step: What `load` gave: a search optimises by itself.
        wish: A budget such as ``top1-drop<=0.005,cosine>=0.99``, or all that a search can be told.
        profile: Device profile, an id or a path, where the wish is a budget only.
        data: To judge on; a part of it calibrates where the model brought no inputs. The model's own when None.
        training: What recovery after pruning looks at; with it a budget alone trains by distillation.
        cached: Whether trials are kept for the next search.
        say: Told each step and each trial.

    Raises:
        BudgetUnmetError: Nothing keeps the budget; it names the closest candidates.
        UserError: The budget, data or model does not allow it.
    """
    if step.recipe != Recipe(quantize=_NOTHING):
        raise RecipeError("search begins with what load gave, and prunes and quantizes by itself")
    if isinstance(wish, str):
        recover = (Recover(method="distill", epochs=_EPOCHS),) if training is not None else ()
        wish = Wish(budget=Budget.parse(wish), profile=load_profile(profile), recover=recover)
    material = material_for(step.source, data, own_inputs=step.given_inputs)
    if training is not None:
        material = dataclasses.replace(material, training=training)
    cache = TrialCache(default_cache_folder() if cached else None)
    made, found = find(step.source, material, wish, cache=cache, say=say)
    judge = Judge(made.original, material.dataset, metrics=wish.budget.metrics, confidence=wish.confidence)
    report = full_report(
        made,
        material.calibration,
        profile=wish.profile.id,
        evaluations=judge.both(made),
        found=found,
        budget=str(wish.budget),
    )
    return dataclasses.replace(
        step, model=made.model, base=_optimised(found), recipe=made.recipe, learned=made.learned, report=report
    )


_NOTHING = Quantize(mode="none")
_EPOCHS = 5


def _prepared(step: Step, model: Model | None = None) -> Prepared:
    model = step.model if model is None else model
    return Prepared(ingested=step.source, normal=model, optimised=model, outcomes=())


def _optimised(found: Found) -> Model | None:
    """What the recipes of a search begin with, where that is an ONNX graph."""
    return found.workpiece.prepared.optimised if isinstance(found.workpiece, OnnxWorkpiece) else None


def _check_unquantized(step: Step, what: str) -> None:
    if step.recipe.quantize != _NOTHING:
        raise RecipeError(f"{what}: the model is quantized already, which is the last step; begin with one before it")


def _next(
    step: Step,
    model: Model,
    *,
    recipe: Recipe | None = None,
    learned: Learned | None = None,
    outcomes: Sequence[PassOutcome] = (),
) -> Step:
    after = measure(model, step.source.golden[0].inputs, timed=True)
    rows = tuple(pass_row(outcome) for outcome in outcomes)
    report = msgspec.structs.replace(step.report, passes=rows, original=step.report.result, result=after)
    return dataclasses.replace(
        step,
        model=model,
        recipe=recipe or step.recipe,
        learned=learned if learned is not None else step.learned,
        report=report,
    )
