"""Executes the declared preprocessing of a bundle and reads class labels; the only importer of Pillow on the edge.

Pillow comes with the extra `shardwire[image]`; a client that sends tensors does not need it.
"""

import io
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from edge.errors import InvalidInput, ShardwireError
from edge.formats.preprocess import CentreCrop, Labels, Normalise, Preprocess, Resize
from edge.formats.tensor import Array

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_IMAGE_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 64_000_000
_RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}


def prepare_image(preprocess: Preprocess, data: bytes, *, where: str) -> Array:
    """Turn an encoded photo into the model's input.

    Args:
        preprocess: the steps.
        data: JPEG, PNG or anything else that Pillow opens.
        where: file name for messages.

    Returns:
        float32 `[1, C, H, W]` or `[1, H, W, C]`; uint8 when no `Normalise` step is declared.

    Raises:
        InvalidInput: `data` is not an image, or one of absurd size.
    """
    image = _decode(data, preprocess.colour, where)
    pixels: Array | None = None
    for step in preprocess.steps:
        match step:
            case CentreCrop():
                image = _centre_crop(image, step)
            case Resize():
                image = image.resize((step.width, step.height), _RESAMPLE[step.resample])
            case Normalise():
                pixels = _normalise(np.asarray(image, np.float32), step)
    if pixels is None:
        pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if preprocess.layout == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[None])


def _decode(data: bytes, colour: str, where: str) -> "Image":
    if find_spec("PIL") is None:
        raise ShardwireError("reading photos needs Pillow: pip install 'shardwire[image]'")
    from PIL import Image, ImageOps, UnidentifiedImageError

    if len(data) > MAX_IMAGE_BYTES:
        raise InvalidInput(f"{where}: {len(data)} bytes are more than the {MAX_IMAGE_BYTES} allowed for a photo")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InvalidInput(f"{where}: {image.width} x {image.height} pixels are more than {MAX_PIXELS}")
            # Phones store photos as the sensor saw them, with a note on how to turn them.
            return ImageOps.exif_transpose(image).convert(colour)
    except UnidentifiedImageError as error:
        raise InvalidInput(f"{where}: not an image") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"{where}: not an image that can be read ({' '.join(str(error).split())[:120]})") from error


def _normalise(pixels: Array, step: Normalise) -> Array:
    normal: Array = (pixels - np.array(step.mean, np.float32)) / np.array(step.std, np.float32)
    return normal


def _centre_crop(image: "Image", step: CentreCrop) -> "Image":
    side = max(1, round(step.ratio * min(image.width, image.height)))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def read_labels(labels: Labels, outputs: dict[str, Array], *, top: int = 5) -> list[tuple[str, float]]:
    """Return the `top` most probable classes of the first item, with their probabilities.

    Raises:
        InvalidInput: the output is missing or has another number of classes.
    """
    scores = outputs.get(labels.output)
    if scores is None or scores.size == 0 or scores.reshape(scores.shape[0], -1).shape[1] != len(labels.names):
        raise InvalidInput(f"output {labels.output!r} does not hold one score for each of {len(labels.names)} classes")
    row = scores.reshape(scores.shape[0], -1)[0].astype(np.float64)
    if labels.softmax:
        row = np.exp(row - row.max())
        row /= row.sum()
    best = np.argsort(-row, kind="stable")[:top]
    return [(labels.names[index], float(row[index])) for index in best]
