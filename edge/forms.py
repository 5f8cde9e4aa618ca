"""From one form of a tensor to another: the order of its axes, and numbers that stand for others.

Two builds of a bundle may hold a tensor of a cut differently (`edge.formats.builds.Form`): ONNX shards as NCHW floats,
TFLite shards as NHWC bytes with a scale and a zero point. Who hands the one to the other converts it once, here.

    real = scale · (stored − zero point)        stored = round(real / scale) + zero point, saturated

Halves are rounded to even, as ONNX's QuantizeLinear says; what is no number becomes the zero point.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge.errors import BundleError
from edge.formats.builds import Form
from edge.formats.tensor import DTYPES, Array


def same_form(have: Form, want: Form) -> bool:
    """Tell whether a tensor in the one form is bit for bit that in the other."""
    return _axes_between(have, want) == () and _number(have) == _number(want)


def check_forms(have: Form, want: Form) -> None:
    """Raise `BundleError` where no rule leads from one form to the other.

    Integers stand for floats by a scale only, and both forms must order the same axes.
    """
    if have.axes and want.axes and len(have.axes) != len(want.axes):
        raise BundleError(
            f"tensor {have.name[:80]!r} has {len(have.axes)} axes in one form and {len(want.axes)} in the other"
        )
    for form in (have, want):
        if form.scale and not _is_integer(form.dtype):
            raise BundleError(f"tensor {form.name[:80]!r} has a scale, and {form.dtype} is no integer type")
        if form.scale and not np.iinfo(DTYPES[form.dtype]).min <= form.zero_point <= np.iinfo(DTYPES[form.dtype]).max:
            raise BundleError(f"tensor {form.name[:80]!r} has the zero point {form.zero_point}, it is {form.dtype}")
    if _number(have) != _number(want) and _kind(have) != _kind(want):
        raise BundleError(
            f"tensor {have.name[:80]!r} is {have.dtype} in one form and {want.dtype} in the other, without a scale"
        )


def convert(array: Array, have: Form, want: Form) -> Array:
    """Return a tensor in another form; the same array where the forms are the same.

    Args:
        array: in the form `have`; where that has axes, of as many.
        have: how it is held.
        want: how it shall be held.

    Returns:
        A contiguous array of the dtype of `want`.

    Raises:
        BundleError: the forms do not fit each other or the array (`check_forms`).
    """
    check_forms(have, want)
    axes = _axes_between(have, want)
    if axes and len(axes) != array.ndim:
        raise BundleError(f"tensor {have.name[:80]!r} has {array.ndim} axes, its form has {len(axes)}")
    if axes:
        array = array.transpose(axes)
    if _number(have) == _number(want):
        return np.asarray(array, order="C")
    # Elements are moved while they are small.
    if DTYPES[want.dtype].itemsize > array.dtype.itemsize:
        array = np.asarray(array, order="C")
    # What overflows becomes infinite or is saturated: no cause for a warning.
    with np.errstate(all="ignore"):
        return np.asarray(_renumber(array, have, want), order="C")


def converted_bytes(elements: int, have: Form, want: Form) -> int:
    """Return how many bytes a conversion reads and writes, 0 for none: what it costs, roughly."""
    if same_form(have, want):
        return 0
    return elements * (DTYPES[have.dtype].itemsize + DTYPES[want.dtype].itemsize)


def _axes_between(have: Form, want: Form) -> tuple[int, ...]:
    """Return what `numpy.transpose` is given to get from one order of axes to the other; () for nothing."""
    rank = len(have.axes) or len(want.axes)
    same = tuple(range(rank))
    # Where each axis of the manifest's tensor stands in the one, read at each place of the other.
    stands = sorted(same, key=lambda place: (have.axes or same)[place])
    axes = tuple(stands[axis] for axis in want.axes or same)
    return axes if axes != same else ()


def _number(form: Form) -> tuple[str, float, int]:
    """Return what an element stands for."""
    return form.dtype, form.scale, form.zero_point if form.scale else 0


def _is_integer(dtype: str) -> bool:
    return DTYPES[dtype].kind in "iu"


def _kind(form: Form) -> str:
    """Return what an element is once it is read: a real number, a whole one, true or false, or text."""
    kind = DTYPES[form.dtype].kind
    return "f" if form.scale else {"u": "i"}.get(kind, kind)


def _renumber(array: Array, have: Form, want: Form) -> Array:
    if have.scale:
        real = _real_type(have)
        array = (array.astype(real) - real(have.zero_point)) * real(have.scale)
    if want.scale:
        real = _real_type(want)
        # Divided, not multiplied by the inverse: that rounds twice.
        array = np.rint(array.astype(real) / real(want.scale)) + real(want.zero_point)
        array = np.where(np.isnan(array), real(want.zero_point), array)
    target = DTYPES[want.dtype]
    return _saturated(array, target) if _is_integer(want.dtype) else array.astype(target)


def _real_type(form: Form) -> type[np.floating[Any]]:
    """Return the float type in which the numbers of a form are exact."""
    return np.float32 if DTYPES[form.dtype].itemsize <= 2 else np.float64


def _saturated(array: Array, target: np.dtype[Any]) -> Array:
    limits: Sequence[int] = (int(np.iinfo(target).min), int(np.iinfo(target).max))
    if array.dtype.kind != "f":
        own = np.iinfo(array.dtype)
        clipped: Array = np.clip(array, max(limits[0], int(own.min)), min(limits[1], int(own.max)))
        return clipped.astype(target)
    low, high = (array.dtype.type(limit) for limit in limits)
    # The greatest 64-bit number is no float: what is rounded up to it is put back by hand.
    kept: Array = np.where(array < high, np.maximum(array, low), low).astype(target)
    kept[array >= high] = limits[1]
    return kept
