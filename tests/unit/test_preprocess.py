"""A photo becomes the input of a model by declared steps; scores become names."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edge import preprocess as module
from edge.errors import InvalidInput
from edge.formats.preprocess import CentreCrop, Labels, Normalise, Preprocess, Resize
from edge.preprocess import prepare_image, read_labels

RESIZE = Resize(width=4, height=2, resample="nearest")
HALVES = Normalise(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))


def encoded(image: Image.Image, *, kind: str = "PNG") -> bytes:
    """The image as a file."""
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return stream.getvalue()


def steps(*of: CentreCrop | Resize | Normalise, colour: str = "RGB", layout: str = "NCHW") -> Preprocess:
    """The steps for an input called x."""
    return Preprocess(input="x", colour=colour, steps=of, layout=layout)  # type: ignore[arg-type]


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


# ------------------------------------------------------------------------------------------------------------- labels

NAMES = Labels(output="y", names=("cat", "dog", "owl"), softmax=True)
PLAIN = Labels(output="y", names=("cat", "dog", "owl"), softmax=False)


def test_logits_become_probabilities() -> None:
    scores = {"y": np.log(np.array([[1, 6, 3]], np.float32))}
    names, probabilities = zip(*read_labels(NAMES, scores), strict=True)
    assert names == ("dog", "owl", "cat")
    assert probabilities == pytest.approx((0.6, 0.3, 0.1))


def test_large_logits_do_not_overflow() -> None:
    ((name, probability),) = read_labels(NAMES, {"y": np.array([[1e4, -1e4, 0]], np.float32)}, top=1)
    assert (name, probability) == ("cat", 1.0)


def test_probabilities_stay_as_they_are() -> None:
    assert read_labels(PLAIN, {"y": np.array([[0.25, 0.5, 0.25]])}, top=1) == [("dog", 0.5)]


def test_equal_scores_keep_the_order_of_the_names() -> None:
    assert [name for name, _ in read_labels(PLAIN, {"y": np.zeros((1, 3))})] == ["cat", "dog", "owl"]


def test_scores_of_any_shape_with_one_for_each_name_are_read() -> None:
    assert read_labels(PLAIN, {"y": np.array([0, 0, 1.0]).reshape(1, 3, 1, 1)}, top=1) == [("owl", 1.0)]


@pytest.mark.parametrize("outputs", [{}, {"y": np.zeros((1, 4))}, {"y": np.zeros((0, 3))}, {"z": np.zeros((1, 3))}])
def test_scores_that_do_not_fit_are_refused(outputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_labels(NAMES, outputs)
    assert str(caught.value) == "output 'y' does not hold one score for each of 3 classes"
