"""Turn sparse constants into dense ones, in the protobuf message, because the IR does not read sparse ones.

1. Each ``sparse_initializer`` of the graph and its subgraphs becomes an initializer.
2. Each Constant with a ``sparse_value`` becomes a Constant with a ``value``.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

from host.errors import IngestError

MAX_DENSE_BYTES = 1 << 30


def densify(proto: onnx.ModelProto) -> None:
    """Make every sparse constant of a message dense, in place.

    Args:
        proto: A message that the caller owns.

    Raises:
        IngestError: If a sparse constant is malformed or would not fit into memory.
    """
    _densify_graph(proto.graph)
    for function in proto.functions:
        for node in function.node:
            _densify_node(node)


def _densify_graph(graph: onnx.GraphProto) -> None:
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse))
    graph.ClearField("sparse_initializer")
    for node in graph.node:
        _densify_node(node)


def _densify_node(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.HasField("sparse_tensor"):
            dense = _dense(attribute.sparse_tensor)
            attribute.Clear()
            attribute.name = "value"
            attribute.type = onnx.AttributeProto.TENSOR
            attribute.t.CopyFrom(dense)
        if attribute.HasField("g"):
            _densify_graph(attribute.g)
        for graph in attribute.graphs:
            _densify_graph(graph)


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    name = sparse.values.name
    values = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    dims = tuple(sparse.dims)
    if any(dim < 0 for dim in dims) or math.prod(dims) * values.itemsize > MAX_DENSE_BYTES:
        raise IngestError(
            f"sparse constant {name!r} of shape {list(dims)} is more than {MAX_DENSE_BYTES} bytes when dense"
        )
    # Indices are linear, [NNZ], or one coordinate tuple each, [NNZ, rank].
    if indices.ndim == 2 and len(dims) > 0:
        inside = indices.shape == (values.size, len(dims)) and bool(np.all((indices >= 0) & (indices < dims)))
        linear = np.ravel_multi_index(tuple(indices.T), dims) if inside and values.size else np.zeros(0, np.int64)
    else:
        inside = indices.shape == (values.size,) and bool(np.all((indices >= 0) & (indices < math.prod(dims))))
        linear = indices
    if not inside:
        raise IngestError(f"sparse constant {name!r} has indices outside its shape {list(dims)}")
    dense = np.zeros(math.prod(dims), dtype=values.dtype)
    dense[linear] = values
    return numpy_helper.from_array(dense.reshape(dims), name)
