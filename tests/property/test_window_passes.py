"""Whatever the windows are, a pass over neighbours is right or does nothing: the runner never has to drop it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.errors import PassError
from host.passes.fuse_average_pools import fuse_average_pools
from host.passes.fuse_convs import fuse_convs
from host.passes.merge_pools import merge_pools
from host.passes.pool_before_activation import pool_before_activation
from host.passes.pool_before_pointwise import pool_before_pointwise
from host.passes.transaction import NOTHING, GraphPass, Transactions
from tests.one_pass import Constants, model_with, random_input

INPUT = (1, 2, 11, 13)
SAMPLES = [random_input(*INPUT), random_input(*INPUT, seed=2)]


@st.composite
def windows(draw: st.DrawFn, *, pool: bool) -> str:
    kernel = draw(st.lists(st.integers(1, 3), min_size=2, max_size=2))
    strides = draw(st.lists(st.integers(1, 3), min_size=2, max_size=2))
    # A pooling's padding is less than its window.
    pads = [draw(st.integers(0, min(2, kernel[axis] - 1 if pool else 2))) for axis in (0, 1, 0, 1)]
    said = [f"kernel_shape = {kernel}", f"strides = {strides}"]
    if draw(st.booleans()):
        said.append(f"pads = {pads}")
    if draw(st.integers(0, 3)) == 0:
        said.append("dilations = [1, 2]")
    return ", ".join(said)


@st.composite
def pools(draw: st.DrawFn, kind: str) -> str:
    more = draw(st.sampled_from(["", ", ceil_mode = 1", ", count_include_pad = 1"])) if kind == "AveragePool" else ""
    return f"{kind} <{draw(windows(pool=True))}{more}>"


@st.composite
def convs(draw: st.DrawFn, inputs: int) -> tuple[str, Constants]:
    """A convolution that makes 4 channels, its weights called as its inputs are many."""
    window = draw(windows(pool=False))
    kernel = tuple(int(digit) for digit in window.split("[")[1].split("]")[0].split(", "))
    groups = draw(st.sampled_from([1, 1, 2]))
    names = f"w{inputs}, b{inputs}" if draw(st.booleans()) else f"w{inputs}"
    constants: Constants = {f"w{inputs}": (4, inputs // groups, *kernel), f"b{inputs}": (4,)}
    return f"Conv <{window}, group = {groups}> (_, {names})", constants


def graph(*nodes: str) -> str:
    text, value = "", "x"
    for number, node in enumerate(nodes):
        applied = node.replace("(_", f"({value}") if "(_" in node else f"{node} ({value})"
        text += f" v{number} = {applied}"
        value = f"v{number}"
    return f"main (float[1, 2, 11, 13] x) => (float[] y) {{ {text} y = Neg ({value}) }}"


def is_right_or_idle(graph_pass: GraphPass, text: str, constants: Constants) -> None:
    try:
        transactions = Transactions(model_with(text, constants), SAMPLES)
    except PassError:
        # A window is larger than what is left of the image.
        return
    outcome = transactions.attempt("pass", graph_pass)
    assert outcome.kept or outcome.reason == NOTHING, outcome.reason


@settings(deadline=None, max_examples=80)
@given(convs(2), convs(4))
def test_two_convolutions(first: tuple[str, Constants], second: tuple[str, Constants]) -> None:
    is_right_or_idle(fuse_convs, graph(first[0], second[0]), {**first[1], **second[1]})


@settings(deadline=None, max_examples=80)
@given(convs(2), pools("AveragePool"), st.sampled_from([fuse_average_pools, pool_before_pointwise]))
def test_a_convolution_and_a_mean(conv: tuple[str, Constants], pool: str, graph_pass: GraphPass) -> None:
    is_right_or_idle(graph_pass, graph(conv[0], pool), conv[1])


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_two_poolings(kind: str, data: st.DataObject) -> None:
    is_right_or_idle(merge_pools, graph(data.draw(pools(kind)), data.draw(pools(kind))), {})


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["Relu", "Sigmoid", "Elu"]), pools("MaxPool"))
def test_an_activation_and_a_maximum(activation: str, pool: str) -> None:
    is_right_or_idle(pool_before_activation, graph(activation, pool), {})
