"""LiteRT on a device: stages of sub-models, whichever package it comes from. Runs where no other runtime is, too."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest

from edge.errors import OutOfMemory, StageError, UnsupportedOperator
from edge.formats.tensor import Array
from edge.runtimes.base import ModelPart, StageModel, StageOptions, StageSession
from edge.runtimes.litert import LiteRt, TfliteRuntime, uses_xnnpack
from edge.runtimes.table import installed_runtimes, load_runtime
from tests.litert_models import FOLDER

WIDTH = 16
NAMES = [name for name in installed_runtimes() if name in ("litert", "tflite-runtime")]
Mode = Literal["default", "exact"]
X = np.random.default_rng(3).standard_normal((1, WIDTH)).astype(np.float32)


@pytest.fixture(params=NAMES)
def runtime(request: pytest.FixtureRequest) -> LiteRt:
    """Each package that is installed here."""
    found = load_runtime(request.param)
    assert isinstance(found, LiteRt)
    return found


def part(name: str, inputs: tuple[str, ...] = ("x",), outputs: tuple[str, ...] = ("y",)) -> ModelPart:
    """One of the files beside the tests."""
    model = (FOLDER / f"{name}.tflite").read_bytes()
    return ModelPart(model=model, inputs=inputs, outputs=outputs, where=f"shard {name}")


def stage(*parts: ModelPart, inputs: tuple[str, ...] = ("x",), outputs: tuple[str, ...] = ("y",)) -> StageModel:
    return StageModel(parts=parts, weights_folder=FOLDER, inputs=inputs, outputs=outputs)


def load(runtime: LiteRt, name: str, mode: Mode = "default") -> StageSession:
    """A stage of one file that makes `y` of `x`."""
    return runtime.load(stage(part(name)), StageOptions(mode=mode))


def test_some_package_is_here() -> None:
    assert NAMES


def test_it_says_what_is_installed(runtime: LiteRt) -> None:
    offer = runtime.offer()
    assert offer.name in NAMES
    assert int(offer.version.partition(".")[0]) >= 2
    assert offer.providers == ("XNNPACK", "CPU")


# ------------------------------------------------------------------------------------------------------------ running
@pytest.mark.parametrize("mode", ["default", "exact"])
def test_shards_one_after_another_give_the_bits_of_the_whole(runtime: LiteRt, mode: Mode) -> None:
    whole = load(runtime, "whole", mode).run({"x": X})
    shards = stage(part("first", outputs=("hidden",)), part("second", inputs=("hidden",)))
    assert list(whole) == ["y"]
    assert runtime.load(shards, StageOptions(mode=mode)).run({"x": X})["y"].tobytes() == whole["y"].tobytes()


def test_a_tensor_that_a_later_shard_takes_again_stays(runtime: LiteRt) -> None:
    both = part("two_in_two_out", inputs=("y", "x"), outputs=("product", "sum"))
    session = runtime.load(stage(part("whole"), both, outputs=("sum", "y")), StageOptions())
    answer = session.run({"x": X})
    assert list(answer) == ["sum", "y"]
    np.testing.assert_array_equal(answer["sum"], answer["y"] + X)


def test_tensors_go_by_name_in_the_order_of_each_file(runtime: LiteRt) -> None:
    model = part("two_in_two_out", inputs=("b", "a"), outputs=("product", "sum"))
    session = runtime.load(stage(model, inputs=("a", "b"), outputs=("sum", "product")), StageOptions())
    answer = session.run({"a": X, "b": 3 * X})
    np.testing.assert_array_equal(answer["sum"], 4 * X)
    np.testing.assert_array_equal(answer["product"], X * (3 * X))


def test_an_open_dimension_takes_one_size_after_another(runtime: LiteRt) -> None:
    session = load(runtime, "open_batch")
    alone = session.run({"x": X})["y"]
    for batch in (3, 2, 1):
        answer = session.run({"x": np.repeat(X, batch, axis=0)})["y"]
        assert answer.shape == (batch, WIDTH)
        np.testing.assert_allclose(answer, np.repeat(alone, batch, axis=0), rtol=1e-5, atol=1e-6)


def test_arrays_that_are_not_contiguous_give_the_same_bits(runtime: LiteRt) -> None:
    session = load(runtime, "whole")
    strided = np.repeat(X, 2, axis=1)[:, ::2]
    assert session.run({"x": strided})["y"].tobytes() == session.run({"x": X})["y"].tobytes()


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("quantized", np.full((1, WIDTH), 5, np.int8), np.full((1, WIDTH), 0.05 * 8, np.float32)),
        ("truth", np.eye(1, WIDTH, dtype=bool), ~np.eye(1, WIDTH, dtype=bool)),
        ("text", np.array([["ä", "b"], ["", "c d"]], object), np.array(["ä", "b", "", "c d"], object)),
    ],
)
def test_other_types_than_floats(runtime: LiteRt, name: str, given: Array, expected: Array) -> None:
    np.testing.assert_array_equal(load(runtime, name).run({"x": given})["y"], expected, strict=True)


def test_a_scalar_stays_an_array(runtime: LiteRt) -> None:
    counts = stage(part("scalars", inputs=("a", "b"), outputs=("sum",)), inputs=("a", "b"), outputs=("sum",))
    answer = runtime.load(counts, StageOptions()).run({"a": np.array(2, np.int64), "b": np.array(3, np.int64)})
    np.testing.assert_array_equal(answer["sum"], np.array(5, np.int64), strict=True)


@pytest.mark.parametrize("mode", ["default", "exact"])
@pytest.mark.parametrize("name", ["remembers", "counts"])
def test_every_run_is_like_the_first_whatever_the_model_keeps(runtime: LiteRt, name: str, mode: Mode) -> None:
    session = load(runtime, name, mode)
    first = session.run({"x": X})["y"]
    assert np.any(first)
    for _ in range(2):
        np.testing.assert_array_equal(session.run({"x": X})["y"], first)


def test_it_writes_nothing_where_the_log_goes(runtime: LiteRt, capfd: pytest.CaptureFixture[str]) -> None:
    load(runtime, "whole").run({"x": X})
    with pytest.raises(UnsupportedOperator):
        load(runtime, "custom")
    logging.getLogger("test").debug("the log goes on")
    written = capfd.readouterr()
    assert (written.out, written.err) == ("", "")


def test_a_closed_session_runs_no_more(runtime: LiteRt) -> None:
    session = load(runtime, "whole")
    session.close()
    with pytest.raises(RuntimeError, match="the session is closed"):
        session.run({"x": X})


# ----------------------------------------------------------------------------------------------------------- refusing
def test_a_custom_operator_that_it_lacks_is_named(runtime: LiteRt) -> None:
    version = f"{runtime.package} {runtime.offer().version}"
    with pytest.raises(UnsupportedOperator) as caught:
        load(runtime, "custom")
    assert str(caught.value) == f"{version} has no operator Frobnicate, which shard custom uses"


def test_a_version_of_an_operator_that_it_lacks_is_named(runtime: LiteRt) -> None:
    with pytest.raises(UnsupportedOperator, match=r"has no operator RELU \(version 99\), which shard future uses$"):
        load(runtime, "future")


def test_bytes_that_are_no_model_are_refused_by_shard(runtime: LiteRt) -> None:
    nonsense = ModelPart(model=b"nonsense" * 16, inputs=("x",), outputs=("y",), where="shard 3")
    with pytest.raises(StageError, match="refuses shard 3: ") as caught:
        runtime.load(stage(nonsense), StageOptions())
    assert "\n" not in str(caught.value)


def test_a_file_with_other_tensors_than_the_shard_names_is_refused(runtime: LiteRt) -> None:
    with pytest.raises(StageError, match="shard whole: its model has 1 inputs, the shard names 2"):
        runtime.load(stage(part("whole", inputs=("x", "z")), inputs=("x", "z")), StageOptions())


def test_an_input_that_does_not_fit_fails_one_run_only(runtime: LiteRt) -> None:
    session = load(runtime, "whole")
    before = session.run({"x": X})["y"]
    for bad in (np.zeros((2, WIDTH), np.float32), X.astype(np.int64)):
        with pytest.raises(StageError, match=r"^shard whole failed: "):
            session.run({"x": bad})
    np.testing.assert_array_equal(session.run({"x": X})["y"], before)


# ------------------------------------------------------------------------------------------------------------ choices
class Played:
    """An interpreter that notes how it was made, and fails as it is told."""

    made: list[dict[str, Any]]
    failure: Exception | None

    def __init__(self, **options: Any) -> None:
        self.made.append(options)

    def allocate_tensors(self) -> None:
        if self.failure is not None:
            raise self.failure

    def get_input_details(self) -> list[dict[str, Any]]:
        return [{"index": 0, "shape": np.array([1, WIDTH])}]

    def get_output_details(self) -> list[dict[str, Any]]:
        return [{"index": 1, "shape": np.array([1, WIDTH])}]

    def _get_ops_details(self) -> list[dict[str, Any]]:
        return []

    def set_tensor(self, place: int, value: Array) -> None:
        pass

    def invoke(self) -> None:
        if self.failure is not None:
            raise self.failure

    def reset_all_variables(self) -> None:
        pass


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> type[Played]:
    """LiteRT with that interpreter."""
    kinds = SimpleNamespace(BUILTIN="xnnpack", BUILTIN_WITHOUT_DEFAULT_DELEGATES="built-in")
    module = ModuleType("played")
    module.__dict__.update(Interpreter=Played, OpResolverType=kinds)
    monkeypatch.setattr(LiteRt, "_interpreters", lambda _self: module)
    Played.made, Played.failure = [], None
    return Played


@pytest.mark.parametrize(
    ("options", "operators", "kernels"),
    [
        (StageOptions(), (), "xnnpack"),
        (StageOptions(providers=("XNNPACK",)), (), "xnnpack"),
        (StageOptions(providers=("CPUExecutionProvider", "CPU", "XNNPACK")), (), "built-in"),
        (StageOptions(mode="exact"), (), "built-in"),
        # No kernel of its own: then the whole bundle runs on XNNPACK, so that all of its shards agree.
        (StageOptions(mode="exact"), ("ADD", "Convolution2DTransposeBias"), "xnnpack"),
    ],
)
def test_kernels_follow_from_mode_providers_and_the_operators_of_the_bundle(
    played: type[Played], options: StageOptions, operators: tuple[str, ...], kernels: str
) -> None:
    model = StageModel(
        parts=(part("whole"),), weights_folder=FOLDER, inputs=("x",), outputs=("y",), operators=frozenset(operators)
    )
    LiteRt().load(model, options)
    assert [made["experimental_op_resolver_type"] for made in played.made] == [kernels]
    assert uses_xnnpack(options, operators) == (kernels == "xnnpack")


def test_the_threads_of_the_device_are_given_to_every_shard(played: type[Played]) -> None:
    shards = stage(part("first", outputs=("hidden",)), part("second", inputs=("hidden",)))
    LiteRt().load(shards, StageOptions(threads=3, mode="exact"))
    assert [made["num_threads"] for made in played.made] == [3, 3]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (MemoryError("std::bad_alloc"), "shard whole does not fit into memory: std::bad_alloc"),
        # What ai-edge-litert says when the arena of the tensors cannot be had.
        (RuntimeError(""), "shard whole does not fit into memory: its tensors find no room"),
    ],
)
def test_what_does_not_fit_into_memory_is_said_so(played: type[Played], failure: Exception, reason: str) -> None:
    played.failure = failure
    with pytest.raises(OutOfMemory) as caught:
        load(LiteRt(), "whole")
    assert str(caught.value) == reason


def test_memory_that_runs_out_in_a_run_is_said_so(played: type[Played]) -> None:
    session = load(LiteRt(), "whole")
    played.failure = ValueError("Malloc to copy tensor failed.")
    with pytest.raises(OutOfMemory, match=r"^shard whole ran out of memory: Malloc to copy tensor failed"):
        session.run({"x": X})


# --------------------------------------------------------------------------------------------------------------- numpy
@pytest.mark.parametrize("do", ["offer", "load"])
def test_tflite_runtime_beside_numpy_2_is_refused_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch, do: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(np, "__version__", "2.4.1")
    monkeypatch.setattr(TfliteRuntime, "module", "nothing_to_import")
    with pytest.raises(StageError) as caught:
        TfliteRuntime().offer() if do == "offer" else load(TfliteRuntime(), "whole")
    assert str(caught.value).endswith(
        "needs numpy below 2, here is 2.4.1: pip install 'numpy<2', or 'shardwire[litert]' "
        "where ai-edge-litert has a wheel"
    )
    assert str(caught.value).startswith("tflite-runtime ")


def test_a_package_that_cannot_be_loaded_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiteRt, "module", "nothing_to_import")
    with pytest.raises(StageError, match=r"^ai-edge-litert \S+ cannot be loaded: No module named 'nothing_to_import'$"):
        LiteRt().offer()
