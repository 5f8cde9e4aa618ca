"""Samples from a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from edge.formats.tensor import Array
from host.compress.data.samples import MAX_SAMPLES, Held, Sample, TensorNeed, as_label, fitted
from host.dotted import resolve
from host.errors import DatasetError
from host.reference import first_line

MAX_CALLABLE_BYTES = 4 << 30

_SHAPE = (
    "it must take nothing and give an iterable of inputs, (inputs, label) or (inputs, label, group), inputs by name"
)


def load(source: str, needs: Sequence[TensorNeed]) -> Held:
    """Call a function that takes nothing and keep what it gives.

    It gives an iterable; each item is a mapping of input name to array, or such a mapping with its label, or with its
    label and the name of the source that it comes from (see `host.compress.data.dataset.Dataset`).

    Args:
        source: ``package.module:function``.
        needs: What the model takes.

    Raises:
        DatasetError: If it cannot be imported, fails, gives something else, or more than fits.
    """
    function = resolve(source, fault=DatasetError)
    samples: list[Sample] = []
    groups: list[str | None] = []
    size_bytes = 0
    for index, item in enumerate(_items(function, source)):
        where = f"{source}: sample {index}"
        if index >= MAX_SAMPLES:
            raise DatasetError(f"{source}: gives more than {MAX_SAMPLES} samples")
        inputs, label, group = _parts(item, where)
        samples.append(Sample(inputs=fitted(inputs, needs, where), label=as_label(label, where)))
        groups.append(None if group is None else str(group))
        size_bytes += sum(array.nbytes for array in inputs.values())
        if size_bytes > MAX_CALLABLE_BYTES:
            raise DatasetError(f"{where}: the samples are more than {MAX_CALLABLE_BYTES} bytes")
    named = [group for group in groups if group is not None]
    if named and len(named) < len(groups):
        raise DatasetError(f"{source}: sample {groups.index(None)} names no group, but others do")
    return Held(name=source, samples=tuple(samples), groups=tuple(named) if named else None)


def _items(function: Callable[[], object], source: str) -> Iterator[object]:
    try:
        result = function()
        if isinstance(result, Mapping) or not isinstance(result, Iterable):
            yield result
        else:
            yield from result
    except Exception as error:
        raise DatasetError(f"{source}: {type(error).__name__}: {first_line(error)}; {_SHAPE}") from error


def _parts(item: object, where: str) -> tuple[dict[str, Array], object, object]:
    inputs, label, group = item, None, None
    if isinstance(item, tuple) and len(item) in (2, 3):
        inputs, label, group = (*item, None)[:3]
    if not isinstance(inputs, Mapping):
        raise DatasetError(f"{where} is a {type(inputs).__name__}; {_SHAPE}")
    try:
        return {str(name): np.asarray(array) for name, array in inputs.items()}, label, group
    except ValueError as error:
        raise DatasetError(f"{where} holds what is no array: {first_line(error)}") from error
