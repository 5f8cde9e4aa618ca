"""A stage is its shards joined: it takes the cut before it, gives the cut after it, and says what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from edge.errors import BundleError, InvalidInput, StageError, UnsupportedOperator
from edge.formats.bundle import (
    BoundaryTensor,
    Constant,
    GraphPart,
    Manifest,
    RuntimeNeed,
    decode_graph_part,
    encode_graph_part,
)
from edge.formats.message import RuntimeOffer
from edge.formats.tensor import Array, TensorSpec
from edge.runtimes.base import StageModel, StageOptions, StageSession
from edge.runtimes.onnx import OnnxRuntime
from edge.runtimes.table import load_runtime
from edge.stage import Stage, compose, load_stage, stage_tensors
from host.bundle import blob_of
from tests.tiny_bundle import WIDTH, TinyBundle, make_input, make_tiny_bundle


@dataclass(slots=True)
class Recorder:
    """A runtime that computes nothing: it notes what it is given and answers with zeros."""

    name: str = "onnxruntime"
    version: str = "1.32.0"
    loaded: list[StageModel] = field(default_factory=list)
    fed: list[list[str]] = field(default_factory=list)
    closed: int = 0

    def offer(self) -> RuntimeOffer:
        return RuntimeOffer(name=self.name, version=self.version, providers=())

    def load(self, stage: StageModel, options: StageOptions) -> StageSession:
        self.loaded.append(stage)
        return _RecorderSession(self, stage)


class _RecorderSession:
    def __init__(self, recorder: Recorder, stage: StageModel) -> None:
        self._recorder, self._stage = recorder, stage

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._recorder.fed.append(sorted(name for name in feeds if name in self._stage.inputs))
        return {name: np.zeros((1, WIDTH), np.float32) for name in self._stage.outputs}

    def close(self) -> None:
        self._recorder.closed += 1


@pytest.fixture
def tiny() -> TinyBundle:
    return make_tiny_bundle()


@pytest.fixture
def folder(tiny: TinyBundle, tmp_path: Path) -> Path:
    for digest, data in tiny.blobs.items():
        (tmp_path / digest.removeprefix("sha256:")).write_bytes(data)
    return tmp_path


def load(
    tiny: TinyBundle,
    folder: Path,
    first: int,
    stop: int,
    *,
    runtime: OnnxRuntime | Recorder | None = None,
    manifest: Manifest | None = None,
) -> Stage:
    """Load a run of shards, in exact mode."""
    return load_stage(
        manifest or tiny.manifest,
        first,
        stop,
        runtime=runtime or OnnxRuntime(),
        options=StageOptions(mode="exact"),
        read_blob=lambda blob: tiny.blobs[blob.digest],
        weights_folder=folder,
    )


def with_skip(manifest: Manifest) -> Manifest:
    """The same shards, but `x` is an output too: the second stage must forward what it does not read."""
    x = manifest.tensors[0]
    return msgspec.structs.replace(
        manifest, cuts=(("x",), ("hidden", "x"), ("y", "x")), outputs=(*manifest.outputs, x.spec)
    )


# -------------------------------------------------------------------------------------------------- crossing tensors


def test_a_stage_takes_the_cut_before_and_gives_the_cut_after(tiny: TinyBundle) -> None:
    crossing = stage_tensors(tiny.manifest, 1, 2)
    assert (crossing.received, crossing.session_inputs) == (("hidden",), ("hidden",))
    assert (crossing.sent, crossing.session_outputs) == (("y",), ("y",))


def test_what_is_inside_a_stage_does_not_cross(tiny: TinyBundle) -> None:
    crossing = stage_tensors(tiny.manifest, 0, 2)
    assert (crossing.received, crossing.sent) == (("x",), ("y",))


def test_what_is_needed_later_is_forwarded_around_the_session(tiny: TinyBundle) -> None:
    crossing = stage_tensors(with_skip(tiny.manifest), 1, 2)
    assert crossing.received == ("hidden", "x")
    assert crossing.session_inputs == ("hidden",)
    assert crossing.session_outputs == ("y",)
    assert crossing.sent == ("y", "x")


@pytest.mark.parametrize(("first", "stop"), [(-1, 1), (0, 3), (1, 1), (2, 1)])
def test_a_range_that_is_not_there_is_refused(tiny: TinyBundle, first: int, stop: int) -> None:
    with pytest.raises(BundleError) as caught:
        stage_tensors(tiny.manifest, first, stop)
    assert str(caught.value) == f"stage [{first}, {stop}) is not within 2 shards"


# ------------------------------------------------------------------------------------------------------------ joining


def test_joined_fragments_are_one_model(tiny: TinyBundle, folder: Path) -> None:
    stage = compose(tiny.manifest, 0, 2, read_blob=lambda blob: tiny.blobs[blob.digest], weights_folder=folder)
    model = onnx.load_model_from_string(stage.model)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Relu", "MatMul"]
    assert [value.name for value in model.graph.input] == list(stage.inputs) == ["x"]
    assert [value.name for value in model.graph.output] == list(stage.outputs) == ["y"]
    assert [tensor.name for tensor in model.graph.initializer] == ["w0", "w1"]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]


def shared_constant(tiny: TinyBundle, fragments: tuple[bytes, bytes]) -> Manifest:
    """A manifest whose shards both bring a constant called `c`, after their own."""
    shards = []
    for shard, fragment in zip(tiny.manifest.shards, fragments, strict=True):
        part = decode_graph_part(tiny.blobs[shard.graph.digest], where="here")
        constants = (*part.constants, Constant(name="c", fragment=fragment))
        data = encode_graph_part(GraphPart(constants=constants, nodes=part.nodes))
        tiny.blobs[blob_of(data).digest] = data
        shards.append(msgspec.structs.replace(shard, graph=blob_of(data)))
    return msgspec.structs.replace(tiny.manifest, shards=tuple(shards))


def scalar(value: float) -> bytes:
    """A fragment with the constant `c`."""
    tensor = onnx.helper.make_tensor("c", onnx.TensorProto.FLOAT, [], [value])
    data: bytes = onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor])).SerializeToString()
    return data


def test_a_constant_of_several_shards_is_joined_once(tiny: TinyBundle, folder: Path) -> None:
    manifest = shared_constant(tiny, (scalar(1), scalar(1)))
    stage = compose(manifest, 0, 2, read_blob=lambda blob: tiny.blobs[blob.digest], weights_folder=folder)
    names = [tensor.name for tensor in onnx.load_model_from_string(stage.model).graph.initializer]
    assert names == ["w0", "c", "w1"]


def test_constants_of_one_name_that_differ_are_refused(tiny: TinyBundle, folder: Path) -> None:
    # The runtime would silently take the later one.
    manifest = shared_constant(tiny, (scalar(1), scalar(2)))
    with pytest.raises(BundleError) as caught:
        compose(manifest, 0, 2, read_blob=lambda blob: tiny.blobs[blob.digest], weights_folder=folder)
    assert str(caught.value) == "shard 1: constant 'c' differs from an earlier shard's"


def test_a_graph_part_that_is_none_is_named(tiny: TinyBundle, folder: Path) -> None:
    with pytest.raises(BundleError, match=r"^shard 0: "):
        compose(tiny.manifest, 0, 1, read_blob=lambda _blob: b"\xc1", weights_folder=folder)


# ------------------------------------------------------------------------------------------------------------ running


def test_two_stages_answer_with_the_bits_of_one(tiny: TinyBundle, folder: Path) -> None:
    x = make_input(3)
    whole = load(tiny, folder, 0, 2).run({"x": x})
    hidden = load(tiny, folder, 0, 1).run({"x": x})
    assert list(hidden) == ["hidden"]
    assert load(tiny, folder, 1, 2).run(hidden)["y"].tobytes() == whole["y"].tobytes()
    assert np.allclose(whole["y"], tiny.answer(x), atol=1e-5)


def test_a_forwarded_tensor_is_the_one_that_came(tiny: TinyBundle, folder: Path) -> None:
    runtime = Recorder()
    stage = load(tiny, folder, 1, 2, runtime=runtime, manifest=with_skip(tiny.manifest))
    x, hidden = make_input(1), make_input(2)
    answer = stage.run({"hidden": hidden, "x": x})
    assert list(answer) == ["y", "x"]
    assert answer["x"] is x
    assert runtime.fed == [["hidden"]]


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "stage takes the tensors ['x'], the frame has []"),
        ({"y": make_input(0)}, "stage takes the tensors ['x'], the frame has ['y']"),
        (
            {"x": make_input(0), "z": make_input(0)},
            "stage takes the tensors ['x'], the frame has ['x', 'z']",
        ),
        ({"x": make_input(0)[0]}, f"tensor 'x' is float32[{WIDTH}], expected float32[1, {WIDTH}]"),
        (
            {"x": make_input(0).astype(np.float64)},
            f"tensor 'x' is float64[1, {WIDTH}], expected float32[1, {WIDTH}]",
        ),
        ({"x": make_input(0)[:, :5]}, f"tensor 'x' is float32[1, 5], expected float32[1, {WIDTH}]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tiny: TinyBundle, folder: Path, tensors: dict[str, Array], reason: str
) -> None:
    runtime = Recorder()
    with pytest.raises(InvalidInput) as caught:
        load(tiny, folder, 0, 1, runtime=runtime).run(tensors)
    assert str(caught.value) == reason
    assert runtime.fed == []


def test_an_open_dimension_takes_any_size(tiny: TinyBundle, folder: Path) -> None:
    x = tiny.manifest.tensors[0]
    spec = TensorSpec(name="x", dtype="float32", shape=(None, WIDTH))
    opened: BoundaryTensor = msgspec.structs.replace(x, spec=spec)
    manifest = msgspec.structs.replace(tiny.manifest, tensors=(opened, *tiny.manifest.tensors[1:]))
    runtime = Recorder()
    stage = load(tiny, folder, 0, 1, runtime=runtime, manifest=manifest)
    stage.run({"x": np.zeros((5, WIDTH), np.float32)})
    with pytest.raises(InvalidInput) as caught:
        stage.run({"x": np.zeros((5, 2), np.float32)})
    assert str(caught.value) == f"tensor 'x' is float32[5, 2], expected float32['?', {WIDTH}]"


def test_arrays_that_are_not_contiguous_give_the_same_bits(tiny: TinyBundle, folder: Path) -> None:
    stage = load(tiny, folder, 0, 2)
    x = make_input(4)
    strided = np.repeat(x, 2, axis=1)[:, ::2]
    assert not strided.flags.c_contiguous
    assert stage.run({"x": strided})["y"].tobytes() == stage.run({"x": x})["y"].tobytes()


def test_a_closed_stage_runs_no_more(tiny: TinyBundle, folder: Path) -> None:
    runtime = Recorder()
    stage = load(tiny, folder, 0, 1, runtime=runtime)
    stage.close()
    stage.close()
    assert runtime.closed == 1
    with pytest.raises(RuntimeError, match="the stage is closed"):
        stage.run({"x": make_input(0)})


# ----------------------------------------------------------------------------------------------------------- refusing


def test_a_bundle_for_another_runtime_is_refused(tiny: TinyBundle, folder: Path) -> None:
    with pytest.raises(UnsupportedOperator) as caught:
        load(tiny, folder, 0, 1, runtime=Recorder(name="litert"))
    assert str(caught.value) == "tiny runs on onnxruntime; this device has litert"


@pytest.mark.parametrize(("version", "good"), [("1.9.1", False), ("1.20.0", True), ("1.100", True), ("2.0.0rc1", True)])
def test_a_runtime_that_is_too_old_is_refused(tiny: TinyBundle, folder: Path, version: str, good: bool) -> None:
    manifest = msgspec.structs.replace(tiny.manifest, runtimes=(RuntimeNeed(name="onnxruntime", least_version="1.20"),))
    runtime = Recorder(version=version)
    if good:
        load(tiny, folder, 0, 1, runtime=runtime, manifest=manifest)
        return
    with pytest.raises(UnsupportedOperator) as caught:
        load(tiny, folder, 0, 1, runtime=runtime, manifest=manifest)
    assert str(caught.value) == f"tiny needs onnxruntime 1.20 or newer; this device has {version}"
    assert runtime.loaded == []


def test_an_operator_that_the_runtime_lacks_is_named(tiny: TinyBundle, folder: Path) -> None:
    shard = tiny.manifest.shards[0]
    part = decode_graph_part(tiny.blobs[shard.graph.digest], where="here")
    data = encode_graph_part(GraphPart(constants=part.constants, nodes=part.nodes.replace(b"Relu", b"Rolu")))
    tiny.blobs[blob_of(data).digest] = data
    shards = (msgspec.structs.replace(shard, graph=blob_of(data)), tiny.manifest.shards[1])
    with pytest.raises(StageError, match="Rolu"):
        load(tiny, folder, 0, 1, manifest=msgspec.structs.replace(tiny.manifest, shards=shards))


def test_weights_that_are_missing_are_refused(tiny: TinyBundle, folder: Path) -> None:
    (folder / tiny.manifest.shards[0].weights[0].digest.removeprefix("sha256:")).unlink()
    with pytest.raises(StageError):
        load(tiny, folder, 0, 1)


def test_runtimes_are_found_by_name() -> None:
    assert load_runtime("onnxruntime").offer().name == "onnxruntime"
    assert load_runtime("litert").offer().name == "litert"
    with pytest.raises(StageError, match="unknown runtime 'tvm': choose one of onnxruntime, litert, tflite-runtime"):
        load_runtime("tvm")
    with pytest.raises(
        StageError, match=r"'tflite-runtime' is not installed: pip install 'shardwire\[tflite-runtime\]'"
    ):
        load_runtime("tflite-runtime")
