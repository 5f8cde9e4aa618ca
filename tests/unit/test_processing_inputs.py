"""Sounds, texts and arrays become inputs by declared steps, with the numbers that other programs give."""

from __future__ import annotations

import io
import math
import wave

import numpy as np
import numpy.typing as npt
import pytest
from scipy import signal  # type: ignore[import-untyped]  # it brings no types

from edge.errors import BundleError, InvalidInput, ShardwireError
from edge.formats.processing import InputRecipe, Processing
from edge.formats.shard import Blob
from edge.formats.steps import (
    Cast,
    Constant,
    DecodeAudio,
    Expand,
    InputStep,
    Layout,
    MelSpectrogram,
    Normalise,
    Pad,
    Quantise,
    Tokenise,
    Transpose,
    Window,
)
from edge.formats.tensor import TensorSpec
from edge.processing import audio, text
from edge.processing.audio import sinc
from edge.processing.prepare import STEPS, Given, no_files, prepare, sources
from edge.processing.values import Value
from host.bundle import blob_of
from tests.minilm import minilm_file

Floats = npt.NDArray[np.float32]
RAMP = np.arange(6, dtype=np.float32)


def through(step: InputStep, held: object) -> npt.NDArray[np.generic]:
    """What a step makes of a value."""
    made = STEPS[type(step)](step, Value(held=held, where="x", read=no_files))  # type: ignore[arg-type]  # also wrong ones
    assert isinstance(made.held, np.ndarray)
    return made.held


def fault(step: InputStep, held: object) -> str:
    """What is said of a value that a step cannot take."""
    with pytest.raises(InvalidInput) as caught:
        through(step, held)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------- arrays
def test_normalising_is_mean_and_deviation_of_each_channel_or_of_all() -> None:
    pixels = np.array([[[10, 20]]], np.uint8)
    found = through(Normalise(mean=(8.0, 10.0), std=(2.0, 5.0)), pixels)
    assert found.dtype == np.float32
    assert found.tolist() == [[[1.0, 2.0]]]
    assert through(Normalise(mean=(10.0,), std=(10.0,)), pixels).tolist() == [[[0.0, 1.0]]]
    assert fault(Normalise(mean=(1.0,) * 3, std=(1.0,) * 3), pixels) == "x: 2 channels, and means for 3"


def test_quantising_rounds_halves_to_even_and_saturates() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, 1e9, -1e9, np.nan], np.float32)
    step = Quantise(scale=1.0, zero_point=3, dtype="int8")
    assert through(step, values).tolist() == [3, 5, 5, 3, 127, -128, 0]


def test_casting_is_numpys() -> None:
    assert through(Cast(dtype="int32"), np.array([1.9, -1.9])).tolist() == [1, -1]


def test_a_constant_is_a_scalar_or_fills_a_shape() -> None:
    assert through(Constant(values=(16000.0,), dtype="int64"), None).shape == ()
    assert through(Constant(values=(2.0,), shape=(1, 3)), None).tolist() == [[2, 2, 2]]
    assert through(Constant(values=(1.0, 2.0), shape=(2, 1)), None).tolist() == [[1], [2]]


def test_axes_are_put_in_order() -> None:
    image = np.arange(6).reshape(1, 2, 3)
    assert through(Layout(to="NCHW"), image).shape == (1, 3, 1, 2)
    assert through(Layout(to="HWC"), image).shape == (1, 2, 3)
    assert through(Transpose(axes=(2, 0, 1)), image).shape == (3, 1, 2)
    assert through(Expand(axis=-1), image).shape == (1, 2, 3, 1)
    assert fault(Layout(to="CHW"), RAMP) == "x: a layout is of an image [H, W, C], not of [6]"
    assert fault(Transpose(axes=(1, 0)), RAMP) == "x: 2 axes to transpose, and the array is [6]"
    assert fault(Expand(axis=5), RAMP) == "x: no place for axis 5 in [6]"


def test_an_axis_is_filled_to_the_smallest_size_that_fits() -> None:
    step = Pad(axis=-1, sizes=(4, 8, 16), value=-1.0)
    assert through(step, RAMP).tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert through(step, RAMP[:4]).tolist() == [0, 1, 2, 3]
    assert fault(Pad(axis=0, sizes=(4,)), RAMP) == "x: 6 along axis 0 is more than 4"
    assert through(Pad(axis=0, sizes=(4,), longer="cut"), RAMP).tolist() == [0, 1, 2, 3]
    assert fault(Pad(axis=1, sizes=(8,)), RAMP) == "x: no axis 1 in [6]"


def test_an_absurd_filling_is_refused_before_memory_is_taken() -> None:
    wide = np.zeros((1 << 12, 1))
    assert "which is more than" in fault(Pad(axis=1, sizes=(1 << 27,)), wide)


def test_what_is_no_array_is_refused() -> None:
    for step in (Normalise(mean=(0.0,), std=(1.0,)), Cast(dtype="int8"), Expand(), Pad(axis=0, sizes=(1,))):
        assert fault(step, "words") == "x: not an array"


# -------------------------------------------------------------------------------------------------------------- sounds
def recorded(samples: npt.NDArray[np.generic], *, rate: int = 16_000, channels: int = 1) -> bytes:
    """Samples as a WAV file."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(samples.dtype.itemsize)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return stream.getvalue()


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([0, 128, 255], np.uint8), [-1.0, 0.0, 127 / 128]),
        (np.array([-32768, 0, 16384], "<i2"), [-1.0, 0.0, 0.5]),
        (np.array([-(1 << 31), 0, 1 << 30], "<i4"), [-1.0, 0.0, 0.5]),
    ],
)
def test_samples_of_each_width_are_numbers_within_one(samples: npt.NDArray[np.generic], expected: list[float]) -> None:
    found = through(DecodeAudio(rate=16_000), recorded(samples))
    assert found.dtype == np.float32
    assert found.tolist() == expected


def test_samples_of_three_bytes_are_read() -> None:
    data = bytearray(recorded(np.zeros(6, np.uint8)))
    data[32:36] = (3).to_bytes(2, "little") + (24).to_bytes(2, "little")  # bytes of a block, bits of a sample
    data[-6:] = b"\x00\x00\x80\x00\x00\x40"
    assert through(DecodeAudio(rate=16_000), bytes(data)).tolist() == [-1.0, 0.5]


def test_channels_are_averaged() -> None:
    stereo = np.array([16384, 0, 0, -16384], "<i2")
    assert through(DecodeAudio(rate=16_000), recorded(stereo, channels=2)).tolist() == [0.25, -0.25]


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 16_000), (44_100, 16_000), (16_000, 22_050), (11_025, 16_000)])
def test_another_rate_is_reached_as_scipy_does_it(rate: int, wanted: int) -> None:
    samples = np.random.default_rng(1).standard_normal(1003)
    factor = math.gcd(rate, wanted)
    expected = signal.resample_poly(samples, wanted // factor, rate // factor)
    assert sinc(samples, rate, wanted) == pytest.approx(expected, abs=1e-6)


def test_another_rate_may_be_reached_on_straight_lines_or_refused() -> None:
    slow = recorded(np.array([0, 16384], "<i2"), rate=8000)
    assert through(DecodeAudio(rate=16_000, resample="linear"), slow).tolist() == [0.0, 0.25, 0.5, 0.5]
    said = fault(DecodeAudio(rate=16_000, resample="refuse"), slow)
    assert said == "x: 8000 samples a second, and the model takes 16000"


@pytest.mark.parametrize("data", [b"", b"RIFF", b"RIFF\x00\x00\x00\x00WAVE", b"hello" * 20])
def test_what_is_no_sound_is_said_in_one_line(data: bytes) -> None:
    said = fault(DecodeAudio(rate=16_000), data)
    assert said.startswith("x: not a WAV file of PCM that can be read (")
    assert "\n" not in said


def test_a_sound_cut_short_is_read_or_refused() -> None:
    whole = recorded(np.arange(100, dtype="<i2"), channels=2)
    said = [said_of(whole[:length]) for length in range(len(whole))]
    assert {line.partition("(")[0] for line in said} == {"x: not a WAV file of PCM that can be read ", ""}


def said_of(data: bytes) -> str:
    """What is said of a sound that cannot be read; nothing of one that can."""
    try:
        through(DecodeAudio(rate=16_000), data)
    except InvalidInput as error:
        return str(error)
    return ""


def test_a_sound_of_absurd_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = recorded(np.zeros(10, "<i2"))
    monkeypatch.setattr(audio, "MAX_AUDIO_BYTES", len(data) - 1)
    assert fault(DecodeAudio(rate=16_000), data).endswith("allowed for a sound")


def test_samples_are_cut_to_frames() -> None:
    assert through(Window(size=4, hop=2), RAMP).tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert through(Window(size=4, hop=3), RAMP).tolist() == [[0, 1, 2, 3], [3, 4, 5, 0]]
    assert through(Window(size=4, hop=3, last="drop"), RAMP).tolist() == [[0, 1, 2, 3]]
    assert through(Window(size=8, hop=8), RAMP).tolist() == [[0, 1, 2, 3, 4, 5, 0, 0]]
    assert fault(Window(size=8, hop=8, last="drop"), RAMP) == "x: 6 samples are shorter than a frame of 8"


def test_mel_spectrograms_are_librosas() -> None:
    # librosa 0.11.0: feature.melspectrogram(y, sr=16000, n_fft=512, hop_length=160, win_length=400, n_mels=40, …)
    seconds = np.arange(8000) / 16_000
    sweep = 0.3 * np.sin(2 * np.pi * (500 + 3000 * seconds) * seconds)
    sound = (0.5 * np.sin(2 * np.pi * 440 * seconds) + sweep).astype(np.float32)
    sizes = {"rate": 16_000, "fft": 512, "window": 400, "hop": 160, "mels": 40}
    # fmin=20, fmax=7600, htk=False, norm="slaney", power=2, pad_mode="reflect"
    slaney = through(MelSpectrogram(**sizes, low=20.0, high=7600.0, scale="slaney", area=True), sound)  # type: ignore[arg-type]  # a dict of ints
    assert slaney.shape == (40, 51)
    assert [slaney[at] for at in ((0, 0), (5, 3), (12, 10), (20, 25))] == pytest.approx(
        [2.8367602825, 46.513813019, 0.0549231023, 0.00040122031], rel=1e-5
    )
    assert slaney.sum() == pytest.approx(4124.95605, rel=1e-5)
    # fmin=0, fmax=8000, htk=True, norm=None, power=1, center=False
    htk = through(MelSpectrogram(**sizes, high=8000.0, power=1, centred=False), sound)  # type: ignore[arg-type]  # as above
    assert htk.shape == (40, 47)
    assert [htk[at] for at in ((0, 0), (5, 3), (12, 10), (20, 25), (39, 40))] == pytest.approx(
        [0.0263987332, 1.0908092260, 0.0747627913, 0.8936707377, 6.35995602e-05], rel=1e-5
    )
    assert htk.sum() == pytest.approx(10830.5488, rel=1e-5)


@pytest.mark.parametrize(
    ("log", "at_one", "at_nothing"), [("ln", 0.0, -9.21034), ("log10", 0.0, -4.0), ("db", 0.0, -40.0)]
)
def test_logarithms_have_a_floor(log: str, at_one: float, at_nothing: float) -> None:
    from edge.processing.mel import _log

    step = MelSpectrogram(rate=8, fft=4, window=4, hop=2, mels=1, high=4.0, log=log, floor=1e-4)  # type: ignore[arg-type]  # one of its four
    assert _log(np.array([1.0, 0.0], np.float32), step).tolist() == pytest.approx([at_one, at_nothing], rel=1e-5)


def test_a_sound_too_short_for_a_spectrogram_is_refused() -> None:
    step = MelSpectrogram(rate=16_000, fft=512, window=400, hop=160, mels=40, high=8000.0)
    assert fault(step, RAMP) == "x: 6 samples are too few for a transform of 512"


# --------------------------------------------------------------------------------------------------------------- texts
TOKENIZER = minilm_file("tokenizer.json").read_bytes()
FILE = blob_of(TOKENIZER)


def tokenised(words: str, step: Tokenise, content: bytes = TOKENIZER) -> list[list[int]]:
    """The numbers of a text."""
    made = text.tokenise(step, Value(held=words, where="x", read=lambda _: content))
    assert isinstance(made.held, np.ndarray)
    return [[int(number) for number in row] for row in made.held]


def test_a_text_becomes_the_numbers_that_berts_vocabulary_has() -> None:
    assert tokenised("Hello, world!", Tokenise(file=FILE, most=32)) == [[101, 7592, 1010, 2088, 999, 102]]


def test_numbers_and_mask_are_padded_to_the_smallest_size_that_fits() -> None:
    ids = Tokenise(file=FILE, most=16, sizes=(8, 16), value=7)
    assert tokenised("Hello, world!", ids) == [[101, 7592, 1010, 2088, 999, 102, 7, 7]]
    mask = Tokenise(file=FILE, most=16, sizes=(8, 16), gives="mask", value=7)
    assert tokenised("Hello, world!", mask) == [[1, 1, 1, 1, 1, 1, 0, 0]]
    assert len(tokenised("a b c d e f g h", ids)[0]) == 16


def test_a_long_text_is_cut_with_its_end_mark() -> None:
    assert tokenised("Hello, world!", Tokenise(file=FILE, most=4)) == [[101, 7592, 1010, 102]]


def test_a_text_that_is_no_unicode_is_read_all_the_same() -> None:
    assert tokenised("a\udcff", Tokenise(file=FILE, most=8))[0][0] == 101


def test_a_file_that_is_no_tokenizer_is_refused_in_one_line() -> None:
    broken = b'{"model": 1}'
    with pytest.raises(BundleError, match=r"^tokenizer sha256:[0-9a-f]{12}: not a tokenizer.json \(.*\)$"):
        tokenised("a", Tokenise(file=blob_of(broken), most=8), broken)


def test_a_text_of_absurd_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_TEXT_BYTES", 3)
    assert fault(Tokenise(file=FILE, most=8), "four") == "x: 4 bytes of text are more than 3"


def test_without_tokenizers_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "find_spec", lambda _: None)
    other = Blob(digest="sha256:" + "0" * 64, size_bytes=1)
    with pytest.raises(ShardwireError) as caught:
        tokenised("a", Tokenise(file=other, most=8))
    assert str(caught.value) == "reading text needs tokenizers: pip install 'shardwire[text]'"


# ------------------------------------------------------------------------------------------------------------- recipes
SOUND = InputRecipe(name="sound", steps=(DecodeAudio(rate=16_000), Expand()))
RATE = InputRecipe(name="rate", steps=(Constant(values=(16_000.0,), dtype="int64"),))
SCALED = InputRecipe(name="scaled", steps=(Normalise(mean=(1.0,), std=(2.0,)),))
ALL = Processing(inputs=(SOUND, RATE, SCALED))


def test_each_input_is_made_of_what_its_first_step_takes() -> None:
    given = Given(audio=recorded(np.zeros(3, "<i2")), arrays={"scaled": RAMP, "bare": RAMP}, where="x")
    found = prepare(ALL, given).tensors
    assert {name: array.shape for name, array in found.items()} == {
        "scaled": (6,),
        "bare": (6,),
        "sound": (1, 3),
        "rate": (),
    }
    assert found["scaled"][3] == 1.0
    assert found["bare"] is not found["scaled"]


def test_an_array_stands_for_a_photo_or_sound_as_it_is() -> None:
    found = prepare(ALL, Given(arrays={"sound": RAMP[None], "scaled": RAMP})).tensors
    assert found["sound"].tolist() == RAMP[None].tolist()


def test_what_is_missing_is_named_with_what_it_is_made_of() -> None:
    with pytest.raises(InvalidInput) as caught:
        prepare(ALL, Given(arrays={"scaled": RAMP}, where="a.npz"))
    assert str(caught.value) == "a.npz: input 'sound' is made of a WAV file"
    assert "sound" not in prepare(ALL, Given(arrays={"scaled": RAMP}), optional=frozenset({"sound"})).tensors


def test_sources_are_those_of_all_inputs() -> None:
    specs = tuple(TensorSpec(name=name, dtype="float32", shape=()) for name in ("sound", "rate", "bare"))
    assert sources(Processing(inputs=(SOUND, RATE)), specs) == {"audio", "nothing", "tensor"}


def test_a_file_that_nobody_gives_is_said() -> None:
    recipe = InputRecipe(name="ids", steps=(Tokenise(file=Blob(digest="sha256:" + "1" * 64, size_bytes=1), most=8),))
    with pytest.raises(BundleError, match=r"^file sha256:1{12} of the bundle cannot be read here$"):
        prepare(Processing(inputs=(recipe,)), Given(text="a"))
