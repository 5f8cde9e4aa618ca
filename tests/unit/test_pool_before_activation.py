"""The maximum goes before an activation that never falls."""

from __future__ import annotations

import numpy as np
import pytest

from host.passes.pool_before_activation import pool_before_activation
from tests.one_pass import Constants, changed_by, leaves_alone, model_with, operators, random_input

X = random_input(1, 2, 8, 8)
POOL = "MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>"


def graph(nodes: str) -> str:
    return f"main (float[1, 2, 8, 8] x) => (float[] y) {{ {nodes} }}"


@pytest.mark.parametrize(
    "activation",
    ["Relu (x)", "Clip (x, zero, six)", "Sigmoid (x)", "Tanh (x)", "LeakyRelu <alpha = 0.1> (x)", "Elu (x)"],
)
@pytest.mark.parametrize("pool", [POOL, "GlobalMaxPool"])
def test_the_maximum_goes_first(activation: str, pool: str) -> None:
    limits: Constants = {"zero": np.array(0, np.float32), "six": np.array(0.5, np.float32)}
    model = model_with(graph(f"r = {activation} y = {pool} (r)"), limits)
    result = operators(changed_by(pool_before_activation, model, X))
    assert [pool.split(maxsplit=1)[0], activation.split(maxsplit=1)[0]] == result


@pytest.mark.parametrize(
    "nodes",
    [
        # These fall somewhere.
        f"r = LeakyRelu <alpha = -0.1> (x) y = {POOL} (r)",
        f"r = Abs (x) y = {POOL} (r)",
        # A mean is no maximum.
        "r = Relu (x) y = GlobalAveragePool (r)",
        # As many elements as before.
        "r = Relu (x) y = MaxPool <kernel_shape = [3, 3]> (r)",
        "r = Relu (x) y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (r)",
        # The runtime computes these activations with the convolution.
        f"c = Conv (x, w) r = Relu (c) y = {POOL} (r)",
        f"c = Conv (x, w) a = Add (c, x) r = Relu (a) y = {POOL} (r)",
        f"c = Conv (x, w) n = BatchNormalization (c, v, v, v, v) r = Relu (n) y = {POOL} (r)",
        # Somebody else needs all elements.
        f"r = Relu (x) p = {POOL} (r) s = ReduceSum <keepdims = 0> (r) y = Add (p, s)",
    ],
)
def test_the_activation_stays_first(nodes: str) -> None:
    assert leaves_alone(
        pool_before_activation, model_with(graph(nodes), {"w": (2, 2, 1, 1), "v": np.array([1, 2], np.float32)}), X
    )
