"""From a model and a recipe to the model that is cut, and again from the decided recipe without data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from host.compress.learned import decode_learned
from host.compress.pipeline import Compressed, compress
from host.compress.recipe import (
    PruneChannels,
    PruneTorch,
    PruneWeights,
    Quantize,
    Recipe,
    Recover,
    dump_recipe,
    parse_recipe,
)
from host.errors import RecipeError
from host.model import Golden, Ingested, Model, Tensors, to_bytes
from host.reference import Reference
from tests.graphs import conv_net, model_of, photos

NONE = Quantize(mode="none")
INT8 = Quantize(correct_bias=True, equalize=True)


def ingested(samples: Sequence[Tensors]) -> Ingested:
    model: Model = model_of(conv_net())
    golden = Golden(inputs=photos(1)[0], outputs=Reference(model).run(photos(1)[0]))
    return Ingested(model=model, samples=tuple(samples), golden=(golden,))


def replayed(made: Compressed) -> Compressed:
    """Compress again with what was written down, and one sample for the checks of the passes."""
    recipe = parse_recipe(dump_recipe(made.recipe), file="r.toml")
    data = made.learned_bytes
    learned = decode_learned(data, digest=recipe.learned, where="r.safetensors") if data else None
    return compress(ingested(photos(1)), recipe, samples=(), learned=learned)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(quantize=NONE),
        Recipe(quantize=INT8),
        Recipe(quantize=Quantize(mode="int8-dynamic")),
        Recipe(quantize=Quantize(mode="float16")),
        Recipe(quantize=NONE, wire="float16"),
        Recipe(prune=(PruneWeights(ratio=0.5),), quantize=INT8),
        Recipe(prune=(PruneChannels(ratio=0.5, multiple=2),), quantize=NONE),
        Recipe(
            prune=(PruneChannels(ratio=0.25, multiple=2), PruneWeights(pattern="2:4")),
            recover=(Recover(method="batch-norm"),),
            quantize=INT8,
        ),
    ],
    ids=lambda recipe: f"{recipe.quantize.mode}-{len(recipe.prune)}-{recipe.wire}",
)
def test_a_decided_recipe_gives_the_same_bytes_without_data(recipe: Recipe) -> None:
    made = compress(ingested(photos(16)), recipe)
    again = replayed(made)
    assert to_bytes(again.model.ir) == to_bytes(made.model.ir)
    assert again.recipe == made.recipe
    assert again.learned_bytes == made.learned_bytes


def test_pruned_channels_are_gone_from_the_file() -> None:
    made = compress(ingested(photos(16)), Recipe(prune=(PruneChannels(ratio=0.5, multiple=2),), quantize=NONE))
    whole = compress(ingested(photos(16)), Recipe(quantize=NONE))
    assert len(to_bytes(made.model.ir)) < 0.6 * len(to_bytes(whole.model.ir))
    assert made.model.ir.graph.outputs[0].name == "y"


def test_zeros_survive_what_comes_after_them() -> None:
    recipe = Recipe(prune=(PruneWeights(ratio=0.5),), recover=(Recover(method="batch-norm"),), quantize=NONE)
    made = compress(ingested(photos(16)), recipe)
    held = made.shrunk.ir.graph.initializers["w2"].const_value
    assert held is not None
    assert np.mean(held.numpy() == 0) >= 0.5


def test_half_precision_wire_leaves_inputs_and_outputs_alone() -> None:
    made = compress(ingested(photos(4)), Recipe(quantize=NONE, wire="float16"))
    assert made.model.ir.graph.inputs[0].dtype is not None
    assert made.model.ir.graph.inputs[0].dtype.name == "FLOAT"
    assert Reference(made.model).run(photos(1)[0])["y"].dtype == np.float32


def test_torch_channels_need_a_module() -> None:
    with pytest.raises(RecipeError, match=r"torch-channels need a PyTorch model, given as package\.module:factory"):
        compress(ingested(photos(2)), Recipe(prune=(PruneTorch(),), quantize=NONE))


def test_torch_channels_come_first() -> None:
    with pytest.raises(RecipeError, match="torch-channels come before every other step"):
        compress(ingested(photos(2)), Recipe(prune=(PruneWeights(ratio=0.5), PruneTorch()), quantize=NONE))


def test_the_model_that_came_in_stays_as_it_was() -> None:
    source = ingested(photos(8))
    before = to_bytes(source.model.ir)
    compress(source, Recipe(prune=(PruneChannels(multiple=2),), quantize=INT8))
    assert to_bytes(source.model.ir) == before


def test_the_original_is_kept_for_comparison() -> None:
    made = compress(ingested(photos(8)), Recipe(quantize=INT8))
    sample = photos(1, seed=3)[0]
    assert np.allclose(Reference(made.original).run(sample)["y"], Reference(model_of(conv_net())).run(sample)["y"])
    assert onnx.load_model_from_string(to_bytes(made.model.ir)).graph.node
