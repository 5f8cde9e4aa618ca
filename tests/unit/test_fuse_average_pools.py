"""A convolution and the mean after it become one convolution where that is less work."""

from __future__ import annotations

import pytest

from host.passes.fuse_average_pools import MAX_GROWN_BYTES, fuse_average_pools
from tests.one_pass import Constants, changed_by, leaves_alone, model_with, operators, random_input

X = random_input(1, 4, 11, 10)
POOL = "AveragePool <kernel_shape = [2, 2], strides = [2, 2]>"


def graph(nodes: str) -> str:
    return f"main (float[1, 4, 11, 10] x) => (float[] y) {{ {nodes} }}"


@pytest.mark.parametrize(
    "nodes",
    [
        f"h = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = {POOL} (h)",
        f"h = Conv (x, w) y = {POOL} (h)",
        f"h = Conv <group = 2> (x, g, b) y = {POOL} (h)",
        f"h = Conv <group = 4, pads = [0, 1, 2, 1]> (x, d, b) y = {POOL} (h)",
        f"h = Conv <strides = [1, 2], pads = [1, 1, 1, 1]> (x, u, b) y = {POOL} (h)",
        "h = Conv (x, w, b) y = AveragePool <kernel_shape = [3, 2], strides = [3, 2]> (h)",
    ],
)
def test_a_convolution_and_a_mean_become_one_convolution(nodes: str) -> None:
    kernels: Constants = {"w": (8, 4, 3, 3), "g": (8, 2, 3, 3), "d": (8, 1, 3, 3), "u": (8, 4, 5, 5)}
    model = model_with(graph(nodes), {**kernels, "b": (8,)})
    assert operators(changed_by(fuse_average_pools, model, X)) == ["Conv"]


@pytest.mark.parametrize(
    "nodes",
    [
        # 5 · 5 products at each output are not fewer than 3 · 3.
        "h = Conv (x, w, b) y = AveragePool <kernel_shape = [3, 3]> (h)",
        # A pointwise kernel would become four times as large for the same work.
        f"h = Conv (x, p, b) y = {POOL} (h)",
        "h = Conv (x, w, b) y = AveragePool <kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 0, 0]> (h)",
        "h = Conv (x, w, b) y = AveragePool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (h)",
        f"h = Conv <dilations = [2, 2]> (x, w, b) y = {POOL} (h)",
        f"h = Conv (x, w, b) r = Relu (h) y = {POOL} (r)",
        "h = Conv (x, w, b) y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (h)",
        # The mean comes first: the work after it is little already.
        f"m = {POOL} (x) y = Conv (m, w, b)",
    ],
)
def test_they_stay_two(nodes: str) -> None:
    assert leaves_alone(
        fuse_average_pools, model_with(graph(nodes), {"w": (8, 4, 3, 3), "p": (8, 4, 1, 1), "b": (8,)}), X
    )


def test_weights_do_not_grow_by_much_for_it() -> None:
    channels = 1 + MAX_GROWN_BYTES // (4 * 4 * (16 - 9))
    model = model_with(graph(f"h = Conv (x, w) y = {POOL} (h)"), {"w": (channels, 4, 3, 3)})
    assert leaves_alone(fuse_average_pools, model, X)
