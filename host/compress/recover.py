"""Win accuracy back after pruning: one function a method, cheapest first. Values of weights change, the graph never.

A method is imported when it is asked for, so that those that need no training need no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from edge.formats.tensor import Array
from host.compress.recipe import Recover
from host.errors import UserError
from host.model import Model, Tensors, copied

Progress = Callable[[int, int, int, int, float], None]
"""Called with (epoch, epochs, batch, batches, loss); epochs and batches count from 1."""

Say = Callable[[str], None]


class RecoverError(UserError):
    """The model cannot be recovered with this method, or not with these samples."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lesson:
    """What a method may use beside the samples.

    Attributes:
        holdout: Samples that training does not see, to stop by.
        labels: Class of each sample, for training that mixes in what is known to be right; None without.
        channels: By node name, which of the original's output channels are kept, ascending.
        augment: Whether training shifts and mirrors images; the original answers the changed image.
        checkpoint: Where training keeps its state after each epoch, and goes on from: a file, or a folder that has one
            for each training that is not finished.
        threads: Threads of one operator; with one, the same machine gives the same bytes.
        optimizer: ``adam``, or ``sgd`` with momentum 0.9.
        temperature: By which logits are divided before they are compared: a larger one weighs unlikely classes more.
        label_weight: Share of the cross entropy with the labels in the loss, where there are labels.
    """

    holdout: Sequence[Tensors] = ()
    labels: Sequence[int] | None = None
    channels: Mapping[str, Sequence[int]] = field(default_factory=dict)
    augment: bool = False
    checkpoint: Path | None = None
    threads: int = 1
    optimizer: Literal["adam", "sgd"] = "adam"
    temperature: float = 2.0
    label_weight: float = 0.3


def recover(
    model: Model,
    original: Model,
    step: Recover,
    samples: Sequence[Tensors],
    *,
    lesson: Lesson | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Model:
    """Bring the answers of a model closer to the original's.

    Args:
        model: The pruned model, normalised, after `host.compress.quantize.bias.with_biases`.
        original: What it was before, normalised.
        step: The method and its numbers.
        samples: Inputs; unlabelled ones will do.
        lesson: What else the method may use.
        progress: Told about each batch of training.
        say: Told what else happens.

    Returns:
        The same graph with other values.

    Raises:
        RecoverError: If there is no sample, torch is missing, or the method does not fit the model.
    """
    if not samples:
        raise RecoverError(f"recover by {step.method} needs inputs: pass --inputs")
    values = _METHODS[step.method](
        model,
        original,
        step,
        samples,
        lesson or Lesson(),
        progress or (lambda *_: None),
        say or (lambda _: None),
    )
    return with_values(model, values)


def output_channels(node: ir.Node) -> int:
    """Output channels of a Conv, ConvTranspose or Gemm whose weight is an initializer."""
    weight = node.inputs[1].const_value if node.inputs[1] is not None else None
    if weight is None:
        raise RecoverError(f"node {node.name!r}: its weight is computed, not stored")
    shape = weight.shape.numpy()
    if node.op_type == "ConvTranspose":
        return shape[1] * node.attributes.get_int("group", 1)
    if node.op_type == "Gemm":
        return shape[0] if node.attributes.get_int("transB", 0) else shape[1]
    return shape[0]


def with_values(model: Model, values: Mapping[str, Array]) -> Model:
    """The model with other values of some initializers.

    Raises:
        RecoverError: If a name is no initializer, or a value has another shape or type.
    """
    graph = copied(model.ir)
    for name, array in values.items():
        value = graph.graph.initializers.get(name)
        old = value.const_value if value is not None else None
        if value is None or old is None:
            raise RecoverError(f"{model.name}: has no initializer {name!r}; these values belong to another model")
        tensor = ir.tensor(array, name=name)
        if list(tensor.shape) != list(old.shape) or tensor.dtype != old.dtype:
            raise RecoverError(
                f"{model.name}: initializer {name!r} is {old.dtype.name}{list(old.shape)}, the new value "
                f"{tensor.dtype.name}{list(tensor.shape)}; these values belong to another model"
            )
        value.const_value = tensor
    return model.with_ir(graph)


_Method = Callable[[Model, Model, Recover, Sequence[Tensors], Lesson, Progress, Say], Mapping[str, Array]]


def _recalibrate(
    model: Model, original: Model, _: Recover, samples: Sequence[Tensors], lesson: Lesson, __: Progress, say: Say
) -> Mapping[str, Array]:
    recalibrate = importlib.import_module("host.compress.recalibrate").recalibrate
    values: Mapping[str, Array] = recalibrate(model, original, samples, channels=lesson.channels, say=say)
    return values


def _reconstruct(
    model: Model, original: Model, _: Recover, samples: Sequence[Tensors], lesson: Lesson, __: Progress, say: Say
) -> Mapping[str, Array]:
    reconstruct = importlib.import_module("host.compress.prune.repair").reconstruct
    repaired: Model = reconstruct(model, original, samples, channels=lesson.channels, say=say)
    return {
        name: value.const_value.numpy()
        for name, value in repaired.ir.graph.initializers.items()
        if value.const_value is not None
    }


def _train(
    model: Model,
    original: Model,
    step: Recover,
    samples: Sequence[Tensors],
    lesson: Lesson,
    progress: Progress,
    say: Say,
) -> Mapping[str, Array]:
    distill = importlib.import_module("host.compress.torch.train").distill
    values: Mapping[str, Array] = distill(model, original, step, samples, lesson=lesson, progress=progress, say=say)
    return values


_METHODS: Mapping[str, _Method] = {
    "batch-norm": _recalibrate,
    "reconstruct": _reconstruct,
    "distill": _train,
    "bias": _train,
    "low-rank": _train,
}
