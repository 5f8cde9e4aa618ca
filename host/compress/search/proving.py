"""Makes the candidate that a recipe describes, and measures it: the proving ground of a search."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

import msgspec

from edge.formats.bundle import digest_of
from edge.formats.profile import DeviceProfile
from host.compress import prune
from host.compress.data.dataset import Dataset
from host.compress.judge.budget import Budget
from host.compress.judge.evaluate import Answers, Evaluation, answers, evaluate
from host.compress.judge.metrics import asked
from host.compress.pipeline import Compressed, Prepared, Say, Shrunk, Training, finish, shrink
from host.compress.recipe import PruneChannels, Quantize, Recipe, dump_recipe
from host.compress.recover import Lesson
from host.compress.search.predict import predicted_seconds
from host.compress.search.trial import Costs, Trial, TrialCache
from host.errors import RecipeError, RuntimeRefusedError, UserError
from host.model import Model, Tensors, to_bytes
from host.passes.fuse import fuse
from host.reference import Reference
from host.timing import cpu_times

SCREENING_SAMPLES = 512
"""A candidate whose whole confidence interval on so many samples lies outside the budget is not judged on the rest."""

_ROUNDS = 21

# What the bytes of a candidate and its answers come from, beside this project.
_PACKAGES = ("shardwire", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "torch")


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What candidates are made from and judged on.

    Attributes:
        dataset: To judge on; calibration and training never see it.
        calibration: Inputs that decisions look at.
        training: What recovery after pruning looks at.
    """

    dataset: Dataset
    calibration: Sequence[Tensors]
    training: Training


class ProvingGround:
    """Candidates of one model.

    Args:
        prepared: The model.
        material: What they are made from and judged on.
        budget: What they must keep.
        profile: The device that times are predicted for.
        confidence: Of the intervals.
        cache: Where trials are kept.
        say: Told what goes on.

    Raises:
        UserError: The original does not run, or a metric does not fit it.
    """

    def __init__(
        self,
        prepared: Prepared,
        material: Material,
        budget: Budget,
        profile: DeviceProfile,
        *,
        confidence: float,
        cache: TrialCache,
        say: Say,
    ) -> None:
        self._prepared, self._material, self._budget, self._profile = prepared, material, budget, profile
        self._confidence, self._say = confidence, say
        # A metric of the user's own may give other figures tomorrow under the same name.
        has_own = any(asked(name).metric.measure_all is not None for name in budget.metrics)
        self._cache = TrialCache(None) if has_own else cache
        self._sample = prepared.ingested.golden[0].inputs
        # Only the last: a search is done with one way of pruning before it begins the next.
        self._shrunk: tuple[str, Shrunk] | None = None
        data = material.dataset
        say(f"asking the original for its answers to {len(data):,} samples")
        reference = Reference(prepared.normal)
        self._truth = answers(reference, data, say)
        self._screen = data.take(SCREENING_SAMPLES) if len(data) > 2 * SCREENING_SAMPLES else None
        self._screen_truth = answers(reference, self._screen) if self._screen is not None else None
        self.baseline = self._evaluated(self._truth, self._truth, data, budget.metrics)
        self._fused, _ = fuse(prepared.optimised, prepared.ingested.samples)
        self.original = self._costs(self._fused)
        self._context = (
            digest_of(to_bytes(prepared.normal.ir)),
            digest_of(to_bytes(prepared.optimised.ir)),
            data.digest,
            _digest(material.calibration),
            _digest(material.training.samples),
            _lesson_key(material.training.lesson),
            _digest(prepared.ingested.samples),
            _digest([self._sample]),
            digest_of(msgspec.json.encode(profile, order="deterministic")),
            repr((*sorted(budget.metrics), confidence)),
            *map(_version, _PACKAGES),
        )

    def trial(self, name: str, family: str, recipe: Recipe) -> Trial:
        """Make, measure and judge one candidate; what cannot be made or run fails by name, and the search goes on."""
        known = self._known(name, family, recipe)
        if known is not None:
            return known
        try:
            return self._made(name, family, recipe)
        except (UserError, RuntimeRefusedError) as error:
            return Trial(name=name, family=family, recipe=recipe, failure=str(error))

    def _known(self, name: str, family: str, recipe: Recipe) -> Trial | None:
        """The trial from the cache; not if it was judged on a part of the data that does not settle this budget."""
        known = self._cache.get(self._context, recipe)
        if known is None:
            return None
        stored, decided, learned = known
        evaluation = Evaluation(
            scores=stored.scores, per_sample={}, samples=stored.samples, has_groups=stored.has_groups
        )
        if evaluation.samples < len(self._material.dataset) and not self._is_hopeless(evaluation):
            return None
        return Trial(
            name=name,
            family=family,
            recipe=decided,
            learned=learned,
            costs=stored.costs,
            scores=stored.scores,
            judgement=self._budget.judge(evaluation),
        )

    def evaluation(self, model: Model, *, mode: str) -> Evaluation:
        """Judge a model on all of the data, as it runs in a mode of `host.reference.Reference`."""
        found = answers(Reference(model, mode="default" if mode == "default" else "exact"), self._material.dataset)
        return self._evaluated(found, self._truth, self._material.dataset, self._budget.metrics)

    def judged(self, found: Answers) -> Evaluation:
        """Judge answers that were had elsewhere, such as on an emulated device."""
        return self._evaluated(found, self._truth, self._material.dataset, self._budget.metrics)

    def _made(self, name: str, family: str, recipe: Recipe) -> Trial:
        shrunk = self._shrink(recipe)
        made = finish(self._prepared, shrunk, self._material.calibration, say=self._say)
        evaluation = self._judge(made)
        costs = self._costs(made.model)
        self._cache.put(self._context, recipe, made, evaluation, costs)
        return Trial(
            name=name,
            family=family,
            recipe=made.recipe,
            learned=made.learned,
            costs=costs,
            scores=evaluation.scores,
            judgement=self._budget.judge(evaluation),
        )

    def _shrink(self, recipe: Recipe) -> Shrunk:
        """Prune and recover once for all candidates that differ only in what follows."""
        key = dump_recipe(_without_quantization(recipe))
        if self._shrunk is None or self._shrunk[0] != key:
            self._shrunk = None
            found = shrink(
                self._prepared,
                self._with_something_to_remove(recipe),
                self._material.calibration,
                training=self._material.training,
                say=self._say,
            )
            self._shrunk = (key, found)
        kept = self._shrunk[1]
        decided = msgspec.structs.replace(kept.recipe, quantize=recipe.quantize, wire=recipe.wire)
        return Shrunk(model=kept.model, recipe=decided, weights=kept.weights)

    def _with_something_to_remove(self, recipe: Recipe) -> Recipe:
        """The recipe with its first step decided; what removes nothing is no candidate, and is not trained.

        Raises:
            RecipeError: No channel goes.
        """
        first = recipe.prune[0] if recipe.prune else None
        if not isinstance(first, PruneChannels):
            return recipe
        self._say(f"pruning: {first.ratio:.1%} of the channels".replace(".0%", "%"))
        decided = prune.decide(self._prepared.optimised, first, self._material.calibration, say=self._say)
        if not prune.is_decided(decided):
            raise RecipeError(f"no channel can go: layers keep multiples of {first.multiple}, and none has enough")
        return msgspec.structs.replace(recipe, prune=(decided, *recipe.prune[1:]))

    def _judge(self, made: Compressed) -> Evaluation:
        runner = Reference(made.unfused)
        if self._screen is not None and self._screen_truth is not None:
            screened = self._evaluated(
                answers(runner, self._screen), self._screen_truth, self._screen, self._budget.metrics
            )
            if self._is_hopeless(screened):
                return screened
        data = self._material.dataset
        return self._evaluated(answers(runner, data), self._truth, data, self._budget.metrics)

    def _is_hopeless(self, evaluation: Evaluation) -> bool:
        return any(
            not limit.allows(score.low) and not limit.allows(score.high)
            for limit in self._budget.limits
            for score in (evaluation.score(limit.of.name),)
        )

    def _evaluated(self, found: Answers, truth: Answers, data: Dataset, metrics: Sequence[str]) -> Evaluation:
        return evaluate(found, truth, data, metrics, confidence=self._confidence)

    def _costs(self, model: Model) -> Costs:
        first, second = cpu_times({"original": self._fused, "candidate": model}, [self._sample], rounds=_ROUNDS)
        del first
        return Costs(
            size_bytes=len(to_bytes(model.ir)),
            predicted_seconds=predicted_seconds(model, self._sample, self._profile),
            latency_seconds=second.seconds,
            latency_ratio=second.ratio,
        )


def _without_quantization(recipe: Recipe) -> Recipe:
    return msgspec.structs.replace(recipe, quantize=Quantize(mode="none"), wire="float32")


def _lesson_key(lesson: Lesson) -> str:
    """All of a lesson that may change what is learned."""
    labels = None if lesson.labels is None else hashlib.sha256(repr(list(lesson.labels)).encode()).hexdigest()
    numbers = (lesson.augment, lesson.threads, lesson.optimizer, lesson.temperature, lesson.label_weight)
    return repr((labels, _digest(lesson.holdout), *numbers))


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"no {package}"


def _digest(samples: Sequence[Tensors]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        for name, array in sorted(sample.items()):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
