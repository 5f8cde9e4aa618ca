"""4-bit weights in blocks."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from host.compress.quantize import quantize
from host.compress.quantize.weight_only import in_blocks
from host.compress.recipe import Quantize
from host.errors import QuantizeError, RecipeError
from host.model import Model, to_bytes, weight_bytes
from host.passes.normalise import normalise
from host.reference import Mode, Reference
from tests.fidelity import fidelity
from tests.graphs import model_of
from tests.wide_graphs import graph_of, weights


def plan(**fields: object) -> Quantize:
    return Quantize(mode="int4", **fields)  # type: ignore[arg-type]


def product(inputs: int, outputs: int, *, seed: int = 0) -> Model:
    matrix = weights(np.random.default_rng(seed), inputs, outputs)
    return graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], {"w": matrix}, shape=[1, 2, inputs])


def rows(inputs: int, count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    return [{"x": rng.standard_normal((1, 2, inputs)).astype(np.float32)} for _ in range(count)]


def weight(model: Model, name: str = "w") -> np.ndarray:
    value = model.ir.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [16, 17, 40, 64])
def test_numbers_are_within_half_a_step(bits: int, columns: int) -> None:
    matrix = weights(np.random.default_rng(0), 5, columns)
    blocks = in_blocks(matrix, 16, bits)
    steps = np.repeat(blocks.scales, 16, axis=1)[:, :columns]
    # The zero point is rounded too, so the ends of a block may be a step and a half of rounding away.
    assert (np.abs(blocks.dequantized(columns) - matrix) <= steps * 1.001).all()
    assert float(np.mean(np.abs(blocks.dequantized(columns) - matrix) / steps)) < 0.3


def test_a_block_of_one_sign_uses_every_level() -> None:
    blocks = in_blocks(np.linspace(0, 3, 16, dtype=np.float32).reshape(1, 16), 16, 4)
    assert sorted(blocks.numbers.ravel()) == list(range(16))


@pytest.mark.parametrize("mode", ["exact", "default"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [32, 48, 100, 256])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
def test_the_kernel_computes_what_the_numbers_say(mode: Mode, bits: int, inputs: int, block_size: int) -> None:
    model = product(inputs, 24)
    result = quantize(model, plan(block_size=block_size, wider=("product",) if bits == 8 else ()), ()).model
    matrix = in_blocks(weight(model).T, block_size, bits).dequantized(inputs).T
    for sample in rows(inputs):
        want = sample["x"] @ matrix
        found = Reference(result, mode=mode).run(sample)["y"]
        # Activations are rounded to 8 bits inside.
        assert np.abs(found - want).max() < 0.02 * np.abs(want).max()


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_keeps_its_factors_and_its_bias(transposed: int) -> None:
    rng = np.random.default_rng(0)
    matrix = weights(rng, 24, 64) if transposed else weights(rng, 64, 24)
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], "gemm", transB=transposed, alpha=0.25, beta=3.0),
    ]
    model = graph_of(nodes, {"w": matrix, "b": rng.standard_normal(24).astype(np.float32)}, shape=[1, 2, 32])
    result = quantize(model, plan(), ()).model
    assert [node.op_type for node in result.ir.graph] == ["Flatten", "MatMulNBits", "Add"]
    assert fidelity(model, result, rows(32)).worst_cosine > 0.99


def embedding(columns: int = 40, *, lookups: int = 1) -> Model:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Cast", ["x"], ["ids"], "ids", to=7)]
    nodes += [helper.make_node("Gather", ["table", "ids"], [f"e{i}"], f"lookup{i}") for i in range(lookups)]
    nodes += [helper.make_node("Neg", [f"e{lookups - 1}"], ["y"], "neg")]
    return graph_of(nodes, {"table": weights(rng, 50, columns)}, shape=[1, 6])


IDS = {"x": np.array([[0, 3, 49, 7, 7, 12]], np.float32)}


@pytest.mark.parametrize("mode", ["exact", "default"])
@pytest.mark.parametrize("columns", [32, 40, 41])
def test_embeddings_are_looked_up_in_four_bits(mode: Mode, columns: int) -> None:
    model = embedding(columns)
    result = quantize(model, plan(block_size=16), ()).model
    assert "GatherBlockQuantized" in {node.op_type for node in result.ir.graph}
    table = in_blocks(weight(model, "table"), 16, 4).dequantized(columns)
    found = Reference(result, mode=mode).run(IDS)["y"]
    assert np.abs(found + table[IDS["x"].astype(int)]).max() < 1e-6
    assert weight_bytes(result.ir) < 0.4 * weight_bytes(model.ir)


def test_a_wider_embedding_has_eight_bits() -> None:
    model = embedding()
    result = quantize(model, plan(wider=("lookup0",)), ()).model
    losses = [
        fidelity(model, candidate, [IDS]).max_relative_error
        for candidate in (quantize(model, plan(), ()).model, result)
    ]
    assert losses[1] < 0.1 * losses[0]
    assert weight_bytes(result.ir) < 0.4 * weight_bytes(model.ir)


def test_two_lookups_share_one_table() -> None:
    one, two = (quantize(embedding(lookups=n), plan(), ()).model for n in (1, 2))
    assert weight_bytes(two.ir) == weight_bytes(one.ir)


def test_embeddings_can_be_left_alone() -> None:
    with pytest.raises(QuantizeError, match="has no operator that int4 can hold"):
        quantize(embedding(), plan(embeddings=False), ())


def test_wider_and_excluded_nodes_are_closer_and_larger() -> None:
    model = product(256, 24)
    narrow, wide = quantize(model, plan(), ()).model, quantize(model, plan(wider=("product",)), ()).model
    assert weight_bytes(narrow.ir) < 0.2 * weight_bytes(model.ir) < weight_bytes(wide.ir)
    errors = [fidelity(model, candidate, rows(256)).max_relative_error for candidate in (narrow, wide)]
    assert errors[1] < errors[0]


def test_small_matrices_and_excluded_nodes_stay() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], "one"),
        helper.make_node("MatMul", ["a", "w2"], ["b"], "two"),
        helper.make_node("MatMul", ["b", "w3"], ["y"], "three"),
    ]
    constants = {"w1": weights(rng, 32, 32), "w2": weights(rng, 32, 32), "w3": weights(rng, 32, 4)}
    model = graph_of(nodes, constants, shape=[1, 2, 32])
    found = [node.op_type for node in quantize(model, plan(exclude=("one",)), ()).model.ir.graph]
    assert found == ["MatMul", "MatMulNBits", "MatMul"]


def test_weights_of_eight_bits_are_those_of_a_plan_that_calls_every_node_wider() -> None:
    model = product(64, 24)
    wide = quantize(model, plan(wider=("product",)), ()).model
    assert to_bytes(quantize(model, Quantize(mode="int8-weights"), ()).model.ir) == to_bytes(wide.ir)


@pytest.mark.parametrize("field", ["exclude", "wider"])
def test_a_node_that_is_not_there_is_named(field: str) -> None:
    with pytest.raises(RecipeError, match=f"quantize.{field}: the model has no node 'nobody'"):
        quantize(product(32, 32), plan(**{field: ("nobody",)}), ())


def test_the_same_bytes_each_time_and_the_model_is_not_changed() -> None:
    model = product(48, 32)
    before = to_bytes(model.ir)
    assert to_bytes(quantize(model, plan(), ()).model.ir) == to_bytes(quantize(model, plan(), rows(48)).model.ir)
    assert to_bytes(model.ir) == before


def test_a_model_without_products_is_refused() -> None:
    model = normalise(model_of("main (float[1,3] x) => (float[1,3] y) { y = Sin (x) }"))
    with pytest.raises(QuantizeError, match="has no operator that int4 can hold"):
        quantize(model, plan(), ())
