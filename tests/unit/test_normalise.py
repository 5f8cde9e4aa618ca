"""Normalising brings every model into one form and changes no answer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from host.errors import IngestError, UnsupportedModelError
from host.model import Model, all_nodes, node_count, to_bytes, to_proto
from host.passes.densify import densify
from host.passes.normalise import normalise
from host.reference import Reference
from tests.graphs import HEADER, conv_net, model_of, parsed

X = np.array([[1.0, -2.0, 3.0]], np.float32)

IF_WITH_CONSTANTS = """
main (float[1,3] x, bool b) => (float[1,3] y) {
    one = Constant <value_float = 1.0> ()
    y = If (b) <
        then_branch = yes () => (float[1,3] out) {
            one_more = Constant <value_floats = [1.0, 1.0, 1.0]> ()
            t = Add (x, one_more)
            out = Mul (t, one)
        },
        else_branch = no () => (float[1,3] out) {
            one_more = Constant <value_floats = [2.0, 2.0, 2.0]> ()
            t = Sub (x, one_more)
            out = Mul (t, one)
        }
    >
}
"""


def names_of_tensors(model: Model) -> list[str]:
    names = []
    for graph in model.ir.graphs():
        names += [value.name for value in graph.inputs]
        names += list(graph.initializers)
        names += [value.name for node in graph for value in node.outputs if value.name]
    return [name for name in names if name is not None]


def test_constants_of_all_graphs_become_initializers_of_the_main_graph() -> None:
    model = normalise(model_of(IF_WITH_CONSTANTS))
    assert not [node for node in all_nodes(model.ir) if node.op_type == "Constant"]
    assert len(model.ir.graph.initializers) == 3
    assert all(not graph.initializers for graph in model.ir.graphs() if graph is not model.ir.graph)


def test_names_are_unique_over_all_branches_and_nodes() -> None:
    model = normalise(model_of(IF_WITH_CONSTANTS))
    names = names_of_tensors(model)
    assert len(names) == len(set(names))
    nodes = [node.name for node in all_nodes(model.ir)]
    assert all(nodes)
    assert len(nodes) == len(set(nodes))


@pytest.mark.parametrize("flag", [True, False])
def test_branches_compute_the_same_after_their_constants_moved(flag: bool) -> None:
    before = model_of(IF_WITH_CONSTANTS)
    inputs = {"x": X, "b": np.array(flag)}
    expected = Reference(before).run(inputs)["y"]
    assert np.array_equal(Reference(normalise(before)).run(inputs)["y"], expected)
    assert np.array_equal(expected, X + 1 if flag else X - 2)


def test_a_constant_that_is_an_output_of_a_branch_is_passed_on_by_a_node_of_the_branch() -> None:
    model = model_of(
        """
        main (float[1,3] x, bool b) => (float[1,3] y) {
            z = If (b) <
                then_branch = yes () => (float[1] out) { out = Constant <value_floats = [5.0]> () },
                else_branch = no () => (float[1] out) { out = Constant <value_floats = [7.0]> () }
            >
            y = Add (x, z)
        }
        """
    )
    result = normalise(model)
    for flag, added in ((True, 5), (False, 7)):
        assert np.array_equal(Reference(result).run({"x": X, "b": np.array(flag)})["y"], X + added)
    assert sum(node.op_type == "Identity" for node in all_nodes(result.ir)) == 2


def test_a_constant_output_of_the_model_keeps_its_name() -> None:
    model = model_of(
        """
        main (float[1,3] x) => (float[1,3] y, float[2] c) {
            y = Neg (x)
            c = Constant <value_floats = [1.0, 2.0]> ()
        }
        """
    )
    result = normalise(model)
    outputs = Reference(result).run({"x": X})
    assert list(outputs) == ["y", "c"]
    assert np.array_equal(outputs["c"], [1.0, 2.0])
    assert all(value.producer() is not None for value in result.ir.graph.outputs)


def test_an_input_that_is_given_out_goes_through_a_node() -> None:
    proto = parsed("main (float[1,3] x) => (float[1,3] y) { y = Neg (x) }")
    proto.graph.output.append(proto.graph.input[0])
    result = normalise(model_of(proto))
    outputs = Reference(result).run({"x": X})
    assert list(outputs) == ["y", "x_out"]
    assert np.array_equal(outputs["x_out"], X)


def test_initializers_leave_the_inputs() -> None:
    proto = conv_net()
    proto.graph.input.append(helper.make_tensor_value_info("w1", onnx.TensorProto.FLOAT, [8, 3, 3, 3]))
    assert [value.name for value in normalise(model_of(proto)).ir.graph.inputs] == ["x"]


def test_functions_are_inlined() -> None:
    model = model_of(
        """
        main (float[1,3] x) => (float[1,3] y) { y = local.twice_and_one (x) }
        <opset_import: ["" : 18], domain: "local">
        twice_and_one (a) => (b) { one = Constant <value_float = 1.0> ()
            t = Add (a, a)
            b = Add (t, one) }
        """,
        header='<ir_version: 9, opset_import: ["" : 18, "local" : 1]>\n',
    )
    result = normalise(model)
    assert not result.ir.functions
    assert dict(result.ir.opset_imports) == {"": 18}
    assert np.array_equal(Reference(result).run({"x": X})["y"], X + X + 1)


def test_texts_that_may_hold_paths_are_cleared() -> None:
    proto = conv_net()
    proto.doc_string = proto.graph.doc_string = proto.graph.node[0].doc_string = "/home/me/secret"
    proto.graph.input[0].doc_string = proto.graph.initializer[0].doc_string = "/home/me/secret"
    proto.graph.node[1].metadata_props.add(key="trace", value="/home/me/secret")
    proto.metadata_props.add(key="path", value="/home/me/secret")
    proto.producer_version = "/home/me/secret"
    assert b"/home/me" not in to_bytes(normalise(model_of(proto)).ir)


def test_stale_shapes_are_forgotten_but_those_of_inputs() -> None:
    proto = conv_net()
    proto.graph.value_info.append(helper.make_tensor_value_info("r1", onnx.TensorProto.FLOAT, [9, 9, 9, 9]))
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 77
    result = to_proto(normalise(model_of(proto)).ir).graph
    assert not [value for value in result.value_info if value.name == "r1"]
    assert not result.output[0].type.tensor_type.HasField("shape")
    assert result.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [dim.dim_value for dim in result.input[0].type.tensor_type.shape.dim] == [1, 3, 8, 8]


def test_the_same_model_in_another_order_gives_the_same_bytes() -> None:
    proto, shuffled = conv_net(), conv_net()
    constants = list(shuffled.graph.initializer)[::-1]
    del shuffled.graph.initializer[:]
    shuffled.graph.initializer.extend(constants)
    assert to_bytes(normalise(model_of(proto)).ir) == to_bytes(normalise(model_of(shuffled)).ir)


def test_normalising_twice_changes_nothing() -> None:
    once = normalise(model_of(IF_WITH_CONSTANTS))
    assert to_bytes(normalise(once).ir) == to_bytes(once.ir)


def test_the_model_that_came_in_stays_as_it_was() -> None:
    model = model_of(IF_WITH_CONSTANTS)
    before = to_bytes(model.ir)
    normalise(model)
    assert to_bytes(model.ir) == before


def test_unused_nodes_and_constants_go() -> None:
    proto = parsed("main (float[1,3] x) => (float[1,3] y) { y = Neg (x)\n unused = Abs (x) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1000, np.float32), "dead"))
    result = normalise(model_of(proto))
    assert node_count(result.ir) == 1
    assert not result.ir.graph.initializers


@pytest.mark.parametrize("seed", ["", "<seed = 3.0>"])
def test_random_nodes_are_refused_by_name_with_a_seed_or_without(seed: str) -> None:
    # A seed only starts the generator: the second run of one session gives other numbers.
    proto = parsed(f"main (float[1,3] x) => (float[1,3] y) {{ r = RandomNormalLike {seed} (x)\n y = Add (x, r) }}")
    proto.graph.node[0].name = "noise"
    with pytest.raises(UnsupportedModelError) as caught:
        normalise(model_of(proto))
    assert str(caught.value) == (
        "model 'small' does not answer the same input the same way twice: node 'noise' is RandomNormalLike; "
        "export it in evaluation mode, or make the random values an input"
    )


def test_every_impure_node_is_named_those_of_branches_too() -> None:
    model = model_of(
        """
        main (float[1,3] x, bool b) => (float[1,3] y) {
            [outer] u = RandomUniformLike (x)
            y = If (b) <
                then_branch = yes () => (float[1,3] out) { [inner] out = Bernoulli (x) },
                else_branch = no () => (float[1,3] out) { out = Add (x, u) }
            >
        }
        """
    )
    with pytest.raises(UnsupportedModelError, match="'outer' is RandomUniformLike; node 'inner' is Bernoulli"):
        normalise(model)


DROPOUT = """
main (float[1,3] x{extra}) => (float[1,3] y) {{
    {flag}
    ratio = Constant <value_float = 0.5> ()
    [drop] y = Dropout (x, ratio{training})
}}
"""


@pytest.mark.parametrize(
    ("extra", "flag", "training"),
    [
        ("", "on = Constant <value = bool {1}> ()\n", ", on"),
        (", bool on", "", ", on"),
    ],
    ids=["always", "if-asked"],
)
def test_dropout_that_can_train_is_refused(extra: str, flag: str, training: str) -> None:
    with pytest.raises(UnsupportedModelError, match="node 'drop' is a Dropout in training mode"):
        normalise(model_of(DROPOUT.format(extra=extra, flag=flag, training=training)))


@pytest.mark.parametrize(
    ("flag", "training"), [("", ""), ("on = Constant <value = bool {0}> ()\n", ", on")], ids=["default", "off"]
)
def test_dropout_in_evaluation_mode_is_fine(flag: str, training: str) -> None:
    model = normalise(model_of(DROPOUT.format(extra="", flag=flag, training=training)))
    assert np.array_equal(Reference(model).run({"x": X})["y"], X)


def sparse(values: list[float], indices: np.ndarray, dims: list[int]) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(
        numpy_helper.from_array(np.asarray(values, np.float32), "s"), numpy_helper.from_array(indices, "s_i"), dims
    )


@pytest.mark.parametrize(
    "indices", [np.array([1, 5], np.int64), np.array([[0, 1], [1, 2]], np.int64)], ids=["linear", "coordinates"]
)
def test_sparse_initializers_become_dense(indices: np.ndarray) -> None:
    proto = parsed("main (float[1,3] x) => (float[2,3] y) { y = Add (x, s) }")
    proto.graph.sparse_initializer.append(sparse([4.0, 9.0], indices, [2, 3]))
    densify(proto)
    assert not proto.graph.sparse_initializer
    assert np.array_equal(numpy_helper.to_array(proto.graph.initializer[0]), [[0, 4, 0], [0, 0, 9]])
    assert np.array_equal(Reference(normalise(model_of(proto))).run({"x": X})["y"], np.add(X, [[0, 4, 0], [0, 0, 9]]))


def test_a_sparse_constant_node_becomes_dense() -> None:
    proto = parsed("main (float[1,3] x) => (float[1,3] y) { y = Add (x, s) }")
    node = helper.make_node("Constant", [], ["s"], sparse_value=sparse([4.0], np.array([2], np.int64), [3]))
    proto.graph.node.insert(0, node)
    densify(proto)
    assert np.array_equal(Reference(normalise(model_of(proto))).run({"x": X})["y"], np.add(X, [[0, 0, 4]]))


@pytest.mark.parametrize(
    ("indices", "dims", "message"),
    [
        ([99], [2, 3], "sparse constant 's' has indices outside its shape [2, 3]"),
        ([0], [1 << 20, 1 << 20], "sparse constant 's' of shape [1048576, 1048576] is more than 1073741824 bytes"),
    ],
)
def test_a_hostile_sparse_constant_is_refused(indices: list[int], dims: list[int], message: str) -> None:
    proto = parsed("main (float[1,3] x) => (float[1,3] y) { y = Neg (x) }")
    proto.graph.sparse_initializer.append(sparse([1.0], np.array(indices, np.int64), dims))
    with pytest.raises(IngestError) as caught:
        densify(proto)
    assert str(caught.value).startswith(message)


def test_a_model_older_than_ir_4_gets_a_version_that_allows_constants_outside_the_inputs() -> None:
    model = model_of("main (float[1,3] x) => (float[1,3] y) { y = Neg (x) }", header=HEADER.replace("9", "3", 1))
    assert normalise(model).ir.ir_version == 4
