"""Find the smallest and fastest model that keeps an accuracy budget, or say that none does and which came closest.

1. int8 first, in several ways: every later idea builds on the way that worked.
2. If none keeps the budget, nodes go back to fp32, the most sensitive first, in doubling numbers, then halving back.
3. Pruned models, most channels first, with the quantization that worked; the first that keeps the budget ends the line.
4. What else suits the model (int4, dynamic int8, half precision), as long as it is expected to cost less than the best.

Accuracy is taken on the unfused quantized graph, which answers the same on every processor. A screening on a part of
the data spares hopeless candidates the rest of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from edge.formats.profile import DeviceProfile
from host.compress.judge.budget import Budget
from host.compress.judge.evaluate import Evaluation
from host.compress.pipeline import Compressed, Prepared, Say, finish, prepare, shrink, silent
from host.compress.quantize.sensitivity import NodeSensitivity
from host.compress.recipe import Quantize, Recipe, Recover
from host.compress.search.candidates import PRUNE_RATIOS, Family
from host.compress.search.front import Objective, best, closest, cost, pareto_front
from host.compress.search.onnx_workpiece import OnnxWorkpiece
from host.compress.search.proving import ProvingGround
from host.compress.search.trial import Costs, Trial, TrialCache
from host.compress.search.workpiece import Material, Workpiece
from host.errors import UserError
from host.model import Ingested

MOST_SPARED_SHARE = 0.5
"""More of the nodes than this in fp32 is no int8 model any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What to search for.

    Attributes:
        budget: What must be kept.
        profile: The device.
        recover: How pruned candidates are recovered.
        objective: What the best is measured by.
        ratios: Shares of channels to try to prune.
        confidence: Of the intervals.
        thorough: Whether to go on after the first idea that keeps the budget.
    """

    budget: Budget
    profile: DeviceProfile
    recover: tuple[Recover, ...] = ()
    objective: Objective = "balanced"
    ratios: tuple[float, ...] = PRUNE_RATIOS
    confidence: float = 0.95
    thorough: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        workpiece: The model that it began with.
        trials: Everything tried, in order.
        front: Those that no other one beats.
        chosen: The best within the budget; None if there is none.
        original: What the original costs, fused, in fp32.
        baseline: The original, judged by itself.
        sensitivity: Of the nodes, where it was needed; the worst first.
    """

    workpiece: Workpiece
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    chosen: Trial | None
    original: Costs
    baseline: Evaluation
    sensitivity: tuple[NodeSensitivity, ...]


class BudgetUnmetError(UserError):
    """No candidate keeps the budget; the message lists those that came closest.

    Attributes:
        found: Everything that was tried.
    """

    def __init__(self, message: str, found: Found) -> None:
        super().__init__(message)
        self.found = found


def search(
    ingested: Ingested, material: Material, wish: Wish, *, cache: TrialCache | None = None, say: Say = silent
) -> tuple[Compressed, Found]:
    """Search for the best form of an ONNX model.

    Args:
        ingested: The model.
        material: What candidates are made from and judged on.
        wish: What for.
        cache: Where trials are kept; nowhere when None.
        say: Told each step, and each trial when it is judged.

    Returns:
        The best model within the budget, made from its decided recipe, and everything that was tried.

    Raises:
        BudgetUnmetError: Nothing keeps the budget.
        UserError: The model cannot be run, or the data does not fit.
    """
    prepared = prepare(ingested, say=say, measured=True)
    chosen, found = look(OnnxWorkpiece(prepared), material, wish, cache=cache, say=say)
    return replayed(prepared, chosen, say=say), found


def look(
    workpiece: Workpiece, material: Material, wish: Wish, *, cache: TrialCache | None = None, say: Say = silent
) -> tuple[Trial, Found]:
    """Try what is worth trying of a model of any format.

    Args:
        workpiece: The model.
        material: What candidates are made from and judged on.
        wish: What for.
        cache: Where trials are kept; nowhere when None.
        say: Told each step, and each trial when it is judged.

    Returns:
        The best trial within the budget, and everything that was tried.

    Raises:
        BudgetUnmetError: Nothing keeps the budget.
        UserError: The model cannot be run, or the data does not fit.
    """
    ground = ProvingGround(
        workpiece,
        material,
        wish.budget,
        wish.profile,
        confidence=wish.confidence,
        cache=cache or TrialCache(None),
        say=say,
    )
    run = _Run(workpiece, material, wish, ground, say)
    run.go()
    found = run.found()
    if found.chosen is None:
        raise BudgetUnmetError(_unmet(wish, found), found)
    return found.chosen, found


def replayed(prepared: Prepared, trial: Trial, *, say: Say = silent) -> Compressed:
    """Make the model of a trial from its decided recipe, without data."""
    shrunk = shrink(prepared, trial.recipe, (), learned=trial.learned, say=say)
    return finish(prepared, shrunk, (), learned=trial.learned, say=say, measured=True)


class _Run:
    """One search on its way."""

    def __init__(self, workpiece: Workpiece, material: Material, wish: Wish, ground: ProvingGround, say: Say) -> None:
        self._workpiece, self._material, self._wish, self._ground, self._say = workpiece, material, wish, ground, say
        self._trials: list[Trial] = []
        self._sensitivity: tuple[NodeSensitivity, ...] = ()
        self._plan: Quantize | None = None
        # By how much int8 left more than was expected of it.
        self._scale = 1.0

    def go(self) -> None:
        for family in self._workpiece.families(
            self._wish.profile,
            ratios=self._wish.ratios,
            recover=self._wish.recover,
            objective=self._wish.objective,
        ):
            if self._is_done(family):
                continue
            held = self._climb(family)
            if held is not None and family.name == "int8":
                self._plan = _open(held.recipe.quantize)
                self._scale = cost(held, self._ground.original, self._wish.objective) / family.expected

    def found(self) -> Found:
        return Found(
            workpiece=self._workpiece,
            trials=tuple(self._trials),
            front=pareto_front(self._trials),
            chosen=best(self._trials, self._ground.original, self._wish.objective),
            original=self._ground.original,
            baseline=self._ground.baseline,
            sensitivity=self._sensitivity,
        )

    def _is_done(self, family: Family) -> bool:
        """Whether a family cannot bring anything: it costs more than what is there, or builds on what failed."""
        if family.prunes and self._plan is None:
            return True
        if self._wish.thorough:
            return False
        chosen = best(self._trials, self._ground.original, self._wish.objective)
        if chosen is None:
            return False
        pruned = any(trial.keeps_budget and trial.recipe.prune for trial in self._trials)
        # Fewer channels are only less accurate: the first of that line that keeps the budget is its best. It is int8
        # on fewer channels, so that what int8 turned out to cost tells more than what was expected of it.
        expected = family.expected * (self._scale if family.prunes else 1.0)
        least = cost(chosen, self._ground.original, self._wish.objective)
        return (family.prunes and pruned) or expected >= least

    def _climb(self, family: Family) -> Trial | None:
        """Try the rungs of a family, then spare sensitive nodes; returns the first that keeps the budget."""
        tried: list[Trial] = []
        for name, rung in family.rungs.items():
            recipe = rung
            if family.prunes and self._plan is not None:
                recipe = msgspec.structs.replace(rung, quantize=self._plan)
            trial = self._try(name, family.name, recipe)
            if trial.keeps_budget:
                return trial
            tried.append(trial)
        usable = [trial for trial in tried if trial.judgement is not None]
        if family.refinement == "none" or not usable:
            return None
        closest_rung = max(usable, key=lambda trial: trial.margin)
        plan = family.rungs[closest_rung.name].quantize
        return self._spare(family, closest_rung.name, plan)

    def _spare(self, family: Family, name: str, plan: Quantize) -> Trial | None:
        """Give the most sensitive nodes more bits: 1, 2, 4 … of them, then as few as will do."""
        try:
            ranked = self._workpiece.sensitivity(plan, self._material.calibration, say=self._say)
        except UserError as error:
            self._say(f"no ranking of the nodes: {error}")
            return None
        self._sensitivity = ranked
        order = [entry.node for entry in ranked]
        if not order:
            return None
        most = max(1, int(len(order) * MOST_SPARED_SHARE)) if family.refinement == "exclude" else len(order)

        def attempt(count: int) -> Trial:
            spared = _spared(plan, order[:count], family.refinement)
            nodes = "1 node" if count == 1 else f"{count} nodes"
            return self._try(f"{name}, {nodes} {_WIDTHS[family.refinement]}", family.name, Recipe(quantize=spared))

        return _fewest(attempt, most)

    def _try(self, name: str, family: str, recipe: Recipe) -> Trial:
        self._say(f"trying {name}")
        trial = self._ground.trial(name, family, recipe)
        self._trials.append(trial)
        self._say(f"{name}: {trial.failure or trial.judgement}")
        return trial


_WIDTHS = {"exclude": "in fp32", "wider": "in 8 bits"}


def _fewest(attempt: Callable[[int], Trial], most: int) -> Trial | None:
    """The trial with the fewest spared nodes that keeps the budget: doubling, then halving the gap."""
    low, high, held = 0, 1, None
    while held is None:
        trial = attempt(high)
        if trial.keeps_budget:
            held = trial
        elif high >= most:
            return None
        else:
            low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        trial = attempt(middle)
        if trial.keeps_budget:
            high, held = middle, trial
        else:
            low = middle
    return held


def _spared(plan: Quantize, nodes: Sequence[str], refinement: str) -> Quantize:
    if refinement == "wider":
        return msgspec.structs.replace(plan, wider=tuple(sorted({*plan.wider, *nodes})))
    return msgspec.structs.replace(plan, exclude=tuple(sorted({*plan.exclude, *nodes})))


def _open(plan: Quantize) -> Quantize:
    """The plan without what was found for one model, to be used for another."""
    return msgspec.structs.replace(plan, ranges=(), calibrated_for="")


def _unmet(wish: Wish, found: Found) -> str:
    near = "; ".join(f"{trial.name}: {trial.judgement}" for trial in closest(found.trials))
    failed = [trial for trial in found.trials if trial.failure]
    also = f"; could not be made: {failed[0].name} ({failed[0].failure})" if failed else ""
    own = wish.budget.judge(found.baseline)
    also += "" if own.is_kept else f"; the original itself does not keep it: {own}"
    return (
        f"none of {len(found.trials)} candidates keeps {wish.budget}; closest: {near or 'none'}{also}; "
        "allow more, give more calibration or training data, or keep fp32 with --quantize none"
    )
