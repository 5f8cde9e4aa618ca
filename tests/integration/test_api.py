"""Compression from Python: every step gives a new model with a report, and the recipe of all makes it again."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import host.api
from edge.formats.profile import load_profile
from host.api import (
    PruneBlocks,
    PruneChannels,
    PruneTorch,
    Quantize,
    Recover,
    Step,
    Training,
    Wish,
    load,
    load_dataset,
    optimize,
    prune,
    quantize,
    search,
)
from host.compress.data.dataset import Dataset
from host.compress.judge.budget import Budget
from host.compress.learned import learned_path
from host.compress.request import CompressRequest
from host.compress.search.search import BudgetUnmetError
from host.compression import compress_model
from host.errors import BudgetError, DatasetError, RecipeError
from host.model import to_bytes
from tests.command_line import shardwire_ok
from tests.graphs import conv_net, photos

HALF = PruneChannels(ratio=0.5, multiple=2)
INT8 = Quantize(mode="int8", correct_bias=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network as a file, samples to calibrate with, and others to judge on."""
    folder = tmp_path_factory.mktemp("net")
    onnx.save(conv_net(), folder / "net.onnx")
    for name, count, seed in (("samples", 40, 9), ("photos", 120, 3)):
        np.savez(folder / f"{name}.npz", x=np.stack([sample["x"] for sample in photos(count, seed=seed)]))
    return folder


@pytest.fixture
def net(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Step:
    """The network, loaded; searches keep their trials for this test only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return load(str(folder / "net.onnx"), inputs=str(folder / "samples.npz"))


def test_the_example_of_the_module_runs(folder: Path, net: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    del net
    _, _, example = (host.api.__doc__ or "").partition("::\n\n")
    lines = [line for line in example.splitlines() if line.startswith("    ") or not line]
    program = textwrap.dedent("\n".join(lines)).replace("photos/", "photos.npz")
    assert program.count("search(") == 1
    monkeypatch.chdir(folder)
    exec(compile(program, "example", "exec"), {})  # noqa: S102 - our own text, so that it stays true
    for name in ("tiny.onnx", "best.onnx"):
        session = onnxruntime.InferenceSession(folder / name)
        assert session.run(None, dict(photos(1)[0]))[0].shape == (1, 4)


def test_every_step_leaves_its_input_as_it_was(net: Step) -> None:
    before = to_bytes(net.model.ir)
    best = optimize(net)
    optimised = to_bytes(best.model.ir)
    small = prune(best, HALF)
    pruned, recipe = to_bytes(small.model.ir), small.recipe
    quantize(small, INT8)
    assert to_bytes(net.model.ir) == before
    assert to_bytes(best.model.ir) == optimised
    assert (to_bytes(small.model.ir), small.recipe) == (pruned, recipe)
    assert len({before, optimised, pruned}) >= 2


def test_the_report_of_a_step_is_of_that_step(net: Step) -> None:
    best = optimize(net)
    assert "fold-constants" in {row.name for row in best.report.passes}
    small = prune(best, HALF)
    assert small.report.passes == ()
    assert small.report.original == best.report.result
    assert small.report.original is not None
    assert small.report.result is not None
    assert small.report.result.weight_bytes < small.report.original.weight_bytes
    tiny = quantize(small, INT8)
    assert {each.where for each in tiny.report.evaluations} == {"unfused", "as run here"}
    # Against what was loaded, not against the pruned model: that is close to its int8 form.
    (cosine,) = (s.value for s in tiny.report.evaluations[0].scores if s.metric == "cosine")
    (alone,) = (s.value for s in quantize(best, INT8).report.evaluations[0].scores if s.metric == "cosine")
    assert cosine < alone


def replay(folder: Path, recipe: Path, target: Path) -> None:
    """What `shardwire compress --recipe` does, in this process."""
    compress_model(CompressRequest(source=str(folder / "net.onnx"), profile="rpi4", recipe=recipe, target=target))


def test_the_command_line_replays_a_saved_recipe(net: Step, folder: Path, tmp_path: Path) -> None:
    tiny = quantize(prune(optimize(net), HALF), INT8)
    tiny.save_recipe(tmp_path / "tiny.toml")
    words = ("compress", folder / "net.onnx", "--recipe", tmp_path / "tiny.toml", "--out", tmp_path / "out")
    shardwire_ok(*words)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == to_bytes(tiny.model.ir)


@pytest.mark.parametrize(
    "steps",
    [
        ((HALF,),),
        ((HALF,), (PruneChannels(ratio=0.25, multiple=1),)),
        ((HALF, PruneChannels(ratio=0.25, multiple=1)),),
        ((PruneBlocks(),), (HALF,)),
    ],
    ids=["once", "twice", "two at once", "blocks and channels"],
)
def test_a_saved_recipe_replays_to_the_same_bytes(
    steps: tuple[tuple[host.api.Prune, ...], ...], net: Step, folder: Path, tmp_path: Path
) -> None:
    small = optimize(net)
    for each in steps:
        small = prune(small, *each, recover=[Recover(method="batch-norm")])
    tiny = quantize(small, INT8)
    tiny.save(tmp_path / "tiny.onnx")
    tiny.save_recipe(tmp_path / "tiny.toml")
    assert learned_path(tmp_path / "tiny.toml").is_file()
    replay(folder, tmp_path / "tiny.toml", tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (tmp_path / "tiny.onnx").read_bytes()
    assert (tmp_path / "out" / "recipe.toml").read_bytes() == (tmp_path / "tiny.toml").read_bytes()


def test_a_search_is_judged_on_other_samples_than_it_is_calibrated_with(net: Step) -> None:
    found = search(net, "agreement>=0.9", cached=False)
    assert {each.samples for each in found.report.evaluations} == {20}
    assert {each.dataset for each in found.report.evaluations} == {"the model's own samples"}


def test_a_search_gives_the_best_and_its_recipe(net: Step, folder: Path, tmp_path: Path) -> None:
    data = load_dataset(str(folder / "photos.npz"), net)
    best = search(net, "agreement>=0.9", profile="rpi4", data=data)
    assert [each.name for each in best.report.candidates if each.chosen] == ["int8"]
    assert best.recipe.quantize.ranges
    best.save(tmp_path / "best.onnx")
    best.save_recipe(tmp_path / "best.toml")
    replay(folder, tmp_path / "best.toml", tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (tmp_path / "best.onnx").read_bytes()


def test_a_search_in_vain_says_what_came_closest(net: Step) -> None:
    wish = Wish(budget=Budget.parse("top1>=0.9"), profile=load_profile("rpi4"), ratios=())
    asked = photos(30, seed=5)
    labels = [index % 4 for index in range(len(asked))]
    with pytest.raises(BudgetUnmetError, match=r"none of \d+ candidates keeps top1>=0.9; closest: "):
        search(net, wish, data=Dataset.held(asked, labels), cached=False)


def test_training_data_trains(net: Step) -> None:
    said: list[str] = []
    wide = Training(samples=photos(64, seed=4))
    prune(optimize(net), HALF, recover=[Recover(method="distill", epochs=1)], training=wide, say=said.append)
    assert "recovering: distill" in said


def test_steps_out_of_order_are_refused(net: Step, tmp_path: Path) -> None:
    tiny = quantize(optimize(net), INT8)
    with pytest.raises(RecipeError, match="quantized already"):
        prune(tiny, HALF)
    with pytest.raises(RecipeError, match="quantized already"):
        quantize(tiny, INT8)
    with pytest.raises(RecipeError, match="optimize comes first"):
        optimize(tiny)
    with pytest.raises(RecipeError, match="search begins with what load gave"):
        search(tiny, "cosine>=0.9")
    with pytest.raises(RecipeError, match="call optimize before"):
        quantize(net, INT8).save_recipe(tmp_path / "recipe.toml")
    with pytest.raises(RecipeError, match="torch-channels come before every other step"):
        prune(prune(optimize(net), HALF), PruneTorch())
    assert list(tmp_path.glob("*.toml")) == []


def test_what_does_not_fit_is_refused(net: Step, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="no limit"):
        search(net, "good")
    with pytest.raises(DatasetError, match="no such file"):
        load_dataset(str(tmp_path / "none.npz"), net)
