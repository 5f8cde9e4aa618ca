"""Crops of the labelled ImageNet photos, 224×224 pixels: some photos to calibrate, the others to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edge.formats.tensor import Array
from host.ingest.zoo import SIDE_PIXELS, photo_paths
from host.model import Tensors

# Of each five photos two calibrate: eight of twenty.
_CALIBRATING = (1, 3)
_LEAST_SIDE, _LARGEST_SIDE = 0.5, 0.95
_CENTRE = 224 / 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """From pixels in [0, 255] to what a network takes: ``(pixel - mean) / deviation`` for each colour."""

    input: str
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


EFFICIENTNET = Scaling(input="image", mean=(127.0, 127.0, 127.0), deviation=(128.0, 128.0, 128.0))
MOBILENET = Scaling(input="image", mean=(123.675, 116.28, 103.53), deviation=(58.395, 57.12, 57.375))


def calibration_paths() -> tuple[Path, ...]:
    """The photos that calibrate."""
    return tuple(path for index, path in enumerate(photo_paths()) if index % 5 in _CALIBRATING)


def test_paths() -> tuple[Path, ...]:
    """The photos that are measured on: the others."""
    return tuple(path for index, path in enumerate(photo_paths()) if index % 5 not in _CALIBRATING)


def crops(paths: Sequence[Path], each: int, scaling: Scaling, *, seed: int) -> list[Tensors]:
    """Random squares of photos, half of them mirrored, as inputs ``[1, 3, 224, 224]``.

    Args:
        paths: The photos.
        each: Crops of one photo.
        scaling: What the network takes.
        seed: Of the places. The side is between 0.5 and 0.95 of the short edge.
    """
    rng = np.random.default_rng(seed)
    found = []
    for path in paths:
        photo = _opened(path)
        for _ in range(each):
            side = round(min(photo.size) * rng.uniform(_LEAST_SIDE, _LARGEST_SIDE))
            left = int(rng.integers(0, photo.width - side + 1))
            top = int(rng.integers(0, photo.height - side + 1))
            found.append(_scaled(photo, (left, top, left + side, top + side), scaling, mirrored=rng.random() < 0.5))
    return found


def centres(paths: Sequence[Path], scaling: Scaling) -> list[Tensors]:
    """The middle of each photo, 0.875 of its short edge, as the networks were trained to see it."""
    found = []
    for path in paths:
        photo = _opened(path)
        side = round(min(photo.size) * _CENTRE)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        found.append(_scaled(photo, (left, top, left + side, top + side), scaling, mirrored=False))
    return found


def labels(paths: Sequence[Path]) -> Array:
    """Class of each photo, from its name: ``imagenet_NN_LABEL.jpg``."""
    return np.array([int(path.stem.rpartition("_")[2]) for path in paths])


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as photo:
        return photo.convert("RGB")


def _scaled(photo: Image.Image, box: tuple[int, int, int, int], scaling: Scaling, *, mirrored: bool) -> Tensors:
    crop = photo.resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BICUBIC, box=box)
    if mirrored:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mean, deviation = np.array(scaling.mean, np.float32), np.array(scaling.deviation, np.float32)
    pixels = (np.asarray(crop, np.float32) - mean) / deviation
    return {scaling.input: np.ascontiguousarray(pixels.transpose(2, 0, 1)[np.newaxis], np.float32)}
