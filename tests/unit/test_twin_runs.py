"""Which input of a model is which of its twin, and how the twin holds it, is found by the answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper

from edge.formats.builds import Form
from host.errors import PackageError
from host.model import Model, Origin, Tensors, from_proto
from host.package import PackageRequest, package
from host.partition.build import divide
from host.passes.normalise import normalise
from host.tflite.model import TfliteModel, tflite_model
from host.tflite.twin import partition_twins
from tests.litert_models import FOLDER
from tests.litert_models.make_models import Operator, Tensor, make_model

WIDTH = 16
RNG = np.random.default_rng(6)
LIMIT_BYTES = 1 << 20


def model(nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str], dtype: int = TensorProto.FLOAT) -> Model:
    def values(names: list[str]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, dtype, [1, WIDTH]) for name in names]

    graph = helper.make_graph(nodes, "g", values(inputs), values(outputs))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    origin = Origin(format="onnx", digest="sha256:" + "0" * 64)
    return normalise(Model(name="m", ir=from_proto(proto), origin=origin))


def twin(data: bytes) -> TfliteModel:
    return tflite_model(data, name="twin", origin=Origin(format="tflite", digest="sha256:" + "1" * 64))


def samples(*names: str) -> list[Tensors]:
    return [{name: RNG.normal(size=(1, WIDTH)).astype(np.float32) for name in names}]


def difference(order: tuple[str, str], dtype: str = "float32") -> bytes:
    """`y = a - b`, its inputs in some order and under names that say nothing."""
    names = dict(zip(("a", "b"), ("args_0", "args_1"), strict=True))
    operator = Operator(
        code=schema.BuiltinOperator.SUB,
        inputs=(names["a"], names["b"]),
        outputs=("call",),
        options=schema.SubOptionsT(),
        kind=schema.BuiltinOptions.SubOptions,
    )
    tensors = [Tensor(name=name, shape=(1, WIDTH), dtype=dtype) for name in ("args_0", "args_1", "call")]
    return make_model(tensors, [operator], [names[name] for name in order], ["call"])


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_inputs_of_one_shape_are_told_apart_by_the_answer(order: tuple[str, str]) -> None:
    own = model([helper.make_node("Sub", ["a", "b"], ["y"])], ["a", "b"], ["y"])
    found = partition_twins(own, twin(difference(order)), samples("a", "b"), max_shard_bytes=LIMIT_BYTES)
    (shard,) = found.build.shards
    assert set(shard.reads) == {"a", "b"}
    assert not found.quantized
    assert found.build.forms == ()


def test_outputs_in_another_order_are_found_by_their_values() -> None:
    own = model(
        [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Mul", ["a", "b"], ["p"])], ["a", "b"], ["s", "p"]
    )
    found = partition_twins(
        own,
        twin((FOLDER / "two_in_two_out.tflite").read_bytes()),
        samples("a", "b"),
        max_shard_bytes=LIMIT_BYTES,
    )
    assert [spec.name for spec in found.partition.outputs] == ["s", "p"]
    assert len(found.build.shards) == len(found.partition.shards) == 2


def test_whole_numbers_may_be_narrower() -> None:
    own = model([helper.make_node("Sub", ["a", "b"], ["y"])], ["a", "b"], ["y"], TensorProto.INT64)
    given = [{name: RNG.integers(-9, 9, size=(1, WIDTH)) for name in ("a", "b")}]
    found = partition_twins(own, twin(difference(("a", "b"), "int32")), given, max_shard_bytes=LIMIT_BYTES)
    assert found.build.forms == tuple(Form(name=name, dtype="int32") for name in ("a", "b", "y"))


def test_an_input_in_8_bits_has_its_scale_in_the_form() -> None:
    own = model([helper.make_node("Mul", ["x", "x"], ["y"])], ["x"], ["y"])
    with pytest.raises(PackageError, match="it does not answer like the model"):
        partition_twins(own, _quantized(), samples("x"), max_shard_bytes=LIMIT_BYTES)
    same = model([helper.make_node("Abs", ["x"], ["y"])], ["x"], ["y"])
    positive = [{"x": np.abs(samples("x")[0]["x"])}]
    found = partition_twins(same, _quantized(), positive, max_shard_bytes=LIMIT_BYTES)
    assert found.quantized
    (form,) = found.build.forms
    assert (form.name, form.dtype, form.zero_point) == ("x", "int8", -3)
    assert form.scale == pytest.approx(0.05)


def _quantized() -> TfliteModel:
    return twin((FOLDER / "quantized.tflite").read_bytes())


def test_another_number_of_inputs_is_no_twin() -> None:
    own = model([helper.make_node("Abs", ["x"], ["y"])], ["x"], ["y"])
    with pytest.raises(PackageError, match="it has 2 inputs, the model 1"):
        partition_twins(own, twin(difference(("a", "b"))), samples("x"), max_shard_bytes=LIMIT_BYTES)


def test_open_sizes_are_refused_on_both_sides(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [value], [result])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(proto, tmp_path / "open.onnx")
    request = PackageRequest(
        source=str(tmp_path / "open.onnx"),
        twin=FOLDER / "quantized.tflite",
        profile="rpi4",
        target=tmp_path / "bundle",
    )
    with pytest.raises(PackageError, match="bind them with --shape NAME=SIZE"):
        package(request)
    own = model([helper.make_node("Abs", ["x"], ["y"])], ["x"], ["y"])
    with pytest.raises(PackageError, match="input 'x' has open sizes: convert the model with fixed ones"):
        partition_twins(
            own, twin((FOLDER / "open_batch.tflite").read_bytes()), samples("x"), max_shard_bytes=LIMIT_BYTES
        )


def test_layers_of_a_twin_are_as_few_as_it_has() -> None:
    """Its one operator does what three of the model do."""
    nodes = [
        helper.make_node("Neg", ["b"], ["c"]),
        helper.make_node("Neg", ["c"], ["d"]),
        helper.make_node("Sub", ["a", "d"], ["y"]),
    ]
    own = model(nodes, ["a", "b"], ["y"])
    assert len(divide(own, samples("a", "b")).layers.layers) == 3
    found = partition_twins(own, twin(difference(("a", "b"))), samples("a", "b"), max_shard_bytes=LIMIT_BYTES)
    assert len(found.partition.layers) == 1
    assert found.left_out == 2
