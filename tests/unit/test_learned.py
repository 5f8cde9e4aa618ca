"""Learned weights: written, read, refused, and put into a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.formats.bundle import digest_of
from host.compress.learned import Learned, changed_weights, decode_learned, encode_learned, load_learned, with_weights
from host.errors import RecipeError
from host.model import Model, to_bytes
from host.passes.normalise import normalise
from tests.graphs import conv_net, model_of

LEARNED = Learned(
    weights={"w1": np.arange(6, dtype=np.float32).reshape(2, 3)}, biases={"b1": np.array([1, 2], np.float32)}
)


@pytest.fixture
def model() -> Model:
    return normalise(model_of(conv_net()))


def test_what_is_written_reads_back_equal() -> None:
    data = encode_learned(LEARNED)
    found = decode_learned(data, digest=digest_of(data), where="r.safetensors")
    assert {name: array.tolist() for name, array in found.weights.items()} == {"w1": [[0, 1, 2], [3, 4, 5]]}
    assert {name: array.tolist() for name, array in found.biases.items()} == {"b1": [1, 2]}
    assert encode_learned(found) == data


def test_nothing_learned_is_no_file() -> None:
    assert encode_learned(Learned()) == b""
    assert not Learned()
    assert LEARNED


def test_another_file_than_the_recipe_names_is_refused() -> None:
    data = encode_learned(LEARNED)
    with pytest.raises(RecipeError, match=r"^r\.safetensors: has digest sha256:.*, the recipe names sha256:0"):
        decode_learned(data, digest="sha256:" + "0" * 64, where="r.safetensors")


@pytest.mark.parametrize("data", [b"", b"junk", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
def test_a_damaged_file_is_refused(data: bytes) -> None:
    with pytest.raises(RecipeError, match=r"^r\.safetensors: not a safetensors file of plain arrays"):
        decode_learned(data, digest=digest_of(data), where="r.safetensors")


def test_a_name_of_another_kind_is_refused() -> None:
    data = encode_learned(Learned(weights={"w": np.zeros(2, np.float32)})).replace(b"weight/w", b"heavy_/w")
    with pytest.raises(RecipeError, match="holds 'heavy_/w'; names begin with weight/ or bias/"):
        decode_learned(data, digest=digest_of(data), where="r.safetensors")


def test_the_file_lies_beside_the_recipe(tmp_path: Path) -> None:
    data = encode_learned(LEARNED)
    (tmp_path / "small.safetensors").write_bytes(data)
    assert load_learned(tmp_path / "small.toml", digest_of(data)).weights.keys() == {"w1"}
    assert not load_learned(tmp_path / "other.toml", "")
    with pytest.raises(RecipeError, match=r"other\.safetensors: cannot read the weights that other\.toml names"):
        load_learned(tmp_path / "other.toml", digest_of(data))


def test_changed_weights_are_found_and_put_back(model: Model) -> None:
    held = model.ir.graph.initializers["w1"].const_value
    assert held is not None
    changed = with_weights(model, {"w1": held.numpy() * 2})
    assert changed_weights(model, changed).keys() == {"w1"}
    assert to_bytes(with_weights(model, changed_weights(model, changed)).ir) == to_bytes(changed.ir)
    assert changed_weights(model, model) == {}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"nobody": np.zeros(1, np.float32)}, "the learned weights hold 'nobody', which model 'small' does not have"),
        (
            {"b1": np.zeros(3, np.float32)},
            "the learned weights hold 'b1' as float32[3], model 'small' has float32[8]",
        ),
        (
            {"b1": np.zeros(8, np.float64)},
            "the learned weights hold 'b1' as float64[8], model 'small' has float32[8]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(model: Model, weights: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        with_weights(model, weights)
    assert str(caught.value) == message
