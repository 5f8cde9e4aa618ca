"""Damaged TFLite files are one line, whatever is wrong with them; written ones are equal for equal models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # it ships no types
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from host.errors import IngestError, UnsupportedModelError
from host.ingest.tflite import ingest_tflite
from host.model import Origin
from host.tflite.file import BUFFER_ALIGNMENT, pack, unpack
from host.tflite.graph import unique_names
from host.tflite.model import TfliteModel, read_tflite, tflite_model
from tests.tflite_nets import Net, Op, Type, doubling, ladder

ORIGIN = Origin(format="tflite", digest="")


def _read(net: Net) -> TfliteModel:
    return tflite_model(net.data, name="net", origin=ORIGIN, where="net.tflite")


def test_the_file_is_the_same_each_time_it_is_written() -> None:
    data = ladder().data
    tree = unpack(data, where="net")
    assert pack(tree).data == pack(tree).data == pack(unpack(pack(tree).data, where="net")).data


def test_weights_lie_where_runtimes_want_them_and_are_found_again() -> None:
    packed = pack(ladder(width=32).tree)
    weights = [packed.data[start:stop] for start, stop in packed.weights]
    assert [len(weight) for weight in weights] == [32 * 32 * 4] * 4
    assert all(start % BUFFER_ALIGNMENT == 0 for start, _ in packed.weights)
    held = [buffer.data.tobytes() for buffer in unpack(packed.data, where="net").buffers if buffer.data is not None]
    assert sorted(weights) == sorted(held)


def test_names_are_unique_whatever_the_file_says() -> None:
    graph = Net().graph()
    for name in ("", "a", "a", "a#2", "a\n", "x" * 600, "x" * 600):
        graph.tensor(name, [1])
    names = unique_names(graph.record)
    assert names[:5] == ("tensor_0", "a", "a#2", "a#2#3", "a_")
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 512


def test_buffers_behind_the_flatbuffer_are_pulled_in() -> None:
    plain = unpack(ladder(rungs=1).data, where="net")
    weights = next(buffer for buffer in plain.buffers if buffer.data is not None)
    data = weights.data.tobytes()

    class _Outside:
        """A buffer that says where its data is."""

        def __init__(self, offset: int) -> None:
            self.offset = offset

        def Pack(self, builder: Any) -> Any:  # noqa: N802 - the generated code calls it so
            schema.BufferStart(builder)
            schema.BufferAddOffset(builder, self.offset)
            schema.BufferAddSize(builder, len(data))
            return schema.BufferEnd(builder)

    def written(offset: int) -> bytes:
        builder: Any = flatbuffers.Builder(1024)
        plain.buffers = [_Outside(offset) if buffer is weights else buffer for buffer in buffers]
        builder.Finish(plain.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    buffers = list(plain.buffers)
    head = written(1 << 20)
    found = unpack(written(len(head)) + data, where="net")
    assert [buffer.data.tobytes() for buffer in found.buffers if buffer.data is not None] == [data]
    with pytest.raises(IngestError, match="lies behind the end of the file"):
        unpack(written(len(head)) + data[:-1], where="net")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a TFLite file: it does not begin with TFL3"),
        (b"\x08\x00\x00\x00ONNX" + bytes(64), "not a TFLite file: it does not begin with TFL3"),
        (b"\xff\xff\xff\xffTFL3" + bytes(64), "a damaged TFLite file: "),
        (ladder().data[:5000], "a damaged TFLite file: "),
    ],
)
def test_what_is_no_tflite_file_is_refused_in_one_line(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(data)
    with pytest.raises(IngestError) as caught:
        read_tflite(path)
    assert str(caught.value).startswith(f"{path}: {reason}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"net\.tflite: no such file"):
        read_tflite(tmp_path / "net.tflite")


def _first(tree: Any) -> Any:
    return tree.subgraphs[0]


def _set(record: Any, **values: Any) -> None:
    for field, value in values.items():
        setattr(record, field, value)


_DAMAGE: list[tuple[Callable[[Any], None], str]] = [
    (lambda t: _set(_first(t).operators[1], inputs=np.array([99], np.int32)), "an input is 99, out of "),
    (lambda t: _set(_first(t).operators[1], outputs=np.array([-1], np.int32)), "an output is -1, out of "),
    (lambda t: _set(_first(t).operators[1], opcodeIndex=7), "its operator code is 7, out of "),
    (lambda t: _set(_first(t).operators[0], inputs=np.array([4], np.int32)), "which nothing before it makes"),
    (lambda t: _set(_first(t).operators[1], outputs=np.array([0], np.int32)), "which is there already"),
    (lambda t: _set(_first(t), outputs=np.array([1000], np.int32)), "an input or output is 1000, out of "),
    (lambda t: _set(_first(t), inputs=np.array([0, 0], np.int32)), "a tensor is an input twice"),
    (lambda t: _set(_first(t), operators=[]), "there is nothing to run"),
    (lambda t: _set(_first(t).tensors[1], buffer=50), "buffer 50 of "),
    (lambda t: _set(_first(t).tensors[1], shape=np.array([3, 3], np.int32)), "4096 bytes of data for FLOAT32[3, 3]"),
    (lambda t: _set(_first(t).tensors[0], shape=np.array([1 << 20, 1 << 20], np.int32)), "is more than"),
    (lambda t: _set(_first(t).tensors[0], shape=np.array([-7], np.int32)), "shape [-7] of rank 1"),
    (lambda t: _set(t, version=2), "a TFLite file of version 2; only version 3 is known"),
    (
        lambda t: _set(
            _first(t).tensors[1],
            quantization=schema.QuantizationParametersT(scale=np.ones(5, np.float32), quantizedDimension=1),
        ),
        "5 scales for axis 1 of [32, 32]",
    ),
]


@pytest.mark.parametrize(("damage", "reason"), _DAMAGE, ids=[reason for _, reason in _DAMAGE])
def test_an_index_or_length_that_is_wrong_is_found_before_any_interpreter(
    damage: Callable[[Any], None], reason: str
) -> None:
    tree = unpack(ladder().data, where="net")
    damage(tree)
    with pytest.raises(IngestError) as caught:
        tflite_model(pack(tree).data, name="net", origin=ORIGIN, where="net.tflite")
    assert str(caught.value).startswith("net.tflite: ")
    assert reason in str(caught.value)


def test_weights_in_another_file_are_refused() -> None:
    tree = unpack(ladder().data, where="net")
    tree.subgraphs[0].tensors[1].externalBuffer = 3
    with pytest.raises(UnsupportedModelError, match="its weights are in another file"):
        tflite_model(pack(tree).data, name="net", origin=ORIGIN)


def test_a_body_that_calls_itself_is_refused() -> None:
    tree = unpack(doubling().data, where="net")
    tree.subgraphs[3].operators[0].builtinOptions = schema.WhileOptionsT(condSubgraphIndex=2, bodySubgraphIndex=3)
    tree.subgraphs[3].operators[0].builtinOptionsType = schema.BuiltinOptions.WhileOptions
    with pytest.raises(IngestError, match="subgraph 3 calls itself"):
        tflite_model(pack(tree).data, name="net", origin=ORIGIN)


def test_a_body_that_is_not_there_is_refused() -> None:
    tree = unpack(doubling().data, where="net")
    tree.subgraphs[0].operators[1].builtinOptions.bodySubgraphIndex = 9
    with pytest.raises(IngestError, match="operator 1 calls subgraph 9 of 4"):
        tflite_model(pack(tree).data, name="net", origin=ORIGIN)


def test_random_operators_are_refused_by_name() -> None:
    net = Net()
    graph = net.graph()
    shape = graph.constant("shape", np.array([1, 4], np.int32))
    given, noise, made = graph.tensor("x", [1, 4]), graph.tensor("noise", [1, 4]), graph.tensor("y", [1, 4])
    graph.operator(Op.RANDOM_UNIFORM, [shape], [noise])
    graph.operator(Op.ADD, [given, noise], [made])
    graph.ends([given], [made])
    with pytest.raises(UnsupportedModelError, match="it holds RANDOM_UNIFORM; make the random values an input"):
        _read(net)


def _sparse(indices: list[int], segments: list[int]) -> Net:
    """A 2x4 matrix in compressed rows, made dense and multiplied with."""
    net = Net()
    graph = net.graph()
    given = graph.tensor("x", [1, 4])
    held = graph.constant("held", np.arange(1, 4, dtype=np.float32).reshape(1, 3))
    dense, made = graph.tensor("dense", [2, 4]), graph.tensor("y", [1, 2])
    record = graph.record.tensors[held]
    record.shape = np.array([2, 4], np.int32)
    record.sparsity = schema.SparsityParametersT(
        traversalOrder=np.array([0, 1], np.int32),
        dimMetadata=[
            schema.DimensionMetadataT(format=schema.DimensionType.DENSE, denseSize=2),
            schema.DimensionMetadataT(
                format=schema.DimensionType.SPARSE_CSR,
                arraySegmentsType=schema.SparseIndexVector.Int32Vector,
                arraySegments=schema.Int32VectorT(values=np.array(segments, np.int32)),
                arrayIndicesType=schema.SparseIndexVector.Int32Vector,
                arrayIndices=schema.Int32VectorT(values=np.array(indices, np.int32)),
            ),
        ],
    )
    graph.operator(Op.DENSIFY, [held], [dense])
    graph.operator(
        Op.FULLY_CONNECTED,
        [given, dense, -1],
        [made],
        schema.FullyConnectedOptionsT(),
        options_type=schema.BuiltinOptions.FullyConnectedOptions,
    )
    graph.ends([given], [made])
    return net


def test_sparse_weights_are_read() -> None:
    assert _read(_sparse([0, 3, 2], [0, 2, 3])).graph.tensor("held").constant


@pytest.mark.parametrize(
    ("indices", "segments"),
    [([0, 9, 2], [0, 2, 3]), ([0, -1, 2], [0, 2, 3]), ([0, 3, 2], [0, 3, 2]), ([0, 3, 2], [0, 2, 9]), ([0, 3], [0, 2])],
)
def test_an_index_that_leaves_a_sparse_matrix_is_found(indices: list[int], segments: list[int]) -> None:
    with pytest.raises(IngestError, match="an index of its sparsity is out of range"):
        _read(_sparse(indices, segments))


def test_a_file_that_litert_dies_of_is_refused_in_one_line(tmp_path: Path) -> None:
    net = Net()
    graph = net.graph()
    given, made = graph.tensor("x", [1, 4]), graph.tensor("y", [1, 4])
    # This custom operator reads its options without a look whether there are any.
    graph.operator("Mfcc", [given], [made])
    graph.ends([given], [made])
    path = tmp_path / "net.tflite"
    path.write_bytes(net.data)
    with pytest.raises(IngestError) as caught:
        ingest_tflite(path, shapes={}, inputs=None)
    assert str(caught.value) == f"{path}: a damaged TFLite file: LiteRT dies of it (SIGSEGV)"


def test_an_input_of_text_is_refused_by_name(tmp_path: Path) -> None:
    net = ladder(rungs=1)
    net.tree.subgraphs[0].tensors[0].type = Type.STRING
    path = tmp_path / "net.tflite"
    path.write_bytes(net.data)
    with pytest.raises(UnsupportedModelError, match="input 'x' is of type STRING, which cannot travel"):
        ingest_tflite(path, shapes={}, inputs=None)
