"""The inputs of the zoo are real: the models see in them what a person sees. Otherwise agreement would say little."""

from __future__ import annotations

import json

import onnxruntime
import pytest
import torch

from edge.formats.tensor import Array
from tests import torch_models, zoo_inputs
from tests.zoo import ZOO, ZooModel, packaged_file, zoo_model
from tests.zoo_inputs import Sample


def _run(name: str, sample: Sample) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(zoo_model(name).source, options)
    first: Array = session.run(None, dict(sample))[0]
    return first


def test_mobilenet_knows_the_photos() -> None:
    module, _ = torch_models.mobilenet_v2()
    labels = [label for _, label in zoo_inputs.photos()[:4]]
    with torch.no_grad():
        seen = [int(module(torch.from_numpy(sample["image"])).argmax()) for sample in zoo_inputs.mobilenet_v2()]
    assert seen == labels


def test_mtcnn_sees_no_face_where_there_is_none() -> None:
    for factory, samples in (
        (torch_models.mtcnn_r, zoo_inputs.mtcnn_r()),
        (torch_models.mtcnn_o, zoo_inputs.mtcnn_o()),
    ):
        module, _ = factory()
        with torch.no_grad():
            faces = [float(module(torch.from_numpy(sample["x"]))[-1][0, 1]) for sample in samples]
        assert max(faces) < 0.1


def test_the_voice_is_heard_and_the_noise_is_not() -> None:
    voice, both = zoo_inputs.silero_vad()
    assert _run("silero-vad", voice)[0, 0] > 0.2
    assert _run("silero-vad", both)[1, 0] < 0.1
    assert _run("silero-vad-lstm", zoo_inputs.silero_vad_lstm()[1]).max() > 0.5


def test_the_files_are_told_apart() -> None:
    settings = json.loads(  # noqa: TID251 - a file of the model's own, read as any program would
        packaged_file("magika", "models", "standard_v3_3", "config.min.json").read_text()
    )
    names = settings["target_labels_space"]
    answers = _run("magika", zoo_inputs.magika()[1]).argmax(-1)
    assert [names[answer] for answer in answers] == ["python", "jpeg"]


def test_text_is_found_on_the_page() -> None:
    for sample in zoo_inputs.ppocr_det():
        found = _run("ppocr-det", sample) > 0.5
        assert 0.02 < found.mean() < 0.6


def test_the_lines_are_read() -> None:
    session = onnxruntime.InferenceSession(zoo_model("ppocr-rec").source)
    letters = ["", *session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
    read = []
    for sample in zoo_inputs.ppocr_rec():
        for row in session.run(None, dict(sample))[0].argmax(-1):
            kept = [step for i, step in enumerate(row) if step and (i == 0 or row[i - 1] != step)]
            read.append("".join(letters[step] for step in kept).strip())
    assert read == [zoo_inputs.TEXT, "Shardwire", "MQTT 1883"]


def test_the_line_upside_down_is_noticed() -> None:
    assert _run("ppocr-cls", zoo_inputs.ppocr_cls()[1]).argmax(-1).tolist() == [0, 1]


@pytest.mark.parametrize("model", [model for model in ZOO if model.inputs is not None], ids=str)
def test_the_table_says_how_many_sizes_the_inputs_have(model: ZooModel) -> None:
    assert model.inputs is not None
    samples = getattr(zoo_inputs, model.inputs.partition(":")[2])()
    sizes = {tuple((name, array.shape) for name, array in sample.items()) for sample in samples}
    assert len(sizes) == model.sizes
