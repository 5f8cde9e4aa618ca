"""Recalibrate a pruned model on unlabelled samples: mean and deviation of each channel as in the original.

Batch norms were mostly folded into the layers before them, so their statistics cannot simply be measured again. What
they would have restored can: each Conv and Gemm output gets the per-channel mean and deviation that the original has
there, by scaling the rows of its weight and moving its bias, in graph order, so that each layer already sees corrected
inputs. Batch norms that are still there get the mean and variance of what they see now. (Hubara et al. 2021, "Accurate
Post Training Quantization With Small Calibration Sets", section 3.3, do so for quantization.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from edge.formats.tensor import Array
from host.compress.recover import output_channels, with_values
from host.model import Model, Tensors, to_proto
from host.reference import Reference

MAX_SAMPLES = 64

# A factor beyond it says that a channel is dead or noise, not that it needs so much.
LARGEST_FACTOR = 4.0

# A channel whose deviation is below this share of the layer's largest is dead: its factor would be noise.
_DEAD = 1e-4
# Fewer values than this say little about a deviation.
_LEAST_VALUES = 16

_LAYERS = ("Conv", "ConvTranspose", "Gemm")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Moments:
    """Mean and deviation of each channel of a tensor.

    Attributes:
        mean: [channels].
        deviation: [channels], by the number of values, not one less.
        values: How many values each channel has.
    """

    mean: Floats
    deviation: Floats
    values: int


def recalibrate(
    model: Model,
    original: Model,
    samples: Sequence[Tensors],
    *,
    channels: Mapping[str, Sequence[int]],
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Array]:
    """Find weights and biases that give each layer's output the mean and deviation that the original has there.

    A layer without a bias is only scaled: `host.compress.quantize.bias.with_biases` gives it one. Layers that share a
    weight, and layers with other channels than the original and no entry in ``channels``, stay as they are.

    Args:
        model: The pruned model, normalised.
        original: The model before, normalised; its nodes are found by name.
        samples: Inputs; the first 64 are used.
        channels: By node name, which of the original's output channels the node still has, ascending.
        say: Told what was done.

    Returns:
        New values of initializers; empty if the answers on the samples came no closer to the original's.
    """
    chosen = samples[:MAX_SAMPLES]
    targets = _targets(model)
    wanted = _original_moments(original, [node for node in targets if node.op_type in _LAYERS], chosen)
    sweep = _Sweep(model, chosen)
    changed: dict[str, Array] = {}
    for node in targets:
        if node.op_type == "BatchNormalization":
            seen = sweep.until(str(node.inputs[0].name if node.inputs[0] is not None else ""))
            found = _new_statistics(node, _moments(seen))
        else:
            goal = _goal(node, wanted, channels)
            if goal is None:
                continue
            name = str(node.outputs[0].name)
            found = _matched(node, _moments(sweep.until(name)), goal, lambda f, s, name=name: sweep.correct(name, f, s))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        changed |= found
        sweep.constants.update(found)
    before, after = (_distance(original, other, chosen) for other in (model, with_values(model, changed)))
    say(f"recalibrated {len(targets)} layers: relative error of the answers {before:.4g} -> {after:.4g}")
    return changed if after < before else {}


def _targets(model: Model) -> list[ir.Node]:
    """What can be recalibrated, in graph order: batch norms, and layers that no batch norm follows."""
    users: dict[str, int] = {}
    for node in model.ir.graph:
        for value in node.inputs:
            if value is not None:
                users[str(value.name)] = users.get(str(value.name), 0) + 1

    def own(node: ir.Node, *indices: int) -> bool:
        return all(
            (value := node.inputs[index] if index < len(node.inputs) else None) is None
            or (value.const_value is not None and users[str(value.name)] == 1)
            for index in indices
        )

    return [
        node
        for node in model.ir.graph
        if (node.op_type == "BatchNormalization" and own(node, 3, 4))
        or (node.op_type in _LAYERS and own(node, 1, 2) and _is_last_linear(node))
    ]


def _is_last_linear(node: ir.Node) -> bool:
    weight = node.inputs[1].const_value if node.inputs[1] is not None else None
    if weight is None or weight.dtype != ir.DataType.FLOAT:
        return False
    return not any(user.op_type == "BatchNormalization" for user, _ in node.outputs[0].uses())


def _goal(node: ir.Node, wanted: Mapping[str, Moments], channels: Mapping[str, Sequence[int]]) -> Moments | None:
    goal = wanted.get(str(node.name))
    if goal is None:
        return None
    kept = channels.get(str(node.name))
    if kept is not None and len(kept) == output_channels(node) and max(kept) < len(goal.mean):
        index = np.asarray(kept)
        return Moments(mean=goal.mean[index], deviation=goal.deviation[index], values=goal.values)
    return goal if len(goal.mean) == output_channels(node) else None


def _matched(
    node: ir.Node, seen: Moments, goal: Moments, corrected: Callable[[Floats, Floats], None]
) -> dict[str, Array]:
    """New weight and bias, so that factor · (W x + b) + shift is what the layer computes."""
    alive = (seen.deviation > _DEAD * seen.deviation.max()) & (goal.deviation > _DEAD * goal.deviation.max())
    alive &= min(seen.values, goal.values) >= _LEAST_VALUES
    factor = np.ones_like(seen.mean)
    factor[alive] = np.clip(goal.deviation[alive] / seen.deviation[alive], 1 / LARGEST_FACTOR, LARGEST_FACTOR)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    shift = goal.mean - factor * seen.mean if bias is not None else np.zeros_like(factor)
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return {}
    found: dict[str, Array] = {str(weight.name): _scaled(node, weight.const_value.numpy(), factor)}
    if bias is not None and bias.const_value is not None:
        old = bias.const_value.numpy()
        share = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
        if old.size != factor.size or share == 0:
            return {}
        found[str(bias.name)] = (old.reshape(-1) * factor + shift / share).astype(old.dtype).reshape(old.shape)
    corrected(factor, shift)
    return found


def _scaled(node: ir.Node, weight: Array, factor: Floats) -> Array:
    if node.op_type == "ConvTranspose":
        # [inputs, outputs of a group, ...]: the groups follow each other along the first axis.
        groups = node.attributes.get_int("group", 1)
        parts = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        scaled = parts * factor.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))
        return scaled.reshape(weight.shape).astype(weight.dtype)
    columns = node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)
    shape = (1, -1) if columns else (-1, *(1,) * (weight.ndim - 1))
    return (weight * factor.reshape(shape)).astype(weight.dtype)


def _new_statistics(node: ir.Node, seen: Moments) -> dict[str, Array]:
    mean, variance = node.inputs[3], node.inputs[4]
    if mean is None or variance is None or mean.const_value is None or variance.const_value is None:
        return {}
    old = variance.const_value.numpy()
    if seen.values < _LEAST_VALUES or old.size != seen.mean.size:
        return {}
    # Dead channels keep a variance: dividing by nothing would make noise of them.
    alive = seen.deviation > _DEAD * seen.deviation.max()
    return {
        str(mean.name): seen.mean.astype(old.dtype),
        str(variance.name): np.where(alive, seen.deviation**2, old).astype(old.dtype),
    }


def _moments(arrays: Iterable[Array]) -> Moments:
    """Of tensors [batch, channels, ...], all taken together."""
    sums: Floats | float = 0.0
    squares: Floats | float = 0.0
    count = 0
    for array in arrays:
        wide = array.astype(np.float64)
        axes = (0, *range(2, wide.ndim))
        sums = sums + wide.sum(axes)
        squares = squares + np.square(wide).sum(axes)
        count += wide.size // max(wide.shape[1], 1)
    mean = np.asarray(sums) / count
    return Moments(mean=mean, deviation=np.sqrt(np.maximum(np.asarray(squares) / count - mean**2, 0)), values=count)


def _original_moments(original: Model, nodes: Sequence[ir.Node], samples: Sequence[Tensors]) -> dict[str, Moments]:
    outputs = {str(node.name): str(node.outputs[0].name) for node in original.ir.graph if node.op_type in _LAYERS}
    names = {str(node.name): outputs[str(node.name)] for node in nodes if str(node.name) in outputs}
    given = {str(value.name) for value in original.ir.graph.outputs}
    reference = Reference(original, extra_outputs=[name for name in names.values() if name not in given])
    answers = [reference.run(sample, list(names.values())) for sample in samples] if names else []
    return {node: _moments(answer[name] for answer in answers) for node, name in names.items()}


def _distance(original: Model, other: Model, samples: Sequence[Tensors]) -> float:
    """Root of the squared difference of all float answers over the root of their squares."""
    difference = size = 0.0
    expected, found = Reference(original), Reference(other)
    for sample in samples:
        have, want = list(found.run(sample).values()), list(expected.run(sample).values())
        for a, b in zip(have, want, strict=True):
            if b.dtype.kind == "f" and a.shape == b.shape:
                difference += float(np.square(a.astype(np.float64) - b).sum())
                size += float(np.square(b.astype(np.float64)).sum())
    return float(np.sqrt(difference / size)) if size else 0.0


class _Sweep:
    """One run of all samples through the graph that halts at chosen tensors, so that weights can change on the way."""

    def __init__(self, model: Model, samples: Sequence[Tensors]) -> None:
        proto = to_proto(model.ir)
        self._frame = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
        self._nodes = list(proto.graph.node)
        self._values: list[dict[str, Array]] = [dict(sample) for sample in samples]
        self.constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer
        }

    def until(self, name: str) -> list[Array]:
        """Run what the tensor needs, with the constants as they are now.

        Returns:
            The tensor of each sample.
        """
        if name not in self._values[0]:
            part = self._needed(name)
            picked = {id(node) for node in part}
            self._nodes = [node for node in self._nodes if id(node) not in picked]
            self._run(part, name)
        return [values[name] for values in self._values]

    def correct(self, name: str, factor: Floats, shift: Floats) -> None:
        """Change a tensor as its layer's new weights would."""
        for values in self._values:
            array = values[name]
            shape = (1, -1, *(1,) * (array.ndim - 2))
            values[name] = (array * factor.reshape(shape) + shift.reshape(shape)).astype(array.dtype)

    def _needed(self, name: str) -> list[onnx.NodeProto]:
        wanted, part = {name}, []
        for node in reversed(self._nodes):
            if wanted & set(node.output):
                part.append(node)
                wanted |= _reads(node)
        return part[::-1]

    def _run(self, part: Sequence[onnx.NodeProto], name: str) -> None:
        made = {output for node in part for output in node.output if output}
        read = set().union(*(_reads(node) for node in part))
        later = set().union({name}, *(_reads(node) for node in self._nodes))
        model = onnx.ModelProto()
        model.CopyFrom(self._frame)
        model.graph.name = "part"
        model.graph.node.extend(part)
        first = self._values[0]
        given = sorted(read & first.keys())
        model.graph.input.extend(
            helper.make_tensor_value_info(entry, helper.np_dtype_to_tensor_dtype(first[entry].dtype), None)
            for entry in given
        )
        model.graph.initializer.extend(
            numpy_helper.from_array(self.constants[entry], entry) for entry in sorted(read & self.constants.keys())
        )
        outputs = sorted(made & later)
        model.graph.output.extend(onnx.ValueInfoProto(name=entry) for entry in outputs)
        reference = Reference(model.SerializeToString())
        self._values = [
            {
                entry: array
                for entry, array in (values | reference.run({entry: values[entry] for entry in given})).items()
                if entry in later
            }
            for values in self._values
        ]


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, those that its subgraphs capture (and some of their own) included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                names |= _reads(inner)
            names |= {output.name for output in graph.output}
    return names
