"""Input recipes, executed: from a photo, a sound, a text or arrays to the inputs of one request."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge.errors import BundleError, InvalidInput
from edge.formats.processing import InputRecipe, Processing, Source
from edge.formats.shard import Blob
from edge.formats.steps import (
    Cast,
    CentreCrop,
    Constant,
    Crop,
    DecodeAudio,
    DecodeImage,
    Expand,
    InputStep,
    Layout,
    MelSpectrogram,
    Normalise,
    Pad,
    Quantise,
    Resize,
    Tokenise,
    Transpose,
    Window,
)
from edge.formats.tensor import Array, TensorSpec
from edge.processing import arrays, audio, image, mel, text
from edge.processing.values import Placement, Prepared, ReadBlob, Value

STEPS: dict[type[InputStep], Callable[[Any, Value], Value]] = {
    DecodeImage: image.decode_image,
    CentreCrop: image.centre_crop,
    Crop: image.crop,
    Resize: image.resize,
    DecodeAudio: audio.decode_audio,
    Window: audio.window,
    MelSpectrogram: mel.mel_spectrogram,
    Tokenise: text.tokenise,
    Constant: arrays.constant,
    Normalise: arrays.normalise,
    Quantise: arrays.quantise,
    Cast: arrays.cast,
    Layout: arrays.layout,
    Transpose: arrays.transpose,
    Expand: arrays.expand,
    Pad: arrays.pad,
}
"""Every step of an input recipe, and what executes it."""

_WANTED: dict[Source, str] = {"image": "a photo", "audio": "a WAV file", "text": "a text"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What a request is made of.

    Attributes:
        image, audio: content of a file.
        arrays: by input name; those of inputs without a recipe are taken as they are.
        where: name of the file, for messages.
    """

    image: bytes | None = None
    audio: bytes | None = None
    text: str | None = None
    arrays: Mapping[str, Array] = field(default_factory=dict)
    where: str = "input"


def no_files(blob: Blob) -> bytes:
    """Stand for the files of a bundle where there are none.

    Raises:
        BundleError: always.
    """
    raise BundleError(f"file {blob.digest[:19]} of the bundle cannot be read here")


def prepare(
    processing: Processing, given: Given, *, read: ReadBlob = no_files, optional: frozenset[str] = frozenset()
) -> Prepared:
    """Make the inputs of one request.

    Args:
        processing: of the bundle.
        given: a file, a text, arrays.
        read: gives the files of the bundle.
        optional: inputs that may be left out, such as those that a stream carries along.

    Raises:
        InvalidInput: something is missing, or not what a step takes.
        BundleError: a file of the bundle cannot be read.
    """
    tensors: dict[str, Array] = dict(given.arrays)
    placement: Placement | None = None
    for recipe in processing.inputs:
        if recipe.source != "tensor" and recipe.name in given.arrays:
            continue  # given as the model takes it
        held = _held(recipe, given)
        if held is None and recipe.source != "nothing":
            if recipe.name in optional:
                continue
            raise InvalidInput(
                f"{given.where}: input {recipe.name!r} is made of {_WANTED.get(recipe.source, 'an array')}"
            )
        found = run(recipe, held, where=given.where, read=read)
        tensors[recipe.name] = np.asarray(arrays.array_of(found), order="C")
        placement = placement or found.placement
    return Prepared(tensors=tensors, placement=placement)


def _held(recipe: InputRecipe, given: Given) -> bytes | str | Array | None:
    if recipe.source == "tensor":
        return given.arrays.get(recipe.name)
    held: dict[Source, bytes | str | None] = {"image": given.image, "audio": given.audio, "text": given.text}
    return held.get(recipe.source)


def run(recipe: InputRecipe, held: bytes | str | Array | None, *, where: str, read: ReadBlob = no_files) -> Value:
    """Take a value through the steps of a recipe.

    Raises:
        InvalidInput, BundleError: as `prepare`.
    """
    value = Value(held=held, where=where, read=read)
    for step in recipe.steps:
        value = STEPS[type(step)](step, value)
    return value


def prepare_image(recipe: InputRecipe, data: bytes, *, where: str) -> Array:
    """Make the image input of a model from the content of a file.

    Raises:
        InvalidInput: it is no image, or one of absurd size.
    """
    return np.ascontiguousarray(arrays.array_of(run(recipe, data, where=where)))


def sources(processing: Processing, inputs: tuple[TensorSpec, ...]) -> frozenset[Source]:
    """Return what a model is made of: the sources of its recipes, and `tensor` where an input has none."""
    named = {recipe.name for recipe in processing.inputs}
    bare: frozenset[Source] = frozenset({"tensor"} if any(spec.name not in named for spec in inputs) else ())
    return bare | {recipe.source for recipe in processing.inputs}
