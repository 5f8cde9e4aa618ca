"""A network that computes what another one does, with ranges that 8 bits cannot hold.

A ReLU commutes with positive factors: each channel before it is multiplied with a factor of its own, over three
decades, and a BatchNormalization *after* it takes them out again. It carries the mean and deviation that the channel
has on data, as one that was trained there would, so that its shift is not nothing and it cannot be moved through the
padding of the next convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edge.formats.tensor import Array
from host.model import Model, Tensors, copied
from host.reference import Reference

DECADES = 3.0
_EPSILON = 1e-5
_SEED = 11


def with_wide_ranges(model: Model, samples: Sequence[Tensors], *, decades: float = DECADES) -> Model:
    """Widen the ranges of every convolution whose only consumer is a ReLU.

    Args:
        model: Its convolutions have biases.
        samples: Inputs that give mean and deviation of each channel.
        decades: Between the smallest and the largest factor.

    Returns:
        A model that answers the same but for rounding.
    """
    graph = copied(model.ir)
    pairs = [(node, user) for node in graph.graph if (user := _activation(node)) is not None]
    statistics = _statistics(model, [str(user.outputs[0].name) for _, user in pairs], samples)
    rng = np.random.default_rng(_SEED)
    for node, user in pairs:
        mean, variance = statistics[str(user.outputs[0].name)]
        exponents = rng.permutation(np.linspace(-decades / 2, decades / 2, len(mean)))
        factors = (10.0**exponents).astype(np.float32)
        _scale(node, factors)
        _take_out(graph, user, factors, mean, variance)
    return model.with_ir(graph)


def _activation(node: ir.Node) -> ir.Node | None:
    """The ReLU that alone reads a convolution."""
    users = [use.node for use in node.outputs[0].uses()] if node.op_type == "Conv" and len(node.inputs) == 3 else []
    return users[0] if len(users) == 1 and users[0].op_type == "Relu" else None


def _statistics(model: Model, names: Sequence[str], samples: Sequence[Tensors]) -> dict[str, tuple[Array, Array]]:
    """Mean and variance of each channel of inner tensors ``[N, C, H, W]``."""
    reference = Reference(model, extra_outputs=names)
    runs = reference.run_all(samples)
    found = {}
    for name in names:
        values = np.concatenate([run[name] for run in runs]).astype(np.float64)
        found[name] = (values.mean((0, 2, 3)), values.var((0, 2, 3)))
    return found


def _scale(conv: ir.Node, factors: Array) -> None:
    """Multiply the output channels of a convolution."""
    for value, shape in zip(conv.inputs[1:], ((-1, 1, 1, 1), (-1,)), strict=True):
        assert value is not None
        assert value.const_value is not None
        scaled = value.const_value.numpy() * factors.reshape(shape)
        value.const_value = ir.tensor(scaled.astype(np.float32), name=value.name)


def _take_out(graph: ir.Model, relu: ir.Node, factors: Array, mean: Array, variance: Array) -> None:
    """Put a batch norm behind a ReLU that divides by the factors; its users read it instead.

    ``(f·x - f·mean) / sqrt(f²·variance + ε) · scale + mean = x`` with ``scale = sqrt(f²·variance + ε) / f``.
    """
    source = relu.outputs[0]
    deviation = np.sqrt(factors**2 * variance + _EPSILON)
    values = {"scale": deviation / factors, "shift": mean, "mean": factors * mean, "variance": factors**2 * variance}
    inputs = []
    for kind, array in values.items():
        value = ir.Value(name=f"{source.name}/{kind}", const_value=ir.tensor(array.astype(np.float32)))
        graph.graph.register_initializer(value)
        inputs.append(value)
    norm = ir.node("BatchNormalization", [source, *inputs], {"epsilon": _EPSILON}, name=f"{source.name}/norm")
    norm.outputs[0].name = f"{source.name}/normed"
    norm.outputs[0].type, norm.outputs[0].shape = source.type, source.shape
    for use in tuple(source.uses()):
        use.node.replace_input_with(use.idx, norm.outputs[0])
    norm.replace_input_with(0, source)
    graph.graph.insert_after(relu, norm)
