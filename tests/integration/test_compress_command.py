"""`shardwire compress` as a person runs it: whole or not at all, and the recipe makes the same bytes anywhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from host.bundle import OpenBundle, open_bundle
from host.compress.emulate.emulator import Emulator
from host.compress.recipe import PruneChannels, Quantize, Recipe, Recover, dump_recipe, load_recipe
from host.compress.report.records import Report, decode_report
from host.compress.report.summary import recipe_digest
from host.model import to_bytes
from host.oci import REPORT_ARTIFACT
from host.reference import Reference
from tests.command_line import Finished, environment, interrupted, shardwire, shardwire_ok
from tests.graphs import conv_net, model_of, photos
from tests.wide_graphs import pictures, wide_net

_EMULATED = Path(__file__).resolve().parents[2] / ".venv" / "aarch64"
_FILES = {"model.onnx", "recipe.toml", "recipe.safetensors", "report.json", "report.html"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network, inputs, and data whose labels are its own answers."""
    folder = tmp_path_factory.mktemp("net")
    onnx.save(conv_net(), folder / "net.onnx")
    np.savez(folder / "inputs.npz", x=_stacked(photos(32, seed=9)))
    asked = photos(200, seed=3)
    reference = Reference(model_of(conv_net()))
    labels = np.array([int(reference.run(sample)["y"].argmax()) for sample in asked])
    np.savez(folder / "data.npz", x=_stacked(asked), label=labels)
    np.savez(folder / "wrong.npz", x=_stacked(asked), label=(labels + 1) % 4)
    np.savez(folder / "training.npz", x=_stacked(photos(256, seed=4)))
    _write_recipe(folder / "open.toml", Recover(method="batch-norm"))
    _write_recipe(folder / "distill.toml", Recover(method="distill", epochs=1))
    return folder


def _stacked(samples: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    return np.stack([sample["x"] for sample in samples])


def _write_recipe(path: Path, recover: Recover) -> None:
    steps = (PruneChannels(ratio=0.5, multiple=2),)
    path.write_text(dump_recipe(Recipe(prune=steps, recover=(recover,), quantize=Quantize(correct_bias=True))))


@pytest.fixture(scope="module")
def cache(folder: Path) -> dict[str, str]:
    """An environment with a cache of its own."""
    return {"XDG_CACHE_HOME": str(folder / "cache")}


@pytest.fixture(scope="module")
def found(folder: Path, cache: dict[str, str]) -> Finished:
    """The search that most tests look at; it writes to ``found``."""
    words = "compress net.onnx --data data.npz --inputs inputs.npz --budget top1-drop<=0.05 --out found"
    return shardwire_ok(*words.split(), cwd=folder, env={**cache, "PYTHONHASHSEED": "1"})


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes that a replay must give again."""
    return {name: (folder / name).read_bytes() for name in _FILES - {"report.json", "report.html"}}


def replayed_to(target: Path, recipe: Path, folder: Path) -> None:
    shardwire_ok("compress", "net.onnx", "--recipe", recipe, "--out", target, cwd=folder)


def report_of(folder: Path) -> Report:
    path = folder / "report.json"
    return decode_report(path.read_bytes(), where=str(path))


# ----------------------------------------------------------------------------------------------------------- a search


def test_a_search_writes_five_files(folder: Path, found: Finished) -> None:
    assert {path.name for path in (folder / "found").iterdir()} == _FILES
    assert f"written to found; package it with --recipe {Path('found') / 'recipe.toml'}" in found.out
    assert "budget top1-drop<=0.05" in found.out
    assert found.complaint == ""


def test_the_model_runs_and_keeps_the_budget(folder: Path, found: Finished) -> None:
    del found
    session = onnxruntime.InferenceSession(folder / "found" / "model.onnx")
    reference = Reference(model_of(conv_net()))
    asked = photos(200, seed=3)
    same = [session.run(None, dict(sample))[0].argmax() == reference.run(sample)["y"].argmax() for sample in asked]
    assert np.mean(same) >= 0.95


def test_the_report_tells_what_was_tried_and_belongs_to_the_recipe(folder: Path, found: Finished) -> None:
    del found
    report = report_of(folder / "found")
    chosen = [each.name for each in report.candidates if each.chosen]
    assert chosen == ["int8"]
    assert report.budget == "top1-drop<=0.05"
    assert report.recipe == recipe_digest(load_recipe(folder / "found" / "recipe.toml"))
    assert {each.where for each in report.evaluations} == {"unfused", "as run here"}
    assert {each.dataset for each in report.evaluations} == {"data.npz"}


def test_what_removes_nothing_is_no_candidate(folder: Path, found: Finished) -> None:
    del found
    pruned = [each for each in report_of(folder / "found").candidates if each.name.endswith("-less")]
    assert {each.status for each in pruned} == {"failed"}
    assert {each.judgement for each in pruned} == {"no channel can go: layers keep multiples of 8, and none has enough"}


def test_the_recipe_gives_the_same_bytes_in_another_process(folder: Path, found: Finished, tmp_path: Path) -> None:
    del found
    words = f"compress net.onnx --recipe found/recipe.toml --out {tmp_path / 'again'}"
    shardwire_ok(*words.split(), cwd=folder, env={"PYTHONHASHSEED": "2"})
    assert contents(tmp_path / "again") == contents(folder / "found")


def test_a_budget_that_nothing_keeps_is_told_with_every_candidate(folder: Path, cache: dict[str, str]) -> None:
    before = set(folder.iterdir())
    words = "compress net.onnx --data wrong.npz --inputs inputs.npz --budget top1>=0.9 --prune 0 --out none"
    ran = shardwire(*words.split(), cwd=folder, env=cache)
    assert ran.code == 1
    assert ran.complaint.startswith("shardwire: none of ")
    assert "\n" not in ran.complaint
    assert "the original itself does not keep it: top1 0.0000" in ran.complaint
    tried = [line.removeprefix("  trying ") for line in ran.err.splitlines() if line.startswith("  trying ")]
    assert tried[0] == "int8"
    assert tried[-1] == "none"
    for name in tried:
        assert any(line.split("  ")[1:] and name in line for line in ran.out.splitlines()), name
    assert "None of " in ran.out
    assert set(folder.iterdir()) - {folder / "cache"} == before - {folder / "cache"}


# ----------------------------------------------------------------------------------------------------- recipes by hand


def test_an_open_recipe_is_decided_and_replays(folder: Path, tmp_path: Path) -> None:
    words = f"compress net.onnx --recipe open.toml --inputs inputs.npz --data data.npz --out {tmp_path / 'first'}"
    ran = shardwire_ok(*words.split(), cwd=folder)
    assert "recovering: batch-norm" in ran.err
    decided = load_recipe(tmp_path / "first" / "recipe.toml")
    (step,) = decided.prune
    assert isinstance(step, PruneChannels)
    assert {len(group.keep) for group in step.groups} == {4}
    assert decided.quantize.ranges
    replayed_to(tmp_path / "again", tmp_path / "first" / "recipe.toml", folder)
    assert contents(tmp_path / "again") == contents(tmp_path / "first")


@pytest.mark.slow
def test_training_is_replayed_from_what_it_learned(folder: Path, tmp_path: Path) -> None:
    words = "compress net.onnx --recipe distill.toml --inputs inputs.npz --train-data training.npz"
    ran = shardwire_ok(*words.split(), "--out", tmp_path / "first", cwd=folder)
    assert "recovering: distill" in ran.err
    replayed_to(tmp_path / "again", tmp_path / "first" / "recipe.toml", folder)
    assert contents(tmp_path / "again") == contents(tmp_path / "first")


@pytest.mark.slow
def test_a_search_trains_what_it_pruned(tmp_path: Path) -> None:
    (tmp_path / "wide.onnx").write_bytes(to_bytes(wide_net().ir))
    for name, count, seed in (("data", 120, 2), ("training", 256, 3)):
        np.savez(tmp_path / f"{name}.npz", x=_stacked(pictures(count, seed=seed)))
    words = "compress wide.onnx --data data.npz --train-data training.npz --budget cosine>=0.1 --prune 0.5 --epochs 1"
    ran = shardwire_ok(*words.split(), "--out", "out", cwd=tmp_path, env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert "recovering: distill" in ran.err
    report = report_of(tmp_path / "out")
    assert "50%-of-channels-less" in {each.name for each in report.candidates if each.status != "failed"}
    # A quarter of the data was set aside to calibrate with.
    assert {score.count for each in report.evaluations for score in each.scores} == {90}
    assert not [note for note in report.notes if "made up" in note]


# ------------------------------------------------------------------------------------------------------- into a bundle


@pytest.fixture(scope="module")
def bundle(folder: Path, found: Finished) -> OpenBundle:
    """What was found, packaged."""
    del found
    words = "package net.onnx --inputs inputs.npz --recipe found/recipe.toml --out bundle"
    shardwire_ok(*words.split(), cwd=folder)
    return open_bundle(folder / "bundle")


def test_the_bundle_takes_recipe_and_report_along(folder: Path, bundle: OpenBundle) -> None:
    recipe = bundle.manifest.compression.recipe
    assert recipe is not None
    assert bundle.read(recipe) == (folder / "found" / "recipe.toml").read_bytes()
    assert attached_report(bundle) == (folder / "found" / "report.json").read_bytes()
    assert decode_report(attached_report(bundle), where="bundle").budget == "top1-drop<=0.05"
    assert "answer like the model they were cut from" in shardwire_ok("verify", bundle.folder).out


def attached_report(bundle: OpenBundle) -> bytes:
    """The one layer of the one attachment that is a report."""

    def blob(digest: str) -> bytes:
        return (bundle.blobs_folder / digest.removeprefix("sha256:")).read_bytes()

    index = msgspec.json.decode((bundle.folder / "index.json").read_bytes())
    (entry,) = [entry for entry in index["manifests"] if entry["artifactType"] == REPORT_ARTIFACT]
    (layer,) = msgspec.json.decode(blob(entry["digest"]))["layers"]
    return blob(layer["digest"])


@pytest.mark.slow
def test_the_recipe_of_a_bundle_makes_it_again(folder: Path, bundle: OpenBundle, tmp_path: Path) -> None:
    recipe = bundle.manifest.compression.recipe
    assert recipe is not None
    blob = bundle.path(recipe)
    shardwire_ok("compress", "net.onnx", "--recipe", blob, "--out", tmp_path / "model", cwd=folder)
    assert contents(tmp_path / "model") == contents(folder / "found")
    words = ("package", "net.onnx", "--inputs", "inputs.npz", "--recipe", blob, "--out", tmp_path / "bundle")
    shardwire_ok(*words, cwd=folder)
    assert open_bundle(tmp_path / "bundle").artefact_digest == bundle.artefact_digest


# ---------------------------------------------------------------------------------------------------- with and without


def test_figures_go_to_tensorboard(folder: Path, tmp_path: Path) -> None:
    words = f"compress net.onnx --inputs inputs.npz --out {tmp_path / 'out'} --tensorboard {tmp_path / 'runs'}"
    shardwire_ok(*words.split(), cwd=folder)
    (event,) = (tmp_path / "runs").iterdir()
    assert event.stat().st_size > 0


@pytest.mark.slow
def test_the_result_is_judged_on_an_emulated_processor(folder: Path, tmp_path: Path) -> None:
    # The command looks for the system in the user's cache; the one of the other tests serves as that.
    Emulator(cache=_EMULATED).prepare_root(print)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "shardwire").symlink_to(_EMULATED)
    words = f"compress net.onnx --inputs inputs.npz --data data.npz --measure-on aarch64 --out {tmp_path / 'out'}"
    shardwire_ok(*words.split(), cwd=folder, env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    here = {each.where: each for each in report_of(tmp_path / "out").evaluations}
    assert set(here) == {"unfused", "as run here", "aarch64 (cortex-a72), emulated"}
    assert here["aarch64 (cortex-a72), emulated"].samples == 64


def test_a_search_without_training_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # any import of it fails from here on
        "from host.cli.main import main\n"
        "main()\n"
    )
    words = f"compress net.onnx --data data.npz --budget agreement>=0.9 --no-cache --out {tmp_path / 'out'}"
    ran = subprocess.run(
        [sys.executable, "-c", program, *words.split()],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert _FILES >= {path.name for path in (tmp_path / "out").iterdir()} >= {"model.onnx", "recipe.toml"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", ["reading the model", "optimising", "trying int8", "correcting biases", "measuring the result", "writing"]
)
def test_ctrl_c_leaves_nothing(step: str, folder: Path, tmp_path: Path) -> None:
    words = f"compress net.onnx --data data.npz --budget agreement>=0.9 --no-cache --out {tmp_path / 'out'}"
    ran = interrupted(*words.split(), step=step, cwd=folder)
    assert "Traceback" not in ran.err
    if step == "writing" and ran.code == 0:
        assert {path.name for path in (tmp_path / "out").iterdir()} == _FILES  # it was faster than the signal
    else:
        assert ran.code == 130
        assert ran.err.splitlines()[-1] == "shardwire: interrupted"
        assert step == "writing" or list(tmp_path.iterdir()) == []


def test_a_compression_that_is_there_is_replaced_when_told(folder: Path, tmp_path: Path) -> None:
    for name in ("out", "kept"):
        (tmp_path / name).mkdir()
    (tmp_path / "out" / "recipe.toml").write_text("old")
    words = f"compress net.onnx --quantize none --out {tmp_path / 'out'} --force"
    shardwire_ok(*words.split(), cwd=folder)
    assert load_recipe(tmp_path / "out" / "recipe.toml").quantize.mode == "none"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "out"]
