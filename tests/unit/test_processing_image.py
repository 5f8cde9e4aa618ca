"""A photo becomes the input of a model by declared steps, and every image knows where it lies in the photo."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edge.errors import InvalidInput, ShardwireError
from edge.formats.processing import InputRecipe
from edge.formats.steps import CentreCrop, Crop, DecodeImage, InputStep, Layout, Normalise, Resize
from edge.processing import image as module
from edge.processing.prepare import STEPS, prepare_image, run
from edge.processing.values import Placement, Value

RESIZE = Resize(width=4, height=2, resample="nearest")
HALVES = Normalise(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))


def encoded(image: Image.Image, *, kind: str = "PNG") -> bytes:
    """The image as a file."""
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return stream.getvalue()


def steps(*of: InputStep, colour: str = "RGB", layout: str = "NCHW") -> InputRecipe:
    """The recipe for an input called x."""
    decode = DecodeImage(colour=colour)  # type: ignore[arg-type]  # one of its three
    return InputRecipe(name="x", steps=(decode, *of, Layout(to=layout)))  # type: ignore[arg-type]  # as above


def photo(width: int = 6, height: int = 4) -> Image.Image:
    """An image whose pixel at (x, y) is (x, y, 200)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)[None, :]
    pixels[..., 1] = np.arange(height)[:, None]
    pixels[..., 2] = 200
    return Image.fromarray(pixels)


def test_without_steps_the_pixels_are_as_they_are() -> None:
    found = prepare_image(steps(), encoded(photo()), where="photo")
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(photo()).transpose(2, 0, 1)[None])


def test_a_photo_that_a_phone_stored_lying_down_is_stood_up() -> None:
    stream = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6  # the tag `Orientation`: turn by 90 degrees to the right
    photo().save(stream, format="PNG", exif=turned)
    found = prepare_image(steps(), stream.getvalue(), where="photo")
    assert np.array_equal(found, np.asarray(photo().rotate(-90, expand=True)).transpose(2, 0, 1)[None])


def test_channels_come_last_where_the_model_wants_it() -> None:
    found = prepare_image(steps(layout="NHWC"), encoded(photo()), where="photo")
    assert found.shape == (1, 4, 6, 3)
    assert found.flags.c_contiguous


def test_a_grey_model_gets_one_channel() -> None:
    assert prepare_image(steps(colour="L"), encoded(photo()), where="photo").shape == (1, 1, 4, 6)


def test_normalising_is_mean_and_deviation_in_float32() -> None:
    found = prepare_image(steps(HALVES), encoded(photo()), where="photo")
    assert found.dtype == np.float32
    assert found[0, 2, 0, 0] == np.float32((200 - 127) / 128)
    assert found[0, 0, 0, 5] == np.float32((5 - 127) / 128)


def test_resizing_gives_the_size_it_names() -> None:
    assert prepare_image(steps(RESIZE), encoded(photo()), where="photo").shape == (1, 3, 2, 4)


@pytest.mark.parametrize(
    ("ratio", "size", "first", "side"),
    [
        (1.0, (6, 4), (1, 0), 4),  # the middle of the longer edge
        (1.0, (4, 6), (0, 1), 4),
        (0.5, (6, 4), (2, 1), 2),
        (0.01, (6, 4), (2, 1), 1),  # never nothing
    ],
)
def test_a_centre_crop_is_a_square_in_the_middle(
    ratio: float, size: tuple[int, int], first: tuple[int, int], side: int
) -> None:
    found = prepare_image(steps(CentreCrop(ratio=ratio)), encoded(photo(*size)), where="photo")
    assert found.shape == (1, 3, side, side)
    assert tuple(found[0, :2, 0, 0]) == first


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_any_usual_format_is_read(kind: str) -> None:
    assert prepare_image(steps(RESIZE), encoded(photo(), kind=kind), where="photo").shape == (1, 3, 2, 4)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_any_colour_mode_becomes_the_models(mode: str) -> None:
    image = Image.new("I;16", (6, 4)) if mode == "I;16" else photo().convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert prepare_image(steps(), encoded(image, kind=kind), where="photo").shape == (1, 3, 4, 6)


@pytest.mark.parametrize(("data", "reason"), [(b"", "not an image"), (b"hello", "not an image")])
def test_what_is_no_image_is_said_with_its_name(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        prepare_image(steps(), data, where="cat.jpg")
    assert str(caught.value) == f"cat.jpg: {reason}"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_an_image_cut_short_anywhere_is_said_in_one_line(kind: str) -> None:
    whole = encoded(photo(60, 40), kind=kind)
    said = [said_of(whole[:length]) for length in range(0, len(whole) - 1, max(1, len(whole) // 25))]
    assert [line for line in said if line and not line.startswith("cat.jpg: not an image")] == []
    assert "\n" not in "".join(said)
    assert said[0]


def said_of(data: bytes) -> str:
    """What is said of an image that cannot be read; nothing of one that can."""
    try:
        prepare_image(steps(), data, where="cat.jpg")
    except InvalidInput as error:
        return str(error)
    return ""


def test_an_image_of_absurd_size_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 23)
    with pytest.raises(InvalidInput) as caught:
        prepare_image(steps(), encoded(photo()), where="cat.jpg")
    assert str(caught.value) == "cat.jpg: 6 x 4 pixels are more than 23"


def test_a_file_of_absurd_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo())
    monkeypatch.setattr(module, "MAX_IMAGE_BYTES", len(data) - 1)
    with pytest.raises(InvalidInput) as caught:
        prepare_image(steps(), data, where="cat.jpg")
    assert str(caught.value) == f"cat.jpg: {len(data)} bytes are more than the {len(data) - 1} allowed for a photo"


def test_a_model_that_wants_blue_first_gets_it() -> None:
    found = prepare_image(steps(colour="BGR"), encoded(photo()), where="photo")
    assert np.array_equal(found[0], np.asarray(photo())[:, :, ::-1].transpose(2, 0, 1))


def test_an_image_that_keeps_its_ratio_is_filled_around() -> None:
    step = Resize(width=8, height=8, resample="nearest", fit="pad", fill=9)
    found = prepare_image(steps(step, layout="HWC"), encoded(photo(8, 4)), where="photo")
    assert np.array_equal(found[2:6], np.asarray(photo(8, 4)))
    assert (found[:2] == 9).all()
    assert (found[6:] == 9).all()


def test_it_may_be_filled_at_its_end_only() -> None:
    step = Resize(width=8, height=8, resample="nearest", fit="pad-end")
    found = prepare_image(steps(step, layout="HWC"), encoded(photo(8, 4)), where="photo")
    assert np.array_equal(found[:4], np.asarray(photo(8, 4)))
    assert not found[4:].any()


@pytest.mark.parametrize(("size", "width"), [((100, 10), 40), ((10, 10), 4), ((11, 10), 5), ((1000, 4), 50)])
def test_a_line_has_one_height_and_a_width_that_keeps_its_ratio_up_to_a_limit(
    size: tuple[int, int], width: int
) -> None:
    step = Resize(width=50, height=4, fit="line")
    assert prepare_image(steps(step), encoded(photo(*size)), where="photo").shape == (1, 3, 4, width)


def test_a_crop_cuts_as_much_as_there_is() -> None:
    found = prepare_image(steps(Crop(left=4, top=1, width=5, height=2), layout="HWC"), encoded(photo()), where="photo")
    assert np.array_equal(found, np.asarray(photo())[1:3, 4:])


def test_a_crop_beside_the_image_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        prepare_image(steps(Crop(left=6, top=0, width=1, height=1)), encoded(photo()), where="cat.jpg")
    assert str(caught.value) == "cat.jpg: 6 x 4 pixels end before the crop at 6, 0"


def placed(*of: InputStep, size: tuple[int, int]) -> Placement:
    """Where the image lies after these steps."""
    found = run(InputRecipe(name="x", steps=(DecodeImage(), *of)), encoded(photo(*size)), where="photo").placement
    assert found is not None
    return found


def test_places_in_an_image_are_known_in_the_photo() -> None:
    whole = placed(Resize(width=10, height=10), size=(40, 20))
    assert whole.in_photo(0.5, 0.5) == (20, 10)
    padded = placed(Resize(width=10, height=10, fit="pad"), size=(40, 20))
    # Two of the five rows of filling are above it.
    assert padded.in_photo(0.0, 0.5) == pytest.approx((0, 12))
    assert padded.in_photo(1.0, 0.2) == pytest.approx((40, 0))
    cut = placed(CentreCrop(ratio=0.5), Resize(width=5, height=5), size=(40, 20))
    assert cut.in_photo(0.0, 1.0) == (15, 15)


def test_what_is_no_file_is_refused_by_every_step() -> None:
    text = Value(held="text", where="x", read=lambda _: b"")
    for step in (DecodeImage(), CentreCrop(ratio=1.0), Crop(left=0, top=0, width=1, height=1), RESIZE):
        with pytest.raises(InvalidInput, match="x: not an image"):
            prepare_step(step, text)


def prepare_step(step: InputStep, value: Value) -> Value:
    """One step alone."""
    return STEPS[type(step)](step, value)


def test_without_pillow_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ShardwireError) as caught:
        prepare_image(steps(), encoded(photo()), where="photo")
    assert str(caught.value) == "reading photos needs Pillow: pip install 'shardwire[image]'"
