"""Operators that work on each element: arithmetic, activations, comparisons, casts.

Each follows the operator's page in the ONNX specification, at every version of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812 - the name by which everybody knows it
from torch import Tensor

from host.compress.torch.call import Call, Inputs, Operator, given, optional

_DTYPES: Mapping[int, torch.dtype] = {
    int(ir.DataType.FLOAT): torch.float32,
    int(ir.DataType.DOUBLE): torch.float64,
    int(ir.DataType.FLOAT16): torch.float16,
    int(ir.DataType.INT8): torch.int8,
    int(ir.DataType.INT16): torch.int16,
    int(ir.DataType.INT32): torch.int32,
    int(ir.DataType.INT64): torch.int64,
    int(ir.DataType.UINT8): torch.uint8,
    int(ir.DataType.BOOL): torch.bool,
}


def _one(function: Callable[[Tensor], Tensor]) -> Operator:
    def operator(inputs: Inputs, _: Call) -> Sequence[Tensor]:
        return (function(given(inputs, 0)),)

    return operator


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def operator(inputs: Inputs, _: Call) -> Sequence[Tensor]:
        return (function(given(inputs, 0), given(inputs, 1)),)

    return operator


def _many(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def operator(inputs: Inputs, _: Call) -> Sequence[Tensor]:
        return (functools.reduce(function, [given(inputs, index) for index in range(len(inputs))]),)

    return operator


def _divided(a: Tensor, b: Tensor) -> Tensor:
    # Whole numbers are divided towards zero.
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    # The result has the type of the base.
    return torch.pow(a, b).to(a.dtype)


def _mean(inputs: Inputs, _: Call) -> Sequence[Tensor]:
    total = functools.reduce(torch.add, [given(inputs, index) for index in range(len(inputs))])
    return (total / len(inputs),)


def _modulo(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    a, b = given(inputs, 0), given(inputs, 1)
    return (torch.fmod(a, b) if call.integer("fmod", 0) else torch.remainder(a, b),)


def _clip(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x = given(inputs, 0)
    if call.opset < 11:
        return (torch.clamp(x, call.number("min", -math.inf), call.number("max", math.inf)),)
    low, high = optional(inputs, 1), optional(inputs, 2)
    if low is not None:
        x = torch.maximum(x, low)
    return (x if high is None else torch.minimum(x, high),)


def _leaky_relu(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    return (F.leaky_relu(given(inputs, 0), call.number("alpha", 0.01)),)


def _parametric_relu(inputs: Inputs, _: Call) -> Sequence[Tensor]:
    x, slope = given(inputs, 0), given(inputs, 1)
    return (torch.where(x < 0, x * slope, x),)


def _elu(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    return (F.elu(given(inputs, 0), call.number("alpha", 1.0)),)


def _selu(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    alpha = call.number("alpha", 1.67326319217681884765625)
    return (call.number("gamma", 1.05070102214813232421875) * F.elu(given(inputs, 0), alpha),)


def _celu(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    return (F.celu(given(inputs, 0), call.number("alpha", 1.0)),)


def _hard_sigmoid(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    alpha, beta = call.number("alpha", 0.2), call.number("beta", 0.5)
    return (torch.clamp(given(inputs, 0) * alpha + beta, 0.0, 1.0),)


def _hard_swish(x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0.0, 1.0)


def _thresholded_relu(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x = given(inputs, 0)
    return (torch.where(x > call.number("alpha", 1.0), x, torch.zeros_like(x)),)


def _gelu(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    return (F.gelu(given(inputs, 0), approximate=call.text("approximate", "none")),)


def _along(function: Callable[[Tensor, int], Tensor]) -> Operator:
    """Softmax and its kin: before version 13 all axes from ``axis`` on are one."""

    def operator(inputs: Inputs, call: Call) -> Sequence[Tensor]:
        x = given(inputs, 0)
        if call.opset >= 13:
            return (function(x, call.integer("axis", -1)),)
        axis = call.integer("axis", 1) % max(x.ndim, 1)
        rows = math.prod(x.shape[:axis])
        return (function(x.reshape(rows, -1), 1).reshape(x.shape),)

    return operator


def _cast(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    wanted = call.integer("to", 0)
    if wanted not in _DTYPES:
        raise call.refused(f"type {ir.DataType(wanted).name}")
    return (given(inputs, 0).to(_DTYPES[wanted]),)


def _cast_like(inputs: Inputs, _: Call) -> Sequence[Tensor]:
    return (given(inputs, 0).to(given(inputs, 1).dtype),)


def _where(inputs: Inputs, _: Call) -> Sequence[Tensor]:
    return (torch.where(given(inputs, 0), given(inputs, 1), given(inputs, 2)),)


def _dropout(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    # Stages answer the same twice, so dropout is the identity (`host.passes.purity` refuses the other kind).
    x = given(inputs, 0)
    return (x, torch.ones_like(x, dtype=torch.bool))[: call.outputs]


ELEMENTWISE: Mapping[str, Operator] = {
    "Abs": _one(torch.abs),
    "Add": _two(torch.add),
    "And": _two(torch.logical_and),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _one(torch.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _one(torch.cos),
    "Div": _two(_divided),
    "Dropout": _dropout,
    "Elu": _elu,
    "Equal": _two(torch.eq),
    "Erf": _one(torch.erf),
    "Exp": _one(torch.exp),
    "Floor": _one(torch.floor),
    "Gelu": _gelu,
    "Greater": _two(torch.gt),
    "GreaterOrEqual": _two(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _one(_hard_swish),
    "Identity": _one(lambda x: x),
    "LeakyRelu": _leaky_relu,
    "Less": _two(torch.lt),
    "LessOrEqual": _two(torch.le),
    "Log": _one(torch.log),
    "LogSoftmax": _along(torch.log_softmax),
    "Max": _many(torch.maximum),
    "Mean": _mean,
    "Min": _many(torch.minimum),
    "Mish": _one(F.mish),
    "Mod": _modulo,
    "Mul": _two(torch.mul),
    "Neg": _one(torch.neg),
    "Not": _one(torch.logical_not),
    "Or": _two(torch.logical_or),
    "PRelu": _parametric_relu,
    "Pow": _two(_power),
    "Reciprocal": _one(torch.reciprocal),
    "Relu": _one(torch.relu),
    "Round": _one(torch.round),
    "Selu": _selu,
    "Sigmoid": _one(torch.sigmoid),
    "Sign": _one(torch.sign),
    "Sin": _one(torch.sin),
    "Softmax": _along(torch.softmax),
    "Softplus": _one(F.softplus),
    "Softsign": _one(F.softsign),
    "Sqrt": _one(torch.sqrt),
    "Sub": _two(torch.sub),
    "Sum": _many(torch.add),
    "Tanh": _one(torch.tanh),
    "ThresholdedRelu": _thresholded_relu,
    "Where": _where,
    "Xor": _two(torch.logical_xor),
}
