"""What a training may change of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from host.compress.recipe import Recover
from host.compress.recover import RecoverError
from host.compress.torch.graph import OnnxModule
from host.model import Model

# Bias inputs by operator: what they hold is added to each channel.
_BIAS_INPUT = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "BatchNormalization": 2, "LayerNormalization": 2}
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Change:
    """What training may change.

    Attributes:
        parameters: What is trained, by name.
        values: Gives the weights that result, by initializer.
    """

    parameters: Mapping[str, torch.nn.Parameter]
    values: Callable[[], dict[str, Tensor]]


def change_of(model: Model, module: OnnxModule, step: Recover) -> Change:
    """What a method may change: all weights (``distill``), biases (``bias``), or a low-rank addition (``low-rank``).

    Raises:
        RecoverError: If the model has nothing of that kind.
    """
    weights = module.weights
    if step.method == "distill":
        chosen = weights
    elif step.method == "bias":
        chosen = {name: weights[name] for name in sorted(_biases(model) & weights.keys())}
    else:
        return _low_rank(model, weights, step)
    if not chosen:
        raise RecoverError(
            f"{model.name}: has no {'bias' if step.method == 'bias' else 'weight'} that could be trained"
        )
    # The parameters are the module's own, so that nothing stands in for them; a copy of the mapping is enough.
    return Change(parameters=chosen, values=lambda: dict(chosen))


def _biases(model: Model) -> set[str]:
    """Initializers that are added to each channel: at most one axis of theirs is longer than one."""
    names = set()
    for node in model.ir.graph:
        places = (0, 1) if node.op_type in ("Add", "Sub") else (_BIAS_INPUT.get(node.op_type, -1),)
        for place in places:
            value = node.inputs[place] if 0 <= place < len(node.inputs) else None
            array = value.const_value if value is not None else None
            if value is not None and array is not None and sum(size > 1 for size in array.shape.numpy()) <= 1:
                names.add(str(value.name))
    multiplied = {
        str(value.name)
        for node in model.ir.graph
        if node.op_type in ("Mul", "Div", *_PRODUCTS)
        for value in node.inputs[: 2 if node.op_type in _PRODUCTS else None]
        if value is not None
    }
    return names - multiplied


def _low_rank(model: Model, weights: Mapping[str, torch.nn.Parameter], step: Recover) -> Change:
    """W + A B for the weight of each product (Hu et al. 2021, "LoRA", section 4.1: A is random, B is zero)."""
    names = sorted(
        {
            str(value.name)
            for node in model.ir.graph
            if node.op_type in _PRODUCTS
            for value in node.inputs[:2]
            if value is not None and value.name in weights and weights[str(value.name)].ndim >= 2
        }
    )
    if not names:
        raise RecoverError(f"{model.name}: has no matrix that could get a low-rank change")
    random = torch.Generator().manual_seed(step.seed)
    parameters: dict[str, torch.nn.Parameter] = {}
    for name in names:
        rows, columns = weights[name].flatten(1).shape
        rank = min(step.rank, rows, columns)
        start = torch.randn((rank, columns), generator=random) / math.sqrt(columns)
        parameters[f"{name}/left"] = torch.nn.Parameter(torch.zeros(rows, rank))
        parameters[f"{name}/right"] = torch.nn.Parameter(start)
    base = {name: weights[name].detach().clone() for name in names}
    return Change(
        parameters=parameters,
        values=lambda: {
            name: value + (parameters[f"{name}/left"] @ parameters[f"{name}/right"]).reshape(value.shape)
            for name, value in base.items()
        },
    )
