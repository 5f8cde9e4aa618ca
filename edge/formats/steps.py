"""From a photo, a sound, a text or an array to one input of a model: the steps, as data; `edge.processing` runs them.

Each step is a tagged record whose bounds hold as soon as it is decoded. A value goes through the steps of a recipe in
order and is of one kind between two of them; `TAKES` and `GIVES` say which.
"""

import math
from typing import Annotated, Literal

import msgspec

from edge.formats.shard import Blob
from edge.formats.tensor import MAX_NAME_LENGTH

MAX_SIDE_PIXELS = 16_384
MAX_RATE = 384_000
MAX_FFT = 65_536
MAX_MELS = 1024
MAX_AXIS_SIZE = 1 << 27
MAX_STEP_SIZES = 64
MAX_CHANNELS = 1024
MAX_CONSTANT_SIZE = 1 << 24
MAX_TOKENS = 65_536
MAX_TOKENIZER_BYTES = 64 * 1024 * 1024

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_LENGTH)]
Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE_PIXELS)]
Number = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
Axis = Annotated[int, msgspec.Meta(ge=-16, le=15)]
Size = Annotated[int, msgspec.Meta(ge=1, le=MAX_AXIS_SIZE)]
Numbers = Annotated[tuple[Number, ...], msgspec.Meta(min_length=1, max_length=MAX_CHANNELS)]
ZeroPoint = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)]

Kind = Literal["nothing", "photo", "sound", "text", "image", "array"]
"""What a value is between two steps: `photo` and `sound` are files, `image` is uint8 `[H, W, C]`."""


class DecodeImage(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="decode-image"
):
    """Read a JPEG or PNG file, turned as its EXIF says, to `[height, width, channels]` of uint8."""

    colour: Literal["RGB", "BGR", "L"] = "RGB"


class CentreCrop(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="centre-crop"
):
    """Cut a centred square of side `ratio · min(width, height)`."""

    ratio: Annotated[float, msgspec.Meta(gt=0, le=1)]


class Crop(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="crop"):
    """Cut a rectangle, in pixels, as much of it as the image has."""

    left: Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE_PIXELS)]
    top: Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE_PIXELS)]
    width: Side
    height: Side


class Resize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="resize"):
    """Resize, in pixels.

    Attributes:
        fit: `stretch` to exactly the size; `pad` keeps the ratio and fills around, `pad-end` fills right and below;
            `line` makes `height` and the width that keeps the ratio, at most `width`.
        fill: 0 to 255, for `pad` and `pad-end`.
    """

    width: Side
    height: Side
    resample: Literal["nearest", "bilinear", "bicubic", "box", "lanczos"] = "bilinear"
    fit: Literal["stretch", "pad", "pad-end", "line"] = "stretch"
    fill: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0


class DecodeAudio(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="decode-audio"
):
    """Read a WAV file of PCM to mono float32 in [-1, 1), `[samples]`.

    Attributes:
        rate: samples per second of the result.
        resample: `sinc` (a Kaiser window), `linear`, or `refuse` another rate.
    """

    rate: Annotated[int, msgspec.Meta(ge=1, le=MAX_RATE)]
    resample: Literal["sinc", "linear", "refuse"] = "sinc"


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="window"):
    """Cut `[samples]` to `[frames, size]`, a frame every `hop`; the last one is filled with zeros or dropped."""

    size: Size
    hop: Size
    last: Literal["fill", "drop"] = "fill"


class MelSpectrogram(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="mel-spectrogram"
):
    """`[samples]` to `[mels, frames]`; see `edge.processing.mel` for the formulas.

    Attributes:
        rate: samples per second.
        fft, window, hop: in samples; the window is a periodic Hann window in the middle of the transform.
        mels: how many triangular filters, from `low` to `high` hertz.
        scale: of the filters' centres.
        area: whether each filter is divided by its width (Slaney's norm).
        power: 1 for magnitudes, 2 for power.
        log: of `max(value, floor)`; `db` is ten times `log10`.
        centred: whether frame t is centred at `t · hop`, with the sound mirrored at both ends.
    """

    rate: Annotated[int, msgspec.Meta(ge=1, le=MAX_RATE)]
    fft: Annotated[int, msgspec.Meta(ge=2, le=MAX_FFT)]
    window: Annotated[int, msgspec.Meta(ge=2, le=MAX_FFT)]
    hop: Annotated[int, msgspec.Meta(ge=1, le=MAX_FFT)]
    mels: Annotated[int, msgspec.Meta(ge=1, le=MAX_MELS)]
    low: Annotated[float, msgspec.Meta(ge=0, le=MAX_RATE)] = 0.0
    high: Annotated[float, msgspec.Meta(gt=0, le=MAX_RATE)]
    scale: Literal["htk", "slaney"] = "htk"
    area: bool = False
    power: Literal[1, 2] = 2
    log: Literal["none", "ln", "log10", "db"] = "none"
    floor: Positive = 1e-10
    centred: bool = True


class Tokenise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="tokenise"):
    """Text to token numbers `[1, length]`, by a `tokenizer.json` of Hugging Face's tokenizers.

    Attributes:
        file: blob of the bundle.
        gives: the tokens' numbers, 1 where there is a token (the attention mask), or the number of the sentence.
        most: longer texts are cut to so many tokens, special ones included.
        sizes: padded to the smallest of these that fits; as long as the text without any.
        value: what the numbers are padded with; masks and sentences are padded with 0.
    """

    file: Blob
    gives: Literal["ids", "mask", "types"] = "ids"
    most: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
    sizes: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)], ...], msgspec.Meta(max_length=MAX_STEP_SIZES)
    ] = ()
    value: Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)] = 0
    dtype: Literal["int32", "int64"] = "int64"


class Constant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="constant"):
    """An input that is always the same, such as a sample rate; without a shape one number, `[]`."""

    values: Numbers
    shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=8)] = ()
    dtype: Literal["bool", "uint8", "int8", "int32", "int64", "float16", "float32"] = "float32"


class Normalise(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="normalise"
):
    """`(x - mean) / std` in float32 along the last axis, one number a channel or one for all; pixels are 0 to 255."""

    mean: Numbers
    std: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1, max_length=MAX_CHANNELS)]


class Quantise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="quantise"):
    """`round(x / scale) + zero_point`, halves to even, saturated to the dtype."""

    scale: Positive
    zero_point: ZeroPoint = 0
    dtype: Literal["int8", "uint8", "int16", "uint16"]


class Cast(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="cast"):
    """To another dtype, as numpy does it."""

    dtype: Literal["bool", "uint8", "int8", "uint16", "int16", "int32", "int64", "float16", "float32", "float64"]


class Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="layout"):
    """An image `[H, W, C]` as the model takes it; N is a leading dimension of 1."""

    to: Literal["NCHW", "NHWC", "CHW", "HWC"]


class Transpose(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="transpose"
):
    """Change the order of the axes, as `numpy.transpose`."""

    axes: Annotated[tuple[Axis, ...], msgspec.Meta(min_length=1, max_length=16)]


class Expand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="expand"):
    """Add a dimension of 1, as `numpy.expand_dims`."""

    axis: Axis = 0


class Pad(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step", tag="pad"):
    """Fill an axis at its end up to the smallest of `sizes` that fits; what is longer is cut, or refused."""

    axis: Axis
    sizes: Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=MAX_STEP_SIZES)]
    value: Number = 0.0
    longer: Literal["refuse", "cut"] = "refuse"


InputStep = (
    DecodeImage
    | CentreCrop
    | Crop
    | Resize
    | DecodeAudio
    | Window
    | MelSpectrogram
    | Tokenise
    | Constant
    | Normalise
    | Quantise
    | Cast
    | Layout
    | Transpose
    | Expand
    | Pad
)

TAKES: dict[type[InputStep], Kind] = {
    DecodeImage: "photo",
    CentreCrop: "image",
    Crop: "image",
    Resize: "image",
    DecodeAudio: "sound",
    Tokenise: "text",
    Constant: "nothing",
}
"""What a step takes; any other takes an array, and an image counts as one."""

GIVES: dict[type[InputStep], Kind] = {
    DecodeImage: "image",
    CentreCrop: "image",
    Crop: "image",
    Resize: "image",
}
"""What a step gives; any other gives an array."""


def step_fault(step: InputStep) -> str:
    """Return what is wrong with numbers of a step that only make sense together, empty when nothing is."""
    match step:
        case Tokenise(sizes=sizes) | Pad(sizes=sizes) if list(sizes) != sorted(set(sizes)):
            return f"sizes {list(sizes)} do not ascend"
        case Tokenise(sizes=sizes, most=most) if sizes and sizes[-1] < most:
            return f"up to {most} tokens do not fit the largest of sizes, {sizes[-1]}"
        case Tokenise(file=file) if not 0 < file.size_bytes <= MAX_TOKENIZER_BYTES:
            return f"a tokenizer of {file.size_bytes} bytes; at most {MAX_TOKENIZER_BYTES} are allowed"
        case MelSpectrogram(window=window, fft=fft) if window > fft:
            return f"a window of {window} samples is longer than the transform of {fft}"
        case MelSpectrogram(low=low, high=high, rate=rate) if not low < high <= rate / 2:
            return f"filters from {low:g} to {high:g} Hz do not lie within half the rate of {rate}"
        case Normalise(mean=mean, std=std) if len(mean) != len(std):
            return f"{len(mean)} means and {len(std)} deviations"
        case Constant(values=values, shape=shape) if len(values) not in (1, math.prod(shape)):
            return f"{len(values)} values for the shape {list(shape)}"
        case Constant(shape=shape) if math.prod(shape) > MAX_CONSTANT_SIZE:
            return f"a constant of shape {list(shape)} has more than {MAX_CONSTANT_SIZE} values"
        case Transpose(axes=axes) if sorted(axes) != list(range(len(axes))):
            return f"axes {list(axes)} are no permutation"
    return ""
