"""Shapes of the tensors of a graph as far as they follow from its inputs, without running it."""

from __future__ import annotations

import onnx

from host.model import Graph, to_proto

Shape = tuple[int | None, ...]
"""Sizes of a tensor's axes; None for one that is not known or differs between inputs."""

# Constants up to this size may be shapes or axes, which inference must read; larger ones are weights.
_READ_ELEMENTS = 1024


def inferred_shapes(graph: Graph) -> dict[str, Shape]:
    """The shapes that ONNX's own inference finds.

    Args:
        graph: A normalised model.

    Returns:
        Shape by tensor name, initializers and graph inputs included. A tensor whose rank is unknown is absent; so is
        everything computed if inference fails.
    """
    proto = to_proto(graph)
    small: list[onnx.TensorProto] = []
    found: dict[str, Shape] = {}
    for tensor in proto.graph.initializer:
        shape = tuple(tensor.dims)
        found[tensor.name] = shape
        if _elements(shape) <= _READ_ELEMENTS:
            small.append(tensor)
        else:
            # Only its type matters, and without its bytes the message stays small.
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in small]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    try:
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return found
    for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            dims = kind.shape.dim
            found.setdefault(value.name, tuple(d.dim_value if d.HasField("dim_value") else None for d in dims))
    return found


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
