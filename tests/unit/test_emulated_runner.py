"""The program that runs inside an emulated machine, run here: its messages, and how it serves a model."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest

from edge.formats.tensor import DTYPES
from host.compress.emulate import program as runner
from host.model import to_bytes
from host.reference import Mode, Reference
from tests.graphs import conv_net, model_of, photos

_DOUBLING = model_of("main (float[1,3] x) => (float[1,3] y) { t = Relu (x)\n y = Add (t, x) }")


def travelled(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    stream = io.BytesIO()
    runner.write_tensors(stream, tensors)
    stream.seek(0)
    assert stream.read(1) == runner.TENSORS
    return runner.read_tensors(stream)


@pytest.mark.parametrize("dtype", runner.DTYPES)
def test_every_dtype_travels_bit_for_bit(dtype: str) -> None:
    tensor = np.arange(12).astype(dtype).reshape(3, 4)
    (found,) = travelled({"x": tensor}).values()
    assert found.dtype == tensor.dtype
    np.testing.assert_array_equal(found, tensor)


def test_the_dtypes_are_those_of_the_wire_but_for_text() -> None:
    assert set(runner.DTYPES) == set(DTYPES) - {"string"}


@pytest.mark.parametrize(
    "tensor",
    [np.float32(3.5), np.zeros((0, 4), np.float32), np.arange(24, dtype=np.int64).reshape(2, 3, 4).T],
    ids=["scalar", "empty", "transposed"],
)
def test_every_shape_travels(tensor: np.ndarray) -> None:
    found = travelled({"ünïcode": np.asarray(tensor), "other": np.ones(1, np.uint8)})
    assert list(found) == ["ünïcode", "other"]
    assert found["ünïcode"].shape == tensor.shape
    np.testing.assert_array_equal(found["ünïcode"], tensor)


def test_what_arrives_can_be_written_to() -> None:
    found = travelled({"x": np.zeros(2, np.float32)})["x"]
    found += 1
    assert found.tolist() == [1.0, 1.0]


def test_objects_do_not_travel() -> None:
    stream = io.BytesIO()
    with pytest.raises(runner.ProtocolError, match=r"^tensor 'x' has dtype object, which cannot travel$"):
        runner.write_tensors(stream, {"x": np.array([{}], dtype=object)})
    assert stream.getvalue() == b""


def _tensor(*, name: bytes = b"x", dtype: bytes = b"uint8", shape: tuple[int, ...] = (1,), data: bytes = b"0") -> bytes:
    head = struct.pack("<H", len(name)) + name + struct.pack("<B", len(dtype)) + dtype
    return struct.pack("<I", 1) + head + struct.pack(f"<B{len(shape)}Q", len(shape), *shape) + data


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (b"", "the stream ended inside a message"),
        (struct.pack("<I", 1 << 30), "1073741824 entries in one message"),
        (_tensor(name=b"x" * 5000), "a name of 5000 bytes"),
        (_tensor(dtype=b"object"), "tensor 'x' has dtype 'object' and rank 1"),
        (_tensor(shape=(1,) * 17), "tensor 'x' has dtype 'uint8' and rank 17"),
        (_tensor(shape=(1 << 20, 1 << 20)), "tensor 'x' has 1099511627776 bytes"),
        (_tensor(shape=(2,)), "the stream ended inside a message"),
    ],
)
def test_a_bad_message_is_refused_before_memory_is_taken(message: bytes, fault: str) -> None:
    with pytest.raises(runner.ProtocolError) as caught:
        runner.read_tensors(io.BytesIO(message))
    assert str(caught.value) == fault


def test_a_fault_is_cut_to_its_limit() -> None:
    stream = io.BytesIO()
    runner.write_fault(stream, "x" * 10_000)
    stream.seek(1)
    assert runner.read_fault(stream) == "x" * runner.MAX_TEXT_BYTES


def served(path: Path, mode: str, *requests: dict[str, np.ndarray]) -> io.BytesIO:
    asked, answers = io.BytesIO(), io.BytesIO()
    for request in requests:
        runner.write_tensors(asked, request)
    asked.seek(0)
    runner.serve(str(path), mode, requests=asked, answers=answers)
    answers.seek(0)
    return answers


@pytest.mark.parametrize("mode", ["exact", "default"])
def test_it_answers_as_the_reference_does(tmp_path: Path, mode: Mode) -> None:
    model = model_of(conv_net())
    (tmp_path / "model.onnx").write_bytes(to_bytes(model.ir))
    answers = served(tmp_path / "model.onnx", mode, *photos(3))
    assert answers.read(1) == runner.NAMES
    assert runner.read_names(answers) == (("x",), ("y",))
    for expected in Reference(model, mode=mode).run_all(photos(3)):
        assert answers.read(1) == runner.TENSORS
        np.testing.assert_array_equal(runner.read_tensors(answers)["y"], expected["y"])
    assert answers.read() == b""


def test_a_refused_input_is_answered_and_the_next_one_too(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(to_bytes(_DOUBLING.ir))
    row = np.ones((1, 3), np.float32)
    answers = served(tmp_path / "model.onnx", "default", {"x": row[:, :2]}, {"x": row})
    answers.read(1)
    runner.read_names(answers)
    assert answers.read(1) == runner.FAULT
    assert "invalid dimensions" in runner.read_fault(answers)
    assert answers.read(1) == runner.TENSORS
    np.testing.assert_array_equal(runner.read_tensors(answers)["y"], 2 * row)


def test_a_refused_model_is_answered(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    answers = served(tmp_path / "model.onnx", "default")
    assert answers.read(1) == runner.FAULT
    assert "model.onnx failed" in runner.read_fault(answers)


def test_a_request_of_another_kind_ends_it(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(to_bytes(_DOUBLING.ir))
    with pytest.raises(runner.ProtocolError, match="a request of kind b'N'"):
        runner.serve(str(tmp_path / "model.onnx"), "exact", requests=io.BytesIO(b"N"), answers=io.BytesIO())
