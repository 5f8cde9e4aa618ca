"""From layers to the bytes of shards: protobuf fragments and weight blobs (`docs/formats.md`)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from edge.formats.bundle import Constant, GraphPart, check_digest, digest_of
from host.errors import UnsupportedModelError
from host.observe import Observed
from host.partition.cost import constant_closure
from host.partition.layers import LayerNodes, Layers

INLINE_BYTES = 1024
"""Constants below this stay in the graph: shape inference reads some of them."""

_ONNX_TYPES = {
    "bool": onnx.TensorProto.BOOL,
    "uint8": onnx.TensorProto.UINT8,
    "int8": onnx.TensorProto.INT8,
    "uint16": onnx.TensorProto.UINT16,
    "int16": onnx.TensorProto.INT16,
    "uint32": onnx.TensorProto.UINT32,
    "int32": onnx.TensorProto.INT32,
    "uint64": onnx.TensorProto.UINT64,
    "int64": onnx.TensorProto.INT64,
    "float16": onnx.TensorProto.FLOAT16,
    "float32": onnx.TensorProto.FLOAT,
    "float64": onnx.TensorProto.DOUBLE,
    "string": onnx.TensorProto.STRING,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFiles:
    """The files of one shard.

    Attributes:
        graph: constants and nodes.
        weights: weight blobs by digest.
    """

    graph: GraphPart
    weights: Mapping[str, bytes]


def _serialised(graph: onnx.GraphProto) -> bytes:
    data: bytes = onnx.ModelProto(graph=graph).SerializeToString(deterministic=True)
    return data


def header_fragment(model: ir.Model) -> bytes:
    """Return the base fragment: ir_version, opset imports and graph name, and nothing that varies by machine."""
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in sorted(model.opset_imports.items()):
        proto.opset_import.add(domain=domain, version=version)
    proto.graph.name = "stage"
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def boundary_fragments(name: str, tensor: Observed) -> tuple[bytes, bytes]:
    """Return the fragments that declare a tensor as graph input and as graph output."""
    value = onnx.ValueInfoProto(name=name)
    value.type.tensor_type.elem_type = _ONNX_TYPES[tensor.dtype]
    value.type.tensor_type.shape.SetInParent()
    for dim in tensor.dims:
        entry = value.type.tensor_type.shape.dim.add()
        if dim is not None:
            entry.dim_value = dim
    return _serialised(onnx.GraphProto(input=[value])), _serialised(onnx.GraphProto(output=[value]))


def shard_files(layers: Layers, chosen: Iterable[LayerNodes], graph: ir.Graph) -> ShardFiles:
    """Serialise consecutive layers and the constants they read.

    Raises:
        UnsupportedModelError: a constant whose data cannot be stored.
    """
    chosen = tuple(chosen)
    names = dict.fromkeys(name for layer in chosen for name in layer.constants)
    weights: dict[str, bytes] = {}
    constants: dict[str, bytes] = {}
    for name in constant_closure(names, layers):
        made = layers.constant_nodes.get(name)
        if made is not None:
            key = next(str(value.name) for value in made.node.outputs if value.name)
            constants[key] = _serialised(onnx.GraphProto(node=[ir.serde.serialize_node(made.node)]))
        else:
            constants[name] = _initializer_fragment(graph.initializers[name], weights)
    nodes = [ir.serde.serialize_node(node) for layer in chosen for node in layer.nodes]
    return ShardFiles(
        graph=GraphPart(
            constants=tuple(Constant(name=name, fragment=fragment) for name, fragment in constants.items()),
            nodes=_serialised(onnx.GraphProto(node=nodes)),
        ),
        weights=weights,
    )


def _initializer_fragment(value: ir.Value, weights: dict[str, bytes]) -> bytes:
    """Return the fragment of one initializer; data of a kilobyte or more goes to `weights`."""
    tensor = value.const_value
    if tensor is None:
        raise UnsupportedModelError(f"constant {value.name!r} has no data")
    proto = ir.serde.serialize_tensor(tensor)
    proto.name = str(value.name)
    proto.ClearField("doc_string")
    data = b"" if proto.data_type == onnx.TensorProto.STRING else tensor.tobytes()
    if len(data) >= INLINE_BYTES:
        digest = digest_of(data)
        weights[digest] = data
        proto = onnx.TensorProto(name=proto.name, dims=proto.dims, data_type=proto.data_type)
        proto.data_location = onnx.TensorProto.EXTERNAL
        # The packed size: two int4 values share a byte.
        for key, entry in (("location", check_digest(digest, where=proto.name)), ("length", str(len(data)))):
            proto.external_data.add(key=key, value=entry)
    return _serialised(onnx.GraphProto(initializer=[proto]))
