"""Tensor specs, the table of dtypes that travel on the wire, and how text is packed.

Text is an object array of `str`, as onnxruntime takes and gives it. Packed it is a little-endian u32 for the length of
each element in bytes, then the elements in UTF-8, one after another, in C order.
"""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge.errors import FormatError

_NAMES = (
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
STRING = "string"

DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name).newbyteorder("<") for name in _NAMES},
    STRING: np.dtype(object),
}
"""Dtype names of the wire to little-endian numpy dtypes; text is held as objects, all of them `str`."""

MAX_RANK = 16
MAX_NAME_LENGTH = 512
MAX_TENSOR_BYTES = 1 << 30
MAX_STRINGS = 1 << 16
"""Elements of a tensor of text: each is an object of its own in memory, even an empty one."""

Array = npt.NDArray[Any]

_LENGTH = np.dtype("<u4")
_NAME_OF = {np.dtype(name): name for name in _NAMES} | {dtype: name for name, dtype in DTYPES.items()}


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Name, dtype and shape of one tensor.

    Attributes:
        name: tensor name, unique model-wide.
        dtype: a key of `DTYPES`.
        shape: dimensions; None where a dimension is dynamic (never in a frame).
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


def dtype_of(array: Array) -> str | None:
    """Return the wire's name for the dtype of an array; None where it cannot travel."""
    return _NAME_OF.get(array.dtype)  # numpy works `dtype.name` out anew each time, which is slow


def spec_of(name: str, array: Array) -> TensorSpec:
    """Return the spec of `array`.

    Raises:
        FormatError: the dtype cannot travel.
    """
    dtype = dtype_of(array)
    if dtype is None:
        raise FormatError(f"tensor {name!r}: dtype {array.dtype} cannot travel; allowed: {', '.join(DTYPES)}")
    return TensorSpec(name=name, dtype=dtype, shape=array.shape)


def size_bytes(spec: TensorSpec, *, text_bytes: int = 0) -> int:
    """Return the packed size of a tensor in bytes.

    Args:
        spec: every dimension known.
        text_bytes: what a sender says of a tensor of text, whose shape does not tell; of no matter to others.

    Raises:
        FormatError: unknown dtype, dynamic, negative or absurd dimensions, or a size that text of this shape cannot
            have.
    """
    dtype = DTYPES.get(spec.dtype)
    if dtype is None:
        raise FormatError(f"tensor {spec.name[:80]!r}: unknown dtype {spec.dtype[:24]!r}")
    if len(spec.shape) > MAX_RANK or len(spec.name) > MAX_NAME_LENGTH:
        raise FormatError(f"tensor {spec.name[:80]!r}: rank or name is longer than allowed")
    dims = [dim for dim in spec.shape if dim is not None]
    if len(dims) != len(spec.shape) or any(dim < 0 or dim > MAX_TENSOR_BYTES for dim in dims):
        raise FormatError(f"tensor {spec.name[:80]!r}: shape {list(spec.shape)} is not fully known and bounded")
    count = math.prod(dims)
    if spec.dtype == STRING:
        if count > MAX_STRINGS:
            raise FormatError(f"tensor {spec.name[:80]!r}: {count} strings are more than {MAX_STRINGS}")
        if not count * _LENGTH.itemsize <= text_bytes <= MAX_TENSOR_BYTES:
            raise FormatError(f"tensor {spec.name[:80]!r}: {count} strings do not pack into {text_bytes} bytes")
        return text_bytes
    size = count * dtype.itemsize
    if size > MAX_TENSOR_BYTES:
        raise FormatError(f"tensor {spec.name[:80]!r}: {size} bytes are more than {MAX_TENSOR_BYTES}")
    return size


def pack(name: str, array: Array) -> memoryview:
    """Return the bytes of a tensor on the wire; of numbers in C order a view.

    Raises:
        FormatError: the dtype cannot travel, an object is no string, or there is too much text.
    """
    dtype = dtype_of(array)
    if dtype is None:
        raise FormatError(f"tensor {name[:80]!r}: dtype {array.dtype} cannot travel; allowed: {', '.join(DTYPES)}")
    if dtype != STRING:
        return np.ascontiguousarray(array, dtype=DTYPES[dtype]).reshape(-1).view(np.uint8).data
    if array.size > MAX_STRINGS:
        raise FormatError(f"tensor {name[:80]!r}: {array.size} strings are more than {MAX_STRINGS}")
    texts = array.reshape(-1).tolist()
    if problem := _no_text(texts):
        raise FormatError(f"tensor {name[:80]!r}: {problem}")
    raw = [text.encode() for text in texts]
    total = _LENGTH.itemsize * len(raw) + sum(map(len, raw))
    if total > MAX_TENSOR_BYTES:
        raise FormatError(f"tensor {name[:80]!r}: {total} bytes are more than {MAX_TENSOR_BYTES}")
    return memoryview(b"".join((np.array([len(text) for text in raw], _LENGTH).tobytes(), *raw)))


def unpack(spec: TensorSpec, data: memoryview) -> Array:
    """Return the tensor that `data` holds; of numbers a view into it, of text a read-only array.

    Args:
        spec: of it; `data` is as long as `size_bytes` says.
        data: its bytes on the wire.

    Raises:
        FormatError: it is text whose lengths do not add up, or no UTF-8.
    """
    shape = [dim for dim in spec.shape if dim is not None]
    if spec.dtype != STRING:
        return np.frombuffer(data, dtype=DTYPES[spec.dtype]).reshape(shape)
    count = math.prod(shape)
    at = count * _LENGTH.itemsize
    lengths = np.frombuffer(data[:at], _LENGTH).tolist()
    if at + sum(lengths) != len(data):
        raise FormatError(f"tensor {spec.name[:80]!r}: lengths of its strings do not add up to {len(data)} bytes")
    texts = np.empty(count, object)
    try:
        for index, length in enumerate(lengths):
            texts[index] = str(data[at : at + length], "utf-8")
            at += length
    except UnicodeDecodeError as error:
        raise FormatError(f"tensor {spec.name[:80]!r}: string {index} is no UTF-8") from error
    texts = texts.reshape(shape)
    texts.flags.writeable = False
    return texts


def held_bytes(array: Array) -> int:
    """Return what a tensor takes in a frame, in bytes."""
    if array.dtype != object:
        return array.nbytes
    return sum(_LENGTH.itemsize + len(str(text).encode(errors="replace")) for text in array.reshape(-1).tolist())


def as_tensor(value: npt.ArrayLike) -> Array:
    """Return a value as an array of a dtype that travels where it can be: numpy's fixed-width text becomes strings."""
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "UT" else array


def zeros_of(dtype: str, shape: Sequence[int]) -> Array:
    """Return a tensor of zeros, or of empty strings.

    Args:
        dtype: a key of `DTYPES`.
        shape: every dimension.
    """
    return np.full(shape, "", object) if dtype == STRING else np.zeros(shape, DTYPES[dtype])


def _no_text(values: Sequence[object]) -> str:
    """Say what is wrong with the elements of a tensor of text; empty when all of them can travel."""
    for index, value in enumerate(values):
        if not isinstance(value, str):
            return f"element {index} is a {type(value).__name__}, not a string"
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            return f"element {index} holds half of a character (a lone surrogate)"
    return ""


def matches(spec: TensorSpec, expected: TensorSpec) -> bool:
    """Tell whether a concrete `spec` fits `expected`, whose None dimensions fit any size."""
    return (
        spec.dtype == expected.dtype
        and len(spec.shape) == len(expected.shape)
        and all(want is None or want == have for have, want in zip(spec.shape, expected.shape, strict=True))
    )


def check_inputs(arrays: dict[str, Array], expected: Sequence[TensorSpec]) -> str | None:
    """Return what is wrong with the inputs of a request in one line, or None when they fit."""
    names = {spec.name for spec in expected}
    if missing := sorted(names - arrays.keys()):
        return f"missing input {missing[0]!r}; the model takes {sorted(names)}"
    if unknown := sorted(arrays.keys() - names):
        return f"unknown input {unknown[0]!r}; the model takes {sorted(names)}"
    for want in expected:
        array = arrays[want.name]
        have = TensorSpec(name=want.name, dtype=dtype_of(array) or array.dtype.name, shape=tuple(array.shape))
        if not matches(have, want):
            shape = ["?" if dim is None else dim for dim in want.shape]
            return f"input {want.name!r} is {have.dtype}{list(have.shape)}, expected {want.dtype}{shape}"
        if want.dtype == STRING and (problem := _no_text(array.reshape(-1).tolist())):
            return f"input {want.name!r}: {problem}"
    return None
