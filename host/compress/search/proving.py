"""Measures the candidate that a recipe describes: the proving ground of a search."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import metadata

import msgspec

from edge.formats.bundle import digest_of
from edge.formats.profile import DeviceProfile
from host.compress.data.dataset import Dataset
from host.compress.judge.budget import Budget
from host.compress.judge.evaluate import Answers, Evaluation, answers, evaluate
from host.compress.judge.metrics import asked
from host.compress.pipeline import Say
from host.compress.recipe import Recipe
from host.compress.recover import Lesson
from host.compress.search.trial import Made, Trial, TrialCache
from host.compress.search.workpiece import Material, Workpiece
from host.errors import RuntimeRefusedError, UserError
from host.model import Tensors

SCREENING_SAMPLES = 512
"""A candidate whose whole confidence interval on so many samples lies outside the budget is not judged on the rest."""

# What answers are judged with, whatever made them.
_PACKAGES = ("shardwire", "numpy")


class ProvingGround:
    """Candidates of one model.

    Args:
        workpiece: The model.
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
        workpiece: Workpiece,
        material: Material,
        budget: Budget,
        profile: DeviceProfile,
        *,
        confidence: float,
        cache: TrialCache,
        say: Say,
    ) -> None:
        self._workpiece, self._material, self._budget, self._profile = workpiece, material, budget, profile
        self._confidence, self._say = confidence, say
        # A metric of the user's own may give other figures tomorrow under the same name.
        has_own = any(asked(name).metric.measure_all is not None for name in budget.metrics)
        self._cache = TrialCache(None) if has_own else cache
        data = material.dataset
        say(f"asking the original for its answers to {len(data):,} samples")
        reference = workpiece.original()
        self._truth = answers(reference, data, say)
        self._screen = data.take(SCREENING_SAMPLES) if len(data) > 2 * SCREENING_SAMPLES else None
        self._screen_truth = answers(reference, self._screen) if self._screen is not None else None
        self.baseline = self._evaluated(self._truth, self._truth, data)
        self.original = workpiece.original_costs(profile)
        self._context = (
            *workpiece.key,
            data.digest,
            _digest(material.calibration),
            _digest(material.training.samples),
            _lesson_key(material.training.lesson),
            _digest(workpiece.samples),
            _digest([workpiece.sample]),
            digest_of(msgspec.json.encode(profile, order="deterministic")),
            repr((*sorted(budget.metrics), confidence)),
            *map(version_of, _PACKAGES),
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

    def _made(self, name: str, family: str, recipe: Recipe) -> Trial:
        made = self._workpiece.make(recipe, self._material, self._profile, say=self._say)
        evaluation = self._judge(made)
        costs = made.costs()
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

    def _judge(self, made: Made) -> Evaluation:
        runner = made.runner()
        if self._screen is not None and self._screen_truth is not None:
            screened = self._evaluated(answers(runner, self._screen), self._screen_truth, self._screen)
            if self._is_hopeless(screened):
                return screened
        data = self._material.dataset
        return self._evaluated(answers(runner, data), self._truth, data)

    def _is_hopeless(self, evaluation: Evaluation) -> bool:
        return any(
            not limit.allows(score.low) and not limit.allows(score.high)
            for limit in self._budget.limits
            for score in (evaluation.score(limit.of.name),)
        )

    def _evaluated(self, found: Answers, truth: Answers, data: Dataset) -> Evaluation:
        return evaluate(found, truth, data, self._budget.metrics, confidence=self._confidence)


def version_of(package: str) -> str:
    """Name and installed version of a package, for keys of caches."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"no {package}"


def _lesson_key(lesson: Lesson) -> str:
    """All of a lesson that may change what is learned."""
    labels = None if lesson.labels is None else hashlib.sha256(repr(list(lesson.labels)).encode()).hexdigest()
    numbers = (lesson.augment, lesson.threads, lesson.optimizer, lesson.temperature, lesson.label_weight)
    return repr((labels, _digest(lesson.holdout), *numbers))


def _digest(samples: Sequence[Tensors]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        for name, array in sorted(sample.items()):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
