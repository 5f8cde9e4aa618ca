"""Photos: decoded, cropped, resized. The only importer of Pillow on the edge.

Pillow comes with the extra `shardwire[image]`; a client that sends tensors does not need it.
"""

import io
from dataclasses import replace
from importlib.util import find_spec

import numpy as np

from edge.errors import InvalidInput, ShardwireError
from edge.formats.steps import CentreCrop, Crop, DecodeImage, Resize
from edge.formats.tensor import Array
from edge.processing.values import Placement, Value

MAX_IMAGE_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 64_000_000

_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4}


def decode_image(step: DecodeImage, value: Value) -> Value:
    """Read an image file.

    Raises:
        InvalidInput: it is none, or of absurd size.
        ShardwireError: Pillow is not installed.
    """
    data, where = value.held, value.where
    if not isinstance(data, bytes):
        raise InvalidInput(f"{where}: not an image file")
    if find_spec("PIL") is None:
        raise ShardwireError("reading photos needs Pillow: pip install 'shardwire[image]'")
    from PIL import Image, ImageOps, UnidentifiedImageError

    if len(data) > MAX_IMAGE_BYTES:
        raise InvalidInput(f"{where}: {len(data)} bytes are more than the {MAX_IMAGE_BYTES} allowed for a photo")
    mode = "L" if step.colour == "L" else "RGB"
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InvalidInput(f"{where}: {image.width} x {image.height} pixels are more than {MAX_PIXELS}")
            # Phones store photos as the sensor saw them, with a note on how to turn them.
            pixels = np.asarray(ImageOps.exif_transpose(image).convert(mode))
    except UnidentifiedImageError as error:
        raise InvalidInput(f"{where}: not an image") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"{where}: not an image that can be read ({' '.join(str(error).split())[:120]})") from error
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if step.colour == "BGR":
        pixels = pixels[:, :, ::-1]
    return replace(value, held=pixels, placement=Placement(width=pixels.shape[1], height=pixels.shape[0]))


def centre_crop(step: CentreCrop, value: Value) -> Value:
    """Cut a square in the middle, of at least one pixel."""
    pixels, _ = _image(value)
    height, width = pixels.shape[:2]
    side = max(1, round(step.ratio * min(width, height)))
    return _cut(value, (width - side) // 2, (height - side) // 2, side, side)


def crop(step: Crop, value: Value) -> Value:
    """Cut a rectangle, as much of it as there is.

    Raises:
        InvalidInput: it lies beside the image.
    """
    pixels, _ = _image(value)
    height, width = pixels.shape[:2]
    if step.left >= width or step.top >= height:
        raise InvalidInput(f"{value.where}: {width} x {height} pixels end before the crop at {step.left}, {step.top}")
    return _cut(value, step.left, step.top, min(step.width, width - step.left), min(step.height, height - step.top))


def _cut(value: Value, left: int, top: int, width: int, height: int) -> Value:
    pixels, placement = _image(value)
    held = pixels[top : top + height, left : left + width]
    return replace(value, held=held, placement=placement.cut(left, top, width, height))


def resize(step: Resize, value: Value) -> Value:
    """Resize with Pillow's filters, and fill where the ratio is kept."""
    pixels, placement = _image(value)
    height, width = pixels.shape[:2]
    if step.fit == "stretch":
        inner = (step.width, step.height)
    elif step.fit == "line":
        # As PP-OCR does it: rounded up, so that the last letter is not cut.
        inner = (min(step.width, max(1, -(-step.height * width // height))), step.height)
    else:
        ratio = min(step.width / width, step.height / height)
        inner = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    held = _resized(pixels, inner, step.resample)
    placement = placement.resized(*inner)
    if step.fit in ("pad", "pad-end") and inner != (step.width, step.height):
        left = (step.width - inner[0]) // 2 if step.fit == "pad" else 0
        top = (step.height - inner[1]) // 2 if step.fit == "pad" else 0
        filled = np.full((step.height, step.width, pixels.shape[2]), step.fill, np.uint8)
        filled[top : top + inner[1], left : left + inner[0]] = held
        held, placement = filled, placement.cut(-left, -top, step.width, step.height)
    return replace(value, held=held, placement=placement)


def _resized(pixels: Array, size: tuple[int, int], resample: str) -> Array:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    found = np.asarray(image.resize(size, _RESAMPLE[resample]))
    return found[:, :, None] if found.ndim == 2 else found


def _image(value: Value) -> tuple[Array, Placement]:
    if not isinstance(value.held, np.ndarray) or value.placement is None:
        raise InvalidInput(f"{value.where}: not an image")
    return value.held, value.placement
