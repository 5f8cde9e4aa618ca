"""Tensor specs and the table of dtypes that travel on the wire."""

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
DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(name).newbyteorder("<") for name in _NAMES}
"""Dtype names of the wire to little-endian numpy dtypes."""

MAX_RANK = 16
MAX_NAME_LENGTH = 512
MAX_TENSOR_BYTES = 1 << 30

Array = npt.NDArray[Any]

_NAME_OF = {np.dtype(name): name for name in DTYPES} | {dtype: name for name, dtype in DTYPES.items()}


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


def spec_of(name: str, array: Array) -> TensorSpec:
    """Return the spec of `array`.

    Raises:
        FormatError: the dtype cannot travel.
    """
    dtype = _NAME_OF.get(array.dtype)  # numpy works `dtype.name` out anew each time, which is slow
    if dtype is None:
        raise FormatError(f"tensor {name!r}: dtype {array.dtype} cannot travel; allowed: {', '.join(DTYPES)}")
    return TensorSpec(name=name, dtype=dtype, shape=array.shape)


def size_bytes(spec: TensorSpec) -> int:
    """Return the packed size of a tensor in bytes.

    Raises:
        FormatError: unknown dtype, dynamic, negative or absurd dimensions.
    """
    dtype = DTYPES.get(spec.dtype)
    if dtype is None:
        raise FormatError(f"tensor {spec.name[:80]!r}: unknown dtype {spec.dtype[:24]!r}")
    if len(spec.shape) > MAX_RANK or len(spec.name) > MAX_NAME_LENGTH:
        raise FormatError(f"tensor {spec.name[:80]!r}: rank or name is longer than allowed")
    dims = [dim for dim in spec.shape if dim is not None]
    if len(dims) != len(spec.shape) or any(dim < 0 or dim > MAX_TENSOR_BYTES for dim in dims):
        raise FormatError(f"tensor {spec.name[:80]!r}: shape {list(spec.shape)} is not fully known and bounded")
    size = math.prod(dims) * dtype.itemsize
    if size > MAX_TENSOR_BYTES:
        raise FormatError(f"tensor {spec.name[:80]!r}: {size} bytes are more than {MAX_TENSOR_BYTES}")
    return size


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
        have = TensorSpec(name=want.name, dtype=array.dtype.name, shape=tuple(array.shape))
        if not matches(have, want):
            shape = ["?" if dim is None else dim for dim in want.shape]
            return f"input {want.name!r} is {have.dtype}{list(have.shape)}, expected {want.dtype}{shape}"
    return None
