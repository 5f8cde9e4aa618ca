"""ONNX fragments written byte by byte, for a gateway without onnx: only what the microbenchmarks are made of."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

ELEMENTS: Mapping[str, int] = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}
"""Dtypes of tensors to their numbers in onnx.proto."""

Attribute = int | float | Sequence[int] | bytes
"""Value of an attribute; bytes are a serialised tensor."""

# Fields of onnx.proto, by message.
_MODEL_IR_VERSION, _MODEL_GRAPH, _MODEL_OPSETS = 1, 7, 8
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 2, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_INTS, _ATTRIBUTE_TYPE = (
    1,
    2,
    3,
    5,
    8,
    20,
)
_KIND_FLOAT, _KIND_INT, _KIND_TENSOR, _KIND_INTS = 1, 2, 4, 7


def header(name: str, *, ir_version: int, opsets: Mapping[str, int]) -> bytes:
    """Return a model with nothing but versions and the name of its graph."""
    parts = [_number(_MODEL_IR_VERSION, ir_version)]
    for domain, version in opsets.items():
        parts.append(_field(_MODEL_OPSETS, _field(1, domain.encode()) + _number(2, version)))
    return b"".join((*parts, _field(_MODEL_GRAPH, _field(_GRAPH_NAME, name.encode()))))


def nodes(*serialised: bytes) -> bytes:
    """Return a model with nothing but these nodes."""
    return _field(_MODEL_GRAPH, b"".join(_field(_GRAPH_NODE, node) for node in serialised))


def initializer(serialised: bytes) -> bytes:
    """Return a model with nothing but this constant."""
    return _field(_MODEL_GRAPH, _field(_GRAPH_INITIALIZER, serialised))


def graph_input(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """Return a model with nothing but this input."""
    return _field(_MODEL_GRAPH, _field(_GRAPH_INPUT, _value(name, dtype, shape)))


def graph_output(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """Return a model with nothing but this output."""
    return _field(_MODEL_GRAPH, _field(_GRAPH_OUTPUT, _value(name, dtype, shape)))


def node(
    operator: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    domain: str = "",
    attributes: Mapping[str, Attribute] | None = None,
) -> bytes:
    """Return a serialised node that is named after its first output."""
    parts = [_field(_NODE_INPUT, name.encode()) for name in inputs]
    parts += [_field(_NODE_OUTPUT, name.encode()) for name in outputs]
    parts += [_field(_NODE_NAME, f"{outputs[0]}.node".encode()), _field(_NODE_TYPE, operator.encode())]
    parts += [_field(_NODE_ATTRIBUTE, _attribute(*item)) for item in (attributes or {}).items()]
    if domain:
        parts.append(_field(_NODE_DOMAIN, domain.encode()))
    return b"".join(parts)


def tensor(name: str, dtype: str, shape: Sequence[int], data: bytes) -> bytes:
    """Return a serialised tensor; `data` is little-endian."""
    dims = b"".join(_number(_TENSOR_DIMS, dim) for dim in shape)
    named = _field(_TENSOR_NAME, name.encode())
    return dims + _number(_TENSOR_TYPE, ELEMENTS[dtype]) + named + _field(_TENSOR_RAW, data)


def _value(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    dims = b"".join(_field(1, _number(1, dim)) for dim in shape)
    of_tensor = _number(1, ELEMENTS[dtype]) + _field(2, dims)
    return _field(1, name.encode()) + _field(2, _field(1, of_tensor))


def _attribute(name: str, value: Attribute) -> bytes:
    named = _field(_ATTRIBUTE_NAME, name.encode())
    match value:
        case float():
            packed = _varint(_ATTRIBUTE_FLOAT << 3 | 5) + struct.pack("<f", value)
            return named + packed + _number(_ATTRIBUTE_TYPE, _KIND_FLOAT)
        case int():
            return named + _number(_ATTRIBUTE_INT, value) + _number(_ATTRIBUTE_TYPE, _KIND_INT)
        case bytes():
            return named + _field(_ATTRIBUTE_TENSOR, value) + _number(_ATTRIBUTE_TYPE, _KIND_TENSOR)
        case _:
            many = b"".join(_number(_ATTRIBUTE_INTS, one) for one in value)
            return named + many + _number(_ATTRIBUTE_TYPE, _KIND_INTS)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    data = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)
