"""The time of a layer stands beside that of what it became, whatever the runtime calls the node."""

from __future__ import annotations

from host.compress.quantize import quantize
from host.compress.recipe import Quantize
from host.compress.report.layer_times import layer_times, operator_times
from host.compress.report.records import LayerTime, OperatorTime
from host.model import Model
from host.passes.fuse import fuse
from host.passes.normalise import normalise
from host.timing import NodeTime, node_times
from tests.graphs import conv_net, model_of, photos


def _model() -> Model:
    return normalise(model_of(conv_net()))


def _time(name: str, operator: str, seconds: float) -> NodeTime:
    return NodeTime(name=name, operator=operator, seconds=seconds)


def test_nodes_are_matched_by_what_they_compute() -> None:
    model = _model()
    rows = layer_times(
        model,
        [_time("r1_nchwc", "Conv", 4.0), _time("gemm", "Gemm", 1.0)],
        model,
        [_time("relu1_token_7", "QLinearConv", 2.0), _time("y_QuantizeLinear_Output", "QGemm", 0.5)],
    )
    assert rows == (
        LayerTime(node="r1", operator="Conv", seconds_before=4.0, seconds_after=2.0),
        LayerTime(node="y", operator="Gemm", seconds_before=1.0, seconds_after=0.5),
    )


def test_what_only_one_of_them_has_has_one_time() -> None:
    model = _model()
    rows = layer_times(model, [_time("add", "Add", 1.0)], model, [_time("a_DequantizeLinear", "DequantizeLinear", 2.0)])
    assert rows == (
        LayerTime(node="a", operator="Add", seconds_before=1.0),
        LayerTime(node="a_DequantizeLinear", operator="DequantizeLinear", seconds_after=2.0),
    )


def test_no_time_is_lost_where_two_nodes_write_one_name() -> None:
    model = _model()
    rows = layer_times(model, [_time("c1", "Conv", 1.0), _time("c1_nchwc", "Conv", 2.0)], model, [])
    assert [(row.node, row.seconds_before) for row in rows] == [("c1", 1.0), ("c1_nchwc", 2.0)]


def test_the_layers_of_a_quantized_model_meet_those_of_the_original() -> None:
    model, samples = _model(), photos(4)
    fused, _ = fuse(quantize(model, Quantize(), samples).model, samples)
    rows = layer_times(model, node_times(model, samples[:1], runs=1), fused, node_times(fused, samples[:1], runs=1))
    both = {row.node for row in rows if row.seconds_before is not None and row.seconds_after is not None}
    assert {"r1", "y"} <= both


def test_operators_are_summed_by_what_they_were_the_longest_first() -> None:
    layers = (
        LayerTime(node="a", operator="Relu", seconds_before=1.0),
        LayerTime(node="b", operator="Conv", seconds_before=2.0, seconds_after=1.0),
        LayerTime(node="c", operator="Conv", seconds_before=3.0, seconds_after=0.5),
        LayerTime(node="d", operator="QuantizeLinear", seconds_after=0.25),
    )
    assert operator_times(layers) == (
        OperatorTime(operator="Conv", seconds_before=5.0, seconds_after=1.5),
        OperatorTime(operator="Relu", seconds_before=1.0),
        OperatorTime(operator="QuantizeLinear", seconds_after=0.25),
    )
