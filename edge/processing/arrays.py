"""Steps on arrays of any origin: numbers, dtypes, axes, padding; numpy only."""

import math
from dataclasses import replace

import numpy as np

from edge.errors import InvalidInput
from edge.formats.steps import Cast, Constant, Expand, Layout, Normalise, Pad, Quantise, Transpose
from edge.formats.tensor import MAX_TENSOR_BYTES, Array
from edge.processing.values import Value

_LAYOUTS = {"HWC": (0, 1, 2), "NHWC": (0, 1, 2), "CHW": (2, 0, 1), "NCHW": (2, 0, 1)}


def array_of(value: Value) -> Array:
    """Return the array of a value.

    Raises:
        InvalidInput: it is none.
    """
    if not isinstance(value.held, np.ndarray):
        raise InvalidInput(f"{value.where}: not an array")
    return value.held


def constant(step: Constant, value: Value) -> Value:
    """Make the array of a step."""
    held = np.array(step.values if len(step.values) > 1 else step.values[0]).astype(step.dtype)
    return replace(value, held=np.broadcast_to(held.reshape(step.shape if held.size > 1 else ()), step.shape).copy())


def normalise(step: Normalise, value: Value) -> Value:
    """Subtract and divide along the last axis, in float32.

    Raises:
        InvalidInput: another number of channels.
    """
    array = array_of(value)
    channels = array.shape[-1] if array.ndim else 1
    if len(step.mean) not in (1, channels):
        raise InvalidInput(f"{value.where}: {channels} channels, and means for {len(step.mean)}")
    mean, std = np.array(step.mean, np.float32), np.array(step.std, np.float32)
    held = (array.astype(np.float32) - mean) / std
    return replace(value, held=held)


def quantise(step: Quantise, value: Value) -> Value:
    """Round to integers, halves to even, and saturate."""
    array = array_of(value)
    limits = np.iinfo(step.dtype)
    exact = np.round(array.astype(np.float64) / step.scale) + step.zero_point
    return replace(value, held=np.clip(np.nan_to_num(exact), limits.min, limits.max).astype(step.dtype))


def cast(step: Cast, value: Value) -> Value:
    """Change the dtype."""
    with np.errstate(invalid="ignore", over="ignore"):
        return replace(value, held=array_of(value).astype(step.dtype))


def layout(step: Layout, value: Value) -> Value:
    """Put the axes of an image in order.

    Raises:
        InvalidInput: it has not three axes.
    """
    array = array_of(value)
    if array.ndim != 3:
        raise InvalidInput(f"{value.where}: a layout is of an image [H, W, C], not of {list(array.shape)}")
    held = array.transpose(_LAYOUTS[step.to])
    return replace(value, held=np.ascontiguousarray(held[None] if step.to.startswith("N") else held))


def transpose(step: Transpose, value: Value) -> Value:
    """Change the order of the axes.

    Raises:
        InvalidInput: another number of axes.
    """
    array = array_of(value)
    if array.ndim != len(step.axes):
        raise InvalidInput(f"{value.where}: {len(step.axes)} axes to transpose, and the array is {list(array.shape)}")
    return replace(value, held=np.ascontiguousarray(array.transpose(step.axes)))


def expand(step: Expand, value: Value) -> Value:
    """Add an axis.

    Raises:
        InvalidInput: there is no such place for it.
    """
    array = array_of(value)
    if not -array.ndim - 1 <= step.axis <= array.ndim:
        raise InvalidInput(f"{value.where}: no place for axis {step.axis} in {list(array.shape)}")
    return replace(value, held=np.expand_dims(array, step.axis))


def pad(step: Pad, value: Value) -> Value:
    """Fill an axis at its end.

    Raises:
        InvalidInput: there is no such axis, it is longer than allowed, or the result would be absurdly large.
    """
    array = array_of(value)
    if not -array.ndim <= step.axis < array.ndim:
        raise InvalidInput(f"{value.where}: no axis {step.axis} in {list(array.shape)}")
    axis = step.axis % array.ndim
    length = array.shape[axis]
    if length > step.sizes[-1]:
        if step.longer == "refuse":
            raise InvalidInput(f"{value.where}: {length} along axis {axis} is more than {step.sizes[-1]}")
        array = array[(slice(None),) * axis + (slice(0, step.sizes[-1]),)]
        length = step.sizes[-1]
    size = next(size for size in step.sizes if size >= length)
    shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
    if math.prod(shape) * array.itemsize > MAX_TENSOR_BYTES:
        raise InvalidInput(f"{value.where}: padded to {list(shape)}, which is more than {MAX_TENSOR_BYTES} bytes")
    filled = np.full(shape, step.value, array.dtype)
    filled[(slice(None),) * axis + (slice(0, length),)] = array
    return replace(value, held=filled)
