"""Rank nodes by how much the answers suffer from quantizing them, so that the worst can go back first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from host.compress.quantize import quantize
from host.compress.quantize.dynamic import product_of
from host.compress.quantize.quantized import Say, silent
from host.compress.quantize.static import prepared
from host.compress.recipe import Quantize
from host.errors import QuantizeError
from host.model import Model, Tensors
from host.reference import Reference

MAX_SAMPLES = 16
MAX_CALIBRATION_SAMPLES = 64
MAX_ALONE = 40
"""Nodes that are quantized one at a time; more go in groups of neighbours."""

GROUPS = 12

_COMPUTING = frozenset({"Add", "Conv", "ConvTranspose", "Gemm", "LeakyRelu", "MatMul", "Mul", "Resize", "Sigmoid"})
_ACTIVATIONS = frozenset({"Clip", "Relu"})
_WEIGHTS_ONLY = frozenset({"MatMul", "Gemm", "Gather"})

# Of a signal that is not changed at all, in decibels.
_LARGEST_DB = 200.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeSensitivity:
    """How much one node matters.

    Attributes:
        node: Its name.
        operator: What it computes.
        loss: Noise power at the model's outputs, as a share of their power, that quantizing the node causes.
        snr_db: The same in decibels, ``-10 log10(loss)``, at most 200.
        rank: From 1, the worst.
        method: ``alone``: measured with only this node quantized; ``group``: measured with its group of neighbours, and
            shared out by the noise that each of them adds to what it computes.
    """

    node: str
    operator: str
    loss: float
    snr_db: float
    rank: int
    method: Literal["alone", "group"]


def sensitivity(
    model: Model, plan: Quantize, samples: Sequence[Tensors], *, say: Say = silent
) -> tuple[NodeSensitivity, ...]:
    """Rank the nodes that a plan quantizes.

    Args:
        model: The optimised, normalised model.
        plan: How it is quantized; nodes that it excludes are not ranked. Biases are not corrected here.
        samples: Real inputs: the first 16 for measuring, the first 64 for calibration.
        say: Told as the work goes on.

    Returns:
        One entry a node, the worst first.

    Raises:
        QuantizeError: If there is no sample, or nothing can be quantized.
    """
    if not samples:
        raise QuantizeError("sensitivity needs inputs: pass --inputs")
    measure = _Measure(model, plan, samples)
    nodes = measure.candidates()
    method: Literal["alone", "group"] = "alone" if len(nodes) <= MAX_ALONE else "group"
    if method == "alone":
        losses: dict[str, float] = {}
        for index, name in enumerate(nodes):
            say(f"sensitivity of node {index + 1} of {len(nodes)}")
            losses[name] = measure.loss({name})
    else:
        losses = _by_group(measure, nodes, say)
    operators = {str(node.name): node.op_type for node in model.ir.graph}
    return ranked([(name, operators[name]) for name in nodes], losses, method)


def ranked(
    nodes: Sequence[tuple[str, str]], losses: Mapping[str, float], method: Literal["alone", "group"]
) -> tuple[NodeSensitivity, ...]:
    """Order nodes by what quantizing them costs.

    Args:
        nodes: Name and operator of each, in graph order.
        losses: Of each name.
        method: How they were measured.

    Returns:
        One entry a node, the worst first.
    """
    # In graph order where the losses are equal, so that the order is the same each time.
    ordered = sorted(nodes, key=lambda node: -losses[node[0]])
    return tuple(
        NodeSensitivity(
            node=name,
            operator=operator,
            loss=losses[name],
            snr_db=_decibels(losses[name]),
            rank=rank,
            method=method,
        )
        for rank, (name, operator) in enumerate(ordered, start=1)
    )


def _by_group(measure: _Measure, nodes: Sequence[str], say: Say) -> dict[str, float]:
    added = measure.added(nodes)
    losses: dict[str, float] = {}
    groups = [[str(name) for name in part] for part in np.array_split(np.asarray(nodes, dtype=object), GROUPS)]
    for index, group in enumerate(groups):
        say(f"sensitivity of group {index + 1} of {len(groups)}")
        loss = measure.loss(set(group))
        whole = sum(added[name] for name in group) or 1.0
        losses |= {name: loss * added[name] / whole for name in group}
    return losses


class _Measure:
    def __init__(self, model: Model, plan: Quantize, samples: Sequence[Tensors]) -> None:
        plan = msgspec.structs.replace(plan, correct_bias=False, ranges=(), calibrated_for="")
        # The structural steps once, and ranges that hold for all choices of nodes.
        self._model = prepared(model, plan, samples) if plan.mode == "int8" else model
        self._plan = msgspec.structs.replace(plan, equalize=False)
        self._quantized = quantize(self._model, self._plan, samples[:MAX_CALIBRATION_SAMPLES])
        self._plan = self._quantized.plan
        self._samples = samples[:MAX_SAMPLES]
        self._truth = Reference(self._model).run_all(self._samples)

    def candidates(self) -> list[str]:
        """Names of the nodes that the plan quantizes and that compute something, in graph order."""
        names: list[str] = []
        for node in self._model.ir.graph:
            if node.domain or node.name in self._plan.exclude:
                continue
            if self._plan.mode == "int8":
                chosen = node.op_type in _COMPUTING
            else:
                chosen = node.op_type in _WEIGHTS_ONLY and (node.op_type == "Gather" or product_of(node) is not None)
            if chosen:
                names.append(str(node.name))
        return names

    def loss(self, nodes: set[str]) -> float:
        """Noise at the outputs, as a share of their power, with only some nodes quantized."""
        # An activation is part of the layer before it, and is left alone where that stays in fp32.
        others = [
            str(node.name)
            for node in self._model.ir.graph
            if node.name not in nodes and node.op_type not in _ACTIVATIONS
        ]
        alone = msgspec.structs.replace(self._plan, exclude=tuple(others), wider=self._wider(nodes))
        try:
            candidate = quantize(self._model, alone, self._samples).model
        except QuantizeError:
            # Nothing of it can be quantized.
            return 0.0
        reference = Reference(candidate)
        return noise_share(self._truth, (reference.run(sample) for sample in self._samples))

    def _wider(self, nodes: set[str]) -> tuple[str, ...]:
        return tuple(name for name in self._plan.wider if name in nodes)

    def added(self, nodes: Sequence[str]) -> dict[str, float]:
        """Noise share that each node adds to that of what it reads, with all nodes quantized."""
        places = {str(node.name): node for node in self._quantized.model.ir.graph}
        before = {str(node.name): node for node in self._model.ir.graph}
        outputs = {name: str(before[name].outputs[0].name) for name in nodes}
        # A fused activation leaves the node's own name for its output unused.
        found = {name: str(places[name].outputs[0].name) if name in places else outputs[name] for name in nodes}
        known = {str(value.name) for node in self._quantized.model.ir.graph for value in node.outputs}
        usable = [name for name in nodes if found[name] in known]
        shares = self._noise_shares(usable, outputs, found)
        result: dict[str, float] = {}
        worst = 0.0
        for name in nodes:
            share = shares.get(name, worst)
            # At least a little, so that a node in a quiet group still has an order.
            result[name] = max(share - worst, share * 1e-2, 1e-12)
            worst = share
        return result

    def _noise_shares(
        self, names: Sequence[str], outputs: Mapping[str, str], found: Mapping[str, str]
    ) -> dict[str, float]:
        truth = Reference(self._model, extra_outputs=_inner(self._model, [outputs[name] for name in names]))
        judged = Reference(
            self._quantized.model, extra_outputs=_inner(self._quantized.model, [found[name] for name in names])
        )
        noise, power = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        for sample in self._samples:
            want, have = truth.run(sample), judged.run(sample)
            for name in names:
                expected, got = want[outputs[name]].astype(np.float64), have[found[name]].astype(np.float64)
                if expected.shape == got.shape:
                    noise[name] += float(np.square(expected - got).sum())
                    power[name] += float(np.square(expected).sum())
        return {name: noise[name] / power[name] if power[name] else 0.0 for name in names}


def _inner(model: Model, names: Sequence[str]) -> list[str]:
    given = {value.name for value in model.ir.graph.outputs}
    return [name for name in dict.fromkeys(names) if name not in given]


def noise_share(truth: Sequence[Tensors], found: Iterable[Tensors]) -> float:
    """Noise over power, the mean over the float outputs, so that a small output counts like a large one."""
    noise: dict[str, float] = {}
    power: dict[str, float] = {}
    for want, have in zip(truth, found, strict=True):
        for name, expected in want.items():
            if expected.dtype.kind == "f" and have[name].shape == expected.shape:
                exact = expected.astype(np.float64)
                noise[name] = noise.get(name, 0.0) + float(np.square(exact - have[name]).sum())
                power[name] = power.get(name, 0.0) + float(np.square(exact).sum())
    shares = [noise[name] / power[name] for name in noise if power[name] > 0]
    return float(np.mean(shares)) if shares else 0.0


def _decibels(loss: float) -> float:
    return min(_LARGEST_DB, -10 * float(np.log10(loss))) if loss > 0 else _LARGEST_DB
