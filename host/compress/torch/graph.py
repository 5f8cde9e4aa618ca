"""A model as a PyTorch module: the same graph, operator by operator, with its weights as parameters.

Its initializers keep their names and shapes, so that what training finds goes back into the model as it is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edge.formats.tensor import Array
from host.compare import compare
from host.compress.recover import RecoverError
from host.compress.torch.call import Call, Operator
from host.compress.torch.elementwise import ELEMENTWISE
from host.compress.torch.layers import LAYERS
from host.compress.torch.shaping import SHAPING
from host.model import Model, Tensors
from host.reference import Reference

OPERATORS: Mapping[str, Operator] = {**ELEMENTWISE, **LAYERS, **SHAPING}
"""What can be rendered, by operator type of the default domain."""

TOLERANCE = 1e-4
"""Largest relative error between the rendering and onnxruntime."""

# A mask writes "never" as a number of this size; training must not soften it.
_MASK = 1e30
# Inputs that say how, not what: they are no weights.
_SETTINGS: Mapping[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    "Clip": frozenset({1, 2}),
    "Pad": frozenset({2}),
    "Pow": frozenset({1}),
    "Resize": frozenset({1, 2}),
    "Upsample": frozenset({1}),
}

Way = Literal["joined", "mapped", "looped"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Step:
    call: Call
    operator: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    # Values that nobody reads after this step.
    done: tuple[str, ...]


class OnnxModule(torch.nn.Module):
    """A differentiable rendering of a model.

    Parameters are the float32 initializers that act as weights. Bounds of Clip, statistics of batch norms, exponents,
    scales of Resize, masks and single numbers (such as an epsilon) are not: they stay as they are.

    Several samples run at once in one of three ways, found out by trying on construction: ``joined`` along the first
    axis, as most graphs can; ``mapped`` by `torch.vmap` where the graph is fixed to its batch size; ``looped`` where
    neither gives what single samples give.

    Args:
        model: A normalised model.
        sample: An input on which the rendering must answer like onnxruntime.

    Attributes:
        way: How several samples run at once.

    Raises:
        RecoverError: If an operator has no rendering, or the rendering answers differently.
    """

    def __init__(self, model: Model, sample: Tensors) -> None:
        super().__init__()
        graph = model.ir.graph
        self._name = model.name
        self._outputs = tuple(str(value.name) for value in graph.outputs)
        self._steps = _steps(model)
        arrays = _initializers(graph)
        self._names = tuple(sorted(_weights(graph, arrays)))
        self._weights = torch.nn.ParameterList([torch.nn.Parameter(_tensor(arrays[name])) for name in self._names])
        self._constants = {name: _tensor(array) for name, array in arrays.items() if name not in set(self._names)}
        self.way: Way = "looped"
        self._check(model, sample)

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        """Parameter by name of its initializer."""
        return dict(zip(self._names, self._weights, strict=True))

    def export_weights(self) -> dict[str, Array]:
        """The present value of each weight, by name of its initializer."""
        return {name: weight.detach().numpy().copy() for name, weight in self.weights.items()}

    def forward(
        self, inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None, *, factor: int = 1
    ) -> dict[str, Tensor]:
        """Run the graph.

        Args:
            inputs: Tensor by input name.
            weights: Values that stand for weights of these names; the module's own for the others.
            factor: How many samples are joined along the first axis.

        Returns:
            Tensor by output name.
        """
        values: dict[str, Tensor] = {**self._constants, **self.weights, **(weights or {}), **inputs}
        for step in self._steps:
            operands = [values[name] if name else None for name in step.inputs]
            if factor > 1 and step.call.op_type == "Reshape":
                operands[1] = _joined_shape(operands, factor)
            results = step.operator(operands, step.call)
            values.update((name, value) for name, value in zip(step.outputs, results, strict=False) if name)
            for name in step.done:
                del values[name]
        return {name: values[name] for name in self._outputs}

    def batch(self, inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Run several samples of one shape.

        Args:
            inputs: By input name, [count, *shape of one sample].
            weights: As for `forward`.

        Returns:
            By output name, [count, *shape of one answer].
        """
        count = len(next(iter(inputs.values())))
        return self._ways()[self.way if count > 1 else "looped"](inputs, weights, count)

    def _ways(self) -> dict[Way, Callable[..., dict[str, Tensor]]]:
        return {"joined": self._joined, "mapped": self._mapped, "looped": self._looped}

    def _joined(
        self, inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None, count: int
    ) -> dict[str, Tensor]:
        found = self.forward({name: value.flatten(0, 1) for name, value in inputs.items()}, weights, factor=count)
        return {name: value.reshape(count, len(value) // count, *value.shape[1:]) for name, value in found.items()}

    def _mapped(self, inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None, _: int) -> dict[str, Tensor]:
        with warnings.catch_warnings():
            # An operator without a batching rule is slow, not wrong.
            warnings.simplefilter("ignore")
            mapped: dict[str, Tensor] = torch.vmap(lambda sample: self.forward(sample, weights))(dict(inputs))
        return mapped

    def _looped(
        self, inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None, count: int
    ) -> dict[str, Tensor]:
        found = [
            self.forward({name: value[index] for name, value in inputs.items()}, weights) for index in range(count)
        ]
        return {name: torch.stack([answer[name] for answer in found]) for name in self._outputs}

    def _check(self, model: Model, sample: Tensors) -> None:
        reference = Reference(model, mode="exact")
        pair = [{name: np.asarray(array) for name, array in sample.items()}]
        pair.append({name: _other(array) for name, array in pair[0].items()})
        with torch.no_grad():
            for index, inputs in enumerate(pair):
                found = self.forward({name: _tensor(array) for name, array in inputs.items()})
                fault = compare(_arrays(found), reference.run(inputs), tolerance=TOLERANCE)
                if fault and index == 0:
                    raise RecoverError(
                        f"{model.name}: its rendering for training answers differently from onnxruntime: {fault}; use "
                        "a method that needs no training (batch-norm or reconstruct)"
                    )
            stacked = {name: torch.stack([_tensor(inputs[name]) for inputs in pair]) for name in sample}
            self.way = self._way(stacked)

    def _way(self, stacked: Mapping[str, Tensor]) -> Way:
        """The fastest way that answers like single samples."""
        expected = _arrays(self._looped(stacked, None, 2))
        for way in ("joined", "mapped"):
            try:
                found = _arrays(self._ways()[way](stacked, None, 2))
            except (RuntimeError, ValueError, IndexError, TypeError):
                # That the graph does not take two samples this way shows in whatever operator meets it first.
                continue
            if compare(found, expected, tolerance=TOLERANCE) is None:
                return way
        return "looped"


def _joined_shape(operands: Sequence[Tensor | None], factor: int) -> Tensor | None:
    """The shape that a Reshape of one sample means for ``factor`` of them: its first number counts samples."""
    x, shape = operands[0], operands[1]
    if x is None or shape is None:
        return shape
    sizes = shape.tolist()
    fixed = bool(sizes) and sizes[0] > 0 and x.shape[0] % factor == 0
    if fixed and (x.numel() == factor * math.prod(sizes) if min(sizes) > 0 else x.shape[0] == factor * sizes[0]):
        return torch.tensor([sizes[0] * factor, *sizes[1:]])
    return shape


def _steps(model: Model) -> tuple[_Step, ...]:
    graph = model.ir.graph
    nodes = list(graph)
    opset = model.ir.opset_imports.get("", 1)
    unknown = [node for node in nodes if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise RecoverError(
            f"{model.name}: operator {unknown[0].op_type} of node {unknown[0].name!r}{more} cannot be trained; use a "
            "method that needs no training (batch-norm or reconstruct)"
        )
    kept = {value.name for value in (*graph.outputs, *graph.initializers.values())}
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name and value.name not in kept:
                last[value.name] = index
    done: dict[int, list[str]] = {}
    for name, index in last.items():
        done.setdefault(index, []).append(name)
    return tuple(
        _Step(
            call=Call(
                op_type=node.op_type,
                node=str(node.name),
                opset=opset,
                outputs=sum(1 for value in node.outputs if value.name),
                attributes={name: _attribute(attribute) for name, attribute in node.attributes.items()},
            ),
            operator=OPERATORS[node.op_type],
            inputs=tuple(str(value.name) if value is not None else "" for value in node.inputs),
            outputs=tuple(str(value.name or "") for value in node.outputs),
            done=tuple(done.get(index, ())),
        )
        for index, node in enumerate(nodes)
    )


def _attribute(attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        return _tensor(attribute.value.numpy())
    value = attribute.value
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _initializers(graph: ir.Graph) -> dict[str, Array]:
    return {
        name: value.const_value.numpy() for name, value in graph.initializers.items() if value.const_value is not None
    }


def _weights(graph: ir.Graph, arrays: Mapping[str, Array]) -> set[str]:
    """Names of the initializers that training may change."""
    settings = {
        str(value.name)
        for node in graph
        for index in _SETTINGS.get(node.op_type, ())
        if index < len(node.inputs) and (value := node.inputs[index]) is not None
    }
    return {
        name
        for name, array in arrays.items()
        if array.dtype == np.float32 and array.size > 1 and name not in settings and bool(np.all(np.abs(array) < _MASK))
    } - {str(value.name) for value in graph.outputs}


def _other(array: Array) -> Array:
    """Another sample of the same shape and type, in range, with another mean: a graph that mixes samples shows it."""
    turned = array.ravel()[::-1].copy()
    if array.dtype.kind == "f":
        turned = (turned * 0.5).astype(array.dtype)
    else:
        turned[: array.size // 2] = turned[-1:]
    return turned.reshape(array.shape)


def _tensor(array: Array) -> Tensor:
    # A copy: torch warns about arrays that it may not write to.
    return torch.from_numpy(np.array(array, order="C"))


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}
