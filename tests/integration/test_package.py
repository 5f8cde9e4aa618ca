"""`shardwire package` and what reads its bundles: the same bytes each time, within the limit, whole or not at all."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from edge.formats.bundle import GoldenPair
from edge.formats.tensor import Array
from host.answers import load_whole, read_tensors
from host.bundle import BundleContent, OpenBundle, blob_of, manifest_blobs, open_bundle, write_bundle
from host.package import PackageRequest, golden_frame, package
from tests.command_line import environment, interrupted, shardwire, shardwire_ok
from tests.conformance.cutting import same_bits
from tests.graphs import conv_net, photos
from tests.zoo import zoo_model


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network as a file."""
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(conv_net(), path)
    return path


@pytest.fixture(scope="module")
def inputs(net: Path) -> Path:
    """Eight photos for it."""
    path = net.parent / "inputs.npz"
    np.savez(path, x=np.stack([sample["x"] for sample in photos(8)]))
    return path


@pytest.fixture(scope="module")
def bundle(net: Path, inputs: Path) -> OpenBundle:
    """It in int8 for a Raspberry Pi 4."""
    request = PackageRequest(source=str(net), profile="rpi4", target=net.parent / "bundle", inputs=str(inputs))
    return package(request).bundle


def copied(bundle: OpenBundle, folder: Path) -> Path:
    """A copy of a bundle that a test may damage."""
    return Path(shutil.copytree(bundle.folder, folder / "copy"))


def index_of(folder: Path) -> bytes:
    """What names everything else in a bundle by digest."""
    return (folder / "index.json").read_bytes()


# ---------------------------------------------------------------------------------------------------- the same bytes


def test_two_processes_write_the_same_bundle(net: Path, inputs: Path, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        shardwire_ok(
            "package", net, "--inputs", inputs, "--out", tmp_path / seed, env={"PYTHONHASHSEED": seed}, cwd=tmp_path
        )
    assert index_of(tmp_path / "1") == index_of(tmp_path / "2")
    first, second = (sorted(p.name for p in (tmp_path / seed / "blobs" / "sha256").iterdir()) for seed in "12")
    assert first == second


def test_a_recipe_gives_the_same_digests_without_calibrating(
    net: Path, inputs: Path, bundle: OpenBundle, tmp_path: Path
) -> None:
    recipe = bundle.manifest.compression.recipe
    assert recipe is not None
    # The same first photo, so the same golden answers; other photos to calibrate with, if somebody did.
    other = np.stack([photos(1)[0]["x"], *(sample["x"] * 9 for sample in photos(7, seed=5))])
    np.savez(tmp_path / "other.npz", x=other)

    def digest_with(*arguments: str | Path) -> str:
        target = tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}"
        shardwire_ok("package", net, "--inputs", tmp_path / "other.npz", "--out", target, *arguments)
        return open_bundle(target).artefact_digest

    assert digest_with() != bundle.artefact_digest
    assert digest_with("--recipe", bundle.path(recipe)) == bundle.artefact_digest


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["rpi4", "rpi-zero2w"])
def test_the_default_model_fits_and_has_the_same_digest_twice(profile: str, tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        result = package(PackageRequest(source="", profile=profile, target=tmp_path / name))
        manifest = result.bundle.manifest
        assert max(shard.size_bytes for shard in manifest.shards) <= manifest.max_shard_bytes
        assert manifest.compression.quantize == "int8"
        digests.add(hashlib.sha256(index_of(tmp_path / name)).hexdigest())
    assert len(digests) == 1


# ----------------------------------------------------------------------------------------------------- an OCI layout


def test_the_layout_is_a_modelpack_artefact(bundle: OpenBundle) -> None:
    folder = bundle.folder

    def read(entry: dict[str, Any]) -> dict[str, Any]:
        data = (folder / "blobs" / "sha256" / entry["digest"].removeprefix("sha256:")).read_bytes()
        assert len(data) == entry["size"]
        assert "sha256:" + hashlib.sha256(data).hexdigest() == entry["digest"]
        return dict(msgspec.json.decode(data))

    assert msgspec.json.decode((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = msgspec.json.decode(index_of(folder))
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    models = [e for e in index["manifests"] if e["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"]
    assert [model["annotations"]["org.opencontainers.image.ref.name"] for model in models] == ["1.0.0"]
    artefact = read(models[0])
    assert artefact["mediaType"] == models[0]["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert artefact["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    config = read(artefact["config"])
    assert sorted(config) == ["config", "descriptor", "modelfs"]
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in artefact["layers"]]}
    kinds = [layer["mediaType"] for layer in artefact["layers"]]
    assert kinds[0] == "application/vnd.shardwire.manifest.v1+json"
    assert set(kinds[1:]) == {"application/vnd.cncf.model.weight.v1.raw"}
    for layer in artefact["layers"]:
        path = folder / "blobs" / "sha256" / layer["digest"].removeprefix("sha256:")
        assert path.stat().st_size == layer["size"]


def test_a_registry_tool_copies_it(bundle: OpenBundle, tmp_path: Path) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        # What it would read is checked above; here at least the bundle opens under its tag.
        assert open_bundle(bundle.folder).artefact_digest == bundle.artefact_digest
        return
    subprocess.run(
        [skopeo, "copy", "--quiet", f"oci:{bundle.folder}:1.0.0", f"dir:{tmp_path / 'copy'}"],
        check=True,
        capture_output=True,
    )
    data = (tmp_path / "copy" / "manifest.json").read_bytes()
    assert "sha256:" + hashlib.sha256(data).hexdigest() == bundle.artefact_digest


# ----------------------------------------------------------------------------------------------------- the way back


@pytest.mark.parametrize("quantize", ["int8", "none"])
def test_the_export_has_the_bits_of_the_whole(quantize: str, net: Path, inputs: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    shardwire_ok("package", net, "--inputs", inputs, "--quantize", quantize, "--out", target)
    shardwire_ok("export", target, "--onnx", tmp_path / "back.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "back.onnx").SerializeToString(), full_check=False)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "back.onnx", options)
    bundle = open_bundle(target)
    for pair in bundle.manifest.golden:
        found = session.run(["y"], read_tensors(bundle, pair.inputs))[0]
        assert same_bits(found, read_tensors(bundle, pair.whole)["y"])


def test_an_export_replaces_nothing_unless_told(bundle: OpenBundle, tmp_path: Path) -> None:
    path = tmp_path / "there.onnx"
    path.write_text("mine")
    refused = shardwire("export", bundle.folder, "--onnx", path)
    assert (refused.code, refused.err) == (1, f"shardwire: {path} is there already: remove it or give --force\n")
    assert path.read_text() == "mine"
    shardwire_ok("export", bundle.folder, "--onnx", path, "--force")
    assert onnx.load(path).graph.name == "net"


# ------------------------------------------------------------------------------------------------------------ verify


def test_verify_says_that_a_sound_bundle_is_sound(bundle: OpenBundle) -> None:
    ran = shardwire_ok("verify", bundle.folder)
    assert f"{len(bundle.manifest.shards)} shards answer like the model they were cut from" in ran.out


def test_verify_finds_a_flipped_bit_in_any_blob(bundle: OpenBundle, tmp_path: Path) -> None:
    for number, blob in enumerate((bundle.manifest_blob, *dict.fromkeys(manifest_blobs(bundle.manifest)))):
        folder = copied(bundle, tmp_path / str(number))
        path = folder / "blobs" / "sha256" / blob.digest.removeprefix("sha256:")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        found = "sha256:" + hashlib.sha256(data).hexdigest()
        ran = shardwire("verify", folder)
        assert ran.complaint == f"shardwire: {path}: digest is {found}, expected {blob.digest}"
        assert ran.code == 1


@pytest.mark.parametrize("command", ["run", "deploy"])
def test_no_answer_comes_from_a_damaged_shard(bundle: OpenBundle, tmp_path: Path, command: str) -> None:
    folder = copied(bundle, tmp_path)
    blob = bundle.manifest.blobs(0, len(bundle.manifest.shards))[-1]
    path = folder / "blobs" / "sha256" / blob.digest.removeprefix("sha256:")
    path.write_bytes(bytes(blob.size_bytes))
    found = "sha256:" + hashlib.sha256(bytes(blob.size_bytes)).hexdigest()
    ran = shardwire(command, folder, *(["none.npz"] if command == "run" else []))
    assert ran.complaint == f"shardwire: {path}: digest is {found}, expected {blob.digest}"
    assert ran.code == 1


def test_verify_finds_a_missing_blob(bundle: OpenBundle, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path)
    path = folder / "blobs" / "sha256" / bundle.manifest.shards[0].graph.digest.removeprefix("sha256:")
    path.unlink()
    ran = shardwire("verify", folder)
    assert ran.complaint == f"shardwire: {path}: cannot be read (No such file or directory)"
    assert ran.code == 1


def with_golden(bundle: OpenBundle, target: Path, *, field: str, answers: dict[str, Array]) -> None:
    """Write a bundle again, sound in every digest, with other golden answers."""
    data = golden_frame(answers)
    pair: GoldenPair = msgspec.structs.replace(bundle.manifest.golden[0], **{field: blob_of(data)})
    manifest = msgspec.structs.replace(bundle.manifest, golden=(pair,))
    blobs = {blob.digest: data if blob.digest == blob_of(data).digest else None for blob in manifest_blobs(manifest)}
    stored = {blob.digest: bundle.read(blob) for blob in manifest_blobs(bundle.manifest)}
    content = BundleContent(
        manifest=manifest,
        blobs={digest: fresh or stored[digest] for digest, fresh in blobs.items()},
        tag="1.0.0",
        parameter_count=0,
    )
    write_bundle(content, target)


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        (
            "whole",
            "4 of 4 runs are wrong; golden 0, chained, exact: relative error 2.00e+00 to the whole model is above 0.25",
        ),
        (
            "outputs",
            "4 of 4 runs are wrong; golden 0, chained, exact: cosine -0.99... to the source model is below 0.9",
        ),
    ],
)
def test_verify_finds_golden_answers_that_are_not_the_models(
    bundle: OpenBundle, tmp_path: Path, field: str, complaint: str
) -> None:
    pair = bundle.manifest.golden[0]
    wrong = {"y": -read_tensors(bundle, getattr(pair, field))["y"]}
    with_golden(bundle, tmp_path / "wrong", field=field, answers=wrong)
    ran = shardwire("verify", tmp_path / "wrong")
    said = re.sub(r"cosine -0\.99\d+", "cosine -0.99...", ran.complaint)
    assert said == f"shardwire: {tmp_path / 'wrong'}: {complaint}"
    assert ran.code == 1


# ------------------------------------------------------------------------------------------------------------ inspect


def test_a_retrained_last_layer_moves_one_shard_and_no_other(net: Path, bundle: OpenBundle, tmp_path: Path) -> None:
    model = onnx.load(net)
    (last,) = [tensor for tensor in model.graph.initializer if tensor.name == "w3"]
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) * np.float32(1.01), "w3"))
    onnx.save(model, tmp_path / "net.onnx")
    for name, path in (("old", net), ("new", tmp_path / "net.onnx")):
        shardwire_ok("package", path, "--quantize", "none", "--out", tmp_path / name)
    ran = shardwire_ok("inspect", "--diff", tmp_path / "old", tmp_path / "new", "--json")
    moved = {entry["digest"] for entry in msgspec.json.decode(ran.out)["moved"]}

    new = open_bundle(tmp_path / "new")
    shards = [{blob.digest for blob in (shard.graph, *shard.weights)} for shard in new.manifest.shards]
    assert [bool(moved & shard) for shard in shards] == [False] * (len(shards) - 1) + [True]
    assert new.manifest_blob.digest in moved
    shown = shardwire_ok("inspect", "--diff", tmp_path / "old", tmp_path / "new").out
    assert f"{len(moved)} of {len(new.blobs())} blobs change, " in shown


def test_equal_bundles_have_nothing_to_move(bundle: OpenBundle) -> None:
    ran = shardwire_ok("inspect", "--diff", bundle.folder, bundle.folder, "--json")
    assert msgspec.json.decode(ran.out) == {"moved": [], "unneeded": [], "bytes_to_move": 0}


def test_inspect_shows_every_shard(bundle: OpenBundle) -> None:
    shown = shardwire_ok("inspect", bundle.folder).out
    assert bundle.artefact_digest in shown
    assert f"{len(bundle.manifest.layers)} layers in {len(bundle.manifest.shards)} shards, " in shown


# ------------------------------------------------------------------------------------------------------------- shapes


def test_a_bound_shape_is_the_only_one_that_is_answered(tmp_path: Path) -> None:
    model = zoo_model("ppocr-cls")
    arguments = ["package", model.source, "--quantize", "none"]
    shardwire_ok(*arguments, "--shape", "x=2x3x48x192", "--out", tmp_path / "bound")
    shardwire_ok(*arguments, "--out", tmp_path / "open")
    assert open_bundle(tmp_path / "bound").manifest.inputs[0].shape == (2, 3, 48, 192)
    assert open_bundle(tmp_path / "open").manifest.inputs[0].shape[0] is None

    np.savez(tmp_path / "one.npz", x=np.zeros((1, 3, 48, 192), np.float32))
    shardwire_ok("run", tmp_path / "open", tmp_path / "one.npz")
    refused = shardwire("run", tmp_path / "bound", tmp_path / "one.npz")
    reason = "input 'x' is float32[1, 3, 48, 192], expected float32[2, 3, 48, 192]"
    assert (refused.code, refused.err) == (1, f"shardwire: {tmp_path / 'one.npz'}: {reason}\n")


def test_dynamic_sizes_stay_open_though_all_inputs_have_the_same(tmp_path: Path) -> None:
    # The other branch of this model does not accept the size that the inputs happen to have.
    model = zoo_model("silero-vad")
    result = package(
        PackageRequest(
            source=model.source, profile="rpi4", quantize="none", inputs=model.inputs, target=tmp_path / "bundle"
        )
    )
    assert {spec.name: spec.shape for spec in result.bundle.manifest.inputs}["input"] == (None, None)
    load_whole(result.bundle, mode="exact").close()


# --------------------------------------------------------------------------------------------------- whole or nothing


@pytest.mark.slow
@pytest.mark.parametrize("step", ["reading the model", "optimising", "fusing", "cutting", "writing"])
def test_ctrl_c_leaves_no_partial_bundle(step: str, tmp_path: Path) -> None:
    model = zoo_model("ppocr-det")
    target = tmp_path / "bundle"
    ran = interrupted("package", model.source, "--quantize", "none", "--out", target, step=step)
    if step == "writing" and ran.code == 0:
        shardwire_ok("verify", target)  # it was faster than the signal
    else:
        assert ran.code == 130
        assert ran.err.splitlines()[-1] == "shardwire: interrupted"
        assert "Traceback" not in ran.err
        assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_there_is_kept_unless_told(net: Path, bundle: OpenBundle, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path)
    before = index_of(folder)
    refused = shardwire("package", net, "--quantize", "none", "--out", folder)
    assert refused.code == 1
    assert refused.complaint == (
        f"shardwire: {folder} is there already: remove it, choose another --out, or give --force"
    )
    assert index_of(folder) == before
    shardwire_ok("package", net, "--quantize", "none", "--out", folder, "--force")
    assert index_of(folder) != before
    assert list(tmp_path.iterdir()) == [folder]


# ------------------------------------------------------------------------------------------------------ without torch


def test_an_onnx_file_needs_no_torch(net: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # any import of it fails from here on
        f"sys.argv = ['shardwire', 'package', {str(net)!r}, '--out', 'bundle']\n"
        "from host.__main__ import main\n"
        "main()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert open_bundle(tmp_path / "bundle").manifest.name == "net"
