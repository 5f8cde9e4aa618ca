"""Two matrix products in a row become one where that makes the model no larger."""

from __future__ import annotations

import numpy as np
import pytest

from host.model import weight_bytes
from host.passes.fuse_linears import fuse_linears
from tests.one_pass import Constants, changed_by, leaves_alone, model_with, operators, random_input

X = random_input(3, 4)
WIDE: Constants = {"a": (4, 16), "b": (16, 5)}


def graph(nodes: str, *, x: str = "float[3, 4] x") -> str:
    return f"main ({x}) => (float[] y) {{ {nodes} }}"


@pytest.mark.parametrize(
    ("nodes", "constants", "left"),
    [
        ("h = MatMul (x, a) y = MatMul (h, b)", WIDE, ["MatMul"]),
        ("h = Gemm (x, a, c) y = Gemm (h, b, d)", {**WIDE, "c": (16,), "d": (5,)}, ["Gemm"]),
        ("h = Gemm (x, a) y = Gemm (h, b)", WIDE, ["Gemm"]),
        ("h = Gemm (x, a, c) y = MatMul (h, b)", {**WIDE, "c": (16,)}, ["Gemm"]),
        ("h = MatMul (x, a) y = Gemm (h, b, d)", {**WIDE, "d": (5,)}, ["Gemm"]),
        ("h = MatMul (x, a) y = Gemm (h, b)", WIDE, ["Gemm"]),
        (
            "h = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, a, c) y = Gemm <alpha = 3.0, beta = 0.25> (h, b, d)",
            {"a": (16, 4), "b": (16, 5), "c": (1, 16), "d": (1,)},
            ["Gemm"],
        ),
        (
            "h = MatMul (x, a) g = Add (h, c) f = MatMul (g, b) y = Add (d, f)",
            {**WIDE, "c": (16,), "d": (5,)},
            ["MatMul", "Add"],
        ),
        ("h = MatMul (x, a) g = Add (c, h) y = MatMul (g, b)", {**WIDE, "c": (16,)}, ["MatMul", "Add"]),
        ("h = MatMul (x, a) f = MatMul (h, b) y = Add (f, d)", {**WIDE, "d": (5,)}, ["MatMul", "Add"]),
        (
            "h = MatMul (x, a) g = MatMul (h, b) y = MatMul (g, c)",
            {"a": (4, 16), "b": (16, 16), "c": (16, 2)},
            ["MatMul"],
        ),
    ],
)
def test_products_in_a_row_become_one(nodes: str, constants: Constants, left: list[str]) -> None:
    model = model_with(graph(nodes), constants)
    result = changed_by(fuse_linears, model, X)
    assert operators(result) == left
    assert weight_bytes(result.ir) < weight_bytes(model.ir)


def test_inputs_of_more_than_two_dimensions_keep_them() -> None:
    nodes = "h = MatMul (x, a) g = Add (h, c) f = MatMul (g, b) y = Relu (f)"
    model = model_with(graph(nodes, x="float[2, n, 4] x"), {**WIDE, "c": (16,)})
    result = changed_by(fuse_linears, model, random_input(2, 3, 4), random_input(2, 1, 4))
    assert operators(result) == ["MatMul", "Add", "Relu"]


def test_products_inside_a_branch_become_one() -> None:
    text = """main (float[3, 4] x, bool c) => (float[3, 5] y) {
        y = If (c) <
            then_branch = yes () => (float[3, 5] p) { h = MatMul (x, a) p = MatMul (h, b) },
            else_branch = no () => (float[3, 5] q) { q = MatMul (x, e) }
        >
    }"""
    model = model_with(text, {**WIDE, "e": (4, 5)})
    samples = [{**X, "c": np.array(value)} for value in (True, False)]
    result = changed_by(fuse_linears, model, *samples)
    assert weight_bytes(result.ir) == 2 * 4 * 4 * 5


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        # A bottleneck: one product would have 20 weights, the two have 9.
        ("h = MatMul (x, a) y = MatMul (h, b)", {"a": (4, 1), "b": (1, 5)}),
        # Something that is not linear stands between.
        ("h = MatMul (x, a) g = Relu (h) y = MatMul (g, b)", WIDE),
        # Another reader needs the value between.
        ("h = MatMul (x, a) g = MatMul (h, b) s = ReduceSum <keepdims = 0> (h) y = Add (g, s)", WIDE),
        # The matrix between is no constant.
        ("t = Transpose (x) y = MatMul (t, x)", {}),
        # The offset is no row: one number for each of the three inputs.
        ("h = MatMul (x, a) g = Add (h, c) y = MatMul (g, b)", {**WIDE, "c": (3, 16)}),
        # The offset would give the result a dimension more.
        ("h = MatMul (x, a) g = Add (h, c) y = MatMul (g, b)", {**WIDE, "c": (1, 16)}),
        ("h = Gemm (x, a, c) y = MatMul (h, b)", {**WIDE, "c": (3, 1)}),
        ("h = Gemm <transA = 1> (x, a) y = MatMul (h, b)", {"a": (3, 16), "b": (16, 5)}),
        # The first product on the right is no chain.
        ("h = MatMul (a, x) y = MatMul (b, h)", {"a": (16, 3), "b": (2, 16)}),
        # The first weights are shared: 40 new ones for 30 that go. Without the other reader 42 would go.
        ("h = MatMul (x, a) g = MatMul (h, b) k = MatMul (x, a) s = MatMul (k, e) y = Sub (g, s)",
         {"a": (4, 3), "b": (3, 10), "e": (3, 10)}),
    ],
)  # fmt: skip
def test_products_stay_two(nodes: str, constants: Constants) -> None:
    assert leaves_alone(fuse_linears, model_with(graph(nodes), constants), X)
