"""How long a model takes on this machine, and where in it the time goes."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Protocol

import onnx_ir as ir

from edge.formats.tensor import Array
from host.model import Model, Tensors
from host.reference import Mode, Reference
from host.trace import traced

_WARM_UP = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeTime:
    """What one node takes in one run of the model.

    Attributes:
        name: As onnxruntime calls it: in the default mode its optimiser fuses and renames nodes.
        operator: Operator type, also as onnxruntime runs it.
        seconds: Median over the runs of its kernel's wall time, without the nodes in its bodies; counted in whole
            microseconds, so that small nodes are known roughly.
    """

    name: str
    operator: str
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuTime:
    """What one of several models takes.

    Attributes:
        name: Which model.
        seconds: Median CPU time of one run.
        ratio: Median over the rounds of its CPU time divided by the first model's in the same round.
    """

    name: str
    seconds: float
    ratio: float


class Timed(Protocol):
    """Whatever runs a model on one thread of this process."""

    def run(self, inputs: Tensors) -> Mapping[str, Array]:
        """Array by output name for one sample."""


def node_times(
    model: Model | ir.Model | bytes, samples: Sequence[Tensors], *, runs: int = 20, mode: Mode = "default"
) -> tuple[NodeTime, ...]:
    """Time every node with onnxruntime's profiler, on one thread.

    Args:
        model: A model, its graph, or serialised ONNX.
        samples: Inputs; they take turns.
        runs: Measured runs, after a few to warm up.
        mode: ``"default"``: as a device runs it. ``"exact"``: every node of the graph as it stands.

    Returns:
        Every node that ran, in the order in which it first ended; one inside a `Loop` with the sum of its iterations.

    Raises:
        RuntimeRefusedError: If onnxruntime refuses the model or its inputs.
    """
    profile = traced(model, list(islice(cycle(samples), _WARM_UP + runs)), mode=mode)[_WARM_UP:]
    names: dict[tuple[str, str], None] = {}
    totals: list[dict[tuple[str, str], float]] = []
    for run in profile:
        total: dict[tuple[str, str], float] = {}
        for node in run:
            key = (node.name, node.operator)
            total[key] = total.get(key, 0.0) + node.seconds
        totals.append(total)
        names |= dict.fromkeys(total)
    return tuple(
        NodeTime(name=name, operator=operator, seconds=statistics.median(t.get((name, operator), 0.0) for t in totals))
        for name, operator in names
    )


def operator_times(times: Sequence[NodeTime]) -> dict[str, float]:
    """Seconds of one run by operator type, the largest first."""
    sums: dict[str, float] = {}
    for node in times:
        sums[node.operator] = sums.get(node.operator, 0.0) + node.seconds
    return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))


def cpu_times(
    models: Mapping[str, Model | ir.Model | bytes],
    samples: Sequence[Tensors],
    *,
    rounds: int = 31,
    mode: Mode = "default",
    seed: int = 0,
) -> tuple[CpuTime, ...]:
    """Measure the CPU time of ONNX models side by side, each on one thread; see `runner_times`.

    Args:
        models: By name; the ratios are to the first.
        samples: Inputs that all models take; they take turns.
        rounds: How many measured rounds.
        mode: See `host.reference.Reference`.
        seed: Of the orders.

    Raises:
        RuntimeRefusedError: If onnxruntime refuses a model or its inputs.
    """
    loaded = {name: Reference(model, mode=mode) for name, model in models.items()}
    return runner_times(loaded, samples, rounds=rounds, seed=seed)


def runner_times(
    loaded: Mapping[str, Timed], samples: Sequence[Tensors], *, rounds: int = 31, seed: int = 0
) -> tuple[CpuTime, ...]:
    """Measure the CPU time of loaded models side by side.

    Every round runs each model once on the same sample, in an order shuffled anew, so that what disturbs the machine
    for a while disturbs all of them. CPU time is the process's: other threads of this process must be idle.

    Args:
        loaded: By name, each on one thread; the ratios are to the first.
        samples: Inputs that all models take; they take turns.
        rounds: How many measured rounds.
        seed: Of the orders.

    Raises:
        RuntimeRefusedError: If a model does not take its inputs.
    """
    for reference in loaded.values():
        for sample in islice(cycle(samples), _WARM_UP):
            reference.run(sample)
    order = list(loaded)
    shuffle = random.Random(seed).shuffle  # noqa: S311 - an order of measurements, no secret
    seconds: dict[str, list[float]] = {name: [] for name in loaded}
    for sample in islice(cycle(samples), rounds):
        shuffle(order)
        for name in order:
            start = time.process_time()
            loaded[name].run(sample)
            seconds[name].append(time.process_time() - start)
    base = seconds[next(iter(seconds))]
    return tuple(
        CpuTime(
            name=name,
            seconds=statistics.median(taken),
            ratio=statistics.median(mine / max(first, 1e-9) for mine, first in zip(taken, base, strict=True)),
        )
        for name, taken in seconds.items()
    )
