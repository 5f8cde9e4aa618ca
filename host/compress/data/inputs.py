"""Inputs as a sequence that loads them when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, overload

from host.compress.data.dataset import Dataset
from host.model import Tensors


class Sampled(Protocol):
    """What ingest learnt about a model of any format, as far as its inputs go; see `host.model.Ingested`."""

    @property
    def samples(self) -> Sequence[Tensors]:
        """Inputs for verification and calibration."""

    @property
    def holdout(self) -> Sequence[Tensors]:
        """Inputs that calibration never sees."""

    @property
    def holdout_groups(self) -> Sequence[str]:
        """What each of those was taken from."""

    @property
    def notes(self) -> Sequence[str]:
        """Things the user should hear."""


class Lazy(Sequence[Tensors]):
    """Inputs that are loaded when they are asked for.

    Args:
        load: Gives the input at a place.
        places: The places, in order.
    """

    def __init__(self, load: Callable[[int], Tensors], places: Sequence[int]) -> None:
        self._load, self._places = load, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Tensors: ...

    @overload
    def __getitem__(self, index: slice) -> Lazy: ...

    def __getitem__(self, index: int | slice) -> Tensors | Lazy:
        if isinstance(index, slice):
            return Lazy(self._load, self._places[index])
        return self._load(self._places[index])


def chosen(samples: Sequence[Tensors], places: Sequence[int]) -> Sequence[Tensors]:
    """Some of a sequence of inputs, in the order of the places."""
    return Lazy(samples.__getitem__, places)


def own_samples(ingested: Sampled) -> Dataset:
    """What a model is judged on without other data: its holdout, else the samples that it was calibrated with."""
    if ingested.holdout:
        groups = ingested.holdout_groups or None
        return Dataset.held(ingested.holdout, groups=groups, name="the model's own samples")
    return Dataset.held(ingested.samples, name="the samples that it was calibrated with")


def inputs_of(dataset: Dataset) -> Sequence[Tensors]:
    """The inputs of a dataset, without its labels."""
    return Lazy(lambda place: dataset[place].inputs, range(len(dataset)))
