"""Mel spectrograms, as torchaudio and librosa (`pad_mode="reflect"`) compute them; numpy only.

A frame of samples under a periodic Hann window, its discrete Fourier transform, the magnitude to the power 1 or 2, then
triangular filters whose centres are evenly spaced in mel, and a logarithm.

`htk`: `mel = 2595 · log10(1 + f / 700)` (O'Shaughnessy 1987; the HTK book, section 5.4.6). `slaney`: linear below 1 kHz
with 3 mel for 200 Hz, above `15 + 27 · ln(f / 1000) / ln 6.4` (Slaney, Auditory Toolbox, Technical Report 1998-010).
`area` divides each filter by half its width in hertz, so that all have the same area.
"""

from dataclasses import replace

import numpy as np

from edge.errors import InvalidInput
from edge.formats.steps import MelSpectrogram
from edge.formats.tensor import MAX_TENSOR_BYTES, Array
from edge.processing.arrays import array_of
from edge.processing.values import Value

_BREAK_HERTZ = 1000.0
_BREAK_MEL = 15.0
_HERTZ_PER_MEL = 200.0 / 3
_STEP = np.log(6.4) / 27.0
_FRAMES = 1024


def mel_spectrogram(step: MelSpectrogram, value: Value) -> Value:
    """Turn samples `[n]` to float32 `[mels, frames]`.

    Raises:
        InvalidInput: there are too few samples, or far too many.
    """
    samples = array_of(value)
    if samples.ndim != 1 or not samples.size:
        raise InvalidInput(f"{value.where}: a spectrogram is of samples [n], not of {list(samples.shape)}")
    signal = samples.astype(np.float64)
    if step.centred:
        if samples.size <= step.fft // 2:
            raise InvalidInput(f"{value.where}: {samples.size} samples are too few for a transform of {step.fft}")
        signal = np.pad(signal, step.fft // 2, mode="reflect")
    if signal.size < step.fft:
        raise InvalidInput(f"{value.where}: {samples.size} samples are too few for a transform of {step.fft}")
    frames = np.lib.stride_tricks.sliding_window_view(signal, step.fft)[:: step.hop]
    if len(frames) * step.mels * 4 > MAX_TENSOR_BYTES:
        raise InvalidInput(f"{value.where}: {len(frames)} frames of {step.mels} mels are too many")
    before = (step.fft - step.window) // 2
    hann = np.zeros(step.fft)
    hann[before : before + step.window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(step.window) / step.window)
    filters = mel_filters(step)
    found = np.empty((step.mels, len(frames)), np.float32)
    for first in range(0, len(frames), _FRAMES):
        spectrum = np.abs(np.fft.rfft(frames[first : first + _FRAMES] * hann, axis=1)) ** step.power
        found[:, first : first + _FRAMES] = filters @ spectrum.T
    return replace(value, held=_log(found, step))


def _log(found: Array, step: MelSpectrogram) -> Array:
    if step.log == "none":
        return found
    held = np.maximum(found, np.float32(step.floor))
    if step.log == "ln":
        return np.log(held)
    return np.log10(held) * np.float32(10 if step.log == "db" else 1)


def mel_filters(step: MelSpectrogram) -> Array:
    """Return the triangular filters, `[mels, fft // 2 + 1]`."""
    to_mel, to_hertz = (_htk, _htk_hertz) if step.scale == "htk" else (_slaney, _slaney_hertz)
    ends = to_mel(np.array([step.low, step.high]))
    edges = to_hertz(np.linspace(ends[0], ends[1], step.mels + 2))
    bins = (
        np.linspace(0, step.rate / 2, step.fft // 2 + 1)
        if step.fft % 2 == 0
        else np.fft.rfftfreq(step.fft, 1 / step.rate)
    )
    rising = (bins[None, :] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins[None, :]) / (edges[2:] - edges[1:-1])[:, None]
    filters: Array = np.maximum(0.0, np.minimum(rising, falling))
    if step.area:
        filters *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return filters


def _htk(hertz: Array) -> Array:
    mel: Array = 2595.0 * np.log10(1.0 + hertz / 700.0)
    return mel


def _htk_hertz(mel: Array) -> Array:
    hertz: Array = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return hertz


def _slaney(hertz: Array) -> Array:
    above = _BREAK_MEL + np.log(np.maximum(hertz, 1e-10) / _BREAK_HERTZ) / _STEP
    return np.where(hertz >= _BREAK_HERTZ, above, hertz / _HERTZ_PER_MEL)


def _slaney_hertz(mel: Array) -> Array:
    above = _BREAK_HERTZ * np.exp(_STEP * (mel - _BREAK_MEL))
    return np.where(mel >= _BREAK_MEL, above, mel * _HERTZ_PER_MEL)
