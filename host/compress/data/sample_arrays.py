"""Samples from an ``.npz`` file: the inputs stacked on a first axis, with ``label`` and ``group`` beside them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.formats.tensor import Array
from host.compress.data.samples import Class, Sample, TensorNeed, as_label, fitted
from host.errors import DatasetError
from host.model import Tensors

MAX_ARRAYS_BYTES = 4 << 30

_LABELS = ("label", "labels")
_GROUPS = ("group", "groups")


@dataclass(frozen=True, kw_only=True, slots=True)
class StackedArrays:
    """Rows that are slices of arrays.

    Attributes:
        path: The file.
        stacked: One more axis than the input: ``array[i]`` is a sample's.
        batched: The first axis is the model's batch axis: ``array[i:i+1]`` is a sample's.
        shared: The same for every sample.
        labels: ``[N]`` or ``[N, ...]``.
        classes: The labels that are one class.
        groups: Source of each sample.
        notes: None so far.
    """

    path: Path
    stacked: Tensors
    batched: Tensors
    shared: Tensors
    labels: Array | None
    classes: tuple[Class, ...]
    groups: tuple[str, ...] | None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def load(self, index: int) -> Sample:
        """The slices of one row."""
        inputs = dict(self.shared)
        # ascontiguousarray would make a scalar rank one; asarray keeps it.
        inputs |= {name: np.asarray(array[index]) for name, array in self.stacked.items()}
        inputs |= {name: array[index : index + 1] for name, array in self.batched.items()}
        label = None if self.labels is None else as_label(self.labels[index], self.where(index))
        return Sample(inputs=inputs, label=label)

    def where(self, index: int) -> str:
        """File and row."""
        return f"{self.path}: row {index}"

    def digest(self) -> str:
        """Of the file's bytes."""
        with self.path.open("rb") as stream:
            return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def load(path: Path, needs: Sequence[TensorNeed]) -> StackedArrays:
    """Read a file of arrays.

    The keys are input names, and optionally ``label`` (integers ``[N]``, or masks ``[N, ...]``) and ``group`` (numbers
    or strings ``[N]``). An input of the model's own shape with one axis more in front holds N samples; so does one of
    shape ``[N, ...]`` where the model wants ``[1, ...]`` or leaves the first dimension open. An input that has exactly
    the model's shape is the same for every sample.

    Raises:
        DatasetError: If the file cannot be read, is too large, or an array does not fit.
    """
    arrays = _read(path)
    names = {need.name for need in needs}
    labels = _taken(arrays, _LABELS, names)
    groups = _taken(arrays, _GROUPS, names)
    if labels is not None and labels.dtype.kind not in "biu":
        raise DatasetError(f"{path}: the labels are {labels.dtype}; expected integers, [N] or masks [N, ...]")
    if groups is not None and (groups.ndim != 1 or groups.dtype.kind not in "iuU"):
        raise DatasetError(
            f"{path}: the groups are {groups.dtype}{list(groups.shape)}; expected [N] numbers or strings"
        )
    parts: dict[str, dict[str, Array]] = {"stacked": {}, "batched": {}, "shared": {}}
    for need in needs:
        if need.name in arrays:
            parts[_way(arrays[need.name], need)][need.name] = arrays[need.name]
    counts = {name: len(array) for part in ("stacked", "batched") for name, array in parts[part].items()}
    counts |= {} if labels is None or labels.ndim == 0 else {"labels": len(labels)}
    counts |= {} if groups is None else {"groups": len(groups)}
    if len(set(counts.values())) > 1:
        raise DatasetError(f"{path}: the arrays hold different numbers of samples: {counts}")
    count = next(iter(counts.values()), 1)
    if labels is not None:
        labels = labels.reshape(count) if labels.size == count else labels
    found = StackedArrays(
        path=path,
        stacked=parts["stacked"],
        batched=parts["batched"],
        shared=parts["shared"],
        labels=labels,
        classes=(None,) * count if labels is None or labels.ndim != 1 else tuple(int(label) for label in labels),
        groups=None if groups is None else tuple(str(group) for group in groups),
    )
    if count:
        extra = {name: array for name, array in arrays.items() if name not in names}
        fitted({**found.load(0).inputs, **extra}, needs, str(path))
    return found


def _taken(arrays: dict[str, Array], keys: Sequence[str], inputs: set[str]) -> Array | None:
    for key in keys:
        if key in arrays and key not in inputs:
            return arrays.pop(key)
    return None


def _way(array: Array, need: TensorNeed) -> str:
    """How an array holds samples: one of the names of the attributes of `StackedArrays`."""
    if need.shape is None or array.ndim == len(need.shape) + 1:
        return "stacked"
    first = need.shape[0] if need.shape else 0
    if array.ndim == len(need.shape) and (first == 1 or (not isinstance(first, int) and len(need.shape) > 1)):
        return "batched"
    return "shared"


def _read(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = sum(entry.file_size for entry in archive.infolist())
        if size_bytes > MAX_ARRAYS_BYTES:
            raise DatasetError(f"{path}: unpacks to {size_bytes} bytes, more than {MAX_ARRAYS_BYTES}")
        # Arrays from outside, as `host.ingest.inputs` reads them, without pickle; a step cannot import that one.
        with np.load(path, allow_pickle=False) as stored:  # noqa: TID251
            arrays: Mapping[str, Array] = {name: stored[name] for name in stored.files}
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file") from error
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, MemoryError) as error:
        raise DatasetError(f"{path}: not a readable .npz file: {' '.join(str(error).split())}") from error
    return dict(arrays)
