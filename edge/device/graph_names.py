"""Names in a serialised graph, read without onnx: the nodes of a shard and the tensors that they make.

A runtime's profiler calls a kernel by the name of its node or, after fusing, of a tensor that it makes. Only the few
fields of the protobuf messages that hold names are looked at; the rest is passed over by its length.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from edge.errors import BundleError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_LENGTH = {_FIXED64: 8, _FIXED32: 4}
# Fields of onnx.proto: ModelProto.graph, GraphProto.node, and of NodeProto output, name and op_type.
_GRAPH, _NODE, _OUTPUT, _NAME, _OPERATOR = 7, 1, 2, 3, 4


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeNames:
    """What a kernel of a node may be called after.

    Attributes:
        name: of the node, which may be empty.
        operator: its type.
        outputs: tensors that it makes.
    """

    name: str
    operator: str
    outputs: tuple[str, ...]


def node_names(model: bytes, *, where: str) -> tuple[NodeNames, ...]:
    """Return the names of the nodes of a serialised `ModelProto`, in order.

    Raises:
        BundleError: it is no protobuf message.
    """
    try:
        return tuple(_names(node) for graph in _messages(memoryview(model), _GRAPH) for node in _messages(graph, _NODE))
    except (IndexError, ValueError) as error:
        raise BundleError(f"{where}: its nodes cannot be read ({error})") from error


def _names(node: memoryview) -> NodeNames:
    texts = {_NAME: "", _OPERATOR: ""}
    outputs = []
    for field, data in _fields(node):
        if field in texts:
            texts[field] = str(data, "utf-8")
        elif field == _OUTPUT:
            outputs.append(str(data, "utf-8"))
    return NodeNames(name=texts[_NAME], operator=texts[_OPERATOR], outputs=tuple(outputs))


def _messages(data: memoryview, wanted: int) -> Iterator[memoryview]:
    return (value for field, value in _fields(data) if field == wanted)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of every field that has a length."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _BYTES:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("a field is cut off")
            yield key >> 3, data[at : at + length]
            at += length
        elif kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in _FIXED_LENGTH:
            at += _FIXED_LENGTH[kind]
        else:
            raise ValueError(f"field of kind {kind}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
