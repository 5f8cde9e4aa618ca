"""Real inputs for the models of `tests.zoo`: photos, rendered text, a voice, the bytes of a file.

Each public function takes nothing and returns samples, as `--inputs package.module:callable` wants it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tests.zoo import packaged_file

Floats = npt.NDArray[np.float32]
Sample = dict[str, npt.NDArray[np.generic]]

TEXT = "Edge deployment 2026"
_SAMPLES_PER_SECOND = 16_000
_FRAME = 512
_CONTEXT = 64
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def photos() -> tuple[tuple[Image.Image, int], ...]:
    """Twenty photos of 512 x 512 pixels, each with its ImageNet class."""
    files = sorted(packaged_file("foolbox", "data").glob("imagenet_*.jpg"))
    return tuple((Image.open(file).convert("RGB"), int(file.stem.rsplit("_", 1)[1])) for file in files)


def mobilenet_v2() -> list[Sample]:
    """Photos as torchvision's models take them, float32[1, 3, 224, 224]."""
    return [{"image": _photo(image, 224, mean=_MEAN, deviation=_DEVIATION)} for image, _ in photos()[:4]]


def mtcnn_p() -> list[Sample]:
    """A photo for the network that proposes faces, float32[1, 3, 120, 120]."""
    return [{"x": _face_photo(image, 120)} for image, _ in photos()[:2]]


def mtcnn_r() -> list[Sample]:
    """Photos for the network that refines, float32[1, 3, 24, 24]."""
    return [{"x": _face_photo(image, 24)} for image, _ in photos()[:2]]


def mtcnn_o() -> list[Sample]:
    """Photos for the network that decides, float32[1, 3, 48, 48]."""
    return [{"x": _face_photo(image, 48)} for image, _ in photos()[:2]]


def silero_vad() -> list[Sample]:
    """A voice, then noise, with the state of a conversation that starts; one stream and then two at once."""
    frames = _frames()
    one = frames[10:11]
    two = np.concatenate([frames[20:21], frames[-2:-1]])
    return [
        {"input": part, "state": np.zeros((2, len(part), 128), np.float32), "sr": np.array(_SAMPLES_PER_SECOND)}
        for part in (one, two)
    ]


def silero_vad_lstm() -> list[Sample]:
    """Two runs of frames of the same voice, eight and twelve long."""
    state = np.zeros((1, 1, 128), np.float32)
    return [{"input": _frames()[:length], "h": state, "c": state} for length in (8, 12)]


def magika() -> list[Sample]:
    """The first and last 1024 bytes of files, as Magika reads them: this file alone, then two at once."""
    here = Path(__file__)
    files = [_magika_bytes(here), _magika_bytes(packaged_file("foolbox", "data", "imagenet_00_243.jpg"))]
    return [{"bytes": np.stack(files[:1])}, {"bytes": np.stack(files)}]


def ppocr_det() -> list[Sample]:
    """A page with lines of text, float32[1, 3, 320, 320] and float32[1, 3, 192, 256]."""
    return [{"x": _text_page(width, height)} for width, height in ((320, 320), (256, 192))]


def ppocr_rec() -> list[Sample]:
    """A line of text, float32[1, 3, 48, 320] and float32[2, 3, 48, 240]."""
    short = np.concatenate([_text_line("Shardwire", 240), _text_line("MQTT 1883", 240)])
    return [{"x": _text_line(TEXT, 320)}, {"x": short}]


def ppocr_cls() -> list[Sample]:
    """A line of text upright, then upright and upside down, float32[1, 3, 48, 192] and float32[2, 3, 48, 192]."""
    upright = _text_line(TEXT, 192)
    return [{"x": upright}, {"x": np.concatenate([upright, upright[:, :, ::-1, ::-1]])}]


def bvlc_alexnet() -> list[Sample]:
    """A photo."""
    return _topology_photo("data_0")


def densenet121() -> list[Sample]:
    """A photo."""
    return _topology_photo("data_0")


def inception_v1() -> list[Sample]:
    """A photo."""
    return _topology_photo("data_0")


def inception_v2() -> list[Sample]:
    """A photo."""
    return _topology_photo("data_0")


def resnet50() -> list[Sample]:
    """A photo."""
    return _topology_photo("gpu_0/data_0")


def shufflenet() -> list[Sample]:
    """A photo."""
    return _topology_photo("gpu_0/data_0")


def squeezenet() -> list[Sample]:
    """A photo."""
    return _topology_photo("data_0")


def vgg19() -> list[Sample]:
    """A photo."""
    return _topology_photo("data_0")


def zfnet512() -> list[Sample]:
    """A photo."""
    return _topology_photo("gpu_0/data_0")


def selfie_segmentation() -> list[Sample]:
    """A photo as MediaPipe's graph gives it, float32[1, 256, 256, 3] from 0 to 1."""
    return [{"input_1": _pixels(256)}]


def blazeface_short() -> list[Sample]:
    """A photo, float32[1, 128, 128, 3] from -1 to 1."""
    return [{"input": _pixels(128) * 2 - 1}]


def face_landmark() -> list[Sample]:
    """A photo, float32[1, 192, 192, 3] from 0 to 1."""
    return [{"input_1": _pixels(192)}]


def blazeface_sparse() -> list[Sample]:
    """A photo, float32[1, 192, 192, 3] from -1 to 1."""
    return [{"input_1": _pixels(192) * 2 - 1}]


def _pixels(side: int) -> Floats:
    image = photos()[0][0].resize((side, side), Image.Resampling.BICUBIC)
    return (np.asarray(image, np.float32)[None] / 255).astype(np.float32)


def _topology_photo(name: str) -> list[Sample]:
    return [{name: _photo(photos()[0][0], 224, mean=_MEAN, deviation=_DEVIATION)}]


def _photo(image: Image.Image, side: int, *, mean: Floats, deviation: Floats) -> Floats:
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
    return np.ascontiguousarray(((pixels - mean) / deviation).transpose(2, 0, 1)[None])


def _face_photo(image: Image.Image, side: int) -> Floats:
    return _photo(image, side, mean=np.full(3, 127.5 / 255, np.float32), deviation=np.full(3, 128 / 255, np.float32))


def _text_page(width: int, height: int) -> Floats:
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    for line in range(4):
        draw.text((12, 12 + line * (height // 4)), f"{TEXT} {line}", fill="black", font=ImageFont.load_default(20))
    return _photo_as_is(page, mean=_MEAN, deviation=_DEVIATION)


def _text_line(text: str, width: int) -> Floats:
    font = ImageFont.load_default(36)
    left, top, right, bottom = font.getbbox(text)
    line = Image.new("RGB", (int(right - left) + 16, 48), "white")
    ImageDraw.Draw(line).text((8 - left, (48 - (bottom - top)) / 2 - top), text, fill="black", font=font)
    half = np.full(3, 0.5, np.float32)
    return _photo_as_is(line.resize((width, 48), Image.Resampling.BICUBIC), mean=half, deviation=half)


def _photo_as_is(image: Image.Image, *, mean: Floats, deviation: Floats) -> Floats:
    pixels = np.asarray(image, np.float32)[:, :, ::-1] / 255  # PP-OCR reads blue, green, red
    return np.ascontiguousarray(((pixels - mean) / deviation).transpose(2, 0, 1)[None])


def _frames() -> Floats:
    """A second of a voice that says "a-i-a", then half a second of noise, float32[frames, 576] at 16 kHz.

    A pulse train through the first three formants of each vowel. Every frame starts with the end of the last one.
    """
    rng = np.random.default_rng(7)
    seconds = np.arange(_SAMPLES_PER_SECOND) / _SAMPLES_PER_SECOND
    pitch = 120 + 15 * np.sin(2 * np.pi * 3 * seconds)
    phase = 2 * np.pi * np.cumsum(pitch) / _SAMPLES_PER_SECOND
    voice = np.zeros_like(seconds)
    vowels = ((0.0, 0.35, (730, 1090, 2440)), (0.35, 0.65, (270, 2290, 3010)), (0.65, 1.0, (730, 1090, 2440)))
    for start, stop, formants in vowels:
        during = (seconds >= start) & (seconds < stop)
        for harmonic in range(1, 40):
            frequency = harmonic * 120
            gain = sum(1 / (1 + ((frequency - formant) / 90) ** 2) for formant in formants) / harmonic**0.3
            voice += during * gain * np.sin(harmonic * phase)
    voice = 0.5 * voice / np.abs(voice).max() + 0.002 * rng.standard_normal(voice.size)
    sound = np.concatenate([voice, 0.01 * rng.standard_normal(_SAMPLES_PER_SECOND // 2)]).astype(np.float32)
    padded = np.concatenate([np.zeros(_CONTEXT, np.float32), sound])
    count = sound.size // _FRAME
    return np.stack([padded[i * _FRAME : i * _FRAME + _CONTEXT + _FRAME] for i in range(count)])


def _magika_bytes(file: Path) -> npt.NDArray[np.int32]:
    content = file.read_bytes()
    head, tail = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    padding = 256
    return np.array([*head, *[padding] * (1024 - len(head)), *[padding] * (1024 - len(tail)), *tail], dtype=np.int32)
