"""Sounds: WAV files to samples at one rate, and samples to frames; the standard library and numpy only."""

import io
import math
import wave
from dataclasses import replace

import numpy as np

from edge.errors import InvalidInput
from edge.formats.steps import MAX_RATE, DecodeAudio, Window
from edge.formats.tensor import MAX_TENSOR_BYTES, Array
from edge.processing.arrays import array_of
from edge.processing.values import Value

MAX_AUDIO_BYTES = 256 * 1024 * 1024

_ZERO_CROSSINGS = 10
_KAISER_BETA = 5.0
_ROWS = 65_536


def decode_audio(step: DecodeAudio, value: Value) -> Value:
    """Read a WAV file of 8, 16, 24 or 32-bit PCM: the mean of its channels, at the rate of the step.

    Raises:
        InvalidInput: it is none, of absurd size, or of a rate that is refused.
    """
    data, where = value.held, value.where
    if not isinstance(data, bytes):
        raise InvalidInput(f"{where}: not a sound file")
    if len(data) > MAX_AUDIO_BYTES:
        raise InvalidInput(f"{where}: {len(data)} bytes are more than the {MAX_AUDIO_BYTES} allowed for a sound")
    try:
        with wave.open(io.BytesIO(data)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"{where}: not a WAV file of PCM that can be read ({str(error) or 'it ends too soon'})"
        ) from error
    if not 0 < rate <= MAX_RATE or width not in (1, 2, 3, 4):
        raise InvalidInput(f"{where}: {rate} samples a second of {width} bytes cannot be read")
    raw = raw[: len(raw) // (width * channels) * (width * channels)]
    samples = _samples(raw, width).reshape(-1, channels).mean(axis=1).astype(np.float32)
    if rate != step.rate:
        if step.resample == "refuse":
            raise InvalidInput(f"{where}: {rate} samples a second, and the model takes {step.rate}")
        if samples.size * step.rate // rate * samples.itemsize > MAX_TENSOR_BYTES:
            raise InvalidInput(f"{where}: too long at {step.rate} samples a second")
        samples = _linear(samples, rate, step.rate) if step.resample == "linear" else sinc(samples, rate, step.rate)
    return replace(value, held=samples)


def _samples(raw: bytes, width: int) -> Array:
    """Return PCM as numbers in [-1, 1); 8-bit samples are unsigned, the others signed, little-endian."""
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        bytes_of = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(bytes_of), 4), np.uint8)
        wide[:, 1:] = bytes_of
        return (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float64)
    return np.frombuffer(raw, f"<i{width}") / 2.0 ** (8 * width - 1)


def _length(count: int, rate: int, wanted: int) -> int:
    return -(-count * wanted // rate)


def _linear(samples: Array, rate: int, wanted: int) -> Array:
    """Return samples at another rate, on straight lines between the given ones."""
    places = np.arange(_length(samples.size, rate, wanted)) * (rate / wanted)
    return np.interp(places, np.arange(samples.size), samples).astype(np.float32) if samples.size else samples


def sinc(samples: Array, rate: int, wanted: int) -> Array:
    """Return samples at another rate, through a windowed-sinc low-pass filter at the lower of both Nyquist rates.

    A polyphase filter of `2 · 10 · max(up, down) + 1` taps under a Kaiser window with β = 5, its sum 1, as
    `scipy.signal.resample_poly` takes by default.

    Args:
        samples: `[n]`.
        rate: of the samples, per second.
        wanted: of the result.

    Returns:
        float32 `[ceil(n · wanted / rate)]`.
    """
    factor = math.gcd(rate, wanted)
    up, down = wanted // factor, rate // factor
    most = max(up, down)
    half = _ZERO_CROSSINGS * most
    taps = np.sinc(np.arange(-half, half + 1) / most) * np.kaiser(2 * half + 1, _KAISER_BETA)
    taps *= up / taps.sum()
    count = _length(samples.size, rate, wanted)
    reach = half // up + 1
    padded = np.concatenate([np.zeros(reach), samples.astype(np.float64), np.zeros(reach + 1)])
    found = np.empty(count, np.float32)
    around = np.arange(-reach, reach + 1)
    rows = max(1, _ROWS * 16 // around.size)
    for first in range(0, count, rows):
        at = np.arange(first, min(count, first + rows), dtype=np.int64) * down
        nearest = at // up
        given = nearest[:, None] + around[None, :]
        tap = at[:, None] - given * up + half
        inside = (tap >= 0) & (tap < taps.size)
        weights = np.where(inside, taps[np.clip(tap, 0, taps.size - 1)], 0.0)
        found[first : first + rows] = (weights * padded[np.clip(given + reach, 0, padded.size - 1)]).sum(axis=1)
    return found


def window(step: Window, value: Value) -> Value:
    """Cut samples to frames.

    Raises:
        InvalidInput: there are no samples, or the frames would be absurdly large.
    """
    samples = array_of(value)
    if samples.ndim != 1 or not samples.size:
        raise InvalidInput(f"{value.where}: frames are cut from samples [n], not from {list(samples.shape)}")
    beyond = samples.size - step.size
    count = beyond // step.hop + 1 if step.last == "drop" else max(0, -(-beyond // step.hop)) + 1
    if count <= 0:
        raise InvalidInput(f"{value.where}: {samples.size} samples are shorter than a frame of {step.size}")
    if count * step.size * samples.itemsize > MAX_TENSOR_BYTES:
        raise InvalidInput(f"{value.where}: {count} frames of {step.size} samples are too many")
    length = (count - 1) * step.hop + step.size
    padded = np.concatenate([samples, np.zeros(max(0, length - samples.size), samples.dtype)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, step.size)[:: step.hop][:count]
    return replace(value, held=np.ascontiguousarray(frames))
