"""Two poolings in a row become one where its window says the same."""

from __future__ import annotations

import pytest

from host.passes.merge_pools import merge_pools
from tests.one_pass import changed_by, leaves_alone, model_with, operators, random_input

X = (random_input(1, 2, 13, 12), random_input(1, 2, 13, 12, seed=2))


def graph(first: str, second: str) -> str:
    return f"main (float[1, 2, 13, 12] x) => (float[] y) {{ h = {first} (x) y = {second} (h) }}"


def pool(kind: str, kernel: int, stride: int, more: str = "") -> str:
    return f"{kind} <kernel_shape = [{kernel}, {kernel}], strides = [{stride}, {stride}]{more}>"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pool("MaxPool", 2, 2), pool("MaxPool", 2, 2)),
        (pool("MaxPool", 3, 2), pool("MaxPool", 2, 2)),
        (pool("MaxPool", 3, 2, ", pads = [1, 1, 1, 1]"), pool("MaxPool", 2, 2)),
        (pool("MaxPool", 2, 2, ", pads = [0, 1, 1, 0]"), pool("MaxPool", 2, 2)),
        (pool("AveragePool", 2, 2), pool("AveragePool", 2, 2)),
        (pool("AveragePool", 2, 2), pool("AveragePool", 3, 1)),
    ],
)
def test_poolings_in_a_row_become_one(first: str, second: str) -> None:
    result = changed_by(merge_pools, model_with(graph(first, second)), *X)
    assert len(operators(result)) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        # 5 · 5 comparisons are more than 3 · 3 twice.
        (pool("MaxPool", 3, 1), pool("MaxPool", 3, 1)),
        # The first leaves gaps.
        (pool("MaxPool", 1, 2), pool("MaxPool", 2, 2)),
        (pool("MaxPool", 2, 2), pool("MaxPool", 2, 2, ", pads = [1, 1, 1, 1]")),
        (pool("MaxPool", 2, 2, ", ceil_mode = 1"), pool("MaxPool", 2, 2)),
        (pool("MaxPool", 2, 2, ", dilations = [2, 2]"), pool("MaxPool", 2, 2)),
        # Windows that overlap count their common elements twice.
        (pool("AveragePool", 3, 2), pool("AveragePool", 2, 2)),
        (pool("AveragePool", 2, 2, ", pads = [1, 1, 0, 0]"), pool("AveragePool", 2, 2)),
        # Two kinds.
        (pool("MaxPool", 2, 2), pool("AveragePool", 2, 2)),
    ],
)
def test_poolings_stay_two(first: str, second: str) -> None:
    assert leaves_alone(merge_pools, model_with(graph(first, second)), *X)


def test_indices_that_somebody_reads_keep_both() -> None:
    head = "main (float[1, 2, 13, 12] x) => (float[] y, int64[] i)"
    text = f"{head} {{ h = {pool('MaxPool', 2, 2)} (x) y, i = {pool('MaxPool', 2, 2)} (h) }}"
    assert leaves_alone(merge_pools, model_with(text), *X)


def test_a_first_pooling_that_others_read_stays() -> None:
    head = "main (float[1, 2, 13, 12] x) => (float[] y, float[] h)"
    text = f"{head} {{ h = {pool('MaxPool', 2, 2)} (x) y = {pool('MaxPool', 2, 2)} (h) }}"
    assert leaves_alone(merge_pools, model_with(text), *X)
