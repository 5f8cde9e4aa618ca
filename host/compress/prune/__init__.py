"""Pruning of a model that is there as ONNX: decided on samples, applied without data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from host.compress.prune import blocks, channels, weights
from host.compress.recipe import Prune, PruneBlocks, PruneChannels, PruneTorch, PruneWeights
from host.errors import RecipeError
from host.model import Model, Tensors

Say = Callable[[str], None]


def _as_it_is(_model: Model, step: PruneWeights, _samples: Sequence[Tensors], *, say: Say) -> PruneWeights:
    say("prune: single weights become zero: that makes the transfer smaller, not the model faster")
    return step


def _needs_torch(*_: object, **__: object) -> Any:
    raise RecipeError(
        "prune: a 'torch-channels' step needs the PyTorch source of the model: give package.module:factory, or use "
        "kind 'channels'"
    )


_DECIDE: dict[type[Prune], Callable[..., Prune]] = {
    PruneChannels: channels.decide,
    PruneWeights: _as_it_is,
    PruneBlocks: blocks.decide,
    PruneTorch: _needs_torch,
}
_APPLY: dict[type[Prune], Callable[..., Model]] = {
    PruneChannels: channels.structure,
    PruneWeights: weights.structure,
    PruneBlocks: blocks.structure,
    PruneTorch: _needs_torch,
}


def decide(model: Model, step: Prune, samples: Sequence[Tensors], *, say: Say) -> Prune:
    """Fill in what a pruning step leaves open.

    Args:
        model: Optimised and normalised.
        step: What to do; one that is decided already comes back as it is.
        samples: Real inputs.
        say: Called with lines on what was decided.

    Returns:
        The step, complete: `apply` needs no data for it.

    Raises:
        RecipeError: If the step does not suit the model, or needs its PyTorch source.
    """
    if is_decided(step):
        return step
    return _DECIDE[type(step)](model, step, samples, say=say)


def is_decided(step: Prune) -> bool:
    """Whether a step says already what goes."""
    return bool(step.blocks if isinstance(step, PruneBlocks) else not isinstance(step, PruneWeights) and step.groups)


def apply(model: Model, step: Prune) -> Model:
    """Carry out a decided step, without looking at data: the same model and step give the same bytes.

    Raises:
        RecipeError: If the step was decided for another model, or needs its PyTorch source.
    """
    return _APPLY[type(step)](model, step)
