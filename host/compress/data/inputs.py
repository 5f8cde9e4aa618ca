"""Inputs as a sequence that loads them when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from host.compress.data.dataset import Dataset
from host.model import Tensors


class Chosen(Sequence[Tensors]):
    """Some of a sequence of inputs.

    Args:
        samples: All.
        places: Which, in order.
    """

    def __init__(self, samples: Sequence[Tensors], places: Sequence[int]) -> None:
        self._samples, self._places = samples, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Tensors: ...

    @overload
    def __getitem__(self, index: slice) -> Chosen: ...

    def __getitem__(self, index: int | slice) -> Tensors | Chosen:
        if isinstance(index, slice):
            return Chosen(self._samples, self._places[index])
        return self._samples[self._places[index]]


class _Inputs(Sequence[Tensors]):
    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    @overload
    def __getitem__(self, index: int) -> Tensors: ...

    @overload
    def __getitem__(self, index: slice) -> Chosen: ...

    def __getitem__(self, index: int | slice) -> Tensors | Chosen:
        if isinstance(index, slice):
            return Chosen(self, range(len(self))[index])
        return self._dataset[index].inputs

    def __iter__(self) -> Iterator[Tensors]:
        return (sample.inputs for sample in self._dataset)


def inputs_of(dataset: Dataset) -> Sequence[Tensors]:
    """The inputs of a dataset, without its labels."""
    return _Inputs(dataset)
