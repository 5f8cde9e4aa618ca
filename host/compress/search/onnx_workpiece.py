"""Candidates of an ONNX model: pruned, recovered, quantized and fused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from edge.formats.bundle import digest_of
from edge.formats.profile import DeviceProfile
from host.compress import prune
from host.compress.judge.evaluate import Runner
from host.compress.pipeline import Prepared, Say, Shrunk, finish, shrink
from host.compress.quantize.sensitivity import NodeSensitivity, sensitivity
from host.compress.recipe import PruneChannels, Quantize, Recipe, Recover, dump_recipe
from host.compress.search.candidates import Family, families
from host.compress.search.front import Objective
from host.compress.search.predict import predicted_seconds
from host.compress.search.proving import version_of
from host.compress.search.trial import Costs, Made
from host.compress.search.workpiece import Material
from host.errors import RecipeError
from host.model import Model, Tensors, to_bytes
from host.passes.fuse import fuse
from host.reference import Reference
from host.timing import cpu_times

_ROUNDS = 21

# What the bytes of a candidate and its answers come from, beside this project.
_PACKAGES = ("onnx", "onnx-ir", "onnxscript", "onnxruntime", "torch")


class OnnxWorkpiece:
    """An ONNX model of which candidates are made.

    Args:
        prepared: The model, optimised.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        # Only the last: a search is done with one way of pruning before it begins the next.
        self._shrunk: tuple[str, Shrunk] | None = None
        self._fused, _ = fuse(prepared.optimised, prepared.ingested.samples)
        self.name: str = prepared.normal.name
        self.source_digest: str = prepared.normal.origin.digest
        self.samples: Sequence[Tensors] = prepared.ingested.samples
        self.sample: Tensors = prepared.ingested.golden[0].inputs
        self.key: tuple[str, ...] = (
            digest_of(to_bytes(prepared.normal.ir)),
            digest_of(to_bytes(prepared.optimised.ir)),
            *map(version_of, _PACKAGES),
        )

    def original(self) -> Runner:
        """Load the model that answers are compared with."""
        return Reference(self.prepared.normal)

    def original_costs(self, profile: DeviceProfile) -> Costs:
        """Measure what it asks of the device, fused, in fp32."""
        return self._costs(self._fused, profile)

    def make(self, recipe: Recipe, material: Material, profile: DeviceProfile, *, say: Say) -> Made:
        """Make the candidate that a recipe describes; it is judged unfused, and costs what it costs fused.

        Raises:
            UserError: The model does not allow it.
        """
        shrunk = self._shrink(recipe, material, say)
        made = finish(self.prepared, shrunk, material.calibration, say=say)
        return Made(
            recipe=made.recipe,
            learned=made.learned,
            learned_bytes=made.learned_bytes,
            runner=lambda: Reference(made.unfused),
            costs=lambda: self._costs(made.model, profile),
        )

    def families(
        self, profile: DeviceProfile, *, ratios: Iterable[float], recover: tuple[Recover, ...], objective: Objective
    ) -> tuple[Family, ...]:
        """What is worth trying, in order."""
        return families(self.prepared.optimised, profile, ratios=ratios, recover=recover, objective=objective)

    def sensitivity(self, plan: Quantize, samples: Sequence[Tensors], *, say: Say) -> tuple[NodeSensitivity, ...]:
        """Rank the nodes that a plan quantizes, the worst first.

        Raises:
            QuantizeError: There is no sample, or nothing can be quantized.
        """
        return sensitivity(self.prepared.optimised, plan, samples, say=say)

    def _shrink(self, recipe: Recipe, material: Material, say: Say) -> Shrunk:
        """Prune and recover once for all candidates that differ only in what follows."""
        key = dump_recipe(_without_quantization(recipe))
        if self._shrunk is None or self._shrunk[0] != key:
            self._shrunk = None
            found = shrink(
                self.prepared,
                self._with_something_to_remove(recipe, material, say),
                material.calibration,
                training=material.training,
                say=say,
            )
            self._shrunk = (key, found)
        kept = self._shrunk[1]
        decided = msgspec.structs.replace(kept.recipe, quantize=recipe.quantize, wire=recipe.wire)
        return Shrunk(model=kept.model, recipe=decided, weights=kept.weights)

    def _with_something_to_remove(self, recipe: Recipe, material: Material, say: Say) -> Recipe:
        """The recipe with its first step decided; what removes nothing is no candidate, and is not trained.

        Raises:
            RecipeError: No channel goes.
        """
        first = recipe.prune[0] if recipe.prune else None
        if not isinstance(first, PruneChannels):
            return recipe
        say(f"pruning: {first.ratio:.1%} of the channels".replace(".0%", "%"))
        decided = prune.decide(self.prepared.optimised, first, material.calibration, say=say)
        if not prune.is_decided(decided):
            raise RecipeError(f"no channel can go: layers keep multiples of {first.multiple}, and none has enough")
        return msgspec.structs.replace(recipe, prune=(decided, *recipe.prune[1:]))

    def _costs(self, model: Model, profile: DeviceProfile) -> Costs:
        _, time = cpu_times({"original": self._fused, "candidate": model}, [self.sample], rounds=_ROUNDS)
        return Costs(
            size_bytes=len(to_bytes(model.ir)),
            predicted_seconds=predicted_seconds(model, self.sample, profile),
            latency_seconds=time.seconds,
            latency_ratio=time.ratio,
        )


def _without_quantization(recipe: Recipe) -> Recipe:
    return msgspec.structs.replace(recipe, quantize=Quantize(mode="none"), wire="float32")
