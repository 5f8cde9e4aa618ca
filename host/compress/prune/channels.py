"""Remove whole channels from an ONNX graph: first decide which, on samples; then cut, without any data.

Only what is decided goes into the recipe; cutting the same model by the same recipe gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from host.compress.prune.cut import own_biases, remove_channels
from host.compress.prune.importance import Activations, Floats, weight_importance
from host.compress.prune.ties import Group, Ties, find_ties
from host.compress.recipe import ChannelGroup, PruneChannels
from host.errors import RecipeError
from host.model import Model, Tensors, copied
from host.passes.normalise import normalise

Say = Callable[[str], None]


def prunable(model: Model, *, exclude: Sequence[str] = ()) -> tuple[Group, ...]:
    """The groups of tied channels of a model that can be pruned.

    Args:
        model: Normalised.
        exclude: Names of nodes whose output channels all stay.

    Raises:
        RecipeError: If a name in ``exclude`` is no node's.
    """
    return find_ties(model.ir, exclude=exclude).groups


def decide(
    model: Model,
    step: PruneChannels,
    samples: Sequence[Tensors],
    *,
    say: Say,
    ratios: Mapping[str, float] | None = None,
) -> PruneChannels:
    """Choose the channels that stay.

    Args:
        model: Optimised and normalised.
        step: How much and by what; its ``groups`` are decided anew.
        samples: Real inputs; looked at only where the criterion is ``activation``.
        say: Called with one line on what was decided.
        ratios: Share to remove by the first node of a group, instead of ``step.ratio``.

    Returns:
        The step with its groups; those that keep everything are left out.

    Raises:
        RecipeError: If a name in ``step.exclude`` or ``ratios`` is not in the model, or the criterion needs samples and
            there are none that run.
    """
    ties = find_ties(model.ir, exclude=step.exclude)
    ratios = ratios or {}
    first = {group.nodes[0] for group in ties.groups}
    if unknown := sorted(set(ratios) - first):
        raise RecipeError(f"prune: {unknown[0]!r} is not the first node of a group whose channels can be removed")
    wanted = [
        (group, kept)
        for group in ties.groups
        if (kept := kept_count(group.size, ratios.get(group.nodes[0], step.ratio), multiple=step.multiple)) < group.size
    ]
    activations = Activations(model, ties, samples) if step.criterion == "activation" and wanted else None
    chosen: list[ChannelGroup] = []
    for group, kept in wanted:
        worth = _worth(ties, group, step, activations)
        # Among equals the first stay: the sort is stable.
        best = np.sort(np.argsort(-worth, kind="stable")[:kept])
        chosen.append(ChannelGroup(nodes=group.nodes, keep=tuple(best.tolist())))
    before = sum(group.size for group in ties.groups)
    gone = sum(group.size - kept for group, kept in wanted)
    say(f"prune: {before - gone} of {before} channels stay in {len(ties.groups)} groups, {len(chosen)} of them cut")
    return msgspec.structs.replace(step, groups=tuple(chosen))


def structure(model: Model, step: PruneChannels) -> Model:
    """Remove what was decided. Looks at no data.

    Args:
        model: The one that the step was decided for.
        step: With its groups. With ``repair``, each layer that loses inputs gets a bias of its own, zero where it had
            none, for the repair to fill.

    Returns:
        A new, normalised model; nodes keep their names.

    Raises:
        RecipeError: If the groups are not those of this model.
    """
    graph = copied(model.ir)
    ties = find_ties(graph, exclude=step.exclude)
    if step.repair:
        own_biases(graph, ties, ties.stays(step.groups))
        # The new biases have channels, too.
        ties = find_ties(graph, exclude=step.exclude)
    remove_channels(graph, ties, ties.stays(step.groups))
    return normalise(model.with_ir(graph))


def kept_count(size: int, ratio: float, *, multiple: int) -> int:
    """How many of ``size`` channels stay: all, or the multiple nearest to ``size · (1 − ratio)``, whichever is nearer.

    A group that is not larger than ``multiple`` stays whole. Of equally near ones the larger counts.
    """
    if size <= multiple or ratio <= 0:
        return size
    wanted = size * (1 - ratio)
    kept = max(math.floor(wanted / multiple + 0.5), 1) * multiple
    return size if size - wanted <= abs(kept - wanted) else kept


def _worth(ties: Ties, group: Group, step: PruneChannels, activations: Activations | None) -> Floats:
    if step.criterion == "activation" and activations is not None:
        return activations.importance(group, repaired=step.repair)
    return weight_importance(ties, group, norm="l1" if step.criterion == "l1" else "l2")
