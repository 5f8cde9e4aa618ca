"""Several inputs and outputs of every dtype through the stages of both runtimes, and through frames between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper

from edge.formats.frame import FrameHeader, decode_frame, encode_frame
from edge.formats.tensor import DTYPES, STRING, Array, pack
from host.answers import load_run, verify_answers
from host.bundle import OpenBundle
from host.package import PackageRequest, package
from tests.litert_models.make_models import Operator, Tensor, make_model

HEADER = FrameHeader(request_id="r", sender="s", reply_to="t", ttl_ms=1, deployment="d", epoch="1-a-1", stage=0)
ONNX_TYPES = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "uint16": TensorProto.UINT16,
    "int16": TensorProto.INT16,
    "uint32": TensorProto.UINT32,
    "int32": TensorProto.INT32,
    "uint64": TensorProto.UINT64,
    "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "string": TensorProto.STRING,
}
NUMBERS = tuple(name for name in DTYPES if name != STRING)


def extremes() -> dict[str, Array]:
    """The least and largest of each dtype, and what else is odd, [2, 3]."""
    given: dict[str, Array] = {"in_bool": np.array([[True, False, True], [False, False, True]])}
    given["in_string"] = np.array([["", "Straße", "日本語"], ["a\nb", "😀", " "]], object)
    for name in NUMBERS[1:]:
        limits = np.finfo(name) if name.startswith("float") else np.iinfo(name)
        given[f"in_{name}"] = np.ones((2, 3), name)
        given[f"in_{name}"][0] = [limits.min, limits.max, 0]
    given["in_float32"][1] = [np.inf, -np.inf, np.float32(1e-45)]
    return given


def onnx_model(path: Path) -> Path:
    """Each input turned round, then handed on."""
    first = [helper.make_node("Reshape", [f"in_{name}", "shape"], [f"mid_{name}"]) for name in ONNX_TYPES]
    second = [helper.make_node("Identity", [f"mid_{name}"], [f"out_{name}"]) for name in ONNX_TYPES]
    inputs = [helper.make_tensor_value_info(f"in_{name}", kind, [2, "n"]) for name, kind in ONNX_TYPES.items()]
    outputs = [helper.make_tensor_value_info(f"out_{name}", kind, ["n", 2]) for name, kind in ONNX_TYPES.items()]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 2])
    graph = helper.make_graph([*first, *second], "kinds", inputs, outputs, [shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def tflite_model(path: Path) -> Path:
    """The same of numbers."""
    shape = Tensor(name="shape", shape=(2,), dtype="int32", data=np.array([3, 2], np.int32))
    tensors = [shape]
    for name in NUMBERS:
        for place, dims in (("in", (2, 3)), ("mid", (3, 2)), ("out", (3, 2))):
            tensors.append(Tensor(name=f"{place}_{name}", shape=dims, dtype=name))
    operators = [
        Operator(
            code=schema.BuiltinOperator.RESHAPE, inputs=(f"{source}_{name}", "shape"), outputs=(f"{target}_{name}",)
        )
        for source, target in (("in", "mid"), ("mid", "out"))
        for name in NUMBERS
    ]
    path.write_bytes(
        make_model(tensors, operators, [f"in_{name}" for name in NUMBERS], [f"out_{name}" for name in NUMBERS])
    )
    return path


def chained(bundle: OpenBundle, tensors: dict[str, Array]) -> dict[str, Array]:
    """Every shard a stage of its own, with a frame between every two."""
    for index in range(len(bundle.manifest.shards)):
        stage = load_run(bundle, index, index + 1, mode="exact")
        tensors = decode_frame(
            encode_frame(HEADER, stage.run(decode_frame(encode_frame(HEADER, tensors)).tensors))
        ).tensors
        stage.close()
    return tensors


@pytest.mark.parametrize(("make", "names"), [(onnx_model, tuple(ONNX_TYPES)), (tflite_model, NUMBERS)])
def test_every_dtype_travels(make: type, names: tuple[str, ...], tmp_path: Path) -> None:
    source = make(tmp_path / f"kinds.{make.__name__.partition('_')[0]}")
    request = PackageRequest(source=str(source), profile="rpi4", quantize="none", target=tmp_path / "bundle")
    bundle = package(request).bundle
    assert [spec.dtype for spec in bundle.manifest.inputs] == list(names)
    assert len(bundle.manifest.shards) > 1
    assert {verdict.fault for verdict in verify_answers(bundle)} == {None}
    given = {f"in_{name}": extremes()[f"in_{name}"] for name in names}
    for name, array in chained(bundle, dict(given)).items():
        before = given[name.replace("out_", "in_")]
        assert (array.dtype, array.shape) == (before.dtype, (3, 2))
        assert pack(name, array) == pack(name, before), "not one bit changed"
