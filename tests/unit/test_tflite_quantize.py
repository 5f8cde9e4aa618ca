"""A TFLite model is quantized in every mode, the same each time, and says in one line where it cannot be."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from edge.formats.profile import load_profile
from host.compress.recipe import PruneChannels, Quantize, Recipe, Recover, recipe_for
from host.errors import QuantizeError, RecipeError
from host.model import Origin, Tensors
from host.tflite.model import TfliteModel, tflite_model
from host.tflite.quantize import float_tensors, quantize_tflite, quantized_operators
from host.tflite.quantize_compress import check_recipe, check_runs, compress_tflite
from host.tflite.quantize_figures import measure_tflite, predicted_seconds_tflite
from host.tflite.quantize_prepare import plain
from host.tflite.quantize_recipes import rules
from host.tflite.reference import TfliteReference
from tests.tflite_nets import Net, Op, add, counting, dense, doubling, ladder

MODES = ("int8", "int8-dynamic", "int8-weights", "int4", "float16")
WIDTH = 32


def model_of(net: Net) -> TfliteModel:
    return tflite_model(net.data, name="net", origin=Origin(format="tflite", digest=f"sha256:{'0' * 64}"))


def halved() -> Net:
    """Two fully connected layers with weights in half precision, a ReLU between them."""
    rng = np.random.default_rng(5)
    net = Net()
    graph = net.graph()
    first = graph.tensor("x", [1, WIDTH])
    last = first
    for layer in range(2):
        packed = graph.constant(f"h{layer}", rng.standard_normal((WIDTH, WIDTH)).astype(np.float16))
        weights = graph.tensor(f"w{layer}", [WIDTH, WIDTH])
        graph.operator(Op.DEQUANTIZE, [packed], [weights])
        made, active = graph.tensor(f"y{layer}", [1, WIDTH]), graph.tensor(f"r{layer}", [1, WIDTH])
        dense(graph, last, weights, made)
        graph.operator(Op.RELU, [made], [active])
        last = active
    graph.ends([first], [last])
    return net


def inputs(count: int = 8, *, width: int = WIDTH, seed: int = 1) -> list[Tensors]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, width)).astype(np.float32)} for _ in range(count)]


def kinds(model: TfliteModel) -> list[str]:
    return [operator.kind for operator in model.graph.operators]


def weight_types(model: TfliteModel) -> list[str]:
    return [tensor.type for tensor in model.graph.tensors if tensor.constant and len(tensor.shape) == 2]


def cosine(model: TfliteModel, other: TfliteModel, samples: Sequence[Tensors]) -> float:
    first, second = TfliteReference(model), TfliteReference(other)
    pairs = [(first.run(sample), second.run(sample)) for sample in samples]
    have = np.concatenate([array.ravel() for pair, _ in pairs for array in pair.values()])
    want = np.concatenate([pair[name].ravel() for left, pair in pairs for name in left])
    return float(have @ want / np.sqrt((have @ have) * (want @ want)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("net", [ladder, halved])
def test_every_mode_answers_nearly_alike_and_a_replay_gives_the_same_bytes(net: object, mode: str) -> None:
    model = model_of(ladder() if net is ladder else halved())
    made = quantize_tflite(model, Quantize(mode=mode), inputs())  # type: ignore[arg-type]  # one of MODES
    again = quantize_tflite(model, made.plan, ())
    assert again.model.data == made.model.data
    assert again.plan == made.plan
    assert cosine(model, made.model, inputs(seed=2)) > (0.97 if mode == "int4" else 0.998)


@pytest.mark.parametrize("mode", MODES)
def test_what_goes_in_and_comes_out_keeps_its_name_and_type(mode: str) -> None:
    model = model_of(ladder())
    made = quantize_tflite(model, Quantize(mode=mode), inputs()).model  # type: ignore[arg-type]  # one of MODES
    for ends in ("inputs", "outputs"):
        before = [model.graph.tensors[index] for index in getattr(model.graph, ends)]
        after = [made.graph.tensors[index] for index in getattr(made.graph, ends)]
        assert [(tensor.name, tensor.dtype, tensor.dims) for tensor in after] == [
            (tensor.name, tensor.dtype, tensor.dims) for tensor in before
        ]
    names = [tensor.name for tensor in made.graph.tensors]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("mode", "types"),
    [
        ("int8", {"INT8"}),
        ("int8-dynamic", {"INT8"}),
        ("int8-weights", {"INT8"}),
        ("int4", {"INT4"}),
        ("float16", {"FLOAT16"}),
    ],
)
def test_weights_have_the_type_of_the_mode(mode: str, types: set[str]) -> None:
    made = quantize_tflite(model_of(ladder()), Quantize(mode=mode), inputs()).model  # type: ignore[arg-type]  # a mode
    assert {kind for kind in weight_types(made) if kind != "FLOAT32"} == types
    assert len(made.data) < len(model_of(ladder()).data)


def test_no_quantization_leaves_the_file_as_it_is() -> None:
    model = model_of(halved())
    assert quantize_tflite(model, Quantize(mode="none"), ()).model is model


def test_ranges_are_found_for_every_tensor_that_is_computed() -> None:
    model = model_of(halved())
    plan = quantize_tflite(model, Quantize(mode="int8"), inputs()).plan
    assert [entry.tensor for entry in plan.ranges] == ["x", "y0", "r0", "y1", "r1"] == list(float_tensors(model))
    assert plan.variant == "s8s8"
    assert {entry.dtype for entry in plan.ranges} == {"int8"}
    assert min(entry.low for entry in plan.ranges if entry.tensor.startswith("r")) == 0


def test_activations_become_part_of_what_they_follow() -> None:
    """As operators of their own they would keep the fast 8-bit kernels from what is around them."""
    model = model_of(halved())
    assert kinds(model).count("RELU") == 2
    made = quantize_tflite(model, Quantize(mode="int8"), inputs()).model
    assert kinds(made) == ["QUANTIZE", "FULLY_CONNECTED", "FULLY_CONNECTED", "DEQUANTIZE"]


def test_an_activation_whose_input_others_read_too_stays() -> None:
    net = Net()
    graph = net.graph()
    weights = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    first, made, active, total = (graph.tensor(name, [1, WIDTH]) for name in ("x", "made", "active", "total"))
    dense(graph, first, graph.constant("w", weights), made)
    graph.operator(Op.RELU, [made], [active])
    add(graph, made, active, total)
    graph.ends([first], [total])
    model = model_of(net)
    found = quantize_tflite(model, Quantize(mode="int8-weights"), ()).model
    assert "RELU" in kinds(found)
    assert cosine(model, found, inputs()) > 0.999


def test_weights_in_half_precision_stay_so_where_they_are_not_quantized() -> None:
    model = model_of(halved())
    made = quantize_tflite(model, Quantize(mode="float16"), ()).model
    assert {kind for kind in weight_types(made) if kind != "FLOAT32"} == {"FLOAT16"}
    sample = inputs(1)[0]
    assert np.array_equal(TfliteReference(model).run(sample)["r1"], TfliteReference(made).run(sample)["r1"])


def test_single_operators_are_spared_and_widened_by_name() -> None:
    model = model_of(halved())
    spared = quantize_tflite(model, Quantize(mode="int8-dynamic", exclude=("y0",)), ()).model
    assert sorted(kind for kind in weight_types(spared) if kind != "FLOAT32") == ["FLOAT16", "INT8"]
    wider = quantize_tflite(model, Quantize(mode="int4", wider=("y1",)), ()).model
    assert sorted(kind for kind in weight_types(wider) if kind != "FLOAT32") == ["INT4", "INT8"]


def test_bodies_of_loops_stay_in_floating_point() -> None:
    model = model_of(doubling())
    samples = inputs(width=4)
    made = quantize_tflite(model, Quantize(mode="int8"), samples).model
    assert cosine(model, made, samples) > 0.999
    assert {tensor.type for graph in made.tree.subgraphs[1:] for tensor in graph.tensors} == {
        tensor.type for graph in model.tree.subgraphs[1:] for tensor in graph.tensors
    }


def test_the_model_that_was_given_is_not_changed() -> None:
    model = model_of(halved())
    before = model.data
    quantize_tflite(model, Quantize(mode="int8"), inputs())
    assert model_of(halved()).data == before == model.data


@pytest.mark.parametrize(
    ("plan", "error", "message"),
    [
        (
            Quantize(mode="int8", exclude=("nobody",)),
            RecipeError,
            "quantize.exclude: the model has no operator 'nobody'",
        ),
        (Quantize(mode="int4", wider=("nobody",)), RecipeError, "quantize.wider: the model has no operator 'nobody'"),
        (Quantize(mode="int8", equalize=True), RecipeError, "quantize.equalize: this step needs the ONNX or PyTorch"),
        (Quantize(mode="int8", correct_bias=True), RecipeError, "quantize.correct_bias: this step needs the ONNX or"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(plan: Quantize, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        quantize_tflite(model_of(ladder()), plan, inputs())


def test_ranges_of_another_model_are_refused() -> None:
    plan = quantize_tflite(model_of(ladder()), Quantize(mode="int8"), inputs()).plan
    with pytest.raises(RecipeError, match="were calibrated for model sha256:"):
        quantize_tflite(model_of(halved()), plan, inputs())


def test_static_quantization_without_inputs_says_what_to_do() -> None:
    with pytest.raises(QuantizeError, match="calibration needs inputs: pass --inputs"):
        quantize_tflite(model_of(ladder()), Quantize(mode="int8"), ())


def test_a_model_that_is_quantized_already_is_refused() -> None:
    made = quantize_tflite(model_of(ladder()), Quantize(mode="int8-dynamic"), ()).model
    with pytest.raises(QuantizeError, match="model 'net' is quantized already: use --quantize none"):
        quantize_tflite(made, Quantize(mode="int8"), inputs())


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(QuantizeError, match="model 'net' has no operator that float16 can hold: use --quantize none"):
        quantize_tflite(model_of(counting()), Quantize(mode="float16"), ())


def test_the_missing_quantizer_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer.quantizer", None)
    with pytest.raises(QuantizeError, match=r"pip install 'shardwire\[tflite\]'"):
        quantize_tflite(model_of(ladder()), Quantize(mode="int4"), ())


def test_what_the_quantizer_stumbles_over_is_a_reason_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    import ai_edge_quantizer.quantizer as library

    class Broken:
        def __init__(self, *_: object) -> None:
            raise TypeError("'NoneType' object is not iterable\nmore")

    monkeypatch.setattr(library, "Quantizer", Broken)
    with pytest.raises(QuantizeError, match="cannot make int4 of it: 'NoneType' object is not iterable; exclude"):
        quantize_tflite(model_of(ladder()), Quantize(mode="int4"), ())


def test_a_result_without_kernels_is_refused_with_the_reason() -> None:
    net = Net()
    graph = net.graph()
    first, last = graph.tensor("x", [1, 4]), graph.tensor("y", [1, 4])
    graph.operator("Frobnicate", [first], [last])
    graph.ends([first], [last])
    with pytest.raises(QuantizeError, match=r"LiteRT has no kernels for int4 of model 'net': .*Frobnicate"):
        check_runs(model_of(net), "int4")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(prune=(PruneChannels(),)), "prune: pruning and recovery need the ONNX or PyTorch model"),
        (Recipe(recover=(Recover(method="bias"),)), "recover: pruning and recovery need the ONNX or PyTorch model"),
        (Recipe(wire="float16"), "wire: tensors of a TFLite model travel as they are"),
    ],
)
def test_steps_that_change_a_graph_are_refused(recipe: Recipe, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe)


def test_a_recipe_for_tflite_quantizes_only_what_is_asked_for() -> None:
    profile = load_profile("rpi4")
    assert recipe_for(profile, tflite=True).quantize.mode == "none"
    plan = recipe_for(profile, "int8", tflite=True).quantize
    assert (plan.mode, plan.variant, plan.correct_bias) == ("int8", "s8s8", False)


def test_a_decided_recipe_makes_the_same_model() -> None:
    model = model_of(ladder())
    made = compress_tflite(model, Recipe(quantize=Quantize(mode="int8")), samples=inputs())
    again = compress_tflite(model, made.recipe)
    assert made.model.data == again.model.data
    assert made.original is model
    assert made.learned_bytes == b""


def test_the_rule_of_a_spared_operator_stands_behind_the_rule_for_all() -> None:
    model = model_of(ladder())
    found = rules(Quantize(mode="int8", exclude=("y0",)), model.graph, outputs={}, halves=False)
    index = model.graph.tensor("y0").index
    assert [(rule["regex"], rule["operation"], rule["algorithm_key"]) for rule in found] == [
        ("(?:.*)", "*", "min_max_uniform_quantize"),
        (f"^t{index};", "*", "no_quantize"),
        ("^s[0-9]+t", "*", "no_quantize"),
        ("(?:.*)(?:)", "INPUT", "no_quantize"),
        ("(?:.*)(?:)", "OUTPUT", "no_quantize"),
    ]


def test_weights_are_unpacked_for_the_quantizer_and_the_answers_stay() -> None:
    model = model_of(halved())
    base = plain(model)
    assert base.halves
    unpacked = tflite_model(base.data, name="plain", origin=model.origin)
    assert kinds(unpacked) == ["FULLY_CONNECTED", "FULLY_CONNECTED"]
    assert base.names["t0"] == "x"
    sample = inputs(1)[0]
    renamed = {f"t{model.graph.inputs[0]}": sample["x"]}
    (found,) = TfliteReference(unpacked).run(renamed).values()
    assert np.array_equal(found, TfliteReference(model).run(sample)["r1"])


def test_figures_count_work_and_what_is_stored() -> None:
    model = model_of(halved())
    sample = inputs(1)[0]
    before = measure_tflite(model, sample, timed=True)
    after = measure_tflite(quantize_tflite(model, Quantize(mode="int8"), inputs()).model, sample, timed=False)
    assert before.nodes == 4
    assert before.macs == 2 * WIDTH * WIDTH + 2 * WIDTH
    assert after.macs == 2 * WIDTH * WIDTH
    assert before.weight_bytes == 2 * 2 * WIDTH * WIDTH
    assert before.peak_activation_bytes == 2 * 4 * WIDTH
    assert after.weight_bytes < before.weight_bytes
    assert before.latency_seconds is not None
    assert before.latency_seconds > 0


def test_8_bit_models_are_predicted_to_be_faster() -> None:
    model = model_of(ladder())
    profile = load_profile("phone-mid")
    small = msgspec.structs.replace(profile, memory_bytes_per_second=1e15)
    sample = inputs(1)[0]
    times = {
        mode: predicted_seconds_tflite(
            quantize_tflite(model, Quantize(mode=mode), inputs()).model,
            sample,
            small,
        )
        for mode in ("none", "int8", "int8-dynamic", "int8-weights")
    }
    assert times["int8"] < times["none"]
    assert times["int8-dynamic"] < times["none"]
    assert times["int8-weights"] >= times["int8-dynamic"]


def test_operators_that_lose_something_are_listed_without_the_spared() -> None:
    model = model_of(ladder(rungs=2))
    assert [name for name, _ in quantized_operators(model, Quantize(mode="int4"))] == ["y0", "y1"]
    plan = Quantize(mode="int8", exclude=("y1",))
    assert [name for name, _ in quantized_operators(model, plan)] == ["y0", "s0", "s1"]
