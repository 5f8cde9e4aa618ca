"""Which nodes suffer most from being quantized."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from host.compress.quantize import quantize
from host.compress.quantize import sensitivity as module
from host.compress.quantize.sensitivity import sensitivity
from host.compress.recipe import Mode, Quantize
from host.errors import QuantizeError
from host.model import Model
from tests.fidelity import fidelity
from tests.wide_graphs import graph_of, pictures, weights, wide_net

SAMPLES = pictures(12)


def fragile_chain() -> Model:
    """Three convolutions; the input of the second has one channel that is a thousand times the others."""
    rng = np.random.default_rng(0)
    wide = np.ones(8, np.float32)
    wide[5] = 1000
    constants: dict[str, np.ndarray] = {
        "w1": weights(rng, 8, 3, 3, 3) * wide.reshape(-1, 1, 1, 1),
        "w2": weights(rng, 8, 8, 3, 3) / wide.reshape(1, -1, 1, 1),
        "w3": weights(rng, 8, 8, 3, 3),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "wide"),
        helper.make_node("Sigmoid", ["c1"], ["s1"], "squash"),
        helper.make_node("Mul", ["s1", "c1"], ["m"], "swish"),
        helper.make_node("Conv", ["m", "w2"], ["c2"], "reads_wide"),
        helper.make_node("Relu", ["c2"], ["r2"], "relu"),
        helper.make_node("Conv", ["r2", "w3"], ["y"], "calm"),
    ]
    return graph_of(nodes, constants, shape=[1, 3, 12, 12])


def linear_chain(count: int) -> Model:
    """MatMuls; in the third, a large weight on an input that is always zero spoils the steps of each column."""
    rng = np.random.default_rng(0)
    constants = {f"w{i}": weights(rng, 32, 32) for i in range(count)}
    constants["w1"][:, 0] = 0
    constants["w2"][0] = 12.0
    tensors = ["x", *(f"h{i}" for i in range(count - 1)), "y"]
    nodes = [helper.make_node("MatMul", [tensors[i], f"w{i}"], [tensors[i + 1]], f"product{i}") for i in range(count)]
    return graph_of(nodes, constants, shape=[1, 4, 32])


def test_the_worst_node_is_first_and_ranks_count_from_one() -> None:
    found = sensitivity(fragile_chain(), Quantize(), SAMPLES)
    assert found[0].node in {"wide", "swish", "reads_wide"}
    assert [entry.rank for entry in found] == list(range(1, len(found) + 1))
    assert [entry.loss for entry in found] == sorted((entry.loss for entry in found), reverse=True)
    assert next(entry for entry in found if entry.node == "calm").rank > 3
    assert {entry.method for entry in found} == {"alone"}
    assert {entry.operator for entry in found} == {"Conv", "Sigmoid", "Mul"}


def test_sparing_the_first_helps_more_than_sparing_the_last() -> None:
    model = fragile_chain()
    order = [entry.node for entry in sensitivity(model, Quantize(), SAMPLES)]
    losses = [
        1 - fidelity(model, quantize(model, Quantize(exclude=tuple(spared)), SAMPLES).model, SAMPLES).cosine
        for spared in (order[:4], order[-1:])
    ]
    assert losses[0] < 0.001
    assert losses[1] > 0.5


@pytest.mark.parametrize("mode", ["int8-dynamic", "int4"])
def test_other_modes_rank_their_products(mode: Mode) -> None:
    model = linear_chain(5)
    rng = np.random.default_rng(3)
    samples = [{"x": rng.standard_normal((1, 4, 32)).astype(np.float32)} for _ in range(4)]
    found = sensitivity(model, Quantize(mode=mode), samples)
    assert len(found) == 5
    assert found[0].node == "product2"


def test_equalization_is_taken_into_account() -> None:
    plain, balanced = (sensitivity(wide_net(), Quantize(equalize=e), SAMPLES) for e in (False, True))
    assert balanced[0].snr_db > plain[0].snr_db + 6


def test_many_nodes_go_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ALONE", 3)
    monkeypatch.setattr(module, "GROUPS", 3)
    said: list[str] = []
    found = sensitivity(fragile_chain(), Quantize(), SAMPLES, say=said.append)
    assert {entry.method for entry in found} == {"group"}
    assert said == [f"sensitivity of group {i} of 3" for i in (1, 2, 3)]
    assert found[0].node in {"wide", "swish", "reads_wide"}
    assert len(found) == 5


def test_groups_work_for_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ALONE", 3)
    monkeypatch.setattr(module, "GROUPS", 2)
    rng = np.random.default_rng(3)
    samples = [{"x": rng.standard_normal((1, 4, 32)).astype(np.float32)} for _ in range(4)]
    found = sensitivity(linear_chain(6), Quantize(mode="int4"), samples)
    assert found[0].node == "product2"


def test_excluded_nodes_are_not_ranked() -> None:
    found = sensitivity(fragile_chain(), Quantize(exclude=("wide",)), SAMPLES)
    assert "wide" not in {entry.node for entry in found}


def test_the_same_ranking_each_time() -> None:
    model = fragile_chain()
    assert sensitivity(model, Quantize(), SAMPLES) == sensitivity(model, Quantize(), SAMPLES)


def test_without_inputs_it_says_what_to_pass() -> None:
    with pytest.raises(QuantizeError, match="sensitivity needs inputs: pass --inputs"):
        sensitivity(fragile_chain(), Quantize(), ())
