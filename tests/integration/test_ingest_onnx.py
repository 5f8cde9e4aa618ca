"""Reading ONNX files, good and bad."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from host.errors import IngestError, UnsupportedModelError
from host.ingest import ingest
from host.passes.normalise import normalise
from host.reference import Reference
from tests.graphs import conv_net, parsed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "Small Net_v2.onnx"
    onnx.save(conv_net(), path)
    return path


def test_a_file_becomes_a_model_with_its_origin(net: Path) -> None:
    found = ingest(str(net))
    assert found.model.name == "small-net-v2"
    assert found.model.origin.format == "onnx"
    assert found.model.origin.digest == f"sha256:{hashlib.sha256(net.read_bytes()).hexdigest()}"
    assert found.model.origin.description == net.name
    assert found.model.origin.licence == "unknown"


def test_the_golden_output_is_what_the_source_answers(net: Path) -> None:
    found = ingest(str(net))
    (golden,) = found.golden
    assert np.array_equal(golden.outputs["y"], Reference(net.read_bytes()).run(golden.inputs)["y"])


def test_made_up_inputs_are_told(net: Path) -> None:
    assert ingest(str(net)).notes == (
        "inputs are made up (seeded random numbers): pass --inputs file.npz to verify and calibrate with real ones",
    )


def test_inputs_of_the_user_are_used(net: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((5, 1, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    found = ingest(str(net), inputs=str(tmp_path / "in.npz"))
    assert len(found.samples) == 5
    assert len(found.golden) == 1
    assert found.notes == ()


def test_a_dynamic_model_has_golden_outputs_of_two_sizes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(parsed("main (float[n,3] x) => (float[n,3] y) { y = Neg (x) }"), path)
    assert len({golden.outputs["y"].shape for golden in ingest(str(path)).golden}) == 2
    assert [golden.outputs["y"].shape for golden in ingest(str(path), shapes={"n": 4}).golden] == [(4, 3)]


def test_external_weights_are_read_and_are_part_of_the_digest(net: Path, tmp_path: Path) -> None:
    path = tmp_path / "external.onnx"
    onnx.save(conv_net(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    expected = ingest(str(net)).golden[0]
    found = ingest(str(path))
    assert np.array_equal(found.golden[0].outputs["y"], expected.outputs["y"])
    weights = bytearray((tmp_path / "weights.bin").read_bytes())
    weights[3] ^= 1
    (tmp_path / "weights.bin").write_bytes(weights)
    assert ingest(str(path)).model.origin.digest != found.model.origin.digest


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../outside.bin", "external data '../outside.bin' lies outside the folder of the model"),
        ("/etc/passwd", "external data '/etc/passwd' lies outside the folder of the model"),
        ("missing.bin", "external data 'missing.bin' is missing beside it"),
    ],
)
def test_external_weights_elsewhere_are_refused(tmp_path: Path, location: str, message: str) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(1000))
    folder = tmp_path / "model"
    folder.mkdir()
    proto = conv_net()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(IngestError) as caught:
        ingest(str(path))
    assert str(caught.value) == f"{path}: {message}"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(IngestError) as caught:
        ingest(str(tmp_path / "no.onnx"))
    assert str(caught.value) == f"{tmp_path}/no.onnx: no such file"


def test_a_damaged_file_is_refused_in_one_line(net: Path) -> None:
    data = net.read_bytes()
    for damaged in (b"", b"hello", data[: len(data) // 2], bytes(100), data[:40] + bytes(40) + data[80:]):
        net.write_bytes(damaged)
        with pytest.raises(IngestError) as caught:
            ingest(str(net))
        assert "\n" not in str(caught.value)


def test_a_model_that_the_runtime_refuses(tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    onnx.save(parsed("main (float[1,3] x) => (float[1,3] y) { y = NoSuchOperator (x) }"), path)
    with pytest.raises(IngestError, match=r"^model 'odd': onnxruntime refuses the model: .*NoSuchOperator"):
        ingest(str(path))


def test_an_output_that_is_no_tensor_is_refused_by_name(tmp_path: Path) -> None:
    proto = parsed("main (float[1,3] x) => (float[1,3] y) { y = SequenceConstruct (x) }")
    element = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [1, 3])
    proto.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(element))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UnsupportedModelError) as caught:
        ingest(str(path))
    assert str(caught.value) == (
        f"{path}: output 'y' is a sequence, not a dense tensor: it cannot travel between devices"
    )


def test_no_made_up_input_fits(tmp_path: Path) -> None:
    path = tmp_path / "picky.onnx"
    onnx.save(
        parsed(
            "main (float[n] x) => (float[3,777] y) { s = Constant <value_ints = [3, 777]> ()\n y = Reshape (x, s) }"
        ),
        path,
    )
    with pytest.raises(IngestError) as caught:
        ingest(str(path))
    assert str(caught.value).startswith("model 'picky' runs on no made-up input (x float32[n]): ")
    assert str(caught.value).endswith("; pass --inputs")


def test_sparse_weights_are_read(tmp_path: Path) -> None:
    proto = parsed("main (float[1,3] x) => (float[2,3] y) { y = Add (x, s) }")
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.array([4.0], np.float32), "s"),
            numpy_helper.from_array(np.array([5], np.int64), "i"),
            [2, 3],
        )
    )
    path = tmp_path / "sparse.onnx"
    path.write_bytes(proto.SerializeToString())
    found = ingest(str(path))
    golden = found.golden[0]
    assert np.array_equal(Reference(normalise(found.model)).run(golden.inputs)["y"], golden.outputs["y"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("model", "'model' is no model: give a path that ends in .onnx, package.module:factory, or efficientnet-lite0"),
        ("m.tflite", "m.tflite: this needs an ONNX or PyTorch model, not a TFLite file"),
        (
            "m.pt",
            "m.pt: a PyTorch checkpoint holds no architecture; write a factory and pass package.module:factory",
        ),
    ],
)
def test_a_source_that_is_no_model(source: str, message: str) -> None:
    with pytest.raises(IngestError) as caught:
        ingest(source)
    assert str(caught.value) == message


def test_an_onnx_file_is_packaged_without_torch(net: Path) -> None:
    program = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from host.compress.pipeline import compress\n"
        "from host.compress.recipe import PruneChannels, Quantize, Recipe, Recover\n"
        "from host.ingest import ingest\n"
        "recipe = Recipe(\n"
        "    prune=(PruneChannels(multiple=1),),\n"
        "    recover=(Recover(method='batch-norm'),),\n"
        "    quantize=Quantize(correct_bias=True),\n"
        ")\n"
        "made = compress(ingest(sys.argv[1]), recipe)\n"
        "assert 'torch' not in sys.modules\n"
        "print(sum(1 for _ in made.model.ir.graph))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(net)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert int(done.stdout) > 0
