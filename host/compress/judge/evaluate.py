"""Measures a model on a dataset: its answers once, then as many metrics as are asked for."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edge.formats.tensor import STRING, Array, TensorSpec, pack, unpack
from host.compress.data.dataset import Dataset
from host.compress.judge.interval import CONFIDENCE, drop_score, score
from host.compress.judge.metrics import Asked, asked
from host.compress.judge.score import Score
from host.errors import BudgetError, DatasetError, RuntimeRefusedError
from host.model import Tensors

MEMORY_BYTES = 256 << 20
"""Answers above this go to a temporary file."""

_REPORTS = 20


class Runner(Protocol):
    """Whatever runs a model: `host.reference.Reference`, or an emulated device."""

    def run(self, inputs: Tensors) -> Mapping[str, Array]:
        """Array by output name for one sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    offset: int
    size_bytes: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


class Answers:
    """The outputs of one model for every sample of a dataset, in memory, or on disk when they are large.

    Args:
        outputs: Array by output name, for each sample in order.
        floats_only: Keep only outputs that hold floats, where there are such.
        memory_bytes: Above this they go to a temporary file, which ends with this object.
    """

    def __init__(
        self, outputs: Iterable[Mapping[str, Array]], *, floats_only: bool = True, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=memory_bytes, prefix="shardwire-")  # noqa: SIM115 - closed with this object
        weakref.finalize(self, self._file.close)
        self._places: list[dict[str, _Place]] = []
        end = 0
        for sample in outputs:
            floats = {name: array for name, array in sample.items() if array.dtype.kind == "f"}
            places = {}
            for name, array in (floats if floats_only and floats else sample).items():
                size_bytes = self._written(array)
                places[name] = _Place(offset=end, size_bytes=size_bytes, dtype=array.dtype, shape=array.shape)
                end += size_bytes
            self._places.append(places)
        self.size_bytes: int = end

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Array]:
        return {name: self._read(place) for name, place in self._places[index].items()}

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for index in range(len(self)):
            yield self[index]

    def _written(self, array: Array) -> int:
        try:
            return self._file.write(pack("answer", array) if array.dtype.kind == "O" else array.tobytes())
        except OSError as error:
            folder = tempfile.gettempdir()
            raise DatasetError(f"cannot keep the answers in {folder}: {error.strerror}; set TMPDIR") from error

    def _read(self, place: _Place) -> Array:
        self._file.seek(place.offset)
        content = self._file.read(place.size_bytes)
        if place.dtype.kind == "O":
            return unpack(TensorSpec(name="answer", dtype=STRING, shape=place.shape), memoryview(content))
        array = np.empty(place.shape, place.dtype)
        array.reshape(-1).view(np.uint8)[:] = np.frombuffer(content, np.uint8)
        return array


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How a candidate did.

    Attributes:
        scores: One for each metric, in the order in which they were asked for.
        per_sample: By metric name, float ``[N]``: the figure of each sample; of a drop, what each sample lost.
        samples: N.
        has_groups: Whether several samples come from one source, so that scores count sources.
    """

    scores: tuple[Score, ...]
    per_sample: dict[str, Array]
    samples: int
    has_groups: bool = False

    def score(self, metric: str) -> Score:
        """The score of one metric.

        Raises:
            BudgetError: If it was not measured.
        """
        for one in self.scores:
            if one.metric == metric:
                return one
        raise BudgetError(f"{metric} was not measured; there are {', '.join(one.metric for one in self.scores)}")


def answers(
    runner: Runner,
    dataset: Dataset,
    say: Callable[[str], None] | None = None,
    *,
    floats_only: bool = True,
    memory_bytes: int = MEMORY_BYTES,
) -> Answers:
    """Run a model on every sample.

    Args:
        runner: The model.
        dataset: The samples.
        say: Told now and then how far it is.
        floats_only: Keep only outputs that hold floats, where there are such.
        memory_bytes: Above this the answers go to disk.

    Raises:
        DatasetError: If a sample cannot be read, or the disk is full.
        RuntimeRefusedError: If the model does not run on a sample, named.
    """

    def outputs() -> Iterator[Mapping[str, Array]]:
        every = max(1, -(-len(dataset) // _REPORTS))
        for index, sample in enumerate(dataset):
            try:
                yield runner.run(sample.inputs)
            except RuntimeRefusedError as error:
                raise RuntimeRefusedError(f"{dataset.where(index)}: {error}") from error
            if say is not None and (index + 1) % every == 0:
                say(f"answered {index + 1:,} of {len(dataset):,} samples of {dataset.name}")

    return Answers(outputs(), floats_only=floats_only, memory_bytes=memory_bytes)


def evaluate(
    found: Answers,
    original: Answers,
    dataset: Dataset,
    metrics: Sequence[str],
    *,
    confidence: float = CONFIDENCE,
) -> Evaluation:
    """Judge a candidate's answers.

    Args:
        found: The candidate's answers.
        original: Those of the model that it came from.
        dataset: What both were asked.
        metrics: Names, see `host.compress.judge.metrics`.
        confidence: Of the intervals.

    Raises:
        BudgetError: If there is no such metric, or it does not fit the outputs or labels; names the sample.
        DatasetError: If the answers are not those to this dataset, or the samples do not suffice.
    """
    if not 0 < confidence < 1:
        raise BudgetError(f"confidence {confidence} is not between 0 and 1")
    if not len(found) == len(original) == len(dataset):
        raise DatasetError(f"{dataset.name}: {len(found)} and {len(original)} answers to {len(dataset)} samples")
    wanted = [asked(name) for name in dict.fromkeys(metrics)]
    after = {one.name: np.zeros(len(dataset)) for one in wanted}
    before = {one.name: np.zeros(len(dataset)) for one in wanted if one.is_drop}
    reads_label = any(one.metric.reads_label for one in wanted)
    for index in range(len(dataset)):
        have, want = found[index], original[index]
        label = dataset.label(index) if reads_label else None
        for one in wanted:
            try:
                after[one.name][index] = one(have, want, label)
                if one.is_drop:
                    before[one.name][index] = one(want, want, label)
            except BudgetError as error:
                notes = "".join(f"; {note}" for note in dataset.notes) if label is None else ""
                raise BudgetError(f"{dataset.where(index)}: {one.name}: {error}{notes}") from error
    groups = dataset.groups
    scores = tuple(_scored(one, before, after, groups, confidence) for one in wanted)
    lost = {name: before[name] - after[name] for name in before}
    return Evaluation(scores=scores, per_sample=after | lost, samples=len(dataset), has_groups=groups is not None)


def _scored(
    one: Asked,
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    groups: Sequence[str] | None,
    confidence: float,
) -> Score:
    scale, values = one.metric.scale, after[one.name]
    if one.is_drop:
        return drop_score(one.name, before[one.name], values, scale=scale, groups=groups, confidence=confidence)
    return score(one.name, values, scale=scale, groups=groups, confidence=confidence)
