"""The samples of a training: their order, their batches, their labels, and the changes of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from edge.formats.tensor import Array
from host.compress.recover import RecoverError
from host.model import Tensors

# Images are moved by up to this share of their side.
_LARGEST_SHIFT = 0.125


def batches(samples: Sequence[Tensors], size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """The indices of each batch of an epoch; the same seed and epoch give the same ones.

    Samples of one batch have one shape.

    Args:
        samples: All of them.
        size: Of a batch; the last ones of a shape are fewer.
        seed: Of the training.
        epoch: From 0.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(samples))
    return grouped(samples, [int(index) for index in order], size)


def grouped(samples: Sequence[Tensors], order: Sequence[int], size: int) -> list[list[int]]:
    """Batches of samples of one shape, in the given order."""
    waiting: dict[tuple[tuple[str, tuple[int, ...]], ...], list[int]] = {}
    full = []
    for index in order:
        shape = tuple(sorted((name, np.shape(array)) for name, array in samples[index].items()))
        waiting.setdefault(shape, []).append(index)
        if len(waiting[shape]) == size:
            full.append(waiting.pop(shape))
    return full + list(waiting.values())


def stacked(samples: Sequence[Tensors], chosen: Sequence[int]) -> dict[str, Tensor]:
    """Samples of one shape as tensors [count, *shape]."""
    return {
        name: torch.from_numpy(np.stack([np.asarray(samples[index][name]) for index in chosen]))
        for name in samples[chosen[0]]
    }


def is_image(array: Array) -> bool:
    """Whether a tensor may be mirrored and moved: float [N, 1 or 3 or 4, H, W]."""
    return array.dtype == np.float32 and array.ndim == 4 and array.shape[1] in (1, 3, 4) and min(array.shape[2:]) >= 8


def require_images(samples: Sequence[Tensors]) -> None:
    """Raise unless some input is an image.

    Raises:
        RecoverError: If none is.
    """
    if not any(is_image(np.asarray(array)) for array in samples[0].values()):
        raise RecoverError("augment mirrors and moves images, but no input is float32 [N, 1|3|4, H, W]: leave it out")


def augmented(inputs: Mapping[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
    """Mirror half of the images left to right, and move each by up to an eighth of its side, borders repeated.

    Args:
        inputs: [count, N, C, H, W] where they are images; others stay as they are.
        rng: Decides.
    """
    changed = {}
    for name, tensor in inputs.items():
        arrays = tensor.numpy()
        changed[name] = (
            torch.from_numpy(np.stack([_moved(array, rng) for array in arrays])) if is_image(arrays[0]) else tensor
        )
    return changed


def _moved(image: Array, rng: np.random.Generator) -> Array:
    if rng.random() < 0.5:
        image = image[..., ::-1]
    for axis in (2, 3):
        size = image.shape[axis]
        reach = int(size * _LARGEST_SHIFT)
        at = np.clip(np.arange(size) + int(rng.integers(-reach, reach + 1)), 0, size - 1)
        image = np.take(image, at, axis=axis)
    return image


def digest_of(samples: Sequence[Tensors]) -> Iterator[bytes]:
    """Bytes that differ where samples differ, one digest a sample."""
    for sample in samples:
        digest = hashlib.sha256()
        for name, array in sorted(sample.items()):
            whole = np.ascontiguousarray(array)
            digest.update(f"{name} {whole.dtype} {whole.shape}\n".encode())
            digest.update(whole.tobytes())
        yield digest.digest()
