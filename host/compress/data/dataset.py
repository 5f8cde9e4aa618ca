"""A collection of samples to measure accuracy on: loaded one by one, indexable, with subsets that can be repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.formats.processing import InputRecipe
from edge.formats.tensor import Array
from host.compress.data import image_folder, sample_arrays, sample_callable, token_table
from host.compress.data.samples import Class, Held, Label, Rows, Sample, TensorNeed, as_label
from host.dotted import DOTTED
from host.errors import DatasetError
from host.model import Tensors


class Dataset:
    """Samples in a fixed order.

    A dataset may say which samples come from one source, such as crops of one photo. They are not independent: a
    subset takes a source as a whole, and an interval counts sources, so that twenty photos do not pass for proof even
    as a thousand crops.

    Args:
        rows: Where the samples come from.
        chosen: Which rows, in order; all when None.
    """

    def __init__(self, rows: Rows, chosen: Sequence[int] | None = None) -> None:
        self._rows = rows
        self._is_whole = chosen is None
        self._classes = rows.classes
        self._chosen: Sequence[int] = range(len(self._classes)) if chosen is None else tuple(chosen)
        self._digest = ""

    @classmethod
    def held(
        cls,
        inputs: Sequence[Tensors],
        labels: Sequence[object] | None = None,
        groups: Sequence[object] | None = None,
        *,
        name: str = "samples",
    ) -> Dataset:
        """A dataset of what is in memory already.

        Args:
            inputs: Of each sample.
            labels: Of each sample: class numbers, or arrays of them.
            groups: The source of each sample.
            name: For messages.

        Raises:
            DatasetError: If there are not as many labels or groups as inputs, or a label is no number.
        """
        for kind, values in (("labels", labels), ("groups", groups)):
            if values is not None and len(values) != len(inputs):
                raise DatasetError(f"{name}: {len(values)} {kind} for {len(inputs)} samples")
        found: Sequence[object] = [None] * len(inputs) if labels is None else labels
        samples = tuple(
            Sample(inputs=one, label=as_label(label, f"{name}: sample {index}"))
            for index, (one, label) in enumerate(zip(inputs, found, strict=True))
        )
        return cls(
            Held(name=name, samples=samples, groups=None if groups is None else tuple(str(group) for group in groups))
        )

    @property
    def name(self) -> str:
        """What people call it."""
        return self._rows.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken for granted while reading, for people."""
        return self._rows.notes

    @property
    def digest(self) -> str:
        """``sha256:…`` over the content: equal digests mean equal samples. Worked out when first asked for."""
        if not self._digest:
            digest = self._rows.digest()
            if not self._is_whole:
                digest = f"sha256:{hashlib.sha256(f'{digest}{self._chosen}'.encode()).hexdigest()}"
            self._digest = digest
        return self._digest

    @property
    def classes(self) -> tuple[Class, ...]:
        """The label of each sample where it is one class, else None."""
        return tuple(self._classes[row] for row in self._chosen)

    @property
    def groups(self) -> tuple[str, ...] | None:
        """The source of each sample; None if each stands alone."""
        groups = self._rows.groups
        return None if groups is None else tuple(groups[row] for row in self._chosen)

    def label(self, index: int) -> Label:
        """The label of a sample; loads the sample only where it is not one class."""
        row = self._chosen[index]
        label = self._classes[row]
        return self._rows.load(row).label if label is None else label

    def where(self, index: int) -> str:
        """What a message calls a sample."""
        return self._rows.where(self._chosen[index])

    def take(self, count: int, seed: int = 0) -> Dataset:
        """A subset, as a stratified draw: each class keeps its share, sources stay whole, the order stays.

        Args:
            count: Samples wanted; with sources, whole ones are taken until there are at least as many. All if the
                dataset has no more.
            seed: Another seed, another draw.

        Raises:
            DatasetError: If ``count`` is less than one.
        """
        if count < 1:
            raise DatasetError(f"{self.name}: cannot take {count} samples")
        return self._subset(self._drawn(count, seed))

    def split(self, first: int, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Two subsets without a common sample or source: a draw as with `take`, and the rest.

        Args:
            first: Samples of the first part.
            seed: Another seed, another split.

        Raises:
            DatasetError: If one part would be empty.
        """
        drawn = self._drawn(first, seed) if first > 0 else frozenset()
        rest = frozenset(range(len(self))) - drawn
        if not drawn or not rest:
            kind = "samples" if self.groups is None else f"samples from {len(set(self.groups))} sources"
            raise DatasetError(f"{self.name}: cannot split {first} of {len(self)} {kind} off and keep some")
        return self._subset(drawn), self._subset(rest)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Sample:
        return self._rows.load(self._chosen[index])

    def __iter__(self) -> Iterator[Sample]:
        for row in self._chosen:
            yield self._rows.load(row)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self)} samples)"

    def _subset(self, positions: frozenset[int]) -> Dataset:
        return Dataset(self._rows, [self._chosen[position] for position in sorted(positions)])

    def _drawn(self, count: int, seed: int) -> frozenset[int]:
        groups = self.groups or tuple(map(str, range(len(self))))
        members: dict[str, list[int]] = {}
        for position, group in enumerate(groups):
            members.setdefault(group, []).append(position)
        units = list(members.values())
        classes = self.classes
        drawn: set[int] = set()
        for unit in _stratified_order([classes[unit[0]] for unit in units], seed):
            if len(drawn) >= count:
                break
            drawn.update(units[unit])
        return frozenset(drawn)


def _stratified_order(classes: Sequence[Class], seed: int) -> list[int]:
    """An order of which every beginning holds each class by its share, as nearly as whole numbers allow.

    Within its class, the unit of random rank r of n stands at (r + 1/2) / n of the way; equal ones stand at random.
    """
    random = np.random.default_rng(seed)
    shuffled: Array = random.permutation(len(classes))
    totals: dict[Class, int] = {}
    for one in classes:
        totals[one] = totals.get(one, 0) + 1
    seen: dict[Class, int] = {}
    placed: list[tuple[float, int, int]] = []
    for turn, unit in enumerate(shuffled.tolist()):
        one = classes[unit]
        placed.append(((seen.get(one, 0) + 0.5) / totals[one], turn, unit))
        seen[one] = seen.get(one, 0) + 1
    return [unit for _, _, unit in sorted(placed)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """One form that samples can be given in.

    Attributes:
        form: How it is written, for messages.
        is_meant: Whether a source has this form.
        load: Reads it.
    """

    form: str
    is_meant: Callable[[str], bool]
    load: Callable[[str, Sequence[TensorNeed], InputRecipe | None, Sequence[str] | None], Rows]


_KINDS = (
    _Kind(
        form="a file that ends in .npz",
        is_meant=lambda source: source.lower().endswith(".npz"),
        load=lambda source, needs, _preprocess, _labels: sample_arrays.load(Path(source), needs),
    ),
    _Kind(
        form="a .csv of token ids",
        is_meant=lambda source: source.lower().endswith(".csv"),
        load=lambda source, needs, _preprocess, _labels: token_table.load(Path(source), needs),
    ),
    _Kind(
        form="package.module:function",
        is_meant=lambda source: DOTTED.fullmatch(source) is not None,
        load=lambda source, needs, _preprocess, _labels: sample_callable.load(source, needs),
    ),
    _Kind(
        form="a folder of images",
        is_meant=lambda source: Path(source).is_dir(),
        load=lambda source, needs, preprocess, labels: image_folder.load(
            Path(source), needs, preprocess=preprocess, labels=labels
        ),
    ),
)


def load_dataset(
    source: str | Path,
    *,
    specs: Sequence[TensorNeed],
    preprocess: InputRecipe | None = None,
    labels: Sequence[str] | None = None,
) -> Dataset:
    """Open a dataset.

    Args:
        source: A folder of images, an ``.npz`` or ``.csv`` file, or ``package.module:function``.
        specs: What the model takes.
        preprocess: Recipe from a photo to the model's input; needed for images only.
        labels: Names of the classes in order, for folders that are named by class.

    Raises:
        DatasetError: If it cannot be read, is empty, or does not fit the model.
    """
    text = str(source)
    kind = next((kind for kind in _KINDS if kind.is_meant(text)), None)
    if kind is None:
        forms = ", ".join(kind.form for kind in _KINDS[:-1])
        raise DatasetError(f"{text}: no such folder, and no other form of samples: give {forms} or {_KINDS[-1].form}")
    rows = kind.load(text, specs, preprocess, labels)
    if not rows.classes:
        raise DatasetError(f"{text}: holds no sample")
    return Dataset(rows)
