"""One input of a model with its label, where samples come from, and whether they fit the model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edge.formats.tensor import DTYPES, Array, pack
from host.errors import DatasetError
from host.model import Tensors

MAX_SAMPLES = 1_000_000

Label = int | Array | None
Class = int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One input of a model and what is right for it.

    Attributes:
        inputs: Array by input name.
        label: Index of the class; or an array of them, such as a mask, with a number for each position of the answer;
            None where nobody has said.
    """

    inputs: Tensors
    label: Label = None


class TensorNeed(Protocol):
    """What a model takes under one name; `host.ingest.inputs.InputSpec` is one."""

    @property
    def name(self) -> str:
        """Name in the graph."""

    @property
    def dtype(self) -> str:
        """Key of `edge.formats.tensor.DTYPES`."""

    @property
    def shape(self) -> tuple[int | str | None, ...] | None:
        """A number, a symbol or None for each dimension; None if not even the rank is known."""


class Rows(Protocol):
    """Where samples come from: a folder, a file, memory.

    Attributes:
        name: What people call it, such as the file's name.
        classes: The label of each row where it is one class, for drawing subsets alike; None for other rows.
        groups: Which rows come from one source, such as crops of one photo; None if every row stands alone.
        notes: What was taken for granted while reading, for people.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - described above

    @property
    def classes(self) -> Sequence[Class]: ...  # noqa: D102 - described above

    @property
    def groups(self) -> Sequence[str] | None: ...  # noqa: D102 - described above

    @property
    def notes(self) -> tuple[str, ...]: ...  # noqa: D102 - described above

    def load(self, index: int) -> Sample:
        """The sample of one row."""

    def where(self, index: int) -> str:
        """What a message calls one row."""

    def digest(self) -> str:
        """``sha256:…`` over everything that the samples are made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Rows that are in memory already."""

    name: str
    samples: Sequence[Sample]
    groups: Sequence[str] | None = None
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> Sequence[Class]:
        """The labels that are one class."""
        return tuple(sample.label if isinstance(sample.label, int) else None for sample in self.samples)

    def load(self, index: int) -> Sample:
        """The sample of one row."""
        return self.samples[index]

    def where(self, index: int) -> str:
        """What a message calls one row."""
        return f"{self.name}: sample {index}"

    def digest(self) -> str:
        """Over every array, label and group."""
        total = hashlib.sha256()
        for index, sample in enumerate(self.samples):
            for name in sorted(sample.inputs):
                _add_array(total, name, sample.inputs[name])
            _add_array(total, "label", np.asarray(-1 if sample.label is None else sample.label))
            total.update(f"{sample.label is None}:{self.groups[index] if self.groups else ''}\n".encode())
        return f"sha256:{total.hexdigest()}"


def fitted(inputs: Mapping[str, Array], needs: Sequence[TensorNeed], where: str) -> Tensors:
    """Check the inputs of one sample and put them in the model's order.

    Args:
        inputs: Array by input name.
        needs: What the model takes.
        where: What a message calls the sample.

    Raises:
        DatasetError: If one is missing, unknown, or has another dtype or shape.
    """
    names = [need.name for need in needs]
    if missing := [name for name in names if name not in inputs]:
        raise DatasetError(f"{where} lacks input {missing[0]!r}; the model takes {', '.join(names)}")
    if unknown := sorted(set(inputs) - set(names)):
        raise DatasetError(f"{where} has {unknown[0]!r}, but the model takes only {', '.join(names)}")
    for need in needs:
        array = inputs[need.name]
        if array.dtype != DTYPES[need.dtype] or not _fits(array.shape, need.shape):
            raise DatasetError(
                f"{where}: input {need.name!r} is {array.dtype}{list(array.shape)}, expected {said(need)}"
            )
    return {name: inputs[name] for name in names}


def as_label(value: object, where: str) -> Label:
    """Read a label: an integer, an array of integers or booleans, or None.

    Raises:
        DatasetError: If it is anything else.
    """
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "biu":
        raise DatasetError(f"{where}: a label is {array.dtype}; expected the number of a class, or a mask of numbers")
    # One number is a class, however many axes a tool has left around it.
    return int(array.item()) if array.size == 1 else array


def said(need: TensorNeed) -> str:
    """Dtype and shape for a message, such as ``float32[n, 3]``."""
    dims = "..." if need.shape is None else ", ".join("?" if dim is None else str(dim) for dim in need.shape)
    return f"{need.dtype}[{dims}]"


def _fits(have: tuple[int, ...], want: tuple[int | str | None, ...] | None) -> bool:
    return want is None or (
        len(have) == len(want)
        and all(not isinstance(dim, int) or dim == size for dim, size in zip(want, have, strict=True))
    )


def _add_array(total: hashlib._Hash, name: str, array: Array) -> None:
    total.update(f"{name}:{array.dtype.str}:{array.shape}:".encode())
    total.update(pack(name, array))
