"""A layer that is too large is cut across its output channels, and answers as it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.formats.tensor import Array
from host.model import Model, Tensors, weight_bytes
from host.observe import observe
from host.partition.sliceable import shapes, sliceable
from host.partition.slicing import Cut, with_slices
from host.passes.normalise import normalise
from host.reference import Reference
from tests.graphs import model_of

FLOAT = TensorProto.FLOAT
MS = "com.microsoft"
GENERATOR = np.random.default_rng(7)


def _floats(*shape: int) -> Array:
    drawn: Array = (GENERATOR.standard_normal(shape) * 0.3).astype(np.float32)
    return drawn


def _bytes(*shape: int, kind: type[np.signedinteger[Any] | np.unsignedinteger[Any]] = np.int8) -> Array:
    limits = np.iinfo(kind)
    return GENERATOR.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


def _scales(count: int) -> Array:
    return GENERATOR.uniform(0.001, 0.01, count).astype(np.float32)


def _model(nodes: list[onnx.NodeProto] | onnx.NodeProto, constants: Mapping[str, Array], x: Array) -> Model:
    """`x` to `y` by nodes from `entered` to `made`, with an Identity before and after them."""
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["entered"], "enter"),
            *(nodes if isinstance(nodes, list) else [nodes]),
            helper.make_node("Identity", ["made"], ["y"], "leave"),
        ],
        "net",
        [helper.make_tensor_value_info("x", kind, list(x.shape))],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
    return normalise(model_of(helper.make_model(graph, opset_imports=opsets, ir_version=10)))


def _node(operator: str, inputs: str, *, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    names = [name if name != "-" else "" for name in inputs.split()]
    return helper.make_node(operator, names, ["made"], "layer", domain=domain, **attributes)


def _sliced(model: Model, sample: Tensors, count: int) -> tuple[Model, int]:
    """Cut the node `layer` into about so many slices of equal width; say how many."""
    observed = observe(model, [sample])
    how = sliceable(_layer(model), shapes(observed))
    assert not isinstance(how, str), how
    width = -(-(how.channels // how.together) // count) * how.together
    bounds = (*range(0, how.channels, width), how.channels)
    found, made = with_slices(model, [Cut(node="layer", how=how, bounds=bounds, first=False)], observed)
    assert "layer" not in {node.name for node in found.ir.graph}
    assert made <= {node.name for node in found.ir.graph}
    return found, len(bounds) - 1


def _layer(model: Model) -> ir.Node:
    return next(node for node in model.ir.graph if node.name == "layer")


def _count(model: Model, operator: str) -> int:
    return sum(node.op_type == operator for node in model.ir.graph)


def _assert_close(model: Model, cut: Model, sample: Tensors, *, tolerance: float) -> None:
    for mode in ("exact", "default"):
        expected, found = Reference(model, mode=mode).run(sample)["y"], Reference(cut, mode=mode).run(sample)["y"]
        assert found.shape == expected.shape
        assert np.abs(found.astype(np.float64) - expected).max() <= tolerance * np.abs(expected).max()


X = _floats(1, 12, 9, 9)
ROWS = _floats(5, 24)
PIXELS = _bytes(1, 12, 9, 9, kind=np.uint8)
QUANTIZED_ROWS = _bytes(5, 24, kind=np.uint8)
ONE: dict[str, Array] = {
    "s": np.array(0.02, np.float32),
    "z": np.array(120, np.uint8),
    "t": np.array(0.05, np.float32),
    "u": np.array(110, np.uint8),
}
INTEGERS: dict[str, Callable[[int], tuple[onnx.NodeProto, dict[str, Array], Array]]] = {
    "QLinearConv a channel": lambda n: (
        _node("QLinearConv", "entered s z w ws wz t u b", pads=[1, 1, 1, 1]),
        {**ONE, "w": _bytes(n, 12, 3, 3), "ws": _scales(n), "wz": np.zeros(n, np.int8), "b": _bytes(n, kind=np.int32)},
        PIXELS,
    ),
    "QLinearConv a tensor": lambda n: (
        _node("QLinearConv", "entered s z w ws wz t u", pads=[1, 1, 1, 1], strides=[2, 2]),
        {**ONE, "w": _bytes(n, 12, 3, 3), "ws": np.array(0.01, np.float32), "wz": np.array(0, np.int8)},
        PIXELS,
    ),
    "ConvInteger": lambda n: (
        _node("ConvInteger", "entered w z"),
        {"w": _bytes(n, 12, 3, 3), "z": np.array(120, np.uint8)},
        PIXELS,
    ),
    "QLinearMatMul": lambda n: (
        _node("QLinearMatMul", "entered s z w ws wz t u"),
        {**ONE, "w": _bytes(24, n), "ws": _scales(n), "wz": np.zeros(n, np.int8)},
        QUANTIZED_ROWS,
    ),
    "QGemm": lambda n: (
        _node("QGemm", "entered s z w ws wz b t u", domain=MS, transB=1),
        {**ONE, "w": _bytes(n, 24), "ws": _scales(n), "wz": np.zeros(n, np.int8), "b": _bytes(n, kind=np.int32) >> 12},
        QUANTIZED_ROWS,
    ),
    "MatMulInteger": lambda n: (
        _node("MatMulInteger", "entered w z wz"),
        {"w": _bytes(24, n), "z": np.array(120, np.uint8), "wz": np.zeros(n, np.int8)},
        QUANTIZED_ROWS,
    ),
    "DynamicQuantizeMatMul": lambda n: (
        _node("DynamicQuantizeMatMul", "entered w ws wz b", domain=MS),
        {"w": _bytes(24, n), "ws": _scales(n), "wz": np.zeros(n, np.int8), "b": _floats(n)},
        ROWS,
    ),
}


def _nbits(n: int) -> tuple[onnx.NodeProto, dict[str, Array], Array]:
    blocks = 3
    return (
        _node("MatMulNBits", "entered w ws wz - b", domain=MS, K=72, N=n, bits=4, block_size=32, accuracy_level=4),
        {
            "w": _bytes(n, blocks, 16, kind=np.uint8),
            "ws": _scales(n * blocks),
            "wz": _bytes(n * 2, kind=np.uint8),
            "b": _floats(n),
        },
        _floats(3, 72),
    )


FLOATS: dict[str, Callable[[int], tuple[onnx.NodeProto, dict[str, Array], Array]]] = {
    "Conv": lambda n: (
        _node("Conv", "entered w b", pads=[1, 1, 1, 1]),
        {"w": _floats(n, 12, 3, 3), "b": _floats(n)},
        X,
    ),
    "FusedConv with a residual": lambda n: (
        _node("FusedConv", "entered w b r", domain=MS, activation="Relu", pads=[1, 1, 1, 1]),
        {"w": _floats(n, 12, 3, 3), "b": _floats(n), "r": _floats(1, n, 9, 9)},
        X,
    ),
    "ConvTranspose": lambda n: (
        _node("ConvTranspose", "entered w b", strides=[2, 2]),
        {"w": _floats(12, n, 3, 3), "b": _floats(n)},
        X,
    ),
    "Gemm": lambda n: (_node("Gemm", "entered w b", alpha=0.5), {"w": _floats(24, n), "b": _floats(n)}, ROWS),
    "Gemm transposed": lambda n: (
        _node("Gemm", "entered w b", transB=1, beta=2.0),
        {"w": _floats(n, 24), "b": _floats(5, 1)},
        ROWS,
    ),
    "FusedGemm": lambda n: (
        _node("FusedGemm", "entered w b", domain=MS, transB=1, activation="Relu"),
        {"w": _floats(n, 24), "b": _floats(1, n)},
        ROWS,
    ),
    "MatMul": lambda n: (_node("MatMul", "entered w"), {"w": _floats(24, n)}, _floats(2, 5, 24)),
    "FusedMatMul": lambda n: (
        _node("FusedMatMul", "entered w", domain=MS, transB=1, alpha=0.5),
        {"w": _floats(n, 24)},
        ROWS,
    ),
    "MatMulNBits": _nbits,
    "Gather": lambda n: (_node("Gather", "w entered"), {"w": _floats(30, n)}, np.array([[1, 29], [3, 4]], np.int64)),
}


WIDTHS = pytest.mark.parametrize(("channels", "count"), [(32, 2), (37, 3), (50, 7), (7, 7)])


@WIDTHS
@pytest.mark.parametrize("case", INTEGERS)
def test_a_sliced_integer_layer_answers_with_the_same_bits(case: str, channels: int, count: int) -> None:
    node, constants, x = INTEGERS[case](channels)
    model = _model(node, constants, x)

    cut, slices = _sliced(model, {"x": x}, count)

    assert _count(cut, node.op_type) == slices > 1
    _assert_close(model, cut, {"x": x}, tolerance=0)


@WIDTHS
@pytest.mark.parametrize("case", FLOATS)
def test_a_sliced_float_layer_answers_within_rounding(case: str, channels: int, count: int) -> None:
    node, constants, x = FLOATS[case](channels)
    model = _model(node, constants, x)

    cut, slices = _sliced(model, {"x": x}, count)

    assert _count(cut, node.op_type) == slices > 1
    _assert_close(model, cut, {"x": x}, tolerance=1e-5)


@pytest.mark.parametrize(("groups", "per_group", "count"), [(4, 3, 2), (6, 1, 4), (12, 2, 7)])
def test_grouped_channels_are_cut_between_groups_with_their_part_of_the_input(
    groups: int, per_group: int, count: int
) -> None:
    constants = {"w": _floats(groups * per_group, 12 // groups, 3, 3), "b": _floats(groups * per_group)}
    model = _model(_node("Conv", "entered w b", group=groups), constants, X)

    cut, slices = _sliced(model, {"x": X}, count)

    assert _count(cut, "Conv") == _count(cut, "Slice") == slices
    _assert_close(model, cut, {"x": X}, tolerance=1e-5)


def test_quantized_grouped_channels_answer_with_the_same_bits() -> None:
    constants: dict[str, Array] = {**ONE, "w": _bytes(12, 1, 3, 3), "ws": _scales(12), "wz": np.zeros(12, np.int8)}
    model = _model(_node("QLinearConv", "entered s z w ws wz t u", group=12), constants, PIXELS)

    cut, slices = _sliced(model, {"x": PIXELS}, 5)

    assert _count(cut, "QLinearConv") == slices == 4
    _assert_close(model, cut, {"x": PIXELS}, tolerance=0)


def test_a_residual_that_a_convolution_adds_is_cut_with_its_channels() -> None:
    nodes = [
        helper.make_node("Concat", ["entered", "entered"], ["r"], "residual", axis=1),
        _node("FusedConv", "entered w b r", domain=MS, activation="Relu", pads=[1, 1, 1, 1]),
    ]
    model = _model(nodes, {"w": _floats(24, 12, 3, 3), "b": _floats(24)}, X)

    cut, slices = _sliced(model, {"x": X}, 3)

    assert _count(cut, "FusedConv") == _count(cut, "Slice") == slices == 3
    _assert_close(model, cut, {"x": X}, tolerance=1e-5)


def test_weights_that_nodes_make_of_constants_are_cut_through_those_nodes() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["d"], "weights", axis=0),
        helper.make_node("Transpose", ["d"], ["t"], "turn", perm=[1, 0]),
        _node("MatMul", "entered t"),
    ]
    constants = {"w": _bytes(40, 24), "ws": _scales(40), "wz": np.zeros(40, np.int8)}
    model = _model(nodes, constants, ROWS)

    cut, slices = _sliced(model, {"x": ROWS}, 3)

    assert _count(cut, "MatMul") == _count(cut, "DequantizeLinear") == _count(cut, "Transpose") == slices == 3
    assert not constants.keys() & cut.ir.graph.initializers.keys()
    _assert_close(model, cut, {"x": ROWS}, tolerance=1e-5)


def test_weights_of_one_value_are_made_in_parts() -> None:
    half = numpy_helper.from_array(np.array([0.5], np.float32))
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["w"], "fill", value=half),
        _node("Gemm", "entered w b", transB=1),
    ]
    model = _model(nodes, {"shape": np.array([40, 24], np.int64), "b": _floats(40)}, ROWS)

    cut, slices = _sliced(model, {"x": ROWS}, 3)

    assert _count(cut, "ConstantOfShape") == _count(cut, "Gemm") == slices == 3
    _assert_close(model, cut, {"x": ROWS}, tolerance=1e-5)


def test_half_precision_weights_are_cut_before_they_are_cast() -> None:
    nodes = [helper.make_node("Cast", ["w"], ["f"], "cast", to=FLOAT), _node("Gemm", "entered f", transB=1)]
    model = _model(nodes, {"w": _floats(40, 24).astype(np.float16)}, ROWS)

    cut, _ = _sliced(model, {"x": ROWS}, 2)

    assert weight_bytes(cut.ir) == 40 * 24 * 2
    assert len(cut.ir.graph.initializers) == 2
    _assert_close(model, cut, {"x": ROWS}, tolerance=1e-5)


def _why(node: onnx.NodeProto, constants: Mapping[str, Array], x: Array) -> object:
    model = _model(node, constants, x)
    return sliceable(_layer(model), shapes(observe(model, [{"x": x}])))


def test_what_cannot_be_sliced_says_why() -> None:
    square = _floats(1, 12, 12)
    assert _why(_node("Add", "entered w"), {"w": _floats(12, 9, 9)}, X) == "Add cannot be sliced"
    assert _why(_node("MatMul", "entered entered"), {}, square) == "its weights are computed"
    assert _why(_node("MatMul", "entered w"), {"w": _floats(24)}, ROWS) == "its weights have no channels"
    grouped = _node("ConvTranspose", "entered w", group=2)
    assert _why(grouped, {"w": _floats(12, 3, 3, 3)}, X) == "a ConvTranspose with groups cannot be sliced"
