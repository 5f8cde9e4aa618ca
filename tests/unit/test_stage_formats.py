"""Stages of TFLite shards, and stages whose neighbours hold tensors in another form."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.errors import BundleError, InvalidInput, StageError
from edge.formats.bundle import Form, Manifest, ShardFormat, decode_tflite_part, encode_graph_part
from edge.formats.tensor import Array
from edge.runtimes.base import StageOptions
from edge.runtimes.table import load_runtime
from edge.stage import Stage, compose, load_stage, stage_forms, stage_tensors
from host.bundle import blob_of
from tests.litert_bundle import SCALE, make_litert_bundle, make_mixed_bundle
from tests.tiny_bundle import WIDTH, TinyBundle, make_input, make_tiny_bundle

# ------------------------------------------------------------------------------------------------------ TFLite shards


def test_tflite_shards_stay_files_of_their_own(tmp_path: Path) -> None:
    litert = make_litert_bundle()
    stage = compose(litert.manifest, 0, 2, read_blob=lambda blob: litert.blobs[blob.digest], weights_folder=tmp_path)
    assert [(part.inputs, part.outputs, part.where) for part in stage.parts] == [
        (("x",), ("hidden",), "shard 0"),
        (("hidden",), ("y",), "shard 1"),
    ]
    assert (stage.inputs, stage.outputs) == (("x",), ("y",))
    assert stage.operators == {"FULLY_CONNECTED"}
    for part, weight in zip(stage.parts, litert.weights, strict=True):
        assert part.model[4:8] == b"TFL3"
        # Weights are a blob, and stand in the file where they stood.
        assert np.ascontiguousarray(weight.T).tobytes() in part.model
    with pytest.raises(StageError, match="the stage is 2 models, not one"):
        _ = stage.model


def with_part(litert: TinyBundle, shard: int, **changes: object) -> Manifest:
    """The bundle with something else in the graph part of one shard."""
    old = litert.manifest.shards[shard]
    part = decode_tflite_part(litert.blobs[old.graph.digest], weights=1, where="here")
    data = encode_graph_part(msgspec.structs.replace(part, **changes))
    litert.blobs[blob_of(data).digest] = data
    shards = list(litert.manifest.shards)
    shards[shard] = msgspec.structs.replace(old, graph=blob_of(data))
    return msgspec.structs.replace(litert.manifest, shards=tuple(shards))


@pytest.mark.parametrize(
    ("shard", "changes", "reason"),
    [
        (1, {"inputs": ("z",)}, "shard 1: it takes 'z', which nothing before it makes"),
        (0, {"outputs": ("z",)}, "shard 1: it takes 'hidden', which nothing before it makes"),
        (1, {"outputs": ("z",)}, "shard 1: 'y' must leave the stage, no shard of it makes it"),
        (1, {"pieces": (b"a", 1)}, "shard 1: it names weight 1, the shard has 1"),
        (1, {"pieces": (-1,)}, "shard 1: it names weight -1, the shard has 1"),
    ],
)
def test_tflite_shards_that_do_not_fit_each_other_are_refused(
    tmp_path: Path, shard: int, changes: dict[str, object], reason: str
) -> None:
    litert = make_litert_bundle()
    manifest = with_part(litert, shard, **changes)
    with pytest.raises(BundleError) as caught:
        compose(manifest, 0, 2, read_blob=lambda blob: litert.blobs[blob.digest], weights_folder=tmp_path)
    assert str(caught.value) == reason


def test_a_tflite_shard_without_operators_has_no_file(tmp_path: Path) -> None:
    litert = make_litert_bundle()
    first, second = with_part(litert, 0, inputs=(), outputs=(), pieces=()), with_part(litert, 1, inputs=("x",))
    shards = (first.shards[0], msgspec.structs.replace(second.shards[1], reads=("x",)))
    manifest = msgspec.structs.replace(litert.manifest, shards=shards, cuts=(("x",), ("x",), ("y",)))
    stage = compose(manifest, 0, 2, read_blob=lambda blob: litert.blobs[blob.digest], weights_folder=tmp_path)
    assert [part.where for part in stage.parts] == ["shard 1"]


# ---------------------------------------------------------------------------------------------------- forms of tensors


def mixed_stage(
    mixed: TinyBundle,
    folder: Path,
    first: int,
    stop: int,
    name: str,
    *,
    arrives: ShardFormat | None = None,
    leaves: ShardFormat | None = None,
) -> Stage:
    """Load a run of shards of a bundle for two runtimes."""
    for digest, data in mixed.blobs.items():
        (folder / digest.removeprefix("sha256:")).write_bytes(data)
    return load_stage(
        mixed.manifest,
        first,
        stop,
        runtime=load_runtime(name),
        options=StageOptions(mode="exact"),
        read_blob=lambda blob: mixed.blobs[blob.digest],
        weights_folder=folder,
        arrives=arrives,
        leaves=leaves,
    )


@pytest.mark.parametrize("runtimes", list(itertools.product(("onnxruntime", "litert"), repeat=2)))
@pytest.mark.parametrize("litert_first", [False, True])
def test_stages_of_unlike_runtimes_answer_like_the_whole(
    tmp_path: Path, runtimes: tuple[str, str], litert_first: bool
) -> None:
    mixed = make_mixed_bundle(litert_first=litert_first)
    x = make_input(3)
    hidden = mixed_stage(mixed, tmp_path, 0, 1, runtimes[0]).run({"x": x})
    answer = mixed_stage(mixed, tmp_path, 1, 2, runtimes[1]).run(hidden)
    np.testing.assert_allclose(answer["y"], mixed.answer(x), atol=1e-5)


@pytest.mark.parametrize("runtimes", list(itertools.product(("onnxruntime", "litert"), repeat=2)))
@pytest.mark.parametrize(("takes", "dtype"), [("onnx", "float32"), ("tflite", "int8")])
def test_a_tensor_is_converted_on_the_side_that_the_plan_says(
    tmp_path: Path, runtimes: tuple[str, str], takes: ShardFormat, dtype: str
) -> None:
    mixed = make_mixed_bundle(quantized=True)
    x = make_input(3)
    hidden = mixed_stage(mixed, tmp_path, 0, 1, runtimes[0], leaves=takes).run({"x": x})
    assert hidden["hidden"].dtype == dtype
    second = mixed_stage(mixed, tmp_path, 1, 2, runtimes[1], arrives=takes)
    assert second.arriving["hidden"].dtype == dtype
    answer = second.run(hidden)
    assert answer["y"].dtype == np.float32
    # A step of the quantization, through a product with weights of variance 1 / WIDTH.
    np.testing.assert_allclose(answer["y"], mixed.answer(x), atol=8 * SCALE)
    with pytest.raises(InvalidInput, match="tensor 'hidden' is float64"):
        second.run({"hidden": hidden["hidden"].astype(np.float64)})


def test_between_stages_of_one_format_nothing_is_converted(tmp_path: Path) -> None:
    mixed = make_mixed_bundle(quantized=True)
    x = make_input(3)
    whole = mixed_stage(mixed, tmp_path, 0, 2, "litert").run({"x": x})
    hidden = mixed_stage(mixed, tmp_path, 0, 1, "litert", leaves="tflite").run({"x": x})
    answer = mixed_stage(mixed, tmp_path, 1, 2, "litert", arrives="tflite").run(hidden)
    assert answer["y"].tobytes() == whole["y"].tobytes()


class Still:
    """A session that makes `y` of zeros, and notes what it is given."""

    def __init__(self) -> None:
        self.given: Mapping[str, Array] = {}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.given = feeds
        return {"y": np.zeros((1, WIDTH), np.float32)}

    def close(self) -> None:
        pass


def forwarding() -> Manifest:
    """The mixed bundle whose `x` is an output, too; its other build holds `x` turned over and `hidden` in float16."""
    manifest = make_mixed_bundle().manifest
    forms = (Form(name="x", dtype="float32", axes=(1, 0)), Form(name="hidden", dtype="float16"))
    return msgspec.structs.replace(
        manifest,
        builds=(msgspec.structs.replace(manifest.builds[0], forms=forms),),
        cuts=(("x",), ("hidden", "x"), ("y", "x")),
        outputs=(*manifest.outputs, manifest.tensor("x").spec),
    )


@pytest.mark.parametrize("arrives", ["onnx", "tflite"])
@pytest.mark.parametrize("leaves", ["onnx", "tflite"])
def test_what_is_only_forwarded_goes_from_one_form_to_the_other(arrives: ShardFormat, leaves: ShardFormat) -> None:
    manifest, session = forwarding(), Still()
    crossing = stage_tensors(manifest, 1, 2)
    stage = Stage(crossing, stage_forms(manifest, crossing, arrives=arrives, runs="onnx", leaves=leaves), session)
    x, turned = make_input(1), np.ascontiguousarray(make_input(1).T)
    given = {"onnx": {"x": x, "hidden": make_input(2)}, "tflite": {"x": turned, "hidden": make_input(2).astype("<f2")}}
    answer = stage.run(given[arrives])
    np.testing.assert_array_equal(answer["x"], given[leaves]["x"], strict=True)
    assert (answer["x"] is given[arrives]["x"]) == (arrives == leaves)
    assert list(session.given) == ["hidden"]
    assert session.given["hidden"].dtype == np.float32


def test_a_form_that_the_bundle_does_not_have_is_refused() -> None:
    tiny = make_tiny_bundle()
    crossing = stage_tensors(tiny.manifest, 0, 1)
    with pytest.raises(BundleError, match="tiny has no tflite shards, only onnx"):
        stage_forms(tiny.manifest, crossing, arrives="tflite", runs="onnx", leaves="onnx")
