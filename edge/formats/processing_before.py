"""How manifests before version 1.2 said what is done before and after a model: read, and turned into recipes."""

from typing import Literal

import msgspec

from edge.formats.answers import AnswerStep, Softmax, Top
from edge.formats.processing import AnswerRecipe, InputRecipe, Processing
from edge.formats.steps import CentreCrop, DecodeImage, InputStep, Layout, Normalise, Resize

_Step = CentreCrop | Resize | Normalise
_COUNT = 5


class PreprocessBefore(msgspec.Struct, frozen=True, kw_only=True):
    """From a photo to the one image input of a model."""

    input: str
    colour: Literal["RGB", "L"]
    steps: tuple[_Step, ...]
    layout: Literal["NCHW", "NHWC"]


class LabelsBefore(msgspec.Struct, frozen=True, kw_only=True):
    """How an output is read as a class; `softmax` where it holds logits."""

    output: str
    names: tuple[str, ...]
    softmax: bool


def converted(preprocess: PreprocessBefore | None, labels: LabelsBefore | None) -> Processing:
    """Return the recipes that say the same."""
    inputs: tuple[InputRecipe, ...] = ()
    answers: tuple[AnswerRecipe, ...] = ()
    if preprocess is not None:
        steps: tuple[InputStep, ...] = (
            DecodeImage(colour=preprocess.colour),
            *preprocess.steps,
            Layout(to=preprocess.layout),
        )
        inputs = (InputRecipe(name=preprocess.input, steps=steps),)
    if labels is not None:
        top = Top(output=labels.output, names=labels.names, count=_COUNT)
        read: tuple[AnswerStep, ...] = (Softmax(output=labels.output), top) if labels.softmax else (top,)
        answers = (AnswerRecipe(name="class", steps=read),)
    return Processing(inputs=inputs, answers=answers)
