"""Least squares after pruning."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from host.compare import cosine
from host.compress import prune
from host.compress.prune import repair as repairing
from host.compress.prune.channels import decide, structure
from host.compress.prune.linear import as_linear
from host.compress.prune.repair import reconstruct, repair
from host.compress.recipe import PruneBlocks, PruneChannels, PruneWeights
from host.errors import RecipeError
from host.ingest import ingest
from host.model import Model, to_bytes
from host.passes.normalise import normalise
from host.passes.optimise import optimize
from host.reference import Reference
from tests.channel_nets import Net, images
from tests.zoo import zoo_model


def silent(_: str) -> None:
    return None


def plain() -> Model:
    """Three convolutions and a classifier, as one takes for digits."""
    net = Net(side=16)
    value = "x"
    for channels in (32, 64, 64):
        value = net.pool(net.same("Relu", net.conv(value, channels)))
    return net.model(net.gemm(net.flatten(value), 10))


def mobile() -> Model:
    """Inverted residuals with depthwise convolutions and a gate."""
    net = Net(side=16)
    value = net.same("Relu", net.conv("x", 16, stride=2))
    for _ in range(2):
        wide = net.same("HardSwish", net.conv(value, 64, kernel=1))
        wide = net.excite(net.same("Relu", net.depthwise(wide)))
        value = net.same("Add", net.conv(wide, 16, kernel=1), value)
    return net.model(net.gemm(net.mean(value), 10, transposed=False))


def closeness(model: Model, original: Model, samples: list[dict[str, np.ndarray]]) -> float:
    first, second = (Reference(each).run_all(samples) for each in (model, original))
    angles = [cosine(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in b]
    return float(np.mean(angles))


@pytest.mark.parametrize("make", [plain, mobile])
def test_the_answers_come_back(make: Callable[[], Model]) -> None:
    model, samples, fresh = make(), images(32, side=16), images(16, seed=9, side=16)
    step = decide(model, PruneChannels(ratio=0.5), samples, say=silent)
    pruned = structure(model, step)
    repaired = repair(pruned, model, step, samples, say=silent)
    before, after = (1 - closeness(each, model, fresh) for each in (pruned, repaired))
    assert after < before / 4
    assert after < 0.1


def test_a_quarter_of_the_channels_is_hardly_missed_after_repair() -> None:
    model, samples, fresh = plain(), images(32, side=16), images(16, seed=9, side=16)
    step = decide(model, PruneChannels(ratio=0.25, criterion="l2"), samples, say=silent)
    pruned = structure(model, step)
    repaired = repair(pruned, model, step, samples, say=silent)
    assert closeness(pruned, model, fresh) < 0.95
    assert closeness(repaired, model, fresh) > 0.98


def test_only_values_change() -> None:
    model, samples = mobile(), images(8, side=16)
    step = decide(model, PruneChannels(ratio=0.5), samples, say=silent)
    pruned = structure(model, step)
    repaired = repair(pruned, model, step, samples, say=silent)
    assert [node.name for node in repaired.ir.graph] == [node.name for node in pruned.ir.graph]
    for (name, old), (other, new) in zip(
        pruned.ir.graph.initializers.items(), repaired.ir.graph.initializers.items(), strict=True
    ):
        assert name == other
        assert old.const_value is not None
        assert new.const_value is not None
        assert old.const_value.shape == new.const_value.shape
        assert old.const_value.dtype == new.const_value.dtype


def test_the_same_bytes_twice_and_the_models_stay_as_they_were() -> None:
    model, samples = plain(), images(6, side=16)
    step = decide(model, PruneChannels(ratio=0.5), samples, say=silent)
    pruned = structure(model, step)
    before = to_bytes(pruned.ir), to_bytes(model.ir)
    results = [to_bytes(repair(pruned, model, step, samples, say=silent).ir) for _ in range(2)]
    assert results[0] == results[1]
    assert (to_bytes(pruned.ir), to_bytes(model.ir)) == before


def test_nothing_removed_is_nothing_to_repair() -> None:
    model = plain()
    said: list[str] = []
    assert to_bytes(repair(model, model, PruneChannels(), images(2, side=16), say=said.append).ir) == to_bytes(model.ir)
    assert said == ["prune: nothing to repair"]


def test_one_sample_is_enough_to_run() -> None:
    model, samples = plain(), images(1, side=16)
    step = decide(model, PruneChannels(ratio=0.25), samples, say=silent)
    repaired = repair(structure(model, step), model, step, samples, say=silent)
    assert closeness(repaired, model, samples) > 0.9


def test_memory_bounds_the_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairing, "MAX_ALIVE_BYTES", 1 << 20)
    model, samples = plain(), images(80, side=16)
    step = decide(model, PruneChannels(ratio=0.25), samples, say=silent)
    said: list[str] = []
    repair(structure(model, step), model, step, samples, say=said.append)
    assert "within 1 MiB with" in said[0]


def test_reconstruction_follows_any_mix_of_steps() -> None:
    model, samples, fresh = mobile(), images(16, side=16), images(16, seed=9, side=16)
    channels = decide(model, PruneChannels(ratio=0.25, criterion="l2"), samples, say=silent)
    current = structure(model, channels)
    for step in (PruneBlocks(), PruneWeights(ratio=0.3)):
        current = prune.apply(current, prune.decide(current, step, samples, say=silent))
    kept = {node: group.keep for group in channels.groups for node in group.nodes}
    rebuilt = reconstruct(current, model, samples, channels=kept, say=silent)
    assert 1 - closeness(rebuilt, model, fresh) < (1 - closeness(current, model, fresh)) / 2


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 0, 2, 1], "strides": [2, 1]},
        {"dilations": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [1, 2]},
        {"auto_pad": "VALID"},
        {"group": 2, "pads": [1, 1, 1, 1]},
    ],
)
def test_rows_times_matrix_is_the_convolution(attributes: dict[str, object]) -> None:
    net = Net(channels=4)
    weight = net.weights(6, 2 if "group" in attributes else 4, 3, 3)
    model = net.model(net.add("Conv", ["x", weight, net.vector(6)], (), **attributes))
    sample = images(1, channels=4)[0]
    made = Reference(model).run(sample)["conv0"]
    layer = as_linear(model.ir.graph.node(0))
    assert layer is not None
    at = layer.positions(made, 40, np.random.default_rng(0))
    answers = layer.rows(sample["x"], made.shape, at) @ layer.matrix() + layer.offsets()[:, None]
    assert np.allclose(answers, layer.answers(made, at), atol=1e-5)
    assert np.array_equal(layer.array(layer.matrix()), np.asarray(layer.weight.const_value))


def test_faults_are_named() -> None:
    model = plain()
    step = PruneChannels()
    with pytest.raises(RecipeError, match="repair needs samples"):
        repair(model, model, step, [], say=silent)
    with pytest.raises(RecipeError, match="reconstruct needs samples"):
        reconstruct(model, model, [], channels={}, say=silent)
    cut = decide(model, PruneChannels(ratio=0.5, criterion="l1"), [], say=silent)
    with pytest.raises(RecipeError, match="the models do not run the samples"):
        repair(structure(model, cut), model, cut, images(1, side=16, channels=4), say=silent)


@pytest.mark.slow
def test_a_real_network_keeps_its_answers() -> None:
    source = zoo_model("efficientnet-lite0")
    found = ingest(source.source, inputs=source.inputs)
    samples, fresh = found.samples[:32], found.holdout[:32]
    model, _ = optimize(normalise(found.model), samples[:1])
    step = decide(model, PruneChannels(ratio=0.25), samples, say=silent)
    step = msgspec.structs.replace(step, groups=tuple(group for group in step.groups if len(group.nodes) == 1))
    pruned = structure(model, step)
    repaired = repair(pruned, model, step, samples, say=silent)
    expected = [next(iter(answer.values())) for answer in Reference(model).run_all(fresh)]

    def agreement(candidate: Model) -> float:
        answers = [next(iter(answer.values())) for answer in Reference(candidate).run_all(fresh)]
        return float(np.mean([a.argmax() == b.argmax() for a, b in zip(answers, expected, strict=True)]))

    assert agreement(pruned) < 0.5
    assert agreement(repaired) > 0.8
