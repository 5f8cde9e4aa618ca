"""From one form of a tensor to another and back: nothing is lost beyond a quantization step, and limits hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge.errors import BundleError
from edge.formats.builds import Form
from edge.formats.tensor import DTYPES, Array
from edge.forms import check_forms, convert, converted_bytes, same_form

OWN = Form(name="t", dtype="float32")
RANK = 4
SMALL_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32")

orders = st.permutations(range(RANK)).map(tuple)
scales = st.floats(2**-20, 2**20, width=32)
values = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=RANK, max_dims=RANK, max_side=4),
    elements=st.floats(-(2**24), 2**24, width=32),
)


@st.composite
def quantized(draw: st.DrawFn) -> Form:
    """A form that holds integers for floats, in any order of axes."""
    dtype = draw(st.sampled_from(SMALL_INTEGERS))
    limits = np.iinfo(dtype)
    zero_point = draw(st.integers(int(limits.min), int(limits.max)))
    axes = draw(st.one_of(st.just(()), orders))
    return Form(name="t", dtype=dtype, axes=axes, scale=draw(scales), zero_point=zero_point)


@given(array=values, axes=orders)
def test_an_order_of_axes_is_that_of_transpose_and_is_undone(array: Array, axes: tuple[int, ...]) -> None:
    held = Form(name="t", dtype="float32", axes=axes)
    there = convert(array, OWN, held)
    np.testing.assert_array_equal(there, array.transpose(axes), strict=True)
    assert there.flags.c_contiguous
    np.testing.assert_array_equal(convert(there, held, OWN), array, strict=True)


@given(array=values, first=orders, second=orders)
def test_between_two_orders_it_goes_as_by_the_manifests(
    array: Array, first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    have, want = Form(name="t", dtype="float32", axes=first), Form(name="t", dtype="float32", axes=second)
    held = convert(array, OWN, have)
    np.testing.assert_array_equal(convert(held, have, want), convert(array, OWN, want), strict=True)


@given(array=values, held=quantized())
def test_quantized_and_back_is_within_half_a_step_where_it_does_not_saturate(array: Array, held: Form) -> None:
    stored = convert(array, OWN, held)
    assert stored.dtype == DTYPES[held.dtype]
    back = convert(stored, held, OWN)
    assert back.dtype == np.float32
    limits = np.iinfo(held.dtype)
    low = (float(limits.min) - held.zero_point) * held.scale
    high = (float(limits.max) - held.zero_point) * held.scale
    # Of a 32-bit integer the float has fewer digits than the step.
    error = held.scale * (0.5 + 1e-3) + np.abs(array) * 2**-21
    assert np.all(np.abs(back - np.clip(array, low, high)) <= error + (abs(low) + abs(high)) * 2**-22)


@given(held=quantized(), data=st.data())
def test_what_is_stored_stays_as_it_is_through_floats(held: Form, data: st.DataObject) -> None:
    # float32 has 24 bits: enough for every 16-bit integer.
    limits = np.iinfo(held.dtype if held.dtype != "int32" else "int16")
    shape = data.draw(arrays.array_shapes(min_dims=RANK, max_dims=RANK, max_side=3))
    numbers = st.integers(max(-(2**15), int(limits.min)), min(2**15, int(limits.max)))
    held = Form(name="t", dtype=held.dtype, axes=held.axes, scale=held.scale, zero_point=data.draw(numbers))
    stored = data.draw(arrays.arrays(DTYPES[held.dtype], shape, elements=numbers))
    np.testing.assert_array_equal(convert(convert(stored, held, OWN), OWN, held), stored, strict=True)


@given(array=values, first=quantized(), second=quantized())
def test_from_one_quantization_to_another_is_as_through_the_manifests(array: Array, first: Form, second: Form) -> None:
    stored = convert(array, OWN, first)
    direct = convert(stored, first, second)
    through = convert(convert(stored, first, OWN), OWN, second)
    assert direct.dtype == through.dtype
    # Rounding on the way may move a value over the border of a step, in 32 bits by many.
    if np.iinfo(second.dtype).bits <= 16 and np.iinfo(first.dtype).bits <= 16:
        np.testing.assert_allclose(direct.astype(np.int64), through.astype(np.int64), atol=1)


@pytest.mark.parametrize(("real", "stored"), [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2)])
def test_halves_go_to_the_even_number(real: float, stored: int) -> None:
    want = Form(name="t", dtype="int8", scale=1.0)
    assert convert(np.array([real], np.float32), OWN, want)[0] == stored


@pytest.mark.parametrize("dtype", [name for name, kind in DTYPES.items() if kind.kind in "iu"])
def test_what_is_too_large_saturates_and_what_is_no_number_is_zero(dtype: str) -> None:
    limits = np.iinfo(dtype)
    want = Form(name="t", dtype=dtype, scale=1.0, zero_point=3)
    array = np.array([np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 0.0], np.float32)
    expected = [limits.max, limits.min, 3, limits.max, limits.min, 3]
    assert convert(array, OWN, want).tolist() == [int(value) for value in expected]


@pytest.mark.parametrize(
    ("have", "want", "given_array", "expected"),
    [
        ("int64", "int32", np.array([7, 2**40, -(2**40)], np.int64), [7, 2**31 - 1, -(2**31)]),
        ("int32", "int64", np.array([7, -1], np.int32), [7, -1]),
        ("int8", "uint64", np.array([7, -1], np.int8), [7, 0]),
        ("uint64", "int64", np.array([2**64 - 1], np.uint64), [2**63 - 1]),
        ("float32", "float16", np.array([1.0, 1e6], np.float32), [1.0, float("inf")]),
        ("float16", "float32", np.array([0.5], np.float16), [0.5]),
    ],
)
def test_numbers_of_one_kind_go_from_type_to_type(
    have: str, want: str, given_array: Array, expected: list[float]
) -> None:
    made = convert(given_array, Form(name="t", dtype=have), Form(name="t", dtype=want))
    assert made.dtype == DTYPES[want]
    assert made.tolist() == expected


def test_equal_forms_hand_on_the_very_array() -> None:
    array = np.ones((2, 3), np.float32)
    same = Form(name="t", dtype="float32", axes=(0, 1), zero_point=5)
    assert same_form(OWN, same)
    assert convert(array, OWN, same) is array
    assert converted_bytes(6, OWN, same) == 0
    assert converted_bytes(6, OWN, Form(name="t", dtype="int8", scale=0.5)) == 30


def test_a_scalar_stays_one() -> None:
    assert convert(np.array(1.5, np.float32), OWN, Form(name="t", dtype="int8", scale=0.5)).shape == ()


@pytest.mark.parametrize(
    ("have", "want", "reason"),
    [
        (
            Form(name="t", dtype="int8"),
            OWN,
            "tensor 't' is int8 in one form and float32 in the other, without a scale",
        ),
        (
            Form(name="t", dtype="bool"),
            Form(name="t", dtype="uint8"),
            "tensor 't' is bool in one form and uint8 in the other, without a scale",
        ),
        (
            Form(name="t", dtype="string"),
            OWN,
            "tensor 't' is string in one form and float32 in the other, without a scale",
        ),
        (
            Form(name="t", dtype="float32", axes=(0, 1)),
            Form(name="t", dtype="float32", axes=(0, 2, 1)),
            "tensor 't' has 2 axes in one form and 3 in the other",
        ),
        (
            Form(name="t", dtype="float16", scale=0.5),
            OWN,
            "tensor 't' has a scale, and float16 is no integer type",
        ),
        (
            Form(name="t", dtype="int8", scale=0.5, zero_point=10**400),
            OWN,
            f"tensor 't' has the zero point {10**400}, it is int8",
        ),
    ],
)
def test_forms_without_a_rule_between_them_are_refused(have: Form, want: Form, reason: str) -> None:
    with pytest.raises(BundleError) as caught:
        check_forms(have, want)
    assert str(caught.value) == reason
    with pytest.raises(BundleError):
        convert(np.zeros(1, np.float32), have, want)


def test_a_tensor_of_another_rank_than_its_form_is_refused() -> None:
    with pytest.raises(BundleError, match=r"^tensor 't' has 2 axes, its form has 3$"):
        convert(np.zeros((2, 2), np.float32), OWN, Form(name="t", dtype="float32", axes=(0, 2, 1)))
