"""Layers are grouped into shards that fit the profile; what cannot fit is refused by name."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.errors import PartitionError
from host.partition.shards import LayerSize, SizeOf, group_layers


def _layers(count: int, *, cut_bytes: Sequence[int] | None = None) -> list[LayerSize]:
    return [
        LayerSize(name=f"node_{i}", operators=("Gemm",), macs=1, cut_bytes=cut_bytes[i] if cut_bytes is not None else 1)
        for i in range(count)
    ]


def _sum_of(sizes: Sequence[int]) -> SizeOf:
    return lambda first, stop: sum(sizes[first:stop])


def test_each_layer_is_a_shard_when_there_are_few() -> None:
    assert group_layers(_layers(3), _sum_of([5, 5, 5]), max_shard_bytes=5) == ((0, 1), (1, 2), (2, 3))


def test_the_widest_cuts_go_first_when_there_are_too_many() -> None:
    layers = [*_layers(40, cut_bytes=[9 if i == 2 else 1 for i in range(40)])]

    ranges = group_layers(layers, _sum_of([1] * 40), max_shard_bytes=100, max_shards=39)

    assert (2, 4) in ranges
    assert len(ranges) == 39


def test_every_layer_that_alone_exceeds_the_limit_is_named_with_its_size() -> None:
    with pytest.raises(PartitionError) as caught:
        group_layers(_layers(3), _sum_of([5, 7, 8]), max_shard_bytes=6)

    assert str(caught.value) == (
        "2 of 3 layers exceed the profile's max_shard_bytes = 6: 'node_1' (Gemm, 7 bytes), 'node_2' (Gemm, 8 bytes); "
        "choose a larger profile, or quantize"
    )


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 9), min_size=60, max_size=60),
    max_shards=st.integers(1, 40),
)
def test_shards_cover_all_layers_in_order_and_respect_the_limit(
    sizes: list[int], cuts: list[int], max_shards: int
) -> None:
    layers = _layers(len(sizes), cut_bytes=cuts)

    ranges = group_layers(layers, _sum_of(sizes), max_shard_bytes=60, max_shards=max_shards)

    assert [layer for first, stop in ranges for layer in range(first, stop)] == list(range(len(sizes)))
    assert all(sum(sizes[first:stop]) <= 60 for first, stop in ranges)
