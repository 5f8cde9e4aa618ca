"""From the pixels of small images to the inputs of the networks trained here, and what the networks make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.data import Images, cifar10, mnist
from edge.formats.tensor import Array
from host.errors import DatasetError
from host.ingest import ingest
from host.model import Ingested, Model, Tensors
from host.reference import Mode, Reference

INPUT = "image"
MODELS = Path(__file__).resolve().parent / "models"
CALIBRATION = 200
BATCH = 100

_SEED = 7


def prepared(pixels: Array) -> Array:
    """``[N, H, W, C]`` uint8 to ``[N, C, H, W]`` float32, in about [-2, 2]."""
    scaled = (pixels.astype(np.float32) - np.float32(127.5)) / np.float32(64)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def samples(images: Images) -> list[Tensors]:
    """One input for each image, batch 1."""
    return [{INPUT: each[np.newaxis]} for each in prepared(images.pixels)]


def batches(images: Images) -> list[Tensors]:
    """The images in their order, in batches of `BATCH`."""
    pixels = prepared(images.pixels)
    return [{INPUT: pixels[start : start + BATCH]} for start in range(0, len(pixels), BATCH)]


def drawn(images: Images, count: int) -> Images:
    """Some of the images, drawn with a fixed seed."""
    order = np.random.default_rng(_SEED).permutation(len(images))
    return images.at(order[:count])


def cifar10_samples() -> list[Tensors]:
    """Calibration inputs of the CIFAR-10 network: training images."""
    return samples(drawn(cifar10(train=True), CALIBRATION))


def mnist_samples() -> list[Tensors]:
    """Calibration inputs of the MNIST network: training images."""
    return samples(drawn(mnist(train=True), CALIBRATION))


def trained(name: str, calibration: Callable[[], list[Tensors]]) -> Ingested:
    """A network that was trained here.

    Raises:
        DatasetError: If it is not there.
    """
    path = MODELS / f"{name}.onnx"
    if not path.exists():
        raise DatasetError(f"{path} is missing: run python -m benchmarks.train_{name}")
    return ingest(str(path), inputs=f"{__name__}:{calibration.__name__}")


def logits(model: Model, inputs: list[Tensors], mode: Mode = "default") -> Array:
    """The first output for all inputs, one row a sample; on one thread."""
    reference = Reference(model, mode=mode)
    return np.concatenate([reference.run(each)[reference.outputs[0]] for each in inputs])


def top1(found: Array, labels: Array) -> float:
    """Share of the rows whose largest value is at the label."""
    return float(np.mean(found.argmax(1) == labels))


def agreement(found: Array, expected: Array) -> float:
    """Share of the rows whose largest value is at the same place."""
    return float(np.mean(found.argmax(1) == expected.argmax(1)))


def cosine(found: Array, expected: Array) -> float:
    """Mean cosine of the angle between rows."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    products = (found * expected).sum(1)
    return float(np.mean(products / np.sqrt((found**2).sum(1) * (expected**2).sum(1))))
