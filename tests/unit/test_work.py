"""What a node does, against counts made by hand."""

from __future__ import annotations

import pytest

from host.work import node_macs
from tests.graphs import model_of


def one_node(text: str, **shapes: tuple[int, ...]) -> int:
    """The cost of the only node of a graph, given the shapes that it meets."""
    (node,) = model_of(text).ir.graph
    return node_macs(node, lambda name: shapes.get(name, ()))


@pytest.mark.parametrize(
    ("node", "shapes", "macs"),
    [
        # 2 · 8 · 5 · 5 outputs, each 3 · 3 · 3 products
        ("Conv (x, w)", {"x": (2, 3, 5, 5), "w": (8, 3, 3, 3), "y": (2, 8, 5, 5)}, 2 * 8 * 25 * 27),
        # depthwise: each output sees one channel
        ("Conv <group = 8> (x, w)", {"x": (1, 8, 5, 5), "w": (8, 1, 3, 3), "y": (1, 8, 5, 5)}, 8 * 25 * 9),
        # each input element meets the kernels of 4 output channels
        ("ConvTranspose (x, w)", {"x": (1, 3, 5, 5), "w": (3, 4, 2, 2), "y": (1, 4, 10, 10)}, 3 * 25 * 4 * 4),
        ("MatMul (x, w)", {"x": (7, 2, 5), "w": (5, 3), "y": (7, 2, 3)}, 7 * 2 * 3 * 5),
        ("Gemm (x, w)", {"x": (2, 5), "w": (5, 3), "y": (2, 3)}, 2 * 3 * 5),
        ("Gemm <transA = 1> (x, w)", {"x": (5, 2), "w": (5, 3), "y": (2, 3)}, 2 * 3 * 5),
        # 4 gates, 6 steps, batch 2, hidden 8, on 3 inputs and 8 of the last step
        ("LSTM (x, w, r)", {"x": (6, 2, 3), "r": (1, 32, 8), "y": (6, 1, 2, 8)}, 4 * 6 * 2 * 8 * 11),
        ("GRU (x, w, r)", {"x": (6, 2, 3), "r": (1, 24, 8), "y": (6, 1, 2, 8)}, 3 * 6 * 2 * 8 * 11),
        ("FusedMatMul <transA = 1> (x, w)", {"x": (5, 2), "w": (5, 3), "y": (2, 3)}, 2 * 3 * 5),
        ("FusedMatMul (x, w)", {"x": (2, 5), "w": (5, 3), "y": (2, 3)}, 2 * 3 * 5),
        ("FusedConv (x, w)", {"x": (1, 3, 5, 5), "w": (8, 3, 3, 3), "y": (1, 8, 5, 5)}, 8 * 25 * 27),
        ("MatMulNBits <K = 64> (x, w)", {"x": (2, 64), "w": (3, 2, 16), "y": (2, 3)}, 2 * 3 * 64),
        ("DynamicQuantizeLSTM (x, w, r)", {"x": (6, 2, 3), "r": (1, 8, 32), "y": (6, 1, 2, 8)}, 4 * 6 * 2 * 8 * 11),
        # one projection to queries, keys and values, then 7 · 7 scores of 4 products, used 4 times
        ("QAttention (x, w)", {"x": (2, 7, 5), "w": (5, 12), "y": (2, 7, 4)}, 2 * 7 * 5 * 12 + 2 * 2 * 7 * 7 * 4),
        ("MultiHeadAttention (x, w)", {"x": (2, 7, 4), "w": (2, 9, 4), "y": (2, 7, 4)}, 2 * 2 * 7 * 9 * 4),
        ('Einsum <equation = "bij, bjk -> bik"> (x, w)', {"x": (2, 3, 4), "w": (2, 4, 5), "y": (2, 3, 5)}, 120),
        ('Einsum <equation = "...i->...i"> (x)', {"x": (2, 3), "y": (2, 3)}, 6),
        ("Add (x, w)", {"x": (2, 3), "w": (3,), "y": (2, 3)}, 6),
        ("Relu (x)", {"x": (2, 3), "y": (2, 3)}, 6),
        ("Reshape (x, w)", {"x": (2, 3), "y": (6,)}, 0),
        ("Flatten (x)", {"x": (2, 3), "y": (2, 3)}, 0),
    ],
)
def test_multiply_accumulates_of_one_node(node: str, shapes: dict[str, tuple[int, ...]], macs: int) -> None:
    assert one_node(f"g (float[] x, float[] w, float[] r) => (float[] y) {{ y = {node} }}", **shapes) == macs


def test_a_shape_that_is_not_known_costs_something_finite() -> None:
    assert one_node("g (float[] x, float[] w) => (float[] y) { y = MatMul (x, w) }") == 1
