"""A model is cut wherever it is legal, and every cut set holds what is needed after it."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edge.formats.tensor import Array
from host.errors import UnsupportedModelError
from host.model import Model, Origin
from host.observe import observe
from host.partition.layers import Layers, find_layers
from host.passes.normalise import normalise
from host.work import node_reads

FLOAT = TensorProto.FLOAT


def _value(name: str, kind: int = FLOAT, shape: Sequence[int | str] | None = (1, 4)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _constant(name: str, array: Array) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(array, name)


def _model(
    nodes: list[onnx.NodeProto],
    *,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto] | None = None,
) -> Model:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializer=constants or [])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    origin = Origin(format="onnx", digest="sha256:" + "0" * 64)
    return normalise(Model(name="m", ir=ir.serde.deserialize_model(proto), origin=origin))


def _layers(model: Model, *samples: dict[str, Array]) -> Layers:
    return find_layers(model, observe(model, samples or ({"x": np.ones((1, 4), np.float32)},)))


def test_a_chain_is_cut_between_all_its_nodes() -> None:
    model = _model(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Neg", ["a"], ["b"]),
            helper.make_node("Exp", ["b"], ["y"]),
        ],
        inputs=[_value("x")],
        outputs=[_value("y")],
    )

    assert _layers(model).cuts == (("x",), ("a",), ("b",), ("y",))


def test_a_skip_connection_is_alive_until_its_last_reader() -> None:
    model = _model(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Neg", ["a"], ["b"]),
            helper.make_node("Exp", ["b"], ["c"]),
            helper.make_node("Add", ["a", "c"], ["y"]),
        ],
        inputs=[_value("x")],
        outputs=[_value("y")],
    )

    assert _layers(model).cuts == (("x",), ("a",), ("a", "b"), ("a", "c"), ("y",))


def test_an_input_that_is_read_late_and_an_output_that_is_made_early_cross_every_cut_between() -> None:
    model = _model(
        [
            helper.make_node("Relu", ["x"], ["early"]),
            helper.make_node("Neg", ["early"], ["b"]),
            helper.make_node("Add", ["b", "x"], ["late"]),
        ],
        inputs=[_value("x")],
        outputs=[_value("early"), _value("late")],
    )

    assert _layers(model).cuts == (("x",), ("x", "early"), ("x", "early", "b"), ("early", "late"))


def test_a_shape_that_is_read_later_travels_as_a_tensor() -> None:
    model = _model(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Transpose", ["x"], ["t"]),
            helper.make_node("Reshape", ["t", "s"], ["y"]),
        ],
        inputs=[_value("x", shape=["n", 4])],
        outputs=[_value("y", shape=None)],
    )
    samples = [{"x": np.ones((n, 4), np.float32)} for n in (1, 3)]

    layers = _layers(model, *samples)

    assert layers.cuts == (("x",), ("x", "s"), ("s", "t"), ("y",))
    assert observe(model, samples)["s"].dtype == "int64"


def test_a_constant_read_twice_belongs_to_both_layers_and_to_no_cut() -> None:
    model = _model(
        [helper.make_node("Add", ["x", "w"], ["a"]), helper.make_node("Mul", ["a", "w"], ["y"])],
        inputs=[_value("x")],
        outputs=[_value("y")],
        constants=[_constant("w", np.full(4, 2, np.float32))],
    )

    layers = _layers(model)

    assert layers.cuts == (("x",), ("a",), ("y",))
    assert [layer.constants for layer in layers.layers] == [("w",), ("w",)]


def test_nodes_that_read_only_constants_move_to_their_readers() -> None:
    model = _model(
        [
            helper.make_node("Neg", ["w"], ["v"]),
            helper.make_node("Exp", ["v"], ["u"]),
            helper.make_node("Add", ["x", "u"], ["a"]),
            helper.make_node("Mul", ["a", "u"], ["y"]),
        ],
        inputs=[_value("x")],
        outputs=[_value("y")],
        constants=[_constant("w", np.full(4, 2, np.float32))],
    )

    layers = _layers(model)

    assert [[node.op_type for node in layer.nodes] for layer in layers.layers] == [["Add"], ["Mul"]]
    assert list(layers.constant_nodes) == ["v", "u"]
    assert layers.constant_nodes["u"].size_bytes == 16


def test_names_captured_by_the_body_of_an_if_are_alive_until_the_if() -> None:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node(operator, ["a", "w"], [name])], name, [], [_value(name)])

    model = _model(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Neg", ["a"], ["b"]),
            helper.make_node("ReduceSum", ["b"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["positive"]),
            helper.make_node("If", ["positive"], ["y"], then_branch=branch("t", "Add"), else_branch=branch("e", "Mul")),
        ],
        inputs=[_value("x")],
        outputs=[_value("y", shape=None)],
        constants=[_constant("w", np.ones(4, np.float32)), _constant("zero", np.array(0, np.float32))],
    )

    layers = _layers(model)

    assert layers.cuts == (("x",), ("a",), ("a", "b"), ("a", "sum"), ("a", "positive"), ("y",))
    assert set(node_reads(layers.layers[-1].nodes[0])) == {"positive", "a", "w"}
    assert layers.layers[-1].constants == ("w",)


def test_no_cut_tears_a_dequantize_op_quantize_group_apart() -> None:
    model = _model(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("Relu", ["d"], ["r"]),
            helper.make_node("QuantizeLinear", ["r", "s", "z"], ["p"]),
            helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"]),
        ],
        inputs=[_value("x")],
        outputs=[_value("y")],
        constants=[_constant("s", np.array(0.1, np.float32)), _constant("z", np.array(3, np.uint8))],
    )

    layers = _layers(model)

    assert layers.cuts == (("x",), ("q",), ("p",), ("y",))


def test_there_is_no_cut_where_a_live_value_is_not_a_dense_tensor() -> None:
    model = _model(
        [
            helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1),
            helper.make_node("SequenceAt", ["parts", "zero"], ["first"]),
            helper.make_node("Neg", ["first"], ["y"]),
        ],
        inputs=[_value("x")],
        outputs=[_value("y", shape=None)],
        constants=[_constant("zero", np.array(0, np.int64))],
    )

    assert _layers(model).cuts == (("x",), ("first",), ("y",))


def test_a_model_that_computes_nothing_from_its_inputs_is_refused() -> None:
    graph = helper.make_graph([], "g", [_value("x")], [_value("x")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model = Model(name="m", ir=ir.serde.deserialize_model(proto), origin=Origin(format="onnx", digest=""))

    with pytest.raises(UnsupportedModelError, match="the model has no nodes: there is nothing to run"):
        find_layers(model, {})
