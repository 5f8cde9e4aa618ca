"""A mean over places goes before a convolution that works on each place alone."""

from __future__ import annotations

import numpy as np
import pytest

from host.passes.pool_before_pointwise import pool_before_pointwise
from tests.one_pass import Constants, changed_by, leaves_alone, model_with, operators, random_input

X = random_input(1, 4, 8, 8)
CONV = "h = Conv (x, w, b)"
PAD = "count_include_pad = 1"
OLD = '<ir_version: 9, opset_import: ["" : 17]>\n'


def graph(nodes: str) -> str:
    return f"main (float[1, 4, 8, 8] x) => (float[] y) {{ {nodes} }}"


@pytest.mark.parametrize(
    ("nodes", "pool"),
    [
        (f"{CONV} y = GlobalAveragePool (h)", "GlobalAveragePool"),
        (f"{CONV} p = GlobalAveragePool (h) y = Flatten (p)", "GlobalAveragePool"),
        (f"{CONV} y = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (h)", "AveragePool"),
        (f"{CONV} y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (h)", "AveragePool"),
        (f"{CONV} y = ReduceMean (h, axes)", "ReduceMean"),
        ("h = Conv <group = 4> (x, v, b) y = GlobalAveragePool (h)", "GlobalAveragePool"),
    ],
)
def test_the_mean_goes_first(nodes: str, pool: str) -> None:
    constants: Constants = {"axes": np.array([-1, 2]), "w": (8, 4, 1, 1), "v": (8, 1, 1, 1), "b": (8,)}
    model = model_with(graph(nodes), constants)
    assert operators(changed_by(pool_before_pointwise, model, X))[:2] == [pool, "Conv"]


def test_the_axes_of_an_old_opset_are_read() -> None:
    text = graph(f"{CONV} y = ReduceMean <axes = [2, 3]> (h)")
    model = model_with(text, {"w": (8, 4, 1, 1), "b": (8,)}, header=OLD)
    assert operators(changed_by(pool_before_pointwise, model, X)) == ["ReduceMean", "Conv"]


@pytest.mark.parametrize(
    "nodes",
    [
        # Padding counts as zeros in the mean, but not in the bias.
        f"{CONV} y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], {PAD}> (h)",
        # Without a stride there is nothing to win.
        f"{CONV} y = AveragePool <kernel_shape = [2, 2]> (h)",
        f"{CONV} y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (h)",
        # Not a mean of all places, or of more than that.
        f"{CONV} y = ReduceMean (h, some)",
        f"{CONV} y = ReduceMean <keepdims = 0> (h, axes)",
        f"{CONV} y = GlobalMaxPool (h)",
        # The convolution sees its neighbours, its border, or not every place.
        "h = Conv (x, k, b) y = GlobalAveragePool (h)",
        "h = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = GlobalAveragePool (h)",
        "h = Conv <strides = [2, 2]> (x, w, b) y = GlobalAveragePool (h)",
        # Something stands between, or reads the convolution too.
        f"{CONV} r = Relu (h) y = GlobalAveragePool (r)",
        f"{CONV} p = GlobalAveragePool (h) y = Add (h, p)",
    ],
)
def test_the_convolution_stays_first(nodes: str) -> None:
    axes: Constants = {"axes": np.array([2, 3]), "some": np.array([1, 2, 3])}
    model = model_with(graph(nodes), {**axes, "w": (8, 4, 1, 1), "k": (8, 4, 3, 3), "b": (8,)})
    assert leaves_alone(pool_before_pointwise, model, X)
