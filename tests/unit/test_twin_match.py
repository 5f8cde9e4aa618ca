"""Partners are found by their values, whatever the names and the order of axes."""

import numpy as np
import pytest

from edge.formats.tensor import Array
from host.tflite.twin_match import match_values, orders, paired

RNG = np.random.default_rng(6)


def runs(*shape: int) -> list[Array]:
    return [RNG.normal(size=shape).astype(np.float32) for _ in range(2)]


def moved(values: list[Array], *axes: int) -> list[Array]:
    return [np.ascontiguousarray(value.transpose(axes)) for value in values]


def test_a_tensor_is_found_in_another_order_of_axes() -> None:
    image = runs(1, 3, 5, 7)
    (pair,) = match_values({"image": image}, {"serving": moved(image, 0, 2, 3, 1)})
    assert (pair.own, pair.other, pair.axes) == ("image", "serving", (0, 2, 3, 1))


def test_equal_order_has_no_axes() -> None:
    logits = runs(1, 10)
    (pair,) = match_values({"logits": logits}, {"call": logits})
    assert pair.axes == ()


def test_axes_of_equal_size_are_told_apart_by_values() -> None:
    square = runs(1, 4, 4, 4)
    (pair,) = match_values({"a": square}, {"b": moved(square, 0, 3, 1, 2)})
    assert pair.axes == (0, 3, 1, 2)


def test_where_axes_of_size_one_go_is_not_asked() -> None:
    assert list(orders((1, 8, 1, 1), (1, 1, 1, 8))) == [(0, 2, 3, 1)]
    assert list(orders((1, 8, 1, 1), (1, 8, 1, 1))) == [(0, 1, 2, 3)]


def test_only_tensors_of_one_rank_are_partners() -> None:
    pooled = runs(1, 8, 1, 1)
    assert match_values({"a": pooled}, {"b": [value.reshape(1, 8) for value in pooled]}) == ()


def test_a_thousandth_is_close_and_more_is_not() -> None:
    values = runs(1, 6)
    largest = [np.abs(value).max() for value in values]
    near = [value + 0.0009 * most for value, most in zip(values, largest, strict=True)]
    far = [value + 0.0012 * most for value, most in zip(values, largest, strict=True)]
    assert [pair.other for pair in match_values({"a": values}, {"near": near, "far": far})] == ["near"]


def test_equal_in_one_run_is_not_enough() -> None:
    first, second = runs(1, 6)
    assert match_values({"a": [first, second]}, {"b": [first, second + 1]}) == ()


def test_every_tensor_of_equal_values_is_a_partner() -> None:
    zeros = [np.zeros((1, 4), np.float32)] * 2
    found = match_values({"a": zeros, "b": zeros}, {"c": zeros, "d": zeros})
    assert [(pair.own, pair.other) for pair in found] == [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_whole_numbers_are_partners_when_they_are_equal(dtype: type[np.signedinteger]) -> None:
    words = [np.array([[3, 1, 4]], np.int64), np.array([[1, 5, 9]], np.int64)]
    assert len(match_values({"ids": words}, {"call": [word.astype(dtype) for word in words]})) == 1
    assert match_values({"ids": words}, {"call": [(word + 1).astype(dtype) for word in words]}) == ()
    assert match_values({"ids": words}, {"call": [word.astype(np.float32) for word in words]}) == ()


def test_what_is_quantized_goes_to_the_one_that_is_clearly_nearest() -> None:
    values, other = runs(1, 64), runs(1, 64)
    noisy = [value + 0.1 * RNG.normal(size=value.shape).astype(np.float32) for value in values]
    assert match_values({"a": values}, {"q": noisy}) == ()
    found = match_values({"a": values, "b": other}, {"q": noisy, "r": other}, quantized=True)
    assert [(pair.own, pair.other) for pair in found] == [("a", "q"), ("b", "r")]
    between = [value + 0.11 * RNG.normal(size=value.shape).astype(np.float32) for value in values]
    assert match_values({"a": values}, {"q": noisy, "p": between}, quantized=True) == ()


def test_values_without_end_are_partners_where_they_stand_alike() -> None:
    mask = [np.array([[0.0, -np.inf, 1.0]], np.float32)] * 2
    assert paired("m", mask, "n", mask) is not None
    assert paired("m", mask, "n", [value[:, ::-1] for value in mask]) is None
