"""Static int8 quantization of a small net, through the one entry of all modes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from host.compress.quantize import QUANTIZERS, quantize
from host.compress.recipe import MODES, Quantize, Recipe, Variant, dump_recipe, parse_recipe
from host.errors import QuantizeError, RecipeError
from host.model import Model, to_bytes
from host.passes.fuse import fuse
from host.passes.normalise import normalise
from host.reference import Reference
from tests.fidelity import fidelity
from tests.graphs import conv_net, model_of, parsed, photos

SAMPLES = photos(8)


@pytest.fixture
def model() -> Model:
    return normalise(model_of(conv_net()))


def plan(variant: Variant = "u8s8-reduce-range", **fields: object) -> Quantize:
    return Quantize(variant=variant, **fields)  # type: ignore[arg-type]


def int8_weights(model: Model) -> dict[str, np.ndarray]:
    constants = {
        name: value.const_value.numpy()
        for name, value in model.ir.graph.initializers.items()
        if value.const_value is not None
    }
    return {name: array for name, array in constants.items() if array.dtype == np.int8 and array.ndim >= 2}


@pytest.mark.parametrize("variant", ["u8s8-reduce-range", "u8s8", "s8s8", "u8u8"])
def test_answers_stay_close(model: Model, variant: Variant) -> None:
    result = quantize(model, plan(variant), SAMPLES).model
    assert fidelity(model, result, photos(8, seed=5)).worst_cosine > 0.995


def test_every_weight_is_int8_and_scaled_per_channel(model: Model) -> None:
    result = quantize(model, plan("u8s8"), SAMPLES).model
    weights = int8_weights(result)
    assert len(weights) == 3
    scales = [value.shape for name, value in result.ir.graph.initializers.items() if name.startswith("w1_scale")]
    assert [list(shape) for shape in scales if shape is not None] == [[8]]


def test_a_reduced_range_uses_seven_bits(model: Model) -> None:
    reduced = quantize(model, plan("u8s8-reduce-range"), SAMPLES).model
    full = quantize(model, plan("u8s8"), SAMPLES).model
    assert max(int(np.abs(array).max()) for array in int8_weights(reduced).values()) == 64
    assert max(int(np.abs(array).max()) for array in int8_weights(full).values()) == 127


def test_signed_activations_stay_signed_through_fusion(model: Model) -> None:
    result = quantize(model, plan("s8s8"), SAMPLES).model
    fused, _ = fuse(result, SAMPLES)
    zero_points = [
        value.dtype.name
        for name, value in fused.ir.graph.initializers.items()
        if "zero_point" in name and value.dtype is not None
    ]
    assert zero_points
    assert set(zero_points) <= {"INT8", "INT32"}


@pytest.mark.parametrize("correct_bias", [False, True])
@pytest.mark.parametrize("equalize", [False, True])
def test_replaying_a_plan_needs_no_inputs_and_gives_the_same_bytes(
    model: Model, equalize: bool, correct_bias: bool
) -> None:
    first = quantize(model, plan(equalize=equalize, correct_bias=correct_bias), SAMPLES)
    read_back = parse_recipe(dump_recipe(Recipe(quantize=first.plan)), file="r.toml").quantize
    again = quantize(model, read_back, (), biases=first.biases)
    assert to_bytes(again.model.ir) == to_bytes(first.model.ir)
    assert again.plan == first.plan
    assert again.biases.keys() == first.biases.keys()


def test_ranges_hold_for_other_excluded_nodes(model: Model) -> None:
    first = quantize(model, plan(correct_bias=True, equalize=True), SAMPLES)
    fewer = msgspec.structs.replace(first.plan, exclude=("conv1",))
    assert quantize(model, fewer, (), biases=first.biases).plan.ranges == first.plan.ranges


def test_a_replay_without_its_biases_says_so(model: Model) -> None:
    used = quantize(model, plan(correct_bias=True), SAMPLES).plan
    with pytest.raises(QuantizeError, match="bias correction needs inputs or the biases of an earlier run"):
        quantize(model, used, ())


def test_biases_of_another_model_are_named(model: Model) -> None:
    used = quantize(model, plan(correct_bias=True), SAMPLES).plan
    with pytest.raises(RecipeError, match="the model has no constant 'other'"):
        quantize(model, used, (), biases={"other": np.zeros(3, np.float32)})


def test_each_mode_has_its_quantizer() -> None:
    assert set(QUANTIZERS) == set(MODES)


def test_unsigned_weights_share_one_zero_point(model: Model) -> None:
    result = quantize(model, plan("u8u8"), SAMPLES).model
    initializers = result.ir.graph.initializers
    zeros = [
        v.const_value.numpy()
        for n, v in initializers.items()
        if n.startswith("w") and "zero_point" in n and v.const_value
    ]
    assert len(zeros) == 3
    assert all(array.dtype == np.uint8 and set(array.ravel()) == {128} for array in zeros)
    fused, _ = fuse(result, SAMPLES)
    assert "QLinearConv" in {node.op_type for node in fused.ir.graph}


@pytest.mark.parametrize("variant", ["u8s8-reduce-range", "u8s8", "s8s8", "u8u8"])
def test_a_relu_becomes_part_of_the_convolution_before_it(model: Model, variant: Variant) -> None:
    result = quantize(model, plan(variant), SAMPLES).model
    fused, _ = fuse(result, SAMPLES)
    operators = [node.op_type for node in fused.ir.graph]
    assert operators.count("QLinearConv") == 2
    assert "Relu" not in operators


def test_a_clip_that_leaves_zero_out_stays() -> None:
    proto = parsed(
        "clips (float[1,4] x) => (float[1,4] y) <float[4,4] w> {\n"
        "low = Constant <value_float = 1.0> ()\n high = Constant <value_float = 2.0> ()\n"
        "a = Gemm (x, w)\n y = Clip (a, low, high) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    result = quantize(normalise(model_of(proto)), plan(), [{"x": np.full((1, 4), 1.5, np.float32)}]).model
    assert Reference(result).run({"x": np.zeros((1, 4), np.float32)})["y"].min() == 1.0


@pytest.mark.slow
def test_other_processes_give_the_same_bytes(model: Model) -> None:
    program = (
        "import hashlib\n"
        "from host.compress.quantize import quantize\n"
        "from host.compress.recipe import Quantize\n"
        "from host.model import to_bytes\n"
        "from host.passes.fuse import fuse\n"
        "from host.passes.normalise import normalise\n"
        "from tests.graphs import conv_net, model_of, photos\n"
        "samples = photos(8)\n"
        "plan = Quantize(correct_bias=True, equalize=True, calibration='entropy')\n"
        "result = quantize(normalise(model_of(conv_net())), plan, samples).model\n"
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
    used = quantize(model, plan("u8s8"), SAMPLES).plan
    mixed = msgspec.structs.replace(
        used,
        ranges=tuple(
            msgspec.structs.replace(entry, dtype="int8") if entry.tensor == "x" else entry for entry in used.ranges
        ),
    )
    result = quantize(model, mixed, ()).model
    dtype = result.ir.graph.initializers["x_zero_point"].dtype
    assert dtype is not None
    assert dtype.name == "INT8"


def test_excluded_nodes_stay_in_fp32(model: Model) -> None:
    result = quantize(model, plan(exclude=("conv1",)), SAMPLES).model
    assert result.ir.graph.initializers["w1"].dtype is not None
    assert len(int8_weights(result)) == 2


def test_nothing_is_done_when_the_recipe_says_none(model: Model) -> None:
    asked = plan(mode="none")
    result = quantize(model, asked, ())
    assert result.model is model
    assert result.plan == asked


def test_ranges_of_another_model_are_refused(model: Model) -> None:
    used = quantize(model, plan(), SAMPLES).plan
    other = normalise(model_of(conv_net(seed=9)))
    with pytest.raises(RecipeError, match=r"^the ranges of the recipe were calibrated for model sha256:.*, this one"):
        quantize(other, used, SAMPLES)


def test_a_range_that_is_missing_is_named(model: Model) -> None:
    used = quantize(model, plan(), SAMPLES).plan
    kept = tuple(entry for entry in used.ranges if entry.tensor != "c2")
    cut = msgspec.structs.replace(used, ranges=kept)
    with pytest.raises(QuantizeError, match="c2"):
        quantize(model, cut, ())


def test_an_excluded_node_that_is_not_there_is_named(model: Model) -> None:
    with pytest.raises(RecipeError) as caught:
        quantize(model, plan(exclude=("nobody",)), SAMPLES)
    assert str(caught.value) == "quantize.exclude: the model has no node 'nobody'"


def test_calibration_without_inputs_says_what_to_pass(model: Model) -> None:
    with pytest.raises(QuantizeError, match="calibration needs inputs: pass --inputs"):
        quantize(model, plan(), ())


def test_a_model_without_anything_to_quantize_is_refused() -> None:
    model = normalise(model_of("main (float[1,3] x) => (float[1,3] y) { y = Sin (x) }"))
    with pytest.raises(QuantizeError) as caught:
        quantize(model, plan(), [{"x": np.ones((1, 3), np.float32)}])
    assert str(caught.value) == "model 'small' has no operator that int8 can hold: use --quantize none"


def test_an_old_opset_is_converted() -> None:
    proto = conv_net()
    proto.opset_import[0].version = 11
    model = normalise(model_of(proto))
    result = quantize(model, plan(), SAMPLES).model
    assert result.ir.opset_imports[""] == 13
    assert fidelity(model, result, SAMPLES).worst_cosine > 0.99


def test_an_old_opset_that_cannot_be_converted_is_named() -> None:
    proto = conv_net()
    proto.opset_import[0].version = 11
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.graph.node.append(helper.make_node("Upsample", ["a"], ["up"], scales=[1.0, 1.0, 2.0, 2.0]))
    proto.graph.output.append(helper.make_tensor_value_info("up", onnx.TensorProto.FLOAT, None))
    with pytest.raises(QuantizeError, match="model 'small' has opset 11, int8 needs 13, and it cannot be converted"):
        quantize(normalise(model_of(proto)), plan(), SAMPLES)


def test_the_model_that_came_in_stays_as_it_was(model: Model) -> None:
    before = to_bytes(model.ir)
    quantize(model, plan(), SAMPLES)
    assert to_bytes(model.ir) == before
