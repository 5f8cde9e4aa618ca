"""What `run` and `infer` are given becomes requests, and answers become words and JSON."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from edge.errors import InvalidInput
from edge.formats.bundle import Manifest
from edge.formats.processing import InputRecipe, Processing
from edge.formats.steps import Cast, DecodeAudio, DecodeImage, Expand, InputStep, Layout, Pad, Resize, Tokenise
from edge.processing.values import Answer, Box, Labelled, Line, Segment
from host.bundle import blob_of
from host.cli.given import Request, read_requests
from host.cli.shown import describe, lines_of, record_of
from tests.minilm import minilm_file
from tests.tiny_bundle import make_tiny_bundle

BARE = make_tiny_bundle().manifest
SPEC = BARE.inputs[0]
TOKENIZER = minilm_file("tokenizer.json").read_bytes()


def taking(shape: tuple[int | None, ...], *steps: InputStep) -> Manifest:
    """A manifest whose one input is made by these steps."""
    spec = msgspec.structs.replace(SPEC, shape=shape)
    recipe = InputRecipe(name=SPEC.name, steps=steps)
    return msgspec.structs.replace(BARE, inputs=(spec,), processing=Processing(inputs=(recipe,)))


FLOAT = Cast(dtype="float32")
PHOTOS = taking((1, 3, 2, 2), DecodeImage(), Resize(width=2, height=2), FLOAT, Layout(to="NCHW"))
SOUNDS = taking((1, 4), DecodeAudio(rate=16_000), Pad(axis=0, sizes=(4,)), Expand())
TEXTS = taking((1, 8), Tokenise(file=blob_of(TOKENIZER), most=8, sizes=(8,)), FLOAT)


def read(manifest: Manifest, *files: Path, texts: tuple[str, ...] = ()) -> tuple[Request, ...]:
    """The requests of a command."""
    return read_requests(files, texts, manifest, read=lambda _: TOKENIZER)


def refusal(manifest: Manifest, *files: Path, texts: tuple[str, ...] = ()) -> str:
    """What is said of what a command is given, without folders."""
    with pytest.raises(InvalidInput) as caught:
        read(manifest, *files, texts=texts)
    said = str(caught.value)
    for file in files:
        said = said.replace(f"{file.parent}/", "")
    return said


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A red photo."""
    Image.new("RGB", (4, 4), "red").save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """Three samples."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.array([16384, 0, -16384], "<i2").tobytes())
    (tmp_path / "a.wav").write_bytes(stream.getvalue())
    return tmp_path / "a.wav"


def test_photos_sounds_and_texts_become_inputs(photo: Path, sound: Path, tmp_path: Path) -> None:
    (found,) = read(PHOTOS, photo)
    assert found.shown == str(photo)
    assert found.prepared.tensors[SPEC.name][0, :, 0, 0].tolist() == [255, 0, 0]
    (found,) = read(SOUNDS, sound)
    assert found.prepared.tensors[SPEC.name].tolist() == [[0.5, 0, -0.5, 0]]
    (tmp_path / "note.txt").write_text("Hello\n")
    from_file, from_line = read(TEXTS, tmp_path / "note.txt", texts=("Hello",))
    assert from_line.shown == "Hello"
    assert from_line.prepared.tensors[SPEC.name].tolist() == from_file.prepared.tensors[SPEC.name].tolist()


def test_arrays_are_taken_as_they_are(tmp_path: Path) -> None:
    ready = np.zeros((1, 3, 2, 2), np.float32)
    np.savez(tmp_path / "in.npz", **{SPEC.name: ready})  # type: ignore[arg-type]  # numpy's stub takes a flag there
    (found,) = read(PHOTOS, tmp_path / "in.npz")
    assert found.prepared.tensors[SPEC.name].shape == ready.shape


def test_what_the_model_does_not_take_is_said_with_what_it_takes(photo: Path, sound: Path) -> None:
    assert refusal(SOUNDS, photo).startswith("cat.png: not a WAV file of PCM that can be read")
    assert refusal(PHOTOS, sound) == f"a.wav: model {BARE.name!r} takes no sounds; give photos (JPEG, PNG)"
    assert refusal(TEXTS, photo) == f"cat.png: model {BARE.name!r} takes no photos; give texts (--text, .txt)"
    assert refusal(PHOTOS, texts=("a",)) == f"model {BARE.name!r} takes no texts; give photos (JPEG, PNG)"
    said = refusal(BARE, photo)
    assert said == f"cat.png: model {BARE.name!r} takes no photos; give an .npz with the arrays {SPEC.name}"


def test_a_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", **{SPEC.name: np.zeros((1, 3, 2, 9), np.float32)})  # type: ignore[arg-type]  # as above
    assert refusal(PHOTOS, tmp_path / "in.npz").startswith("in.npz: ")
    assert refusal(PHOTOS, tmp_path / "none.jpg") == "none.jpg: cannot be read (No such file or directory)"


# --------------------------------------------------------------------------------------------------------------- shown
LABELS = Answer(name="class", items=(Labelled(label="cat", score=0.75), Labelled(label="dog", score=0.25)))
BOXES = Answer(
    name="faces",
    items=(Box(label="face", score=0.9, left=1.2, top=2.0, right=30.6, bottom=40.0, points=((3.0, 4.0),)),),
    in_pixels=True,
)
LINE = Answer(name="text", items=(Line(label="Edge", score=0.5),))
VECTOR = Answer(name="sentence", array=np.array([[0.5, 0.25]], np.float32))
REGION = Answer(
    name="people",
    items=(Segment(label="person", area=0.25, outline=((0, 0), (0.5, 0), (0.5, 0.5)), holes=(((0, 0),) * 3,)),),
)
NOTHING = Answer(name="faces")


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        (LABELS, [("cat", 0.75), ("dog", 0.25)]),
        (BOXES, [("face at 1, 2 to 31, 40", 0.9)]),
        (LINE, [("Edge", 0.5)]),
        (VECTOR, [("sentence float32[1, 2] = 0.5, 0.25", None)]),
        (REGION, [("person, 25.0% of the image, outline of 3 points and 1 holes", None)]),
        (NOTHING, [("faces: nothing", None)]),
    ],
    ids=["labels", "boxes", "line", "vector", "segments", "nothing"],
)
def test_an_answer_in_words(answer: Answer, lines: list[tuple[str, float | None]]) -> None:
    assert lines_of((answer,), {}) == lines


def test_several_answers_are_told_by_their_names() -> None:
    words = [line for line, _ in lines_of((LINE, LABELS), {})]
    assert words == ["text: Edge", "class: cat", "class: dog"]


def test_without_answers_the_outputs_are_described() -> None:
    outputs = {"y": np.array([1.0, 3.0], np.float32), "s": np.array(["a"], object), "n": np.zeros(0)}
    ((words, score),) = lines_of((), outputs)
    assert words == "y float32[2] in [1, 3]; s object[1]; n float64[0]"
    assert score is None
    assert describe("b", np.array([True])) == "b bool[1]"


def test_an_answer_as_json() -> None:
    record = record_of((BOXES, LABELS, LINE, VECTOR, REGION))
    assert record["labels"] == [{"label": "cat", "probability": 0.75}, {"label": "dog", "probability": 0.25}]
    found = record["answers"]
    face = {"label": "face", "score": 0.9, "box": [1.2, 2.0, 30.6, 40.0], "points": [[3.0, 4.0]]}
    assert found["faces"] == {"items": [face], "unit": "pixels"}
    assert found["text"] == {"items": [{"text": "Edge", "score": 0.5}]}
    assert found["sentence"] == {"shape": [1, 2], "values": [0.5, 0.25]}
    assert found["people"]["unit"] == "shares"
    assert found["people"]["items"][0]["outline"] == [[0, 0], [0.5, 0], [0.5, 0.5]]
    msgspec.json.encode(record)
