"""Recipes in a manifest: bounds hold once it is decoded, steps follow from each other, older manifests are read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.errors import BundleError
from edge.formats import answers, processing, steps
from edge.formats.bundle import decode_manifest, encode_manifest
from edge.formats.processing import AnswerRecipe, InputRecipe, Processing, check_processing
from edge.formats.shard import Blob
from edge.formats.steps import (
    CentreCrop,
    DecodeImage,
    InputStep,
    Layout,
    MelSpectrogram,
    Normalise,
    Resize,
    Tokenise,
)
from edge.formats.tensor import TensorSpec
from edge.processing.answer import STEPS as ANSWER_STEPS
from edge.processing.prepare import STEPS as INPUT_STEPS
from tests.tiny_bundle import make_tiny_bundle

BUNDLE = make_tiny_bundle()
INPUTS = (
    TensorSpec(name="x", dtype="float32", shape=(1, 3, 4, 4)),
    TensorSpec(name="mask", dtype="int64", shape=(1, 8)),
)
OUTPUTS = (TensorSpec(name="y", dtype="float32", shape=(1, 3)),)
FILE = {"digest": "sha256:" + "0" * 64, "size_bytes": 10}
DOC = (Path(__file__).resolve().parents[2] / "docs" / "processing.md").read_text("utf-8")
SECURITY = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text("utf-8")


def decoded(text: str) -> Processing:
    """Recipes from JSON."""
    return msgspec.json.decode(text, type=Processing)


def refusal(*, given: list[dict[str, Any]] | None = None, made: list[dict[str, Any]] | None = None) -> str:
    """What is said of recipes with these steps."""
    told = {
        "inputs": [{"name": "x", "steps": given}] if given else [],
        "answers": [{"name": "it", "steps": made}] if made else [],
    }
    try:
        check_processing(decoded(msgspec.json.encode(told).decode()), inputs=INPUTS, outputs=OUTPUTS, where="m")
    except (BundleError, msgspec.ValidationError) as error:
        return str(error)
    return ""


RESIZE = {"step": "resize", "width": 4, "height": 4}
TOP = {"step": "top", "output": "y", "names": ["a"]}
MEL = {"step": "mel-spectrogram", "rate": 8, "fft": 8, "window": 8, "hop": 1, "mels": 1, "high": 4.0}
BOXES = {"step": "boxes", "output": "y", "scores": "y", "names": ["a"]}
SCORE = {"rule": "compare", "field": "score", "operator": ">", "value": 0.5}


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({**RESIZE, "width": 0}, "Expected `int` >= 1 - at `$.inputs[0].steps[0].width`"),
        ({**RESIZE, "height": 16_385}, "Expected `int` <= 16384 - at `$.inputs[0].steps[0].height`"),
        ({**RESIZE, "wide": 3}, "Object contains unknown field `wide` - at `$.inputs[0].steps[0]`"),
        ({"step": "execute"}, "Invalid value 'execute' - at `$.inputs[0].steps[0].step`"),
        ({"step": "centre-crop", "ratio": 1.5}, "Expected `float` <= 1.0 - at `$.inputs[0].steps[0].ratio`"),
        ({"step": "normalise", "mean": [0], "std": [0]}, "Expected `float` > 0.0 - at `$.inputs[0].steps[0].std[0]`"),
        ({"step": "normalise", "mean": [0, 1], "std": [1]}, "steps[0]: normalise: 2 means and 1 deviations"),
        ({"step": "transpose", "axes": [0, 0]}, "steps[0]: transpose: axes [0, 0] are no permutation"),
        ({"step": "pad", "axis": 0, "sizes": [4, 2]}, "steps[0]: pad: sizes [4, 2] do not ascend"),
        ({**MEL, "window": 9}, "steps[0]: mel-spectrogram: a window of 9 samples is longer than the transform of 8"),
        (
            {**MEL, "high": 5.0},
            "steps[0]: mel-spectrogram: filters from 0 to 5 Hz do not lie within half the rate of 8",
        ),
        (
            {"step": "tokenise", "file": FILE, "most": 9, "sizes": [8]},
            "steps[0]: tokenise: up to 9 tokens do not fit the largest of sizes, 8",
        ),
        (
            {"step": "tokenise", "file": {**FILE, "size_bytes": 0}, "most": 9},
            "steps[0]: tokenise: a tokenizer of 0 bytes; at most 67108864 are allowed",
        ),
        (
            {"step": "tokenise", "file": {**FILE, "digest": "../secret"}, "most": 9},
            "steps[0]: digest '../secret' is not sha256:<64 hex digits>",
        ),
        (
            {"step": "constant", "values": [1, 2], "shape": [3]},
            "steps[0]: constant: 2 values for the shape [3]",
        ),
        (
            {"step": "constant", "values": [1], "shape": [1 << 20, 1 << 20]},
            "steps[0]: constant: a constant of shape [1048576, 1048576] has more than 16777216 values",
        ),
    ],
)
def test_numbers_of_an_input_step_that_make_no_sense_are_refused_with_their_place(
    step: dict[str, Any], said: str
) -> None:
    assert refusal(given=[step]).removeprefix("m: processing.inputs[0].") == said


TOO_MUCH = "a rule of more than 256 parts, or 16 within each other"
DEEP: dict[str, Any] = SCORE
for _ in range(17):
    DEEP = {"rule": "not", "inner": DEEP}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([{"step": "softmax", "output": "z"}], "steps[0]: the model has no output 'z'"),
        ([{**BOXES, "scores": "z"}], "steps[0]: the model has no output 'z'"),
        ([{"step": "mean-pool", "output": "y", "mask": "y"}], "steps[0]: the model has no input 'y'"),
        ([TOP, TOP], "steps[1]: top takes arrays, and there are labels"),
        ([{"step": "non-maximum-suppression"}], "steps[0]: non-maximum-suppression takes boxes, and there are arrays"),
        (
            [{"step": "keep", "when": SCORE}],
            "steps[0]: keep takes labels or boxes or line or segments, and there are arrays",
        ),
        (
            [TOP, {"step": "keep", "when": {**SCORE, "field": "area"}}],
            "steps[1]: keep: labels have no area, only label, score",
        ),
        (
            [TOP, {"step": "keep", "when": {**SCORE, "value": "a"}}],
            "steps[1]: keep: score > 'a' compares a text with a number",
        ),
        (
            [TOP, {"step": "keep", "when": {**SCORE, "field": "label", "value": "a"}}],
            "steps[1]: keep: a label is == or != another, never >",
        ),
        ([TOP, {"step": "keep", "when": DEEP}], "steps[1]: keep: " + TOO_MUCH),
        ([TOP, {"step": "keep", "when": {"rule": "any", "rules": [SCORE] * 256}}], "steps[1]: keep: " + TOO_MUCH),
        (
            [{**BOXES, "order": "xyxy", "grids": [{"columns": 1, "rows": 1}]}],
            "steps[0]: boxes: order xyxy needs no grids: corners have no anchors",
        ),
        (
            [{**BOXES, "exponent": True}],
            "steps[0]: boxes: exponents are of the size of an anchor, and there are no grids",
        ),
        (
            [{**BOXES, "grids": [{"columns": 4096, "rows": 4096}]}],
            "steps[0]: boxes: 16777216 anchors are more than 1048576",
        ),
        (
            [{"step": "ctc-text", "output": "y", "names": ["a"], "blank": 2}],
            "steps[0]: ctc-text: the blank class 2 is beyond the 2 classes",
        ),
        ([{**TOP, "names": ["a" * 513]}], "Expected `str` of length <= 512 - at `$.answers[0].steps[0].names[0]`"),
        ([{**TOP, "count": 1001}], "Expected `int` <= 1000 - at `$.answers[0].steps[0].count`"),
    ],
)
def test_answer_steps_that_make_no_sense_are_refused_with_their_place(made: list[dict[str, Any]], said: str) -> None:
    assert refusal(made=made).removeprefix("m: processing.answers[0].") == said


def test_steps_follow_from_each_other() -> None:
    photo = {"step": "decode-image"}
    assert refusal(given=[photo, RESIZE, {"step": "cast", "dtype": "int8"}, {"step": "layout", "to": "NCHW"}]) == ""
    said = refusal(given=[photo, {"step": "layout", "to": "NCHW"}, RESIZE])
    assert said == "m: processing.inputs[0].steps[2]: resize takes a value of kind image, and there is one of array"
    assert "takes a value of kind photo" in refusal(given=[{"step": "expand"}, photo])


def test_recipes_are_of_inputs_that_the_model_has_each_once() -> None:
    recipe = InputRecipe(name="x", steps=(DecodeImage(),))
    with pytest.raises(BundleError, match=r"^m: processing: input 'x' is there twice$"):
        check_processing(Processing(inputs=(recipe, recipe)), inputs=INPUTS, outputs=OUTPUTS, where="m")
    other = InputRecipe(name="z", steps=(DecodeImage(),))
    with pytest.raises(BundleError, match=r"^m: processing.inputs\[0\]: the model has no input 'z'$"):
        check_processing(Processing(inputs=(other,)), inputs=INPUTS, outputs=OUTPUTS, where="m")


def test_there_are_bounds_on_recipes_and_steps() -> None:
    step = {"step": "expand"}
    for told, said in (
        ({"inputs": [{"name": "x", "steps": [step] * 33}]}, "length <= 32"),
        ({"inputs": [{"name": "x", "steps": []}]}, "length >= 1"),
        ({"answers": [{"name": "x", "steps": [TOP]}] * 65}, "length <= 64"),
    ):
        with pytest.raises(msgspec.ValidationError, match=said):
            decoded(msgspec.json.encode(told).decode())


def test_a_manifest_is_checked_as_it_is_decoded() -> None:
    wrong = Processing(inputs=(InputRecipe(name="nothing", steps=(DecodeImage(),)),))
    data = encode_manifest(msgspec.structs.replace(BUNDLE.manifest, processing=wrong))
    with pytest.raises(BundleError, match=r"^manifest: processing.inputs\[0\]: the model has no input 'nothing'$"):
        decode_manifest(data)


def test_the_files_of_recipes_are_named_once() -> None:
    step = Tokenise(file=Blob(digest="sha256:" + "0" * 64, size_bytes=10), most=8)
    recipes = tuple(InputRecipe(name=name, steps=(step,)) for name in ("x", "mask"))
    assert Processing(inputs=recipes).blobs == (step.file,)
    assert [recipe.source for recipe in recipes] == ["text", "text"]
    assert Processing().blobs == ()


def test_a_manifest_of_an_older_version_means_the_same() -> None:
    known = BUNDLE.manifest.inputs[0].name, BUNDLE.manifest.outputs[0].name
    told = msgspec.json.decode(encode_manifest(BUNDLE.manifest), type=dict[str, Any])
    del told["processing"]
    told |= {
        "format": "1.1",
        "preprocess": {
            "input": known[0],
            "colour": "RGB",
            "steps": [
                {"step": "centre-crop", "ratio": 0.875},
                {"step": "resize", "width": 8, "height": 8, "resample": "bicubic"},
                {"step": "normalise", "mean": [127.0, 127.0, 127.0], "std": [128.0, 128.0, 128.0]},
            ],
            "layout": "NCHW",
        },
        "labels": {"output": known[1], "names": ["cat", "dog"], "softmax": True},
    }
    found = decode_manifest(msgspec.json.encode(told)).processing
    expected: tuple[InputStep, ...] = (
        DecodeImage(colour="RGB"),
        CentreCrop(ratio=0.875),
        Resize(width=8, height=8, resample="bicubic"),
        Normalise(mean=(127.0,) * 3, std=(128.0,) * 3),
        Layout(to="NCHW"),
    )
    read = (answers.Softmax(output=known[1]), answers.Top(output=known[1], names=("cat", "dog")))
    assert found == Processing(
        inputs=(InputRecipe(name=known[0], steps=expected),), answers=(AnswerRecipe(name="class", steps=read),)
    )
    told["labels"] = None
    assert decode_manifest(msgspec.json.encode(told)).processing.answers == ()


def test_every_step_has_what_executes_it() -> None:
    assert set(INPUT_STEPS) == set(InputStep.__args__)
    assert set(ANSWER_STEPS) == set(answers.AnswerStep.__args__)


def test_filters_of_a_spectrogram_are_judged_together() -> None:
    step = MelSpectrogram(rate=16_000, fft=512, window=400, hop=160, mels=40, low=20.0, high=8000.0)
    assert steps.step_fault(step) == ""


# ------------------------------------------------------------------------------------------------------- documentation
def structs() -> Iterator[type[msgspec.Struct]]:
    """Every record of the recipes."""
    for module in (steps, answers, processing):
        for _, found in inspect.getmembers(module, inspect.isclass):
            if issubclass(found, msgspec.Struct) and found.__module__ == module.__name__:
                yield found


@pytest.mark.parametrize("struct", list(structs()), ids=lambda struct: struct.__name__)
def test_the_documentation_lists_the_fields_and_the_tag_of_every_record(struct: type[msgspec.Struct]) -> None:
    parts = re.split(r"^#+ +(.*)$", DOC, flags=re.MULTILINE)
    section = dict(zip(parts[1::2], parts[2::2], strict=True))[f"`{struct.__name__}`"]
    assert re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE) == list(struct.__struct_fields__)
    tag = struct.__struct_config__.tag
    assert tag is None or f"Tag `{tag}`" in section


@pytest.mark.parametrize("module", [steps, answers, processing], ids=lambda module: module.__name__)
def test_every_bound_is_listed(module: Any) -> None:
    bounds = {name for name, value in vars(module).items() if name.startswith("MAX_") and isinstance(value, int)}
    homes = [each.__name__ for each in (steps, answers, processing)] + ["edge.formats.tensor"]
    assert [name for name in bounds if not any(f"`{home}.{name}`" in SECURITY for home in homes)] == []
