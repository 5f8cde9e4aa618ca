"""The microbenchmarks are a bundle like any other, small and the same every time, and made without onnx."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edge.device.timing import random_tensors
from edge.formats.bundle import decode_manifest, digest_of, encode_manifest
from edge.runtimes.base import StageOptions
from edge.runtimes.onnx import OnnxRuntime
from edge.stage import compose, load_stage
from host.fleet import onnx_bytes
from host.fleet.operator_mix import operator_mix

MIX = operator_mix()
SHARDS = len(MIX.manifest.shards)


def test_it_is_small_and_its_bytes_never_change() -> None:
    blobs = {blob.digest: blob.size_bytes for blob in (MIX.manifest_blob, *MIX.manifest.blobs(0, SHARDS))}
    assert sum(blobs.values()) < 100_000
    operator_mix.cache_clear()
    assert operator_mix().manifest_blob == MIX.manifest_blob
    assert digest_of(encode_manifest(decode_manifest(MIX.blobs.read(MIX.manifest_blob.digest)))) == (
        MIX.manifest_blob.digest
    )


def test_it_has_the_operators_of_real_networks_in_both_precisions() -> None:
    operators = {name for layer in MIX.manifest.layers for name in layer.operators}
    assert operators >= {"Conv", "QLinearConv", "MatMul", "Gemm", "QGemm", "Add", "QLinearAdd", "Clip", "Relu"}


@pytest.mark.parametrize(("first", "stop"), [(0, SHARDS), (0, 1), (9, 11), (20, 35), (SHARDS - 5, SHARDS)])
def test_any_range_of_it_is_a_stage_that_runs(first: int, stop: int, tmp_path: Path) -> None:
    stage = load_stage(
        MIX.manifest,
        first,
        stop,
        runtime=OnnxRuntime(),
        options=StageOptions(),
        read_blob=lambda blob: MIX.blobs.read(blob.digest),
        weights_folder=tmp_path,
    )
    made = stage.run(random_tensors(MIX.manifest, stage.received))
    assert set(made) == set(MIX.manifest.cut_before(stop))
    assert all(np.isfinite(array).all() for array in made.values())


def test_onnx_finds_nothing_wrong_with_the_whole(tmp_path: Path) -> None:
    joined = compose(
        MIX.manifest, 0, SHARDS, read_blob=lambda blob: MIX.blobs.read(blob.digest), weights_folder=tmp_path
    )
    model = onnx.load_from_string(joined.model)
    # The checker knows no operators of Microsoft's; shapes of the others are inferred without complaint.
    assert re.match("operator-mix", model.graph.name)
    onnx.shape_inference.infer_shapes(model, strict_mode=True)


def test_what_is_written_byte_by_byte_is_what_onnx_writes() -> None:
    array = np.array([[1, 2, 3]], np.int64)
    written = onnx.NodeProto.FromString(
        onnx_bytes.node(
            "Op",
            ("a", "b"),
            ("c",),
            domain="d",
            attributes={
                "number": 300,
                "negative": -2,
                "real": 0.5,
                "many": (1, -1),
                "tensor": onnx_bytes.tensor("t", "int64", (1, 3), array.tobytes()),
            },
        )
    )
    tensor = numpy_helper.from_array(array, "t")
    assert (written.op_type, written.name, written.domain) == ("Op", "c.node", "d")
    assert (list(written.input), list(written.output)) == (["a", "b"], ["c"])
    assert {found.name: helper.get_attribute_value(found) for found in written.attribute} == {
        "number": 300,
        "negative": -2,
        "real": 0.5,
        "many": [1, -1],
        "tensor": tensor,
    }
    value = onnx.ModelProto.FromString(onnx_bytes.graph_input("x", "uint8", (1, 200)))
    assert value.graph.input[0] == helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, 200])
