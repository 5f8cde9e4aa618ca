"""Candidates of a TFLite model, for the search that ONNX models go through, too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from edge.formats.bundle import digest_of
from edge.formats.profile import DeviceProfile
from host.compress.judge.evaluate import Runner
from host.compress.pipeline import Say, silent
from host.compress.quantize.sensitivity import NodeSensitivity, noise_share, ranked
from host.compress.recipe import Mode, Quantize, Recipe, Recover
from host.compress.search.candidates import Family, Refinement
from host.compress.search.front import Objective, joined
from host.compress.search.proving import version_of
from host.compress.search.search import Found, Wish, look
from host.compress.search.trial import Costs, Made, TrialCache
from host.compress.search.workpiece import Material
from host.errors import IngestError, QuantizeError, RuntimeRefusedError
from host.model import Tensors
from host.tflite.model import TfliteModel
from host.tflite.quantize import VARIANT, TfliteQuantizer, quantized_operators, require_quantizer
from host.tflite.quantize_compress import TfliteCompressed, check_recipe, check_runs, compress_tflite
from host.tflite.quantize_figures import predicted_seconds_tflite
from host.tflite.reference import TfliteReference
from host.timing import runner_times

MAX_SAMPLES = 16
MAX_ALONE = 64
"""Operators that are quantized one at a time for a ranking; more go in groups of neighbours."""

_ROUNDS = 21
_CALIBRATION_SAMPLES = 64
_PACKAGES = ("ai-edge-litert", "ai-edge-quantizer")

# Bytes of fp32 weights and time that each mode leaves.
_LEFT: Mapping[Mode, tuple[float, float]] = {
    "int8": (0.26, 0.55),
    "int8-dynamic": (0.26, 0.75),
    "int8-weights": (0.26, 1.0),
    "int4": (0.16, 1.0),
    "float16": (0.5, 1.0),
    "none": (1.0, 1.0),
}


class TfliteWorkpiece:
    """A TFLite model of which candidates are made.

    Args:
        model: The model.
        samples: Inputs that came with it; at least one.
    """

    def __init__(self, model: TfliteModel, samples: Sequence[Tensors]) -> None:
        self.model = model
        self.name: str = model.name
        self.source_digest: str = model.origin.digest
        self.samples: Sequence[Tensors] = samples
        self.sample: Tensors = samples[0]
        self.key: tuple[str, ...] = (
            digest_of(model.data),
            *map(version_of, _PACKAGES),
        )
        self._quantizer = TfliteQuantizer(model)

    def original(self) -> Runner:
        """Load the model that answers are compared with, in the interpreter's own kernels."""
        return TfliteReference(self.model)

    def original_costs(self, profile: DeviceProfile) -> Costs:
        """Measure what it asks of the device as it came."""
        return self._costs(self.model, profile)

    def make(self, recipe: Recipe, material: Material, profile: DeviceProfile, *, say: Say) -> Made:
        """Make the candidate that a recipe describes; it is judged and timed as a device runs it.

        Raises:
            UserError: The model does not allow it.
        """
        check_recipe(recipe)
        found = self._quantizer.quantize(recipe.quantize, material.calibration, say=say)
        if found.model is not self.model:
            check_runs(found.model, recipe.quantize.mode)
        return Made(
            recipe=msgspec.structs.replace(recipe, quantize=found.plan),
            runner=lambda: TfliteReference(found.model, mode="default"),
            costs=lambda: self._costs(found.model, profile),
        )

    def families(
        self, profile: DeviceProfile, *, ratios: Iterable[float], recover: tuple[Recover, ...], objective: Objective
    ) -> tuple[Family, ...]:
        """What is worth trying, in order; nothing is pruned."""
        del profile, ratios, recover
        return tflite_families(objective)

    def sensitivity(self, plan: Quantize, samples: Sequence[Tensors], *, say: Say) -> tuple[NodeSensitivity, ...]:
        """Rank the operators that a plan quantizes, the worst first: each quantized alone, or with its neighbours.

        Raises:
            QuantizeError: There is no sample, or nothing can be quantized.
        """
        if not samples:
            raise QuantizeError("sensitivity needs inputs: pass --inputs")
        nodes = quantized_operators(self.model, plan)
        open_plan = msgspec.structs.replace(plan, ranges=(), calibrated_for="")
        decided = self._quantizer.quantize(open_plan, samples[:_CALIBRATION_SAMPLES], say=say).plan
        reference = TfliteReference(self.model)
        truth = [reference.run(sample) for sample in samples[:MAX_SAMPLES]]
        groups = [[str(name) for name in part] for part in np.array_split([name for name, _ in nodes], MAX_ALONE)]
        losses: dict[str, float] = {}
        for group in filter(None, groups):
            say(f"sensitivity of {group[0]}" + (f" and {len(group) - 1} more" if len(group) > 1 else ""))
            others = (name for name, _ in nodes if name not in group)
            loss = self._loss(msgspec.structs.replace(decided, exclude=(*decided.exclude, *others)), samples, truth)
            losses |= dict.fromkeys(group, loss)
        return ranked(nodes, losses, "alone" if len(nodes) <= MAX_ALONE else "group")

    def _loss(self, plan: Quantize, samples: Sequence[Tensors], truth: Sequence[Tensors]) -> float:
        try:
            runner = TfliteReference(self._quantizer.quantize(plan, ()).model, mode="default")
            return noise_share(truth, (runner.run(sample) for sample in samples[: len(truth)]))
        except (QuantizeError, RuntimeRefusedError):
            # What cannot run quantized goes back first.
            return float("inf")

    def _costs(self, model: TfliteModel, profile: DeviceProfile) -> Costs:
        runners = {name: TfliteReference(each, mode="default") for name, each in (("", self.model), ("new", model))}
        _, time = runner_times(runners, [self.sample], rounds=_ROUNDS)
        try:
            predicted = predicted_seconds_tflite(model, self.sample, profile)
        except IngestError as error:
            raise RuntimeRefusedError(str(error)) from error
        return Costs(
            size_bytes=len(model.data),
            predicted_seconds=predicted,
            latency_seconds=time.seconds,
            latency_ratio=time.ratio,
        )


def search_tflite(
    model: TfliteModel,
    samples: Sequence[Tensors],
    material: Material,
    wish: Wish,
    *,
    cache: TrialCache | None = None,
    say: Say = silent,
) -> tuple[TfliteCompressed, Found]:
    """Search for the best form of a TFLite model.

    Args:
        model: The model.
        samples: Inputs that came with it; at least one.
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
    # Without it every candidate would fail, and the model as it is be the best.
    require_quantizer()
    chosen, found = look(TfliteWorkpiece(model, samples), material, wish, cache=cache, say=say)
    return compress_tflite(model, chosen.recipe, say=say), found


def tflite_families(objective: Objective) -> tuple[Family, ...]:
    """What a search tries of a TFLite model: static int8 in three ways first, then what is expected to cost least."""

    def family(mode: Mode, refinement: Refinement = "none", **more: Quantize) -> Family:
        ways = {mode: Quantize(mode=mode, variant=VARIANT), **more}
        rungs = {name: Recipe(quantize=plan) for name, plan in ways.items()}
        return Family(name=mode, expected=joined(*_LEFT[mode], objective), rungs=rungs, refinement=refinement)

    static = Quantize(mode="int8", variant=VARIANT)
    found = [
        family(
            "int8",
            "exclude",
            **{
                "int8-entropy": msgspec.structs.replace(static, calibration="entropy"),
                "int8-percentile": msgspec.structs.replace(static, calibration="percentile"),
            },
        ),
        family("int8-dynamic", "exclude"),
        family("int8-weights", "exclude"),
        family("int4", "wider"),
        family("float16"),
        family("none"),
    ]
    return tuple(sorted(found, key=lambda each: (each.name != "int8", each.expected, each.name)))
