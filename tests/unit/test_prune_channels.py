"""Removing channels: what is decided, and that the cut graph is the original without them."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal

import numpy as np
import pytest

from host.compare import relative_error
from host.compress import prune
from host.compress.constants import set_constant
from host.compress.prune.channels import decide, kept_count, prunable, structure
from host.compress.recipe import (
    ChannelGroup,
    PruneBlocks,
    PruneChannels,
    PruneTorch,
    PruneWeights,
    Recipe,
    dump_recipe,
    parse_recipe,
)
from host.errors import RecipeError
from host.figures import measure
from host.model import Model, to_bytes, weight_bytes
from host.reference import Reference
from tests.channel_nets import Net, images, without_readers


def silent(_: str) -> None:
    return None


def plain() -> Model:
    net = Net()
    first = net.same("Relu", net.conv("x", 16))
    second = net.same("Relu", net.conv(first, 24, stride=2))
    return net.model(net.gemm(net.flatten(second), 4))


@pytest.mark.parametrize(
    ("size", "ratio", "multiple", "kept"),
    [
        (64, 0.25, 8, 48), (64, 0.2, 8, 48), (24, 0.25, 8, 16), (16, 0.25, 8, 16), (16, 0.9, 8, 8), (8, 0.9, 8, 8),
        (6, 0.5, 8, 6), (10, 0.5, 1, 5), (10, 0.99, 1, 1), (20, 0.0, 8, 20), (20, 0.01, 8, 20), (20, 0.2, 8, 16),
    ],
)  # fmt: skip
def test_kept_channels_are_a_multiple(size: int, ratio: float, multiple: int, kept: int) -> None:
    assert kept_count(size, ratio, multiple=multiple) == kept


def test_weights_activations_and_work_shrink_together() -> None:
    model, samples = plain(), images(4)
    step = decide(model, PruneChannels(ratio=0.5), samples, say=silent)
    assert [len(group.keep) for group in step.groups] == [8, 16]
    pruned = structure(model, step)
    before, after = measure(model, samples[0], timed=False), measure(pruned, samples[0], timed=False)
    assert after.macs < 0.5 * before.macs
    assert after.weight_bytes < 0.5 * before.weight_bytes
    assert after.peak_activation_bytes < before.peak_activation_bytes
    assert after.nodes == before.nodes


@pytest.mark.parametrize("criterion", ["activation", "l1", "l2"])
def test_channels_that_do_nothing_go_first(criterion: Literal["activation", "l1", "l2"]) -> None:
    model = plain()
    weight = model.ir.graph.node(0).inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    array = weight.const_value.numpy().copy()
    dead = [1, 2, 5, 7, 8, 11, 12, 15]
    array[dead] = 0
    set_constant(weight, array)
    step = PruneChannels(ratio=0.5, criterion=criterion, exclude=("conv2",))
    found = decide(model, step, images(4), say=silent)
    assert found.groups == (ChannelGroup(nodes=("conv0",), keep=tuple(sorted(set(range(16)) - set(dead)))),)


def test_a_constant_channel_is_worthless_only_if_a_bias_can_take_its_place() -> None:
    model = plain()
    weight, bias = model.ir.graph.node(0).inputs[1:3]
    assert weight is not None
    assert weight.const_value is not None
    assert bias is not None
    assert bias.const_value is not None
    array, offsets = weight.const_value.numpy().copy(), bias.const_value.numpy().copy()
    array[:8], offsets[:8] = 0, 100
    set_constant(weight, array)
    set_constant(bias, offsets)
    for repair, kept in ((True, range(8, 16)), (False, range(8))):
        step = PruneChannels(ratio=0.5, repair=repair, exclude=("conv2",))
        assert decide(model, step, images(4), say=silent).groups[0].keep == tuple(kept)


def test_channels_that_nobody_reads_leave_without_a_trace() -> None:
    model, samples = plain(), images(4)
    step = decide(model, PruneChannels(ratio=0.5), samples, say=silent)
    unread = without_readers(model, step.groups)
    pruned = structure(unread, step)
    for expected, found in zip(Reference(unread).run_all(samples), Reference(pruned).run_all(samples), strict=True):
        for name, array in expected.items():
            assert relative_error(found[name], array) < 1e-5


def test_literal_channel_counts_in_reshapes_and_splits_are_counted_again() -> None:
    net = Net()
    value = net.conv("x", 16)
    first = net.add("Split", [value, net.constant(np.array([6, 10], np.int64))], (1, 6, 8, 8), axis=1)
    rest = net.also(first, (1, 10, 8, 8))
    left = net.reshape(first, 1, 6, 64)
    right = net.reshape(net.conv(rest, 16, kernel=1), 1, 16 * 64)
    ends = [net.add("ReduceMean", [left, net.constant(np.array([1], np.int64))], (1, 1, 64)), net.gemm(right, 3)]
    model = net.model(*ends)
    step = decide(model, PruneChannels(ratio=0.5, criterion="l1", multiple=2), [], say=silent)
    assert [group.nodes for group in step.groups] == [("conv3",)]
    pruned = structure(model, step)
    assert Reference(pruned).run(images(1)[0])[ends[1]].shape == (1, 3)

    again = net.model(net.conv(first, 4), net.conv(rest, 4))
    step = decide(again, PruneChannels(ratio=0.5, criterion="l1", multiple=2), [], say=silent)
    assert [(group.nodes, len(group.keep)) for group in step.groups] == [(("conv0",), 8)]
    unread = without_readers(again, step.groups)
    expected, found = (Reference(each).run(images(1)[0]) for each in (unread, structure(unread, step)))
    assert all(relative_error(found[name], expected[name]) < 1e-5 for name in expected)


def test_a_constant_that_two_layers_share_is_cut_for_each() -> None:
    net = Net()
    shared = net.vector(16)
    left = net.same("Relu", net.add("Conv", ["x", net.weights(16, 3, 1, 1), shared], (1, 16, 8, 8)))
    right = net.same("Relu", net.add("Conv", ["x", net.weights(16, 3, 1, 1), shared], (1, 16, 8, 8)))
    model = net.model(net.gemm(net.mean(net.concat(left, right)), 4))
    first, second = prunable(model)
    groups = (
        ChannelGroup(nodes=first.nodes, keep=tuple(range(8))),
        ChannelGroup(nodes=second.nodes, keep=tuple(range(4, 16))),
    )
    step = PruneChannels(groups=groups)
    unread = without_readers(model, groups)
    sample = images(1)[0]
    expected, found = (Reference(each).run(sample) for each in (unread, structure(unread, step)))
    assert all(relative_error(found[name], expected[name]) < 1e-5 for name in expected)


def test_ratios_may_differ_by_group() -> None:
    model = plain()
    step = decide(model, PruneChannels(criterion="l2"), [], say=silent, ratios={"conv0": 0.5, "conv2": 0.0})
    assert [(group.nodes, len(group.keep)) for group in step.groups] == [(("conv0",), 8)]
    with pytest.raises(RecipeError, match="'gemm5' is not the first node of a group"):
        decide(model, PruneChannels(criterion="l2"), [], say=silent, ratios={"gemm5": 0.5})


def test_repair_gets_a_bias_to_fill() -> None:
    net = Net()
    model = net.model(net.conv(net.same("Relu", net.conv("x", 16)), 8, bias=False))
    step = decide(model, PruneChannels(ratio=0.5, criterion="l1"), [], say=silent)
    with_bias = structure(model, step).ir.graph
    assert [len(node.inputs) for node in with_bias if node.op_type == "Conv"] == [3, 3]


def test_what_was_decided_survives_the_recipe_and_gives_the_same_bytes() -> None:
    model, samples = plain(), images(4)
    step = decide(model, PruneChannels(ratio=0.5), samples, say=silent)
    again = parse_recipe(dump_recipe(Recipe(prune=(step,))), file="recipe.toml").prune[0]
    assert again == step
    assert prune.decide(model, again, [], say=silent) == step
    assert to_bytes(prune.apply(model, again).ir) == to_bytes(prune.apply(model, step).ir)


@pytest.mark.slow
def test_the_hash_seed_changes_nothing() -> None:
    program = (
        "import hashlib\n"
        "from host.compress.prune.channels import decide, structure\n"
        "from host.compress.recipe import PruneChannels\n"
        "from host.model import to_bytes\n"
        "from tests.channel_nets import images\n"
        "from tests.unit.test_prune_channels import plain, silent\n"
        "step = decide(plain(), PruneChannels(ratio=0.5), images(3), say=silent)\n"
        "print(step, hashlib.sha256(to_bytes(structure(plain(), step).ir)).hexdigest())\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_faults_are_named() -> None:
    model = plain()
    with pytest.raises(RecipeError, match="criterion 'activation' needs samples"):
        decide(model, PruneChannels(ratio=0.5), [], say=silent)
    with pytest.raises(RecipeError, match="'conv9' is no node of this model"):
        decide(model, PruneChannels(exclude=("conv9",)), images(1), say=silent)
    with pytest.raises(RecipeError, match="does not run the samples"):
        decide(model, PruneChannels(ratio=0.5), images(1, side=9), say=silent)
    with pytest.raises(RecipeError, match="needs the PyTorch source"):
        prune.apply(model, PruneTorch())


def test_each_kind_of_step_has_its_way() -> None:
    model, samples = plain(), images(4)
    said: list[str] = []
    for step in (PruneChannels(ratio=0.5), PruneWeights(ratio=0.5)):
        decided = prune.decide(model, step, samples, say=said.append)
        assert weight_bytes(prune.apply(model, decided).ir) <= weight_bytes(model.ir)
    assert any("not the model faster" in line for line in said)
    with pytest.raises(RecipeError, match="0 residual blocks"):
        prune.decide(model, PruneBlocks(), samples, say=said.append)
