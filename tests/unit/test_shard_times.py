"""A device times its shards: kernels find their shards by name, and what a session takes is shared out in full."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

from edge.device.graph_names import NodeNames, node_names
from edge.device.timing import Bench, GaveUp, kernel_owners, random_tensors, share_out, time_shards
from edge.errors import BundleError, OutOfMemory, StageError
from edge.formats.bundle import Blob, BoundaryTensor
from edge.formats.message import RuntimeOffer
from edge.formats.tensor import Array, TensorSpec
from edge.runtimes.base import KernelRun, ProfiledRun, StageModel, StageOptions, StageSession
from edge.runtimes.litert import LiteRt
from edge.runtimes.onnx import OnnxRuntime
from edge.runtimes.onnx_profile import parse_profile
from tests.litert_bundle import make_litert_bundle, make_mixed_bundle
from tests.tiny_bundle import TinyBundle, make_tiny_bundle

BUNDLE = make_tiny_bundle()
MANIFEST = BUNDLE.manifest


def read(blob: Blob) -> bytes:
    return BUNDLE.blobs[blob.digest]


def bench(folder: Path, **changes: object) -> Bench:
    for digest, data in BUNDLE.blobs.items():
        (folder / digest.removeprefix("sha256:")).write_bytes(data)
    made = Bench(
        runtime=OnnxRuntime(),
        options=StageOptions(),
        read_blob=read,
        weights_folder=folder,
        memory_bytes=1 << 30,
        most_seconds=0.05,
    )
    return replace(made, **changes)  # type: ignore[arg-type] # names and types are the tests' own


# ----------------------------------------------------------------------------------------------------------- names
def test_nodes_and_what_they_make_are_read_without_onnx() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="first", alpha=1.5, beta=[1, 2]),
        helper.make_node("Split", ["m"], ["a", "b"]),
    ]
    model = onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(name="g", node=nodes)).SerializeToString()
    assert node_names(model, where="shard 0") == (
        NodeNames(name="first", operator="MatMul", outputs=("m",)),
        NodeNames(name="", operator="Split", outputs=("a", "b")),
    )


@pytest.mark.parametrize("data", [b"\x3a\x7f\x0a", b"\xff" * 12, b"\x3b", b"\x3a\x02\x0a\xff"])
def test_bytes_that_are_no_graph_are_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"^shard 3: its nodes cannot be read"):
        node_names(data, where="shard 3")


def test_every_name_of_a_shard_leads_to_it() -> None:
    assert kernel_owners(MANIFEST, 0, 2, read) == {
        "MatMul_0": 0,
        "m0": 0,
        "Relu_1": 0,
        "hidden": 0,
        "MatMul_2": 1,
        "y": 1,
    }


# --------------------------------------------------------------------------------------------------------- profile
def _event(name: str, start: int, length: int, kind: str = "Node") -> dict[str, object]:
    return {"name": name, "cat": kind, "ts": start, "dur": length, "args": {"op_name": "X"}}


def test_a_profile_is_read_run_by_run_and_bodies_do_not_count_twice() -> None:
    events = [
        _event("session_initialization", 0, 900, "Session"),
        _event("a_kernel_time", 1000, 10),
        _event("inner_kernel_time", 1030, 20),
        _event("loop_kernel_time", 1020, 50),
        _event("SequentialExecutor::Execute", 1000, 80, "Session"),
        _event("model_run", 990, 100, "Session"),
        _event("a_kernel_time", 2000, 12),
        _event("model_run", 1999, 15, "Session"),
    ]
    runs = parse_profile(json.dumps(events).encode())
    assert [[(kernel.name, round(kernel.seconds * 1e6)) for kernel in run.kernels] for run in runs] == [
        [("a", 10), ("inner", 20), ("loop", 30)],
        [("a", 12)],
    ]
    assert [round(run.executor_seconds * 1e6) for run in runs] == [80, 15]


def test_what_is_no_profile_is_refused() -> None:
    with pytest.raises(StageError, match="profile cannot be read"):
        parse_profile(b'[{"name": 5}]')


# -------------------------------------------------------------------------------------------------------- sharing
def _run(*kernels: tuple[str, float], executor: float | None = None) -> ProfiledRun:
    made = tuple(KernelRun(name=name, seconds=seconds) for name, seconds in kernels)
    return ProfiledRun(kernels=made, executor_seconds=sum(k.seconds for k in made) if executor is None else executor)


@pytest.mark.parametrize(
    "name",
    [
        "conv_1",
        "r1",
        "r1_nchwc",
        "conv_1/MatMulAddFusion",
        "fused conv_1",
        "conv_1_token_3",
        "r1_quant",
        "conv_1_nchwc_token_12",
    ],
)
def test_a_kernel_is_known_by_its_node_or_tensor_whatever_the_optimiser_adds(name: str) -> None:
    owners = {"conv_1": 1, "r1": 1, "conv_0": 0}
    assert share_out([_run(("conv_0", 1.0), (name, 2.0))], owners, 0, 2) == [1.0, 2.0]


def test_a_kernel_without_a_known_name_belongs_to_the_shard_of_the_one_before() -> None:
    run = _run(("ReorderInput", 1.0), ("a", 2.0), ("ReorderOutput", 4.0), ("b", 8.0))
    assert share_out([run], {"a": 0, "b": 1}, 0, 2) == [7.0, 8.0]


def test_the_mean_counts_and_gaps_between_kernels_are_shared_evenly() -> None:
    runs = [_run(("a", 1.0), ("b", 1.0)), _run(("a", 4.0), ("b", 1.0), executor=9.0)]
    assert share_out(runs, {"a": 5, "b": 6}, 5, 7) == [(1 + 4 + 2) / 2, (1 + 1 + 2) / 2]


# ---------------------------------------------------------------------------------------------------------- timing
@dataclass
class Metronome:
    """A runtime whose profiler tells what the test wants; running takes no time."""

    kernels: tuple[tuple[str, float], ...]
    runs: int = 0

    def offer(self) -> RuntimeOffer:
        return RuntimeOffer(name="onnxruntime", version="1.32.0", providers=())

    def load(self, stage: StageModel, options: StageOptions) -> StageSession:
        raise AssertionError("a stage is loaded with the profiler")

    def load_profiled(self, stage: StageModel, options: StageOptions, folder: Path) -> Metronome:
        self._outputs = stage.outputs
        assert folder.is_dir()
        return self

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.runs += 1
        return {name: np.zeros((1, 4), np.float32) for name in self._outputs}

    def end_profile(self) -> tuple[ProfiledRun, ...]:
        return (_run(*self.kernels),) * self.runs

    def close(self) -> None:
        pass


def test_the_times_of_shards_are_those_of_plain_runs_shared_as_the_profiler_says(tmp_path: Path) -> None:
    times = time_shards(MANIFEST, 0, 2, bench(tmp_path, runtime=Metronome((("m0", 3e-9), ("y", 1e-9)))))
    first, second = times.shard_seconds
    assert first > 0
    assert first / second == pytest.approx(3)


def test_a_real_runtime_times_every_shard(tmp_path: Path) -> None:
    times = time_shards(MANIFEST, 0, 2, bench(tmp_path))
    assert len(times.shard_seconds) == 2
    assert all(seconds > 0 for seconds in times.shard_seconds)
    assert times.session_seconds > 0


def test_shards_that_were_not_asked_for_are_marked_as_not_timed(tmp_path: Path) -> None:
    times = time_shards(MANIFEST, 1, 2, bench(tmp_path))
    assert times.shard_seconds[0] == -1
    assert times.shard_seconds[1] > 0


def test_what_does_not_fit_at_once_is_timed_in_parts(tmp_path: Path) -> None:
    runtime = Metronome((("m0", 3e-9), ("y", 1e-9)))
    one_shard = (16 << 20) + MANIFEST.shards[0].size_bytes
    parts = time_shards(MANIFEST, 0, 2, bench(tmp_path, memory_bytes=one_shard, runtime=OnnxRuntime()))
    assert all(seconds > 0 for seconds in parts.shard_seconds)
    with pytest.raises(OutOfMemory, match=r"^shard 0 needs 16 MiB to be timed, 15 MiB are free"):
        time_shards(MANIFEST, 0, 2, bench(tmp_path, memory_bytes=(16 << 20) - 1, runtime=runtime))


def test_a_bench_stops_when_the_device_has_something_better_to_do(tmp_path: Path) -> None:
    with pytest.raises(GaveUp):
        time_shards(MANIFEST, 0, 2, bench(tmp_path, give_up=lambda: True))


class OneByOne(LiteRt):
    """LiteRT, which notes what it loads."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def load(self, stage: StageModel, options: StageOptions) -> StageSession:
        self.loaded.append(len(stage.parts))
        return super().load(stage, options)


@pytest.mark.parametrize("mixed", [make_litert_bundle(), make_mixed_bundle(quantized=True)])
def test_shards_that_are_sessions_of_their_own_are_timed_one_by_one(tmp_path: Path, mixed: TinyBundle) -> None:
    runtime = OneByOne()
    wanted = bench(tmp_path, runtime=runtime, read_blob=lambda blob: mixed.blobs[blob.digest])
    times = time_shards(mixed.manifest, 0, 2, wanted)
    assert all(seconds > 0 for seconds in times.shard_seconds)
    assert times.session_seconds == 0
    assert runtime.loaded == [1, 1]
    assert time_shards(mixed.manifest, 1, 2, wanted).shard_seconds[0] == -1


def _with_tensor(dtype: str, shape: tuple[int | None, ...], size_bytes: int) -> TinyBundle:
    tensor = BoundaryTensor(
        spec=TensorSpec(name="x", dtype=dtype, shape=shape), size_bytes=size_bytes, as_input=b"", as_output=b""
    )
    return replace(BUNDLE, manifest=msgspec.structs.replace(MANIFEST, tensors=(tensor, *MANIFEST.tensors[1:])))


@pytest.mark.parametrize(
    ("dtype", "shape", "size_bytes", "expected"),
    [
        ("float32", (1, 3), 12, (1, 3)),
        ("float16", (1, None, 4), 2 * 20, (1, 5, 4)),
        ("int64", (None, None), 8 * 7, (7, 1)),
        ("float32", (), 4, ()),
        ("bool", (None,), 0, (1,)),
    ],
)
def test_what_a_bench_feeds_has_the_dtype_and_the_size_of_the_first_golden_input(
    dtype: str, shape: tuple[int | None, ...], size_bytes: int, expected: tuple[int, ...]
) -> None:
    made = random_tensors(_with_tensor(dtype, shape, size_bytes).manifest, ("x",))["x"]
    assert made.dtype == np.dtype(dtype)
    assert made.shape == expected
    assert dtype.startswith("float") or not made.any()
