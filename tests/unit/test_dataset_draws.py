"""Subsets are the same each time, keep the share of each class, and never part the crops of one photo."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from host.compress.data.dataset import Dataset, load_dataset
from host.errors import DatasetError
from host.ingest.inputs import InputSpec


def numbered(labels: list[int] | None, count: int = 100, groups: list[int] | None = None) -> Dataset:
    return Dataset.held([{"x": np.array([index])} for index in range(count)], labels, groups)


def members(dataset: Dataset) -> list[int]:
    return [int(sample.inputs["x"][0]) for sample in dataset]


def test_a_draw_keeps_the_share_of_each_class_and_the_order() -> None:
    dataset = numbered([0] * 60 + [1] * 30 + [2] * 10)
    drawn = dataset.take(20, seed=3)
    assert Counter(drawn.classes) == {0: 12, 1: 6, 2: 2}
    assert members(drawn) == sorted(members(drawn))
    assert members(drawn) == members(dataset.take(20, seed=3))
    assert members(drawn) != members(dataset.take(20, seed=4))


def test_a_draw_of_fewer_samples_than_classes_takes_each_class_once_at_most() -> None:
    drawn = numbered([index // 2 for index in range(100)]).take(30, seed=1)
    assert max(Counter(drawn.classes).values()) == 1


def test_a_smaller_draw_is_part_of_a_larger_one() -> None:
    dataset = numbered([index % 7 for index in range(100)])
    assert set(members(dataset.take(10))) < set(members(dataset.take(40)))
    assert members(dataset.take(1000)) == list(range(100))


def test_a_split_gives_every_sample_once() -> None:
    dataset = numbered([index % 5 for index in range(100)])
    first, rest = dataset.split(25, seed=2)
    assert Counter(first.classes) == dict.fromkeys(range(5), 5)
    assert sorted(members(first) + members(rest)) == list(range(100))
    assert members(first) == members(dataset.take(25, seed=2))


def test_crops_of_one_photo_stay_together() -> None:
    dataset = numbered(None, groups=[index // 10 for index in range(100)])
    first, rest = dataset.split(25, seed=2)
    assert len(first) == 30
    assert not set(first.groups or ()) & set(rest.groups or ())


def test_a_subset_of_a_subset_is_one() -> None:
    dataset = numbered([index % 2 for index in range(100)])
    inner = dataset.take(50).take(10)
    assert len(inner) == 10
    assert set(members(inner)) < set(members(dataset.take(50)))
    assert inner.where(0) == f"samples: sample {members(inner)[0]}"


def test_one_number_is_a_class_whatever_its_shape() -> None:
    assert Dataset.held([{}, {}, {}], [np.array([[3]]), np.int64(4), True]).classes == (3, 4, 1)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"^samples: cannot take 0 samples$"):
        numbered(None).take(0)
    for first in (0, 100, 200):
        with pytest.raises(DatasetError, match=rf"^samples: cannot split {first} of 100 samples off and keep some$"):
            numbered(None).split(first)
    with pytest.raises(
        DatasetError, match=r"^samples: cannot split 50 of 100 samples from 1 sources off and keep some$"
    ):
        numbered(None, groups=[1] * 100).split(50)
    with pytest.raises(DatasetError, match=r"^samples: 3 labels for 100 samples$"):
        numbered([1, 2, 3])


def test_a_digest_stands_for_the_content(tmp_path: Path) -> None:
    dataset = numbered([1] * 100)
    digest = dataset.digest
    assert digest.startswith("sha256:")
    assert digest == numbered([1] * 100).digest
    others = (
        numbered([2] * 100),
        numbered(None),
        numbered([1] * 100, groups=[3] * 100),
        dataset.take(50),
        dataset.take(51),
    )
    assert len({digest, *(other.digest for other in others)}) == 6
    assert dataset.take(50).digest == dataset.take(50).digest

    specs = (InputSpec(name="x", dtype="int64", shape=(1,)),)
    for name, value in (("a", 1), ("b", 1), ("c", 2)):
        np.savez(tmp_path / f"{name}.npz", x=np.array([value]))
    a, b, c = (load_dataset(tmp_path / f"{name}.npz", specs=specs).digest for name in "abc")
    assert a == b != c


def test_reading_a_sample_does_not_read_the_others() -> None:
    dataset = numbered(None)
    assert int(dataset[99].inputs["x"][0]) == 99
    assert repr(dataset) == "Dataset('samples', 100 samples)"
    with pytest.raises(IndexError):
        dataset[100]
