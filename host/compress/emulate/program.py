"""The program inside an emulated machine: runs one model in onnxruntime, tensors in and out over its pipes.

It is run as a file by the Python of the emulated system, which has numpy and onnxruntime and nothing of ours, so it
imports neither `host` nor `edge`. `host.compress.emulate.emulator` takes the format of the messages from here.

A message is one byte of kind and its body, all integers little-endian::

    b"T"  u32 count, then for each tensor: u16 length and name, u8 length and dtype, u8 rank, u64 for each
          dimension, the elements in C order
    b"N"  the names of the model's inputs and outputs: twice u32 count, then for each: u16 length and name
    b"E"  u32 length and text: why the model or a run was refused

The child begins with one N or E; then it answers each T with one T or E, and ends with its input.
"""

from __future__ import annotations

import math
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

TENSORS, NAMES, FAULT = b"T", b"N", b"E"

MAX_TENSORS = 4096
MAX_NAME_BYTES = 4096
MAX_RANK = 16
MAX_TENSOR_BYTES = 1 << 30
MAX_TEXT_BYTES = 4096
DTYPES = (
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
)

_FATAL = 4


class ProtocolError(Exception):
    """A message breaks the format, or its sender is gone."""


def write_tensors(stream: BinaryIO, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a T message.

    Raises:
        ProtocolError: If a tensor is of a kind or size that cannot travel; nothing was written then.
    """
    parts: list[bytes | memoryview] = [TENSORS, struct.pack("<I", len(tensors))]
    for name, tensor in tensors.items():
        array = np.asarray(tensor)
        if array.dtype.name not in DTYPES:
            raise ProtocolError(f"tensor {name!r} has dtype {array.dtype}, which cannot travel")
        if array.ndim > MAX_RANK or array.nbytes > MAX_TENSOR_BYTES:
            raise ProtocolError(f"tensor {name!r} has {array.nbytes} bytes and rank {array.ndim}, too many to travel")
        dtype = array.dtype.name.encode()
        parts += [_name(name), struct.pack("<B", len(dtype)), dtype]
        parts.append(struct.pack(f"<B{array.ndim}Q", array.ndim, *array.shape))
        parts.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    stream.writelines(parts)
    stream.flush()


def read_tensors(stream: BinaryIO) -> dict[str, npt.NDArray[Any]]:
    """Read the body of a T message.

    Raises:
        ProtocolError: If it breaks the format or ends early.
    """
    tensors = {}
    for _ in range(_count(stream)):
        name = _read_name(stream)
        dtype = _exactly(stream, _exactly(stream, 1)[0]).decode("ascii", "replace")
        rank = _exactly(stream, 1)[0]
        if dtype not in DTYPES or rank > MAX_RANK:
            raise ProtocolError(f"tensor {name!r} has dtype {dtype!r} and rank {rank}")
        shape = struct.unpack(f"<{rank}Q", _exactly(stream, 8 * rank))
        size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if size_bytes > MAX_TENSOR_BYTES:
            raise ProtocolError(f"tensor {name!r} has {size_bytes} bytes")
        data = _exactly(stream, size_bytes)
        tensors[name] = np.frombuffer(bytearray(data), np.dtype(dtype).newbyteorder("<")).reshape(shape)
    return tensors


def write_names(stream: BinaryIO, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Write an N message."""
    parts = [NAMES]
    for names in (inputs, outputs):
        parts += [struct.pack("<I", len(names)), *(_name(name) for name in names)]
    stream.writelines(parts)
    stream.flush()


def read_names(stream: BinaryIO) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the body of an N message: the names of inputs and of outputs.

    Raises:
        ProtocolError: If it breaks the format or ends early.
    """
    inputs, outputs = (tuple(_read_name(stream) for _ in range(_count(stream))) for _ in range(2))
    return inputs, outputs


def write_fault(stream: BinaryIO, text: str) -> None:
    """Write an E message."""
    data = text.encode()[:MAX_TEXT_BYTES]
    stream.write(FAULT + struct.pack("<I", len(data)) + data)
    stream.flush()


def read_fault(stream: BinaryIO) -> str:
    """Read the body of an E message.

    Raises:
        ProtocolError: If it breaks the format or ends early.
    """
    (length,) = struct.unpack("<I", _exactly(stream, 4))
    if length > MAX_TEXT_BYTES:
        raise ProtocolError(f"a text of {length} bytes")
    return _exactly(stream, length).decode("utf-8", "replace")


def serve(model: str, mode: str, *, requests: BinaryIO, answers: BinaryIO) -> None:
    """Load a model and answer until the requests end.

    Args:
        model: Path of an ONNX file.
        mode: ``"exact"``: every graph optimisation off. ``"default"``: all on.
        requests: Where T messages come from.
        answers: Where N, T and E messages go.

    Raises:
        ProtocolError: If a request breaks the format.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    # As `host.reference` sets them, so that the two differ in the processor only.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if mode == "exact" else levels.ORT_ENABLE_ALL
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own, and every one is an answer
        write_fault(answers, _first_line(error))
        return
    outputs = [value.name for value in session.get_outputs()]
    write_names(answers, [value.name for value in session.get_inputs()], outputs)
    while kind := requests.read(1):
        if kind != TENSORS:
            raise ProtocolError(f"a request of kind {kind!r}")
        tensors = read_tensors(requests)
        try:
            values = session.run(outputs, tensors)
            write_tensors(answers, dict(zip(outputs, values, strict=True)))
        except Exception as error:  # noqa: BLE001 - the same
            write_fault(answers, _first_line(error))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _name(name: str) -> bytes:
    data = name.encode()
    if len(data) > MAX_NAME_BYTES:
        raise ProtocolError(f"the name {name[:80]!r}... has {len(data)} bytes")
    return struct.pack("<H", len(data)) + data


def _read_name(stream: BinaryIO) -> str:
    (length,) = struct.unpack("<H", _exactly(stream, 2))
    if length > MAX_NAME_BYTES:
        raise ProtocolError(f"a name of {length} bytes")
    return _exactly(stream, length).decode("utf-8", "replace")


def _count(stream: BinaryIO) -> int:
    (count,) = struct.unpack("<I", _exactly(stream, 4))
    if count > MAX_TENSORS:
        raise ProtocolError(f"{count} entries in one message")
    return int(count)


def _exactly(stream: BinaryIO, size_bytes: int) -> bytes:
    data = stream.read(size_bytes)
    if len(data) != size_bytes:
        raise ProtocolError("the stream ended inside a message")
    return data


def _main() -> None:
    # Whatever a library prints must not get between the messages.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.argv[1], sys.argv[2], requests=sys.stdin.buffer, answers=answers)


if __name__ == "__main__":
    _main()
