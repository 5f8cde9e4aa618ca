"""Static int8 quantization of a small net."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

from host.compress.measure import fidelity
from host.compress.quantize import quantize
from host.compress.recipe import Quantize, Recipe, Variant, dump_recipe, parse_recipe
from host.errors import QuantizeError, RecipeError
from host.model import Model, to_bytes
from host.passes.fuse import fuse
from host.passes.normalise import normalise
from host.reference import Reference
from tests.graphs import conv_net, model_of, photos

SAMPLES = photos(8)


@pytest.fixture
def model() -> Model:
    return normalise(model_of(conv_net()))


def recipe(variant: Variant = "u8s8-reduce-range", **fields: object) -> Recipe:
    return Recipe(quantize=Quantize(variant=variant, **fields))  # type: ignore[arg-type]


def int8_weights(model: Model) -> dict[str, np.ndarray]:
    constants = {
        name: value.const_value.numpy()
        for name, value in model.ir.graph.initializers.items()
        if value.const_value is not None
    }
    return {name: array for name, array in constants.items() if array.dtype == np.int8 and array.ndim >= 2}


@pytest.mark.parametrize("variant", ["u8s8-reduce-range", "u8s8", "s8s8"])
def test_answers_stay_close(model: Model, variant: Variant) -> None:
    result, _ = quantize(model, recipe(variant), SAMPLES)
    assert fidelity(model, result, photos(8, seed=5)).worst_cosine > 0.995


def test_every_weight_is_int8_and_scaled_per_channel(model: Model) -> None:
    result, _ = quantize(model, recipe("u8s8"), SAMPLES)
    weights = int8_weights(result)
    assert len(weights) == 3
    scales = [value.shape for name, value in result.ir.graph.initializers.items() if name.startswith("w1_scale")]
    assert [list(shape) for shape in scales if shape is not None] == [[8]]


def test_a_reduced_range_uses_seven_bits(model: Model) -> None:
    reduced, _ = quantize(model, recipe("u8s8-reduce-range"), SAMPLES)
    full, _ = quantize(model, recipe("u8s8"), SAMPLES)
    assert max(int(np.abs(array).max()) for array in int8_weights(reduced).values()) == 64
    assert max(int(np.abs(array).max()) for array in int8_weights(full).values()) == 127


def test_signed_activations_stay_signed_through_fusion(model: Model) -> None:
    result, _ = quantize(model, recipe("s8s8"), SAMPLES)
    fused, _ = fuse(result, SAMPLES)
    zero_points = [
        value.dtype.name
        for name, value in fused.ir.graph.initializers.items()
        if "zero_point" in name and value.dtype is not None
    ]
    assert zero_points
    assert set(zero_points) <= {"INT8", "INT32"}


def test_replaying_the_recipe_needs_no_inputs_and_gives_the_same_bytes(model: Model) -> None:
    result, used = quantize(model, recipe(), SAMPLES)
    read_back = parse_recipe(dump_recipe(used), file="r.toml")
    replayed, again = quantize(model, read_back, ())
    assert to_bytes(replayed.ir) == to_bytes(result.ir)
    assert again == used


def test_other_processes_give_the_same_bytes(model: Model) -> None:
    program = (
        "import hashlib\n"
        "from host.compress.quantize import quantize\n"
        "from host.compress.recipe import Recipe\n"
        "from host.model import to_bytes\n"
        "from host.passes.fuse import fuse\n"
        "from host.passes.normalise import normalise\n"
        "from tests.graphs import conv_net, model_of, photos\n"
        "samples = photos(8)\n"
        "result, _ = quantize(normalise(model_of(conv_net())), Recipe(), samples)\n"
        "print(hashlib.sha256(to_bytes(fuse(result, samples)[0].ir)).hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_the_types_of_the_recipe_are_used(model: Model) -> None:
    _, used = quantize(model, recipe("u8s8"), SAMPLES)
    mixed = msgspec.structs.replace(
        used,
        quantize=msgspec.structs.replace(
            used.quantize,
            ranges=tuple(
                msgspec.structs.replace(entry, dtype="int8") if entry.tensor == "x" else entry
                for entry in used.quantize.ranges
            ),
        ),
    )
    result, _ = quantize(model, mixed, ())
    dtype = result.ir.graph.initializers["x_zero_point"].dtype
    assert dtype is not None
    assert dtype.name == "INT8"


def test_excluded_nodes_stay_in_fp32(model: Model) -> None:
    result, _ = quantize(model, recipe(exclude=("conv1",)), SAMPLES)
    assert result.ir.graph.initializers["w1"].dtype is not None
    assert len(int8_weights(result)) == 2


def test_ranges_are_the_extremes_seen(model: Model) -> None:
    _, used = quantize(model, recipe(), SAMPLES)
    ranges = {entry.tensor: entry for entry in used.quantize.ranges}
    values = [Reference(model, extra_outputs=["c1"]).run(sample)["c1"] for sample in SAMPLES]
    assert ranges["c1"].low == min(float(value.min()) for value in values)
    assert ranges["c1"].high == max(float(value.max()) for value in values)
    assert ranges["x"].low == min(float(sample["x"].min()) for sample in SAMPLES)


def test_percentiles_are_narrower_than_extremes(model: Model) -> None:
    _, extremes = quantize(model, recipe(), SAMPLES)
    _, narrow = quantize(model, recipe(calibration="percentile", percentile=90.0), SAMPLES)
    widths = [{entry.tensor: entry.high - entry.low for entry in used.quantize.ranges} for used in (extremes, narrow)]
    assert 0.3 * widths[0]["c1"] < widths[1]["c1"] < 0.9 * widths[0]["c1"]


def test_nothing_is_done_when_the_recipe_says_none(model: Model) -> None:
    asked = recipe(mode="none")
    assert quantize(model, asked, ()) == (model, asked)


def test_ranges_of_another_model_are_refused(model: Model) -> None:
    _, used = quantize(model, recipe(), SAMPLES)
    other = normalise(model_of(conv_net(seed=9)))
    with pytest.raises(RecipeError, match=r"^the ranges of the recipe were calibrated for model sha256:.*, this one"):
        quantize(other, used, SAMPLES)


def test_a_range_that_is_missing_is_named(model: Model) -> None:
    _, used = quantize(model, recipe(), SAMPLES)
    kept = tuple(entry for entry in used.quantize.ranges if entry.tensor != "c2")
    cut = msgspec.structs.replace(used, quantize=msgspec.structs.replace(used.quantize, ranges=kept))
    with pytest.raises(QuantizeError, match="c2"):
        quantize(model, cut, ())


def test_an_excluded_node_that_is_not_there_is_named(model: Model) -> None:
    with pytest.raises(RecipeError) as caught:
        quantize(model, recipe(exclude=("nobody",)), SAMPLES)
    assert str(caught.value) == "quantize.exclude: the model has no node 'nobody'"


def test_calibration_without_inputs_says_what_to_pass(model: Model) -> None:
    with pytest.raises(QuantizeError, match="calibration needs inputs: pass --inputs"):
        quantize(model, recipe(), ())


def test_a_tensor_that_is_not_finite_is_named() -> None:
    log = normalise(model_of("main (float[1,3] x) => (float[1,3] y) { t = Log (x)\n y = Add (t, x) }"))
    with pytest.raises(QuantizeError, match="tensor 't' is not finite on a calibration input"):
        quantize(log, recipe(), [{"x": np.array([[0.0, 1.0, -1.0]], np.float32)}])


def test_a_model_without_anything_to_quantize_is_refused() -> None:
    model = normalise(model_of("main (float[1,3] x) => (float[1,3] y) { y = Sin (x) }"))
    with pytest.raises(QuantizeError) as caught:
        quantize(model, recipe(), [{"x": np.ones((1, 3), np.float32)}])
    assert str(caught.value) == "model 'small' has no operator that int8 can hold: use --quantize none"


def test_an_old_opset_is_converted() -> None:
    proto = conv_net()
    proto.opset_import[0].version = 11
    model = normalise(model_of(proto))
    result, _ = quantize(model, recipe(), SAMPLES)
    assert result.ir.opset_imports[""] == 13
    assert fidelity(model, result, SAMPLES).worst_cosine > 0.99


def test_an_old_opset_that_cannot_be_converted_is_named() -> None:
    proto = conv_net()
    proto.opset_import[0].version = 11
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.graph.node.append(helper.make_node("Upsample", ["a"], ["up"], scales=[1.0, 1.0, 2.0, 2.0]))
    proto.graph.output.append(helper.make_tensor_value_info("up", onnx.TensorProto.FLOAT, None))
    with pytest.raises(QuantizeError, match="model 'small' has opset 11, int8 needs 13, and it cannot be converted"):
        quantize(normalise(model_of(proto)), recipe(), SAMPLES)


def test_the_model_that_came_in_stays_as_it_was(model: Model) -> None:
    before = to_bytes(model.ir)
    quantize(model, recipe(), SAMPLES)
    assert to_bytes(model.ir) == before
