"""A model and its TFLite twin in one bundle: cut alike, whatever runs which shard."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge.formats.bundle import SHARD_FORMATS, ShardFormat
from edge.formats.plan import Plan, Stage
from edge.formats.tensor import Array
from host.answers import load_run, load_whole, read_tensors, run_plan, runtime_ways, verify_answers
from host.bundle import OpenBundle
from host.compare import relative_error
from host.compress.recipe import Quantize
from host.errors import IngestError, PackageError
from host.package import PackageRequest, package
from host.tflite.model import read_tflite
from host.tflite.quantize import quantize_tflite
from tests.command_line import shardwire_ok

MODELS = Path(__file__).resolve().parents[1] / "models"
ONNX, LITERT = "onnxruntime", "litert"


def packaged(folder: Path, name: str, twin: str, quantize: str | None = None) -> OpenBundle:
    request = PackageRequest(
        source=str(MODELS / f"{name}.onnx"),
        twin=MODELS / f"{twin}.tflite",
        profile="rpi4",
        target=folder / twin,
        quantize=quantize,
    )
    return package(request).bundle


@pytest.fixture(scope="module", params=["residual residual", "residual residual_nhwc", "depthwise depthwise"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OpenBundle:
    name, twin = request.param.split()
    return packaged(tmp_path_factory.mktemp("twins"), name, twin)


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> OpenBundle:
    return packaged(tmp_path_factory.mktemp("twins"), "residual", "residual_nhwc")


def golden_input(bundle: OpenBundle) -> dict[str, Array]:
    return read_tensors(bundle, bundle.manifest.golden[0].inputs)


def plan(bundle: OpenBundle, runtimes: Sequence[str], bounds: Sequence[int], takes: Sequence[ShardFormat]) -> Plan:
    """A stage on a device of its own for each runtime."""
    stages = tuple(
        Stage(index=index, device=f"d{index}", first_shard=first, stop_shard=stop, takes=form)
        for index, ((first, stop), form) in enumerate(
            zip(itertools.pairwise((0, *bounds, len(bundle.manifest.shards))), takes, strict=True)
        )
    )
    return Plan(
        objective="throughput",
        stages=stages,
        bottleneck_seconds=1.0,
        latency_seconds=1.0,
        binds="",
        runtimes={f"d{index}": name for index, name in enumerate(runtimes)},
    )


def test_both_builds_hold_the_same_layers(bundle: OpenBundle) -> None:
    manifest = bundle.manifest
    (build,) = manifest.builds
    assert manifest.formats == ("onnx", "tflite")
    assert len(manifest.shards) >= 5
    assert [set(shard.reads) for shard in build.shards] == [set(shard.reads) for shard in manifest.shards]
    assert "TFLite twin" in manifest.origin.description
    assert all(form.axes == (0, 2, 3, 1) for form in build.forms)
    assert build.forms


def test_every_way_across_runtimes_gives_the_answer_of_the_whole(bundle: OpenBundle) -> None:
    verdicts = list(verify_answers(bundle))
    assert {verdict.runtimes for verdict in verdicts} == {(ONNX,), (LITERT,), (ONNX, LITERT), (LITERT, ONNX)}
    for verdict in verdicts:
        assert verdict.fault is None
        assert verdict.relative_error <= bundle.manifest.tolerance == 1e-4
        assert verdict.bit_equal or verdict.largest_difference > 0


@pytest.mark.parametrize("runtimes", list(itertools.product((ONNX, LITERT), repeat=3)), ids="-".join)
def test_three_devices_of_any_runtimes_answer_like_one(residual: OpenBundle, runtimes: tuple[str, ...]) -> None:
    inputs = golden_input(residual)
    whole = load_whole(residual, mode="exact", runtime=ONNX).run(inputs)
    formats = [SHARD_FORMATS[name] for name in runtimes]
    for bounds in itertools.combinations(range(1, len(residual.manifest.shards)), 2):
        # The receiver's form, then the sender's.
        for takes in (("onnx", *formats[1:]), ("onnx", *formats[:2])):
            found = run_plan(residual, plan(residual, runtimes, bounds, takes), inputs)
            assert found.keys() == whole.keys()
            for name, expected in whole.items():
                assert relative_error(found[name], expected) <= residual.manifest.tolerance


def test_a_quantized_twin_travels_in_its_own_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    photos = rng.normal(size=(24, 1, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "photos.npz", image=photos)
    model = read_tflite(MODELS / "residual.tflite")
    (name,) = model.graph.names(model.graph.inputs)
    quantized = quantize_tflite(model, Quantize(mode="int8"), [{name: photo} for photo in photos])
    (tmp_path / "int8.tflite").write_bytes(quantized.model.data)
    bundle = package(
        PackageRequest(
            source=str(MODELS / "residual.onnx"),
            inputs=str(tmp_path / "photos.npz"),
            twin=tmp_path / "int8.tflite",
            profile="rpi4",
            target=tmp_path / "bundle",
        )
    ).bundle
    forms = {form.name: form for form in bundle.manifest.builds[0].forms}
    inner = {name for cut in bundle.manifest.cuts[1:-1] for name in cut}
    in_bytes = {name for name in inner if name in forms and forms[name].dtype == "int8" and forms[name].scale > 0}
    assert len(in_bytes) >= 3
    assert [verdict.fault for verdict in verify_answers(bundle) if verdict.fault is not None] == []
    place = next(i for i in range(1, len(bundle.manifest.shards)) if in_bytes.issuperset(bundle.manifest.cut_before(i)))
    inputs = golden_input(bundle)
    head = load_run(bundle, 0, place, mode="default", runtime=ONNX, leaves="tflite")
    sent = head.run(inputs)
    assert {array.dtype.name for array in sent.values()} == {"int8"}
    tail = load_run(bundle, place, len(bundle.manifest.shards), mode="default", runtime=LITERT, arrives="tflite")
    whole = read_tensors(bundle, bundle.manifest.golden[0].whole)
    for output, found in tail.run(sent).items():
        assert relative_error(found, whole[output]) <= bundle.manifest.tolerance


def test_verify_runs_all_ways_and_prints_the_largest_difference(residual: OpenBundle) -> None:
    ran = shardwire_ok("verify", residual.folder)
    assert "largest difference" in ran.out
    assert "litert, onnxruntime" in ran.out


def test_a_model_for_one_runtime_is_run_by_that_alone(tmp_path: Path) -> None:
    request = PackageRequest(source=str(MODELS / "residual.onnx"), profile="rpi4", target=tmp_path / "one")
    assert runtime_ways(package(request).bundle.manifest) == ((ONNX,),)


def test_the_same_files_give_the_same_bundle(residual: OpenBundle, tmp_path: Path) -> None:
    assert packaged(tmp_path, "residual", "residual_nhwc").artefact_digest == residual.artefact_digest


def test_a_twin_of_other_weights_is_refused(tmp_path: Path) -> None:
    model = onnx.load(MODELS / "residual.onnx")
    weight = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(-values), weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    request = PackageRequest(
        source=str(tmp_path / "other.onnx"), twin=MODELS / "residual.tflite", profile="rpi4", target=tmp_path / "b"
    )
    with pytest.raises(PackageError, match="it does not answer like the model"):
        package(request)
    assert not (tmp_path / "b").exists()


def test_a_twin_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="a twin has the same inputs, outputs and weights"):
        packaged(tmp_path, "residual", "depthwise")


def test_what_changes_the_weights_does_not_go_with_a_twin(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="leave out --quantize and --recipe"):
        packaged(tmp_path, "residual", "residual", quantize="int8")


def test_a_twin_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"nothing\.tflite: no such file"):
        packaged(tmp_path, "residual", "nothing")
