"""Preprocessing and labels as data: steps of a small fixed set, executed by `edge.preprocess`."""

from typing import Literal

import msgspec


class CentreCrop(msgspec.Struct, frozen=True, kw_only=True, tag="centre-crop", tag_field="step"):
    """Cut a centred square of side `ratio · min(width, height)`."""

    ratio: float


class Resize(msgspec.Struct, frozen=True, kw_only=True, tag="resize", tag_field="step"):
    """Resize to `width` × `height` pixels."""

    width: int
    height: int
    resample: Literal["nearest", "bilinear", "bicubic"]


class Normalise(msgspec.Struct, frozen=True, kw_only=True, tag="normalise", tag_field="step"):
    """`(x - mean) / std` per channel, x in 0..255, to float32."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


Step = CentreCrop | Resize | Normalise


class Preprocess(msgspec.Struct, frozen=True, kw_only=True):
    """From a photo to the one image input of a model.

    Attributes:
        input: name of the model input.
        colour: `RGB` or `L`.
        steps: in order.
        layout: of the tensor, `[1, C, H, W]` or `[1, H, W, C]`.
    """

    input: str
    colour: Literal["RGB", "L"]
    steps: tuple[Step, ...]
    layout: Literal["NCHW", "NHWC"]


class Labels(msgspec.Struct, frozen=True, kw_only=True):
    """How an output is read as a class.

    Attributes:
        output: name of the model output, shape `[1, classes]`.
        names: class names in order.
        softmax: whether the output holds logits.
    """

    output: str
    names: tuple[str, ...]
    softmax: bool
