"""A model rendered as a PyTorch module answers like onnxruntime, operator by operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from host.compress.recover import RecoverError
from host.compress.torch.graph import OPERATORS, OnnxModule
from host.errors import RuntimeRefusedError
from host.model import Model
from host.passes.normalise import normalise
from host.reference import Reference
from tests.graphs import conv_net, model_of, photos

IMAGE = "float[2,4,6,8] x"
TABLE = "float[3,5] x"
PAIR = "float[3,5] x, float[3,5] z"

CASES: list[tuple[str, str]] = [
    # (inputs, nodes); the output is y.
    *((TABLE, f"y = {op}(x)") for op in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish")),
    *((TABLE, f"y = {op}(x)") for op in ("Identity", "Mish", "Neg", "Relu", "Reciprocal", "Round", "Selu")),
    *((TABLE, f"y = {op}(x)") for op in ("Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh", "Dropout")),
    *((TABLE, f"y = {op}(x)") for op in ("Celu", "Elu", "LeakyRelu", "Softmax", "LogSoftmax", "ThresholdedRelu")),
    *((TABLE, f"y = {op}<alpha = 0.3>(x)") for op in ("Celu", "Elu", "HardSigmoid", "LeakyRelu", "ThresholdedRelu")),
    *((TABLE, f"a = Abs(x) y = {op}(a)") for op in ("Sqrt", "Log")),
    *((PAIR, f"y = {op}(x, z)") for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "PRelu")),
    *((PAIR, f"b = {op}(x, z) y = Cast<to = 1>(b)") for op in ("Equal", "Greater", "GreaterOrEqual", "Less")),
    (PAIR, "b = LessOrEqual(x, z) y = Cast<to = 1>(b)"),
    *((PAIR, f"a = Greater(x, z) b = Less(x, z) c = {op}(a, b) y = Cast<to = 1>(c)") for op in ("And", "Or", "Xor")),
    (PAIR, "a = Greater(x, z) b = Not(a) y = Where(b, x, z)"),
    (PAIR, "y = Mod<fmod = 1>(x, z)"),
    (TABLE, "i = Cast<to = 7>(x) d = Constant<value = int64[5] {-3, -2, 2, 3, 5}>() m = Mod(i, d) y = CastLike(m, x)"),
    (TABLE, "i = Cast<to = 7>(x) d = Constant<value = int64[5] {-3, -2, 2, 3, 5}>() m = Div(i, d) y = CastLike(m, x)"),
    (TABLE, "e = Constant<value = float {2.0}>() y = Pow(x, e)"),
    (TABLE, "a = Constant<value = float {-0.5}>() b = Constant<value = float {1.5}>() y = Clip(x, a, b)"),
    (TABLE, "a = Constant<value = float {0.5}>() y = Clip(x, , a)"),
    (IMAGE, "y = Softmax<axis = 1>(x)"),
    (IMAGE, "s = Constant<value = float[4, 1, 1] {0.1, 0.2, 0.3, 0.4}>() y = PRelu(x, s)"),
    ("float[2,3,4] x, float[2,4,5] z", "y = MatMul(x, z)"),
    ("float[2,3,4] x, float[2,4,5] z", 'y = Einsum<equation = "bij,bjk->bik">(x, z)'),
    ("float[4,3] x, float[5,4] z, float[5] c", "y = Gemm<alpha = 0.5, beta = 2.0, transA = 1, transB = 1>(x, z, c)"),
    ("float[3,4] x, float[4,5] z", "y = Gemm(x, z)"),
    (IMAGE + ", float[4] s, float[4] b, float[4] m", "q = Abs(s) y = BatchNormalization(x, s, b, m, q)"),
    (IMAGE + ", float[4] s, float[4] b", "y = InstanceNormalization(x, s, b)"),
    (IMAGE + ", float[6,8] s, float[6,8] b", "y = LayerNormalization<axis = 2>(x, s, b)"),
    (TABLE + ", float[5] s", "y = LayerNormalization(x, s)"),
    (IMAGE, "y = LRN<size = 3, alpha = 0.1>(x)"),
    (IMAGE, "y = GlobalAveragePool(x)"),
    (IMAGE, "y = GlobalMaxPool(x)"),
    (IMAGE + ", float[6,4,3,3] w", 'y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)'),
    (IMAGE + ", float[6,4,3,2] w", 'y = Conv<auto_pad = "SAME_LOWER">(x, w)'),
    (IMAGE + ", float[6,4,3,2] w", 'y = Conv<auto_pad = "VALID">(x, w)'),
    (IMAGE + ", float[4,3,3,3] w", 'y = ConvTranspose<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)'),
    (IMAGE + ", float[4,3,3,3] w", "y = ConvTranspose<output_shape = [12, 17], strides = [2, 2]>(x, w)"),
    (IMAGE, "y = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)"),
    (IMAGE, 'y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER">(x)'),
    (IMAGE, "s = Constant<value = int64[3] {0, -1, 12}>() y = Reshape(x, s)"),
    (IMAGE, "y = Flatten<axis = 2>(x)"),
    (IMAGE, "y = Flatten<axis = -1>(x)"),
    (IMAGE, "y = Transpose<perm = [0, 2, 3, 1]>(x)"),
    (TABLE, "y = Transpose(x)"),
    ("float[2,1,3,1] x", "a = Constant<value = int64[1] {-1}>() y = Squeeze(x, a)"),
    ("float[2,1,3,1] x", "y = Squeeze(x)"),
    (TABLE, "a = Constant<value = int64[2] {0, -1}>() y = Unsqueeze(x, a)"),
    (PAIR, "y = Concat<axis = -1>(x, z)"),
    (IMAGE, "a, y = Split<axis = 3, num_outputs = 2>(x)"),
    (IMAGE, "s = Constant<value = int64[2] {3, 5}>() a, y = Split<axis = -1>(x, s)"),
    *(
        (
            IMAGE,
            (
                f"s = Constant<value = int64[2] {{{start}}}>() e = Constant<value = int64[2] {{{end}}}>() "
                f"a = Constant<value = int64[2] {{2, -1}}>() t = Constant<value = int64[2] {{{step}}}>() "
                "y = Slice(x, s, e, a, t)"
            ),
        )
        for start, end, step in (
            ("1, 2", "5, 100", "1, 2"),
            ("-1, -2", "-100, 1", "-1, -2"),
            ("100, 0", "0, -1", "-2, 3"),
        )
    ),
    (IMAGE, "i = Constant<value = int64[2, 2] {0, -1, 1, 3}>() y = Gather<axis = 1>(x, i)"),
    (IMAGE, "i = Constant<value = int64 {-2}>() y = Gather<axis = -1>(x, i)"),
    (TABLE, "i = Constant<value = int64[2, 2] {0, -1, 1, 3}>() y = GatherElements<axis = 1>(x, i)"),
    (IMAGE, "p = Constant<value = int64[8] {0, 0, 1, -2, 0, 1, 2, 0}>() y = Pad(x, p)"),
    *(
        (IMAGE, f'p = Constant<value = int64[8] {{0, 0, 1, 2, 0, 0, 3, 0}}>() y = Pad<mode = "{mode}">(x, p)')
        for mode in ("edge", "reflect")
    ),
    *(
        (
            IMAGE,
            (
                f"z = Constant<value = int64[4] {{2, 4, {h}, {w}}}>() "
                f'y = Resize<mode = "{mode}", coordinate_transformation_mode = "{at}">(x, , , z)'
            ),
        )
        for mode in ("nearest", "linear")
        for at in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
        for h, w in ((9, 16), (3, 5))
    ),
    *(
        (
            IMAGE,
            (
                "s = Constant<value = float[4] {1.0, 1.0, 2.0, 1.5}>() "
                f'y = Resize<coordinate_transformation_mode = "asymmetric", nearest_mode = "{rounding}">(x, , s)'
            ),
        )
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ),
    ("float[3,1] x", "s = Constant<value = int64[3] {2, 1, 5}>() y = Expand(x, s)"),
    (TABLE, "r = Constant<value = int64[2] {2, 3}>() y = Tile(x, r)"),
    (IMAGE, "s = Shape<start = 1, end = -1>(x) y = Cast<to = 1>(s)"),
    (IMAGE, "s = Size(x) y = Cast<to = 1>(s)"),
    (TABLE, "s = Shape(x) f = ConstantOfShape<value = float[1] {2.5}>(s) y = Add(x, f)"),
    (
        TABLE,
        (
            "a = Constant<value = int64 {0}>() b = Constant<value = int64 {5}>() c = Constant<value = int64 {1}>() "
            "r = Range(a, b, c) f = Cast<to = 1>(r) y = Add(x, f)"
        ),
    ),
    ("float[2,8,3,4] x", "y = DepthToSpace<blocksize = 2>(x)"),
    ("float[2,8,3,4] x", 'y = DepthToSpace<blocksize = 2, mode = "CRD">(x)'),
    (IMAGE, "y = SpaceToDepth<blocksize = 2>(x)"),
    ("float[2,5,5] x", "k = Constant<value = int64 {1}>() y = Trilu(x, k)"),
    ("float[2,5,5] x", "y = Trilu<upper = 0>(x)"),
    (TABLE, "a = Constant<value = int64 {1}>() y = CumSum(x, a)"),
    (TABLE, "a = ArgMax<axis = 1, keepdims = 0>(x) y = Cast<to = 1>(a)"),
    *((IMAGE, f"y = {op}<keepdims = 0>(x)") for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")),
    *(
        (IMAGE, f"a = Constant<value = int64[2] {{-1, 1}}>() y = {op}(x, a)")
        for op in (
            "ReduceMean",
            "ReduceSum",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceProd",
            "ReduceLogSumExp",
        )
    ),
    (IMAGE, "y = ReduceSum<noop_with_empty_axes = 1>(x)"),
]
OLD = '<ir_version: 7, opset_import: ["" : 9]>\n'
OLD_CASES = [
    (TABLE, "y = Clip<min = -0.5, max = 0.5>(x)"),
    (IMAGE, "y = Softmax<axis = 2>(x)"),
    (IMAGE, "y = Slice<starts = [1, -3], ends = [3, 100], axes = [1, 3]>(x)"),
    (IMAGE, "y = ReduceMean<axes = [2, 3]>(x)"),
    (IMAGE, "y = Unsqueeze<axes = [1]>(x)"),
    (IMAGE, "y = Pad<pads = [0, 0, 1, 0, 0, 0, 0, 2]>(x)"),
    (IMAGE, 's = Constant<value = float[4] {1.0, 1.0, 2.0, 2.0}>() y = Upsample<mode = "nearest">(x, s)'),
    (IMAGE, "a, b, y = Split<axis = 1, split = [1, 1, 2]>(x)"),
]
NEW = '<ir_version: 10, opset_import: ["" : 20]>\n'
NEW_CASES = [(TABLE, "y = Gelu(x)"), (TABLE, 'y = Gelu<approximate = "tanh">(x)')]


def small(inputs: str, nodes: str, *, header: str | None = None) -> Model:
    text = f"net ({inputs}) => (float y) {{ {nodes} }}"
    return normalise(model_of(text) if header is None else model_of(text, header=header))


def sample_of(model: Model, *, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        str(value.name): rng.standard_normal(value.shape.numpy()).astype(np.float32) * 2
        for value in model.ir.graph.inputs
        if value.shape is not None
    }


ALL_CASES = [
    *((None, *case) for case in CASES),
    *((OLD, *case) for case in OLD_CASES),
    *((NEW, *case) for case in NEW_CASES),
]


@pytest.mark.parametrize(
    ("header", "inputs", "nodes"), ALL_CASES, ids=[f"{i}-{case[2]}" for i, case in enumerate(ALL_CASES)]
)
def test_an_operator_answers_like_onnxruntime(header: str | None, inputs: str, nodes: str) -> None:
    model = small(inputs, nodes, header=header)
    sample = sample_of(model)
    # Construction compares the two and raises where they differ.
    OnnxModule(model, sample)


def test_every_operator_has_a_case() -> None:
    seen = {
        node.op_type for header, inputs, nodes in ALL_CASES for node in small(inputs, nodes, header=header).ir.graph
    }
    # Normalising lifts constants out of the graph.
    assert OPERATORS.keys() - seen == {"Constant"}


def test_a_constant_node_is_its_value() -> None:
    model = model_of("net (float[2] x) => (float y) { c = Constant<value = float[2] {1.0, 2.0}>() y = Add(x, c) }")
    OnnxModule(model, sample_of(model))


def one_node(op: str, x: np.ndarray, weights: dict[str, np.ndarray], **attributes: Any) -> Model:
    node = helper.make_node(op, ["x", *weights], ["y"], op, **attributes)
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return model_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def answers_alike(model: Model, sample: dict[str, np.ndarray]) -> None:
    try:
        Reference(model).run(sample)
    except RuntimeRefusedError:
        assume(False)
    OnnxModule(model, sample)


Window = dict[str, list[int]]


def windows(*, dilated: bool) -> st.SearchStrategy[Window]:
    """Attributes of a window over one to three axes; a pad as large as the window is refused by pools."""

    def of_rank(rank: int) -> st.SearchStrategy[Window]:
        def several(low: int, high: int) -> st.SearchStrategy[list[int]]:
            return st.lists(st.integers(low, high), min_size=rank, max_size=rank)

        def with_pads(kernel: list[int]) -> st.SearchStrategy[Window]:
            pads = st.tuples(*(st.integers(0, taps - 1) for taps in (*kernel, *kernel))).map(list)
            more = {"dilations": several(1, 2)} if dilated else {}
            return st.fixed_dictionaries(
                {"kernel_shape": st.just(kernel), "strides": several(1, 3), "pads": pads, **more}
            )

        return several(1, 3).flatmap(with_pads)

    return st.integers(1, 3).flatmap(of_rank)


@settings(max_examples=60, deadline=None)
@given(
    window=windows(dilated=True),
    groups=st.integers(1, 2),
    has_bias=st.booleans(),
    side=st.integers(6, 9),
    transposed=st.booleans(),
)
def test_a_convolution_with_any_window(
    window: Window, groups: int, has_bias: bool, side: int, transposed: bool
) -> None:
    rng = np.random.default_rng(side)
    kernel = window["kernel_shape"]
    x = rng.standard_normal((2, 4, *(side + axis for axis in range(len(kernel))))).astype(np.float32)
    shape = (4, 3) if transposed else (6, 4 // groups)
    weights = {"w": rng.standard_normal((*shape, *kernel)).astype(np.float32)}
    if has_bias:
        weights["b"] = rng.standard_normal(3 * groups if transposed else 6).astype(np.float32)
    model = one_node("ConvTranspose" if transposed else "Conv", x, weights, group=groups, **window)
    answers_alike(model, {"x": x})


@settings(max_examples=60, deadline=None)
@given(window=windows(dilated=True), side=st.integers(6, 9), ceil=st.integers(0, 1))
def test_a_max_pool_with_any_window(window: Window, side: int, ceil: int) -> None:
    x = np.random.default_rng(side).standard_normal((2, 3, *(side,) * len(window["kernel_shape"]))).astype(np.float32)
    answers_alike(one_node("MaxPool", x, {}, ceil_mode=ceil, **window), {"x": x})


@settings(max_examples=60, deadline=None)
@given(window=windows(dilated=False), side=st.integers(6, 9), ceil=st.integers(0, 1), counted=st.integers(0, 1))
def test_an_average_pool_with_any_window(window: Window, side: int, ceil: int, counted: int) -> None:
    x = np.random.default_rng(side).standard_normal((2, 3, *(side,) * len(window["kernel_shape"]))).astype(np.float32)
    answers_alike(one_node("AveragePool", x, {}, ceil_mode=ceil, count_include_pad=counted, **window), {"x": x})


def test_output_padding_of_a_transposed_convolution() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 2, 4, 5)).astype(np.float32)
    w, b = rng.standard_normal((2, 3, 3, 3)).astype(np.float32), rng.standard_normal(3).astype(np.float32)
    model = one_node("ConvTranspose", x, {"w": w, "b": b}, strides=[2, 2], pads=[1, 1, 0, 1], output_padding=[1, 0])
    OnnxModule(model, {"x": x})


def test_weights_come_back_under_their_names() -> None:
    model = normalise(model_of(conv_net()))
    found = OnnxModule(model, photos(1)[0]).export_weights()
    assert sorted(found) == ["b1", "b2", "b3", "w1", "w2", "w3"]
    for name, array in found.items():
        constant = model.ir.graph.initializers[name].const_value
        assert constant is not None
        assert np.array_equal(array, constant.numpy())


def test_every_weight_gets_a_gradient() -> None:
    module = OnnxModule(normalise(model_of(conv_net())), photos(1)[0])
    torch.autograd.backward(module({"x": torch.from_numpy(photos(1)[0]["x"])})["y"].square().sum())
    assert all(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in module.weights.values())


def test_bounds_exponents_statistics_and_masks_are_no_weights() -> None:
    model = small(
        "float[2,2,3,3] x",
        "lo = Constant<value = float[1] {0.0}>() hi = Constant<value = float[1] {6.0}>() "
        "s = Constant<value = float[2] {1.0, 2.0}>() m = Constant<value = float[2] {0.1, 0.2}>() "
        "v = Constant<value = float[2] {1.5, 2.5}>() e = Constant<value = float {2.0}>() "
        "mask = Constant<value = float[3] {0.0, 0.0, -3.0e38}>() "
        "n = BatchNormalization(x, s, m, m, v) r = Relu(n) c = Clip(r, lo, hi) p = Pow(c, e) "
        "q = Add(p, mask) y = Softmax(q)",
    )
    names = OnnxModule(model, sample_of(model)).export_weights()
    values = {tuple(array.ravel()) for array in names.values()}
    assert values == {(1.0, 2.0)}


def test_an_operator_without_a_rendering_is_named() -> None:
    text = "net (float[4, 4] x) => (float y) { y = Det(x) }"
    with pytest.raises(RecoverError, match=r"operator Det of node '.+' cannot be trained"):
        OnnxModule(normalise(model_of(text)), {"x": np.eye(4, dtype=np.float32)})


def test_a_variant_without_a_rendering_is_named() -> None:
    model = small(TABLE, "a = Constant<value = int64 {1}>() y = CumSum<reverse = 1>(x, a)")
    with pytest.raises(RecoverError, match="CumSum with exclusive or reverse cannot be trained"):
        OnnxModule(model, sample_of(model))


def test_a_rendering_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(TABLE, "y = Tanh(x)")
    monkeypatch.setattr("host.compress.torch.graph.OPERATORS", {"Tanh": OPERATORS["Sigmoid"]})
    with pytest.raises(RecoverError, match="answers differently from onnxruntime"):
        OnnxModule(model, sample_of(model))
