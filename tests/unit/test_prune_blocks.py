"""Dropping residual branches."""

from __future__ import annotations

import numpy as np
import pytest

from host.compare import relative_error
from host.compress.prune.blocks import decide, find_blocks, structure
from host.compress.recipe import PruneBlocks
from host.errors import RecipeError
from host.figures import measure
from host.model import Model, to_bytes
from host.reference import Reference
from tests.channel_nets import Net, images


def silent(_: str) -> None:
    return None


def residual(*scales: float) -> tuple[Model, list[str]]:
    """A net with one residual block for each scale, by which its branch is multiplied, and the names of the sums."""
    net = Net()
    value = net.conv("x", 8)
    sums = []
    for scale in scales:
        inner = net.conv(net.same("Relu", net.conv(value, 8)), 8)
        value = net.same("Add", value, net.same("Mul", inner, net.constant(np.array(scale, np.float32))))
        sums.append(value)
    return net.model(net.gemm(net.mean(net.same("Relu", value)), 4)), sums


def test_branches_are_found_in_order() -> None:
    model, sums = residual(1, 1, 1)
    assert [block.add.name for block in find_blocks(model.ir)] == sums
    assert [block.nodes for block in find_blocks(model.ir)] == [5, 5, 5]


def test_the_branch_that_does_least_goes_first() -> None:
    model, sums = residual(1, 0.001, 0.1)
    step = decide(model, PruneBlocks(count=2), images(4), say=silent)
    assert step.blocks == (sums[1], sums[2])


def test_a_branch_that_does_nothing_leaves_without_a_trace() -> None:
    model, sums = residual(1, 0)
    shorter = structure(model, PruneBlocks(blocks=(sums[1],)))
    sample = images(1)[0]
    expected, found = Reference(model).run(sample), Reference(shorter).run(sample)
    assert all(relative_error(found[name], expected[name]) < 1e-6 for name in expected)
    before, after = measure(model, sample, timed=False), measure(shorter, sample, timed=False)
    assert after.nodes == before.nodes - 5
    assert after.macs < before.macs
    assert after.weight_bytes < before.weight_bytes


def test_all_branches_can_go() -> None:
    model, _ = residual(1, 1)
    step = decide(model, PruneBlocks(count=2), images(2), say=silent)
    left = structure(model, step)
    assert [node.op_type for node in left.ir.graph] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    with pytest.raises(RecipeError, match="has 2 residual blocks that can be dropped, not 3"):
        decide(model, PruneBlocks(count=3), images(2), say=silent)


def test_a_projection_or_a_second_entry_is_no_block() -> None:
    net = Net()
    value = net.conv("x", 8)
    projected = net.same("Add", net.conv(value, 16, kernel=1), net.conv(value, 16))
    other = net.conv("x", 16)
    entered = net.same("Add", projected, net.same("Mul", net.conv(projected, 16), other))
    wide = net.conv(entered, 16, kernel=1)
    watched = net.same("Add", entered, wide)
    model = net.model(net.conv(watched, 4), wide)
    assert find_blocks(model.ir) == ()


def test_faults_are_named() -> None:
    model, _ = residual(1)
    with pytest.raises(RecipeError, match="decided on samples"):
        decide(model, PruneBlocks(), [], say=silent)
    with pytest.raises(RecipeError, match="'conv0' is no residual sum"):
        structure(model, PruneBlocks(blocks=("conv0",)))


def test_the_same_bytes_twice() -> None:
    model, sums = residual(1, 1)
    step = PruneBlocks(blocks=(sums[0],))
    assert to_bytes(structure(model, step).ir) == to_bytes(structure(model, step).ir)
