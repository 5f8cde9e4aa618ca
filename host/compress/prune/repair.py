"""Win back what removing channels cost, without labels: fit what is left to the original's answers, layer by layer.

In graph order, each layer whose input changed is fitted by least squares: from the pruned model's own input to that
layer, errors of earlier layers included, to the output that the original has there. Where a residual sum follows, the
layer also makes up for what the other summand has lost. Only values of initializers change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge.formats.tensor import Array
from host.compress.constants import set_constant
from host.compress.prune.least_squares import Sums, best_change, sums_of
from host.compress.prune.linear import Linear, as_linear
from host.compress.prune.stream import Stream
from host.compress.prune.ties import Mask, Ties, find_ties
from host.compress.recipe import PruneChannels
from host.errors import RecipeError, RuntimeRefusedError
from host.model import Graph, Model, Tensors, copied
from host.work import node_reads

Say = Callable[[str], None]

SEED = 0
MAX_ALIVE_BYTES = 1 << 30
"""Bytes of tensors that are kept between two layers, of all samples together; beyond it, fewer samples are used."""

LEAST_ROWS = 4096
ROWS_A_FEATURE = 6
HOLD_OUT_EVERY = 4
"""Of each four samples, one chooses how strongly the weights are held where they were."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Original:
    """What stays of the original's tensors.

    Attributes:
        ties: Its channels.
        stays: Which of them.
    """

    ties: Ties
    stays: Mask

    def part(self, name: str, array: Array) -> Array:
        """The part of one of its tensors that the pruned model still has."""
        layout = self.ties.layouts.get(name)
        if layout is None:
            return array
        return np.compress(self.stays[layout.ids], array, axis=layout.axis)


def repair(model: Model, original: Model, step: PruneChannels, samples: Sequence[Tensors], *, say: Say) -> Model:
    """Fit the layers behind removed channels again.

    Args:
        model: ``structure(original, step)``, its values changed or not.
        original: What it was made from.
        step: With its groups.
        samples: Real inputs, unlabelled; at least one.
        say: Called with one line now and then.

    Returns:
        The model with other values of initializers; nodes, names and shapes are the same.

    Raises:
        RecipeError: If there are no samples, the models do not run them, or do not belong together.
    """
    if not samples:
        raise RecipeError("prune: repair needs samples: give --inputs, or set repair = false")
    ties = find_ties(original.ir, exclude=step.exclude)
    source = _Original(ties=ties, stays=ties.stays(step.groups))
    graph = copied(model.ir)
    return model.with_ir(_refitted(graph, original.ir, source, _behind_cuts(graph, source), samples, say=say))


def reconstruct(
    model: Model, original: Model, samples: Sequence[Tensors], *, channels: Mapping[str, Sequence[int]], say: Say
) -> Model:
    """Fit every layer again, whatever was done to the model: several steps of pruning, dropped blocks, zeroed weights.

    Args:
        model: Made from ``original`` by steps that keep the names of nodes and of what they give out.
        original: What its layers should answer.
        samples: Real inputs, unlabelled; at least one.
        channels: By node name, which of the original's output channels the node still has, ascending.
        say: Called with one line now and then.

    Returns:
        The model with other values of initializers. Weights that were set to zero do not stay zero.

    Raises:
        RecipeError: If there are no samples, or the models do not run them.
    """
    if not samples:
        raise RecipeError("recover: reconstruct needs samples: give --inputs")
    ties = find_ties(original.ir)
    stays = np.ones(len(ties.root), np.bool_)
    for cut in ties.cuts:
        kept = channels.get(str(cut.node.name)) if cut.role == "makes" else None
        if kept is not None and max(kept) < len(cut.ids):
            stays[cut.ids] = False
            stays[cut.ids[list(kept)]] = True
    graph = copied(model.ir)
    known = {node.name for node in original.ir.graph}
    layers = [layer for node in graph.graph if node.name in known and (layer := as_linear(node)) is not None]
    return model.with_ir(_refitted(graph, original.ir, _Original(ties=ties, stays=stays), layers, samples, say=say))


def _refitted(
    graph: Graph,
    original: Graph,
    source: _Original,
    layers: Sequence[Linear],
    samples: Sequence[Tensors],
    *,
    say: Say,
) -> Graph:
    if not layers:
        say("prune: nothing to repair")
        return graph
    try:
        used = samples[: _affordable(graph, original, layers, samples)]
        if len(used) < len(samples):
            say(f"prune: repair keeps within {MAX_ALIVE_BYTES >> 20} MiB with {len(used)} of {len(samples)} samples")
        changed = _fit_all(graph, original, source, layers, used, say=say)
    except RuntimeRefusedError as error:
        raise RecipeError(f"prune: repair: the models do not run the samples: {error}") from error
    say(f"prune: repaired {changed} of {len(layers)} layers")
    return graph


def _behind_cuts(graph: Graph, source: _Original) -> list[Linear]:
    """Linear layers whose input lost channels or comes from a layer that did, in graph order."""
    readers = {
        str(cut.node.name) for cut in source.ties.cuts if cut.role == "reads" and not source.stays[cut.ids].all()
    }
    changed: set[str] = set()
    found: list[Linear] = []
    for node in graph.graph:
        if node.name in readers or not changed.isdisjoint(node_reads(node)):
            changed.update(value.name for value in node.outputs if value.name)
            layer = as_linear(node)
            if layer is not None:
                found.append(layer)
    return found


def _affordable(graph: Graph, original: Graph, layers: Sequence[Linear], samples: Sequence[Tensors]) -> int:
    """How many samples fit into memory, from the first one's peak; at least one."""
    streams = (Stream(graph, samples[:1]), Stream(original, samples[:1]))
    peak = 1
    for layer in layers:
        streams[0].run_before(str(layer.node.name))
        streams[1].run_through(str(layer.node.name))
        peak = max(peak, sum(stream.alive_bytes() for stream in streams))
    return min(len(samples), max(MAX_ALIVE_BYTES // peak, 1))


def _fit_all(
    graph: Graph,
    original: Graph,
    source: _Original,
    layers: Sequence[Linear],
    samples: Sequence[Tensors],
    *,
    say: Say,
) -> int:
    pruned, whole = Stream(graph, samples), Stream(original, samples)
    changed = 0
    for index, layer in enumerate(layers):
        name = str(layer.node.name)
        pruned.run_before(name)
        whole.run_through(name)
        fit, held = _sums(layer, index, pruned, whole, source)
        change = best_change(fit, held, with_bias=layer.bias is not None) if fit is not None else None
        if change is not None:
            changed += 1
            if layer.bias is not None:
                offsets = layer.offsets() + change.biases
                shape, dtype = _like(layer.bias)
                set_constant(layer.bias, offsets.reshape(shape).astype(dtype))
            set_constant(layer.weight, layer.array(layer.matrix() + change.weights))
        if (index + 1) % 16 == 0:
            say(f"prune: repair: {index + 1} of {len(layers)} layers")
    return changed


def _sums(
    layer: Linear, index: int, pruned: Stream, whole: Stream, source: _Original
) -> tuple[Sums | None, Sums | None]:
    """Sums over the samples to fit on and over those held out."""
    taken, made = str(layer.node.inputs[0].name) if layer.node.inputs[0] else "", str(layer.node.outputs[0].name)
    other = _summand(layer.node)
    matrix, offsets = layer.matrix(), layer.offsets()
    rows = max(LEAST_ROWS, ROWS_A_FEATURE * matrix.shape[1])
    parts: list[Sums | None] = [None, None]
    holds = len(pruned.alive) >= HOLD_OUT_EVERY
    for number, (mine, theirs) in enumerate(zip(pruned.alive, whole.alive, strict=True)):
        target = source.part(made, theirs[made])
        if other in mine and other in theirs:
            lost = source.part(other, theirs[other])
            if lost.shape == mine[other].shape == target.shape:
                target = target + lost - mine[other]
        if target.shape[layer.outputs_axis] != layer.groups * matrix.shape[2]:
            # It was cut in a way that nobody told us of.
            return None, None
        rng = np.random.default_rng([SEED, index, number])
        at = layer.positions(target, -(-rows // len(pruned.alive)), rng)
        inputs = layer.rows(mine[taken], target.shape, at)
        residuals = layer.answers(target, at) - inputs @ matrix - offsets[:, None, :]
        here = sums_of(inputs, residuals)
        part = int(holds and number % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1)
        before = parts[part]
        parts[part] = here if before is None else before + here
    return parts[0], parts[1]


def _summand(node: ir.Node) -> str:
    """Name of the tensor that is added to a node's output and to nothing else, or ``""``."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return ""
    others = [value for value in uses[0].node.inputs if value is not None and value is not node.outputs[0]]
    return str(others[0].name) if len(others) == 1 and others[0].const_value is None else ""


def _like(value: ir.Value) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    tensor = value.const_value
    array: Array = tensor.numpy() if tensor is not None else np.zeros(0, np.float32)
    return array.shape, array.dtype
