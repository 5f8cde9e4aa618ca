"""Models of other formats: what is said where a converter is missing, and what is asked of what a converter makes.

The converters themselves are not installed here (see the extras of pyproject.toml): `tests/models` holds what
litert-torch made, and a small program stands in for onnx2tf.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from host.errors import IngestError, UnsupportedModelError
from host.ingest import ingest, is_tensorflow, litert_torch, tensorflow
from host.ingest.converted import adopt, to_tflite
from host.ingest.onnx import ingest_onnx
from host.ingest.torch import evaluate
from host.model import Golden, Ingested, Origin
from tests.models.make_twins import HERE, MODULES, SHAPE, made

_ONNX = HERE / "residual.onnx"
_ORIGIN = Origin(format="onnx", digest="sha256:00")

# Says its version, writes over its input as onnx2tf does, keeps its arguments, and gives a file that was made before.
_STAND_IN = """#!{python}
import json, pathlib, sys
if sys.argv[1:] == ["-V"]:
    print("{version}")
    sys.exit()
if "{fault}":
    print("50%|=====     | 3/6 [00:00<00:00, 8.28it/s]", file=sys.stderr)
    sys.exit("{fault}")
words = dict(zip(sys.argv[1:], sys.argv[2:]))
pathlib.Path("{kept}").write_text(json.dumps(sys.argv[1:]))
pathlib.Path(words["-i"]).write_bytes(b"simplified")
pathlib.Path(words["-o"]).mkdir()
pathlib.Path(words["-o"], "model_float32.tflite").write_bytes(pathlib.Path("{result}").read_bytes())
"""


@pytest.fixture
def onnx2tf_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of programs, with nothing in it yet."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def _install(folder: Path, *, version: str = "2.6.9", result: Path = HERE / "residual.tflite", fault: str = "") -> Path:
    kept = folder / "arguments.json"
    program = folder / "onnx2tf"
    program.write_text(_STAND_IN.format(python=sys.executable, version=version, kept=kept, result=result, fault=fault))
    program.chmod(0o755)
    return kept


# ------------------------------------------------------------------------------------------------------ what is missing
def test_without_litert_torch_the_install_line_is_named() -> None:
    with pytest.raises(IngestError) as caught:
        to_tflite("tests.models.make_twins:residual", shapes={}, inputs=None)
    assert str(caught.value) == (
        "PyTorch to TFLite needs litert-torch: pip install 'shardwire[litert-torch]' (about 1 GB beside torch; best "
        "into a venv of its own)"
    )


def test_without_tensorflow_the_install_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.keras"
    path.write_bytes(b"PK")
    with pytest.raises(IngestError, match=r"needs tensorflow and tf2onnx: pip install 'shardwire\[tensorflow\]'"):
        ingest(str(path))


def test_without_onnx2tf_its_python_and_install_line_are_named(onnx2tf_is: Path) -> None:
    with pytest.raises(IngestError) as caught:
        to_tflite(str(_ONNX), shapes={}, inputs=None)
    assert str(caught.value) == (
        "ONNX to TFLite needs the program onnx2tf, in an environment of its own with Python 3.12 or later (this is "
        f"{sys.version_info.major}.{sys.version_info.minor}): pipx install --python python3.12 'onnx2tf>=2.4'"
    )


def test_the_onnx2tf_that_needs_tensorflow_is_refused(onnx2tf_is: Path) -> None:
    _install(onnx2tf_is, version="1.29.24")
    with pytest.raises(IngestError, match=r"is version 1\.29\.24, which converts through TensorFlow: .* Python 3\.12"):
        to_tflite(str(_ONNX), shapes={}, inputs=None)


def test_what_nothing_converts_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'net\.bin' cannot be converted to TFLite: give a path that"):
        to_tflite("net.bin", shapes={}, inputs=None)


# -------------------------------------------------------------------------------------------------------------- onnx2tf
def test_onnx2tf_works_on_a_copy_and_keeps_the_layout_of_the_source(onnx2tf_is: Path) -> None:
    before = _ONNX.read_bytes()
    kept = _install(onnx2tf_is)
    found = to_tflite(str(_ONNX), shapes={}, inputs=None)
    assert _ONNX.read_bytes() == before
    arguments = msgspec.json.decode(kept.read_bytes(), type=list[str])
    assert Path(arguments[1]).resolve() != _ONNX.resolve()
    assert arguments[4:] == ["-tb", "flatbuffer_direct", "-n", "-kat", "image"]
    assert found.model.origin.digest == f"sha256:{hashlib.sha256(before).hexdigest()}"
    assert found.model.origin.format == "onnx"
    assert found.model.origin.description == "residual.onnx, converted to TFLite by onnx2tf 2.6.9"
    assert found.golden[0].inputs["image"].shape == SHAPE


def test_the_name_of_an_input_is_never_an_option_of_onnx2tf(onnx2tf_is: Path, tmp_path: Path) -> None:
    proto = onnx.load(_ONNX)
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "--output_h5"
    onnx.save(proto, tmp_path / "net.onnx")
    with pytest.raises(IngestError, match="would take the name of input '--output_h5' for an option"):
        to_tflite(str(tmp_path / "net.onnx"), shapes={}, inputs=None)


def test_an_open_size_must_be_bound_before_conversion(onnx2tf_is: Path, tmp_path: Path) -> None:
    proto = onnx.load(_ONNX)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(proto, tmp_path / "net.onnx")
    with pytest.raises(
        IngestError, match=r"input 'image' float32\[batch, .* bind it with --shape to convert the model"
    ):
        to_tflite(str(tmp_path / "net.onnx"), shapes={}, inputs=None)


def test_a_conversion_that_answers_differently_is_refused(onnx2tf_is: Path) -> None:
    _install(onnx2tf_is, result=HERE / "depthwise.tflite")
    with pytest.raises(IngestError, match=r"model 'residual': its conversion to TFLite answers differently"):
        to_tflite(str(_ONNX), shapes={}, inputs=None)


def test_what_onnx2tf_says_last_is_the_reason(onnx2tf_is: Path) -> None:
    _install(onnx2tf_is, fault="ERROR: no lowering for Foo")
    with pytest.raises(IngestError) as caught:
        to_tflite(str(_ONNX), shapes={}, inputs=None)
    assert str(caught.value) == f"{_ONNX}: onnx2tf cannot convert it to TFLite: ERROR: no lowering for Foo"


# -------------------------------------------------------------------------------------- what a converter's file must be
def _source(name: str) -> Ingested:
    return ingest_onnx(HERE / f"{name}.onnx", shapes={}, inputs=None)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_converted_file_gets_the_names_of_its_source(name: str) -> None:
    source = _source(name)
    data = (HERE / f"{name}.tflite").read_bytes()
    found = adopt(data, name=name, origin=_ORIGIN, samples=source.samples, golden=source.golden, source=source)
    graph = found.model.graph
    assert graph.names(graph.inputs) == tuple(source.golden[0].inputs) == ("image",)
    assert graph.names(graph.outputs) == tuple(source.golden[0].outputs)
    assert found.notes == source.notes


def test_a_converted_file_with_other_outputs_is_refused() -> None:
    source = _source("residual")
    pair = source.golden[0]
    more = Golden(inputs=pair.inputs, outputs={**pair.outputs, "second": np.zeros(1, np.float32)})
    with pytest.raises(IngestError, match=r"the outputs of its conversion to TFLite, .* are not those of the source"):
        adopt((HERE / "residual.tflite").read_bytes(), name="net", origin=_ORIGIN, samples=(), golden=(more,))


def test_a_converted_file_that_is_none_is_refused() -> None:
    with pytest.raises(IngestError, match="net: not a TFLite file"):
        adopt(b"nothing", name="net", origin=_ORIGIN, samples=(), golden=_source("residual").golden)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_twins_are_those_of_the_script(name: str) -> None:
    source = _source(name)
    (pair,) = source.golden
    answer = evaluate(made(name), {"image": pair.inputs["image"]})[0]
    np.testing.assert_allclose(next(iter(pair.outputs.values())), answer, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- TensorFlow
def test_tensorflow_models_are_known_by_their_names(tmp_path: Path) -> None:
    saved = tmp_path / "net"
    saved.mkdir()
    assert not is_tensorflow(saved)
    (saved / "saved_model.pb").write_bytes(b"")
    assert is_tensorflow(saved)
    assert all(is_tensorflow(Path(name)) for name in ("net.keras", "net.H5", "net.pb"))
    assert not is_tensorflow(Path("net.onnx"))


def test_the_digest_of_a_saved_model_is_that_of_all_its_files_and_names(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, names in ((first, ("a", "b")), (second, ("b", "a"))):
        (folder / "variables").mkdir(parents=True)
        for name in names:
            (folder / "variables" / name).write_bytes(name.encode())
    assert tensorflow._digest(first) == tensorflow._digest(second)
    (second / "variables" / "a").rename(second / "variables" / "c")
    assert tensorflow._digest(first) != tensorflow._digest(second)


def test_a_model_that_is_not_there_is_named_before_tensorflow_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"net\.keras: no such file or folder"):
        ingest(str(tmp_path / "net.keras"))


def test_a_folder_with_too_many_files_is_no_saved_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorflow, "MAX_SOURCE_FILES", 1)
    for name in ("saved_model.pb", "fingerprint.pb"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(IngestError, match="2 files are more than the 1 of a SavedModel"):
        tensorflow._digest(tmp_path)


def test_converters_are_not_loaded_before_they_are_needed() -> None:
    assert not litert_torch.is_installed()
    assert not {"litert_torch", "tensorflow", "tf2onnx", "jax"} & set(sys.modules)
