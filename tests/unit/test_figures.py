"""The figures of a graph, against sums made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edge.formats.tensor import Array
from host.figures import GraphFigures, measure
from host.passes.fuse import fuse
from host.passes.normalise import normalise
from tests.graphs import conv_net, model_of, photos
from tests.one_pass import Constants, model_with, random_input

FLOAT = 4
PHOTO, FEATURE = FLOAT * 3 * 64, FLOAT * 8 * 64
CONV_MACS = 8 * 64 * 3 * 9 + 8 * 64 * 8 * 9


def test_a_network_by_hand() -> None:
    figures = measure(normalise(model_of(conv_net())), photos(1)[0], timed=False)
    assert figures == GraphFigures(
        nodes=7,
        macs=CONV_MACS + 8 * 64 + 8 * 64 + 8 + 0 + 4 * 8,
        weight_bytes=FLOAT * (8 * 27 + 8 + 8 * 72 + 8 + 4 * 8 + 4),
        # While Add runs: the skip connection, what the second Conv made, and the sum.
        peak_activation_bytes=3 * FEATURE,
        latency_seconds=None,
    )


def test_latency_is_measured_on_demand() -> None:
    figures = measure(normalise(model_of(conv_net())), photos(1)[0], timed=True)
    assert figures.latency_seconds is not None
    assert figures.latency_seconds > 0


def test_a_fused_graph_does_the_work_of_its_convolutions() -> None:
    model, _ = fuse(normalise(model_of(conv_net())), photos(1))
    figures = measure(model, photos(1)[0], timed=False)
    assert CONV_MACS + 4 * 8 <= figures.macs <= CONV_MACS + 4 * 8 + 2 * 8 * 64
    assert figures.nodes < 7


def test_a_quantized_pair_of_conversions_is_no_work_and_its_weights_are_no_activation() -> None:
    text = """main (float[1, 6] x) => (float[1, 2] y) {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        w = DequantizeLinear (v, s, z)
        y = MatMul (d, w)
    }"""
    constants: Constants = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8), "v": np.ones((6, 2), np.int8)}
    figures = measure(model_with(text, constants), random_input(1, 6), timed=False)
    assert figures.macs == 6 * 2
    assert figures.weight_bytes == 12 + 4 + 1
    # Largest while MatMul runs: six floats in, two out. The twelve of the weights are there all the time.
    assert figures.peak_activation_bytes == 8 * FLOAT


def test_integer_and_packed_products_count_like_others() -> None:
    integer = "main (uint8[3, 8] x) => (int32[3, 4] y) { y = MatMulInteger (x, w) }"
    model = model_with(integer, {"w": np.ones((8, 4), np.int8)})
    sample: dict[str, Array] = {"x": np.ones((3, 8), np.uint8)}
    assert measure(model, sample, timed=False).macs == 3 * 4 * 8
    packed = (
        "main (float[3, 32] x) => (float[3, 4] y)"
        " { y = com.microsoft.MatMulNBits <K = 32, N = 4, bits = 4, block_size = 32> (x, w, s) }"
    )
    model = model_with(
        packed,
        {"w": np.zeros((4, 1, 16), np.uint8), "s": (4,)},
        header='<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]>\n',
    )
    assert measure(model, random_input(3, 32), timed=False).macs == 3 * 4 * 32


@pytest.mark.parametrize(("taken", "work"), [(True, 2 * 4 * 5), (False, 2 * 4)])
def test_of_a_branch_that_one_counts_which_the_sample_takes(taken: bool, work: int) -> None:
    text = """main (float[n, 4] x, bool c) => (float[n, m] y) {
        y = If (c) <
            then_branch = yes () => (float[n, k] p) { p = MatMul (x, w) },
            else_branch = no () => (float[n, l] q) { q = Neg (x) }
        >
    }"""
    sample: dict[str, Array] = {**random_input(2, 4), "c": np.array(taken)}
    figures = measure(model_with(text, {"w": (4, 5)}), sample, timed=False)
    wide = 2 * (5 if taken else 4)
    # The result of the branch is the result of the If; its own element count is that node's work.
    assert figures.macs == work + wide
    assert figures.peak_activation_bytes == FLOAT * (8 + 2 * wide) + 1


def test_what_a_branch_computes_from_constants_alone_counts_for_nothing() -> None:
    text = """main (float[2, 4] x, bool c) => (float[2, m] y) {
        y = If (c) <
            then_branch = yes () => (float[2, k] p) { t = Transpose (w) p = MatMul (x, t) },
            else_branch = no () => (float[2, l] q) { q = Neg (x) }
        >
    }"""
    sample: dict[str, Array] = {**random_input(2, 4), "c": np.array(True)}
    figures = measure(model_with(text, {"w": (5, 4)}), sample, timed=False)
    assert figures.macs == 2 * 4 * 5 + 2 * 5
    assert figures.peak_activation_bytes == FLOAT * (8 + 2 * 10) + 1


def test_a_loop_counts_its_iterations() -> None:
    text = """main (float[2, 3] x, int64 count) => (float[] y) {
        y = Loop (count, go, x) <body = step (int64 i, bool c, float[] s) => (bool d, float[] t)
            { d = Identity (c) t = MatMul (s, w) }>
    }"""
    model = model_with(text, {"w": (3, 3), "go": np.array(True)})
    macs = [measure(model, {**random_input(2, 3), "count": np.array(n)}, timed=False).macs for n in (2, 5)]
    assert macs[1] - macs[0] == 3 * (2 * 3 * 3)


def test_an_open_dimension_has_the_size_of_the_sample() -> None:
    model = model_with("main (float[n, 4] x) => (float[n, 5] y) { h = Relu (x) y = MatMul (h, w) }", {"w": (4, 5)})
    small, large = (measure(model, random_input(rows, 4), timed=False) for rows in (1, 3))
    assert (small.macs, large.macs) == (4 + 20, 3 * (4 + 20))
    assert (small.peak_activation_bytes, large.peak_activation_bytes) == (FLOAT * 9, FLOAT * 27)


def test_a_sequence_has_no_size() -> None:
    text = """main (float[4, 2] x) => (float[2, 2] y) {
        parts = SplitToSequence <axis = 0> (x, size)
        y = SequenceAt (parts, first)
    }"""
    constants = {"size": np.array([2, 2]), "first": np.array(0)}
    figures = measure(model_with(text, constants), random_input(4, 2), timed=False)
    assert figures.peak_activation_bytes == FLOAT * 8
    assert figures.nodes == 2


def test_two_runs_give_the_same_figures() -> None:
    model = normalise(model_of(conv_net()))
    assert measure(model, photos(1)[0], timed=False) == measure(model, photos(1)[0], timed=False)
