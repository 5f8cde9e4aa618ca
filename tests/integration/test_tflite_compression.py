"""A TFLite model goes through the search, the report and the recipe that ONNX models go through."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edge.formats.profile import load_profile
from host import api
from host.compress.data.dataset import Dataset
from host.compress.data.inputs import inputs_of
from host.compress.judge.budget import Budget
from host.compress.pipeline import Training
from host.compress.recipe import Quantize, Recipe, dump_recipe, load_recipe
from host.compress.report.records import Report, decode_report
from host.compress.request import CompressRequest
from host.compress.search.search import Found, Wish
from host.compress.search.workpiece import Material
from host.compression import compress_model
from host.errors import PackageError, QuantizeError, RecipeError, UnsupportedModelError, UserError
from host.model import Origin, Tensors
from host.package import PackageRequest, package
from host.tflite import quantize_search
from host.tflite.model import TfliteModel, read_tflite, tflite_model
from host.tflite.quantize_search import TfliteWorkpiece, search_tflite, tflite_families
from tests.tflite_nets import ladder

WIDTH = 32


def model() -> TfliteModel:
    return tflite_model(ladder().data, name="net", origin=Origin(format="tflite", digest=f"sha256:{'0' * 64}"))


def samples(count: int, seed: int = 1) -> list[Tensors]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, WIDTH)).astype(np.float32)} for _ in range(count)]


def material() -> Material:
    return Material(
        dataset=Dataset.held(samples(48, seed=2), name="asked"), calibration=samples(16), training=Training()
    )


def searched(budget: str, *, thorough: bool = False) -> Found:
    wish = Wish(budget=Budget.parse(budget), profile=load_profile("phone-mid"), thorough=thorough)
    return search_tflite(model(), samples(1), material(), wish)[1]


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials do without a process each that tries them out."""
    monkeypatch.setattr(quantize_search, "check_runs", lambda *_: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and data for it."""
    made = tmp_path_factory.mktemp("tflite")
    (made / "net.tflite").write_bytes(ladder().data)
    np.savez(made / "data.npz", x=np.stack([sample["x"] for sample in samples(64)]))
    return made


@pytest.fixture(scope="module")
def compressed(folder: Path) -> Path:
    """What a search for nearly equal answers writes."""
    request = CompressRequest(
        source=str(folder / "net.tflite"),
        profile="phone-mid",
        target=folder / "small",
        budget="cosine>=0.99",
        data=str(folder / "data.npz"),
        cached=False,
    )
    return compress_model(request).folder


@pytest.fixture(scope="module")
def report(compressed: Path) -> Report:
    return decode_report((compressed / "report.json").read_bytes())


def test_a_search_writes_the_model_its_recipe_and_the_report(compressed: Path) -> None:
    names = {path.name for path in compressed.iterdir()}
    assert names >= {"model.tflite", "recipe.toml", "report.json"}
    assert "model.onnx" not in names
    made = read_tflite(compressed / "model.tflite")
    assert {tensor.type for tensor in made.graph.tensors} & {"INT8", "INT4"}


def test_the_report_tells_what_was_tried_and_what_it_costs(report: Report) -> None:
    assert report.candidates[0].name == "int8"
    (chosen,) = [candidate for candidate in report.candidates if candidate.chosen]
    assert chosen.status in ("proven", "held")
    assert report.original is not None
    assert report.result is not None
    assert report.result.weight_bytes < report.original.weight_bytes
    assert report.result.latency_seconds is not None
    assert {each.where for each in report.evaluations} == {"interpreter's own kernels", "as run here"}
    assert report.machine.litert
    assert not report.machine.onnxruntime


def test_the_recipe_makes_the_same_file_without_data(folder: Path, compressed: Path) -> None:
    request = CompressRequest(
        source=str(folder / "net.tflite"),
        profile="phone-mid",
        target=folder / "again",
        recipe=compressed / "recipe.toml",
    )
    again = compress_model(request).folder
    for name in ("model.tflite", "recipe.toml"):
        assert (again / name).read_bytes() == (compressed / name).read_bytes()


def test_a_bundle_takes_the_recipe_and_the_report_that_lies_beside_it(folder: Path, compressed: Path) -> None:
    made = package(
        PackageRequest(
            source=str(folder / "net.tflite"),
            profile="phone-mid",
            target=folder / "bundle",
            recipe=compressed / "recipe.toml",
            inputs=str(folder / "data.npz"),
        )
    )
    stored = made.bundle.manifest.compression
    recipe = load_recipe(compressed / "recipe.toml")
    assert stored.quantize == recipe.quantize.mode
    assert stored.recipe is not None
    assert made.bundle.read(stored.recipe) == dump_recipe(recipe).encode()
    assert made.report.candidates


@pytest.mark.usefixtures("trusting")
def test_a_strict_budget_spares_operators_and_ends_with_a_gentler_model() -> None:
    found = searched("cosine>=0.9999999")
    assert found.chosen is not None
    assert found.chosen.name in ("none", "float16")
    assert any("in fp32" in trial.name for trial in found.trials)
    assert any("in 8 bits" in trial.name for trial in found.trials)
    assert {entry.node for entry in found.sensitivity} == {f"y{rung}" for rung in range(4)}


@pytest.mark.usefixtures("trusting")
def test_two_searches_try_the_same_and_measure_the_same_answers() -> None:
    first, second = searched("snr>=25"), searched("snr>=25")
    assert [trial.recipe for trial in first.trials] == [trial.recipe for trial in second.trials]
    assert [trial.scores for trial in first.trials] == [trial.scores for trial in second.trials]


def test_a_mode_without_kernels_is_a_failed_candidate_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: TfliteModel, mode: str) -> None:
        if mode == "int8":
            raise QuantizeError("LiteRT has no kernels for int8 of model 'net': FULLY_CONNECTED failed to prepare")

    monkeypatch.setattr(quantize_search, "check_runs", refuse)
    found = searched("cosine>=0.9")
    failed = [trial for trial in found.trials if trial.failure]
    assert [trial.family for trial in failed] == ["int8"] * 3
    assert all("no kernels for int8" in trial.failure for trial in failed)
    assert found.chosen is not None
    assert found.chosen.family != "int8"


def test_a_search_without_the_quantizer_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer.quantizer", None)
    with pytest.raises(QuantizeError, match=r"pip install 'shardwire\[tflite\]'"):
        searched("cosine>=0.9")


def test_a_ranking_holds_every_quantized_operator_the_worst_first() -> None:
    piece = TfliteWorkpiece(model(), samples(1))
    found = piece.sensitivity(Quantize(mode="int4", exclude=("y3",)), samples(8), say=lambda _: None)
    assert sorted(entry.node for entry in found) == ["y0", "y1", "y2"]
    assert [entry.rank for entry in found] == [1, 2, 3]
    assert found[0].loss >= found[1].loss >= found[2].loss > 0
    assert {entry.method for entry in found} == {"alone"}


def test_families_begin_with_int8_and_then_with_what_should_cost_least() -> None:
    found = tflite_families("balanced")
    assert [family.name for family in found] == [
        "int8", "int4", "int8-dynamic", "int8-weights", "float16", "none",
    ]  # fmt: skip
    assert list(found[0].rungs) == ["int8", "int8-entropy", "int8-percentile"]


def test_pruning_in_a_recipe_is_refused_in_one_line(folder: Path) -> None:
    recipe = folder / "prune.toml"
    recipe.write_text('format = "1.1"\n[[prune]]\nkind = "channels"\n', encoding="utf-8")
    request = CompressRequest(
        source=str(folder / "net.tflite"), profile="phone-mid", target=folder / "none", recipe=recipe
    )
    with pytest.raises(RecipeError, match="pruning and recovery need the ONNX or PyTorch model"):
        compress_model(request)
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"training": "data.npz"}, "--train-data needs the ONNX or PyTorch model"),
        ({"ratios": (0.25,)}, "--prune needs the ONNX or PyTorch model"),
        ({"measure_on": "aarch64"}, "--measure-on aarch64 runs ONNX models only"),
    ],
)
def test_options_for_graphs_are_refused_in_one_line(folder: Path, more: dict[str, object], message: str) -> None:
    source = str(folder / "net.tflite")
    with pytest.raises(PackageError, match=message):
        compress_model(CompressRequest(source=source, profile="phone-mid", target=folder / "none", **more))  # type: ignore[arg-type]  # by name


def test_a_budget_with_labels_needs_labels(folder: Path) -> None:
    request = CompressRequest(
        source=str(folder / "net.tflite"),
        profile="phone-mid",
        target=folder / "none",
        budget="top1-drop<=0.1",
        data=str(folder / "data.npz"),
    )
    with pytest.raises(UserError, match="has no label"):
        compress_model(request)


def test_the_steps_from_python_say_what_to_call_instead(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"quantize a TFLite file with host\.compression\.compress_model"):
        api.load(str(folder / "net.tflite"))


def test_calibration_looks_at_the_data_where_the_model_brings_none() -> None:
    asked = material()
    piece = TfliteWorkpiece(model(), samples(1))
    made = piece.make(Recipe(quantize=Quantize(mode="int8")), asked, load_profile("phone-mid"), say=lambda _: None)
    high = max(float(sample["x"].max()) for sample in asked.calibration)
    assert made.recipe.quantize.ranges[0].high == high
    assert len(inputs_of(asked.dataset)) == 48
