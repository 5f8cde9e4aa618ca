"""Pruning a PyTorch module, exporting what is left, and rendering real models for training."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from host.compress.recipe import PruneTorch, Recipe, TorchGroup, dump_recipe, parse_recipe
from host.compress.recover import RecoverError
from host.compress.torch.graph import OnnxModule
from host.compress.torch.prune import apply, decide, kept_channels
from host.errors import RecipeError
from host.ingest import ingest
from host.ingest.torch import export
from host.model import from_bytes
from host.passes.normalise import normalise
from host.reference import Reference
from tests.torch_models import mobilenet_v2
from tests.zoo import zoo_model


class Residual(nn.Module):
    """Two residual blocks between a stem and a classifier, [N, 3, 16, 16] -> [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.first = self._block()
        self.second = self._block()
        self.classifier = nn.Linear(32, 10)

    @staticmethod
    def _block() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 32, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.first(x)
        x = torch.relu(x + self.second(x))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class Plain(nn.Module):
    """Two convolutions and two answers: a map and scores."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 16, 3)
        self.map = nn.Conv2d(16, 8, 1)
        self.scores = nn.Linear(16, 8)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.body(image))
        return {"map": self.map(hidden), "scores": torch.softmax(self.scores(hidden.mean((2, 3))), -1)}


IMAGE = torch.zeros(1, 3, 16, 16)
STEP = PruneTorch(ratio=0.4)


@pytest.fixture(scope="module")
def residual() -> nn.Module:
    return Residual().eval()


def widths(module: nn.Module) -> dict[str, int]:
    return {
        name: layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def same_state(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("criterion", ["l1", "l2", "batch-norm"])
def test_kept_channels_are_a_multiple_of_eight(residual: nn.Module, criterion: str) -> None:
    step = decide(residual, IMAGE, msgspec.structs.replace(STEP, criterion=criterion))
    found = widths(apply(residual, IMAGE, step))
    assert found.pop("classifier") == 10
    assert all(width % 8 == 0 for width in found.values())
    assert sum(found.values()) < sum(widths(residual).values()) - 10


def test_channels_that_a_sum_ties_go_together(residual: nn.Module) -> None:
    smaller = apply(residual, IMAGE, decide(residual, IMAGE, STEP))
    found = widths(smaller)
    assert found["stem.0"] == found["first.3"] == found["second.3"] == 16
    assert smaller(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_the_module_given_stays_as_it_is(residual: nn.Module) -> None:
    before = copy.deepcopy(residual)
    apply(residual, IMAGE, decide(residual, IMAGE, STEP))
    assert same_state(residual, before)


def test_deciding_twice_decides_the_same(residual: nn.Module) -> None:
    assert decide(residual, IMAGE, STEP) == decide(residual, IMAGE, STEP)


def test_a_replay_from_the_recipe_gives_the_same_weights(residual: nn.Module) -> None:
    step = decide(residual, IMAGE, STEP)
    read = parse_recipe(dump_recipe(Recipe(prune=(step,))), file="recipe.toml").prune[0]
    assert isinstance(read, PruneTorch)
    assert read == step
    assert same_state(apply(residual, IMAGE, read), apply(residual, IMAGE, step))


def test_a_replay_does_not_look_at_weights(residual: nn.Module) -> None:
    step = decide(residual, IMAGE, STEP)
    other = copy.deepcopy(residual)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert widths(apply(other, IMAGE, step)) == widths(apply(residual, IMAGE, step))


def test_excluded_modules_keep_their_channels(residual: nn.Module) -> None:
    found = widths(apply(residual, IMAGE, decide(residual, IMAGE, msgspec.structs.replace(STEP, exclude=("first",)))))
    assert found["first.0"] == 48
    assert found["second.0"] < 48


def test_frozen_parameters_are_pruned_too(residual: nn.Module) -> None:
    frozen = copy.deepcopy(residual).requires_grad_(False)
    assert decide(frozen, IMAGE, STEP) == decide(residual, IMAGE, STEP)


def test_the_kept_channels_are_those_whose_weights_are_left(residual: nn.Module) -> None:
    step = decide(residual, IMAGE, STEP)
    kept = kept_channels(residual, IMAGE, step)
    smaller = apply(residual, IMAGE, step)
    assert kept["classifier"] == tuple(range(10))
    assert kept["stem.0"] == kept["first.3"] == kept["second.3"]
    before, after = residual.get_submodule("stem.0").weight, smaller.get_submodule("stem.0").weight
    assert isinstance(before, Tensor)
    assert isinstance(after, Tensor)
    assert torch.equal(before[list(kept["stem.0"])], after)


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_groups_of_a_convolution_stay_alike(multiple: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3, groups=4), nn.ReLU(), nn.Conv2d(64, 8, 1)
    ).eval()
    found = widths(apply(module, IMAGE, decide(module, IMAGE, PruneTorch(ratio=0.5, multiple=multiple))))
    assert all(width % multiple == 0 for width in found.values())
    assert (found["0"], found["2"]) == (16, 32)


def test_few_channels_are_not_cut_to_less_than_the_multiple() -> None:
    module = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    assert widths(apply(module, IMAGE, decide(module, IMAGE, PruneTorch(ratio=0.9)))) == {"0": 8, "2": 6, "4": 4}


def test_no_answer_changes_its_shape() -> None:
    module = Plain().eval()
    inputs = {"image": IMAGE}
    step = decide(module, inputs, msgspec.structs.replace(STEP, ratio=0.5))
    assert widths(apply(module, inputs, step)) == {"body": 8, "map": 8, "scores": 8}


def test_nothing_decided_removes_nothing(residual: nn.Module) -> None:
    assert same_state(apply(residual, IMAGE, STEP), residual)


@pytest.mark.parametrize(
    ("group", "fault"),
    [
        (TorchGroup(layer="third.0", is_output=True, drop=(1,)), "has no module 'third.0'"),
        (TorchGroup(layer="stem.0", is_output=True, drop=(1, 32)), "has 32 channels; the recipe's do not fit"),
        (TorchGroup(layer="stem.0", is_output=True, drop=tuple(range(32))), "has 32 channels"),
        (TorchGroup(layer="stem", is_output=True, drop=(1,)), "has no channels"),
        (TorchGroup(layer="classifier", is_output=True, drop=(1,)), "its answer would be"),
    ],
)
def test_a_recipe_of_another_module_is_refused(residual: nn.Module, group: TorchGroup, fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        apply(residual, IMAGE, PruneTorch(groups=(group,)))


def test_an_excluded_module_that_is_not_there_is_named(residual: nn.Module) -> None:
    with pytest.raises(RecipeError, match="has no module 'head'"):
        decide(residual, IMAGE, PruneTorch(exclude=("head",)))


def test_scales_of_batch_norms_need_batch_norms() -> None:
    with pytest.raises(RecipeError, match="criterion batch-norm needs batch norms"):
        decide(Plain().eval(), IMAGE, PruneTorch(criterion="batch-norm"))


@pytest.mark.slow
def test_mobilenet_becomes_smaller_and_exports() -> None:
    module, (image,) = mobilenet_v2()
    step = decide(module, image, PruneTorch(ratio=0.3))
    smaller = apply(module, image, step)
    assert same_state(apply(module, image, step), smaller)
    found = widths(smaller)
    assert found.pop("classifier.1") == 1000
    assert all(width % 8 == 0 for width in found.values())
    assert size(smaller) < 0.75 * size(module)
    model = from_bytes(export(smaller, {"image": image}, "pruned"))
    x = np.random.default_rng(0).standard_normal(image.shape).astype(np.float32)
    with torch.no_grad():
        want = smaller(torch.from_numpy(x)).numpy()
    assert np.allclose(next(iter(Reference(model).run({"image": x}).values())), want, atol=1e-3 * np.abs(want).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["efficientnet-lite0", "mobilenet-v2", "ppocr-cls", "ppocr-rec", "squeezenet", "resnet50", "magika"]
)
def test_a_real_model_renders_as_onnxruntime_answers(name: str) -> None:
    entry = zoo_model(name)
    found = ingest(entry.source, inputs=entry.inputs)
    # Construction compares the two and raises where they differ.
    module = OnnxModule(normalise(found.model), found.samples[0])
    assert module.way == "joined"


def test_a_model_with_branches_cannot_be_trained_and_says_so() -> None:
    entry = zoo_model("silero-vad")
    found = ingest(entry.source, inputs=entry.inputs)
    with pytest.raises(RecoverError, match=r"operator If of node '.+' cannot be trained"):
        OnnxModule(normalise(found.model), found.samples[0])
