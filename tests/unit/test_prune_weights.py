"""Zeroing single weights."""

from __future__ import annotations

import numpy as np
import pytest

from host.compress.prune.weights import compressed_bytes, sparsity, structure
from host.compress.recipe import PruneWeights
from host.errors import RecipeError
from host.model import Model, to_bytes, weight_bytes
from host.passes.normalise import normalise
from tests.graphs import conv_net, model_of


@pytest.fixture
def model() -> Model:
    return normalise(model_of(conv_net()))


def array(model: Model, name: str) -> np.ndarray:
    tensor = model.ir.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def test_small_weights_become_zero_and_large_ones_stay(model: Model) -> None:
    result = structure(model, PruneWeights(threshold=0.2))
    for name in ("w1", "w2", "w3"):
        before, after = array(model, name), array(result, name)
        assert np.array_equal(after, np.where(np.abs(before) >= 0.2, before, 0))


def test_a_share_of_each_tensor_becomes_zero(model: Model) -> None:
    result = structure(model, PruneWeights(ratio=0.75))
    for name in ("w1", "w2", "w3"):
        before, after = array(model, name), array(result, name)
        assert np.count_nonzero(after == 0) == int(0.75 * before.size)
        assert np.abs(before)[after == 0].max() <= np.abs(before)[after != 0].min()
    assert sparsity(result) == pytest.approx(0.75, abs=0.01)
    assert sparsity(model) == 0


def test_biases_stay(model: Model) -> None:
    result = structure(model, PruneWeights(ratio=0.99))
    for name in ("b1", "b2", "b3"):
        assert np.array_equal(array(result, name), array(model, name))


@pytest.mark.parametrize(("kept", "block"), [(2, 4), (1, 4), (1, 3), (3, 16)])
def test_a_pattern_keeps_the_largest_of_each_block_along_the_inputs(model: Model, kept: int, block: int) -> None:
    result = structure(model, PruneWeights(pattern=f"{kept}:{block}"))
    for name in ("w1", "w2", "w3"):
        before, after = (np.moveaxis(array(each, name), 1, -1) for each in (model, result))
        for start in range(0, before.shape[-1], block):
            old, new = before[..., start : start + block], after[..., start : start + block]
            most = min(kept, old.shape[-1])
            assert (np.count_nonzero(new, axis=-1) == most).all()
            assert np.array_equal(
                np.sort(np.abs(new), axis=-1)[..., -most:], np.sort(np.abs(old), axis=-1)[..., -most:]
            )


def test_it_saves_transfer_and_nothing_else(model: Model) -> None:
    result = structure(model, PruneWeights(ratio=0.75))
    assert compressed_bytes(result) < 0.6 * compressed_bytes(model)
    assert weight_bytes(result.ir) == weight_bytes(model.ir)


def test_excluded_nodes_keep_their_weights(model: Model) -> None:
    result = structure(model, PruneWeights(ratio=0.5, exclude=("conv2",)))
    assert np.array_equal(array(result, "w2"), array(model, "w2"))
    assert not np.array_equal(array(result, "w1"), array(model, "w1"))
    with pytest.raises(RecipeError, match="'conv9' is no node of this model"):
        structure(model, PruneWeights(ratio=0.5, exclude=("conv9",)))


def test_no_rule_is_a_fault(model: Model) -> None:
    with pytest.raises(RecipeError, match="one of threshold, ratio and pattern"):
        structure(model, PruneWeights())


def test_the_same_bytes_twice(model: Model) -> None:
    step = PruneWeights(pattern="2:4")
    assert to_bytes(structure(model, step).ir) == to_bytes(structure(model, step).ir)
