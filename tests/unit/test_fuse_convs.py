"""Two convolutions in a row become one where one is pointwise and the model gets no larger."""

from __future__ import annotations

import pytest

from host.model import weight_bytes
from host.passes.fuse_convs import fuse_convs
from tests.one_pass import Constants, changed_by, leaves_alone, model_with, operators, random_input

X = random_input(1, 3, 9, 8)
BIASES: Constants = {"c": (16,), "d": (4,)}


def graph(first: str, second: str, between: str = "") -> str:
    return f"main (float[1, 3, 9, 8] x) => (float[] y) {{ h = Conv {first} {between} y = Conv {second} }}"


@pytest.mark.parametrize(
    ("first", "second", "constants"),
    [
        ("(x, a, c)", "(h, b, d)", {"a": (16, 3, 1, 1), "b": (4, 16, 1, 1), **BIASES}),
        ("(x, a)", "(h, b)", {"a": (16, 3, 1, 1), "b": (4, 16, 1, 1)}),
        ("(x, a, c)", "(h, b)", {"a": (16, 3, 1, 1), "b": (4, 16, 1, 1), "c": (16,)}),
        ("<strides = [2, 1]> (x, a, c)", "<strides = [2, 3]> (h, b, d)",
         {"a": (16, 3, 1, 1), "b": (4, 16, 1, 1), **BIASES}),
        # Any kernel, then a pointwise one: padding and gaps of the first stay.
        ("<pads = [1, 0, 1, 2], dilations = [2, 1]> (x, a, c)", "<strides = [2, 1]> (h, b, d)",
         {"a": (16, 3, 3, 3), "b": (4, 16, 1, 1), **BIASES}),
        # A pointwise one, then any kernel: strides of the first become gaps.
        ("(x, a, c)", "(h, b, d)", {"a": (16, 3, 1, 1), "b": (4, 16, 3, 2), **BIASES}),
        ("<strides = [2, 1]> (x, a, c)", "<dilations = [2, 2], strides = [1, 2]> (h, b, d)",
         {"a": (16, 3, 1, 1), "b": (4, 16, 2, 3), **BIASES}),
        ('<auto_pad = "VALID"> (x, a, c)', "(h, b, d)", {"a": (16, 3, 3, 3), "b": (4, 16, 1, 1), **BIASES}),
    ],
)  # fmt: skip
def test_convolutions_in_a_row_become_one(first: str, second: str, constants: Constants) -> None:
    model = model_with(graph(first, second), constants)
    result = changed_by(fuse_convs, model, X)
    assert operators(result) == ["Conv"]
    assert weight_bytes(result.ir) < weight_bytes(model.ir)


@pytest.mark.parametrize(
    ("first", "second", "between", "constants"),
    [
        # An activation stands between.
        ("(x, a)", "(g, b)", "g = Relu (h)", {"a": (16, 3, 1, 1), "b": (4, 16, 1, 1)}),
        # The second pads with zeros, where the joined one would see the first one's bias.
        ("(x, a, c)", "<pads = [1, 1, 1, 1]> (h, b)", "", {"a": (16, 3, 1, 1), "b": (4, 16, 3, 3), "c": (16,)}),
        ('(x, a)', '<auto_pad = "SAME_UPPER"> (h, b)', "", {"a": (16, 3, 1, 1), "b": (4, 16, 3, 3)}),
        # Neither is pointwise.
        ("(x, a)", "(h, b)", "", {"a": (64, 3, 2, 2), "b": (4, 64, 2, 2)}),
        # A bottleneck: 3·16 weights are more than 3·2 + 2·16.
        ("(x, a)", "(h, b)", "", {"a": (2, 3, 1, 1), "b": (16, 2, 1, 1)}),
        # Groups: the joined kernel would be dense.
        ("<group = 3> (x, a)", "(h, b)", "", {"a": (48, 1, 1, 1), "b": (4, 48, 1, 1)}),
        ("(x, a)", "<group = 4> (h, b)", "", {"a": (16, 3, 1, 1), "b": (4, 4, 1, 1)}),
    ],
)  # fmt: skip
def test_convolutions_stay_two(first: str, second: str, between: str, constants: Constants) -> None:
    assert leaves_alone(fuse_convs, model_with(graph(first, second, between), constants), X)


def test_a_convolution_that_others_read_too_stays() -> None:
    text = "main (float[1, 3, 9, 8] x) => (float[] y, float[] h) { h = Conv (x, a) y = Conv (h, b) }"
    assert leaves_alone(fuse_convs, model_with(text, {"a": (16, 3, 1, 1), "b": (4, 16, 1, 1)}), X)


def test_a_kernel_that_is_computed_stays() -> None:
    text = "main (float[1, 3, 9, 8] x, float[4, 16, 1, 1] b) => (float[] y) { h = Conv (x, a) y = Conv (h, b) }"
    sample = {**X, **random_input(4, 16, 1, 1, name="b")}
    assert leaves_alone(fuse_convs, model_with(text, {"a": (16, 3, 1, 1)}), sample)
