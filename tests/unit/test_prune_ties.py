"""Which channels belong together, and which must stay."""

from __future__ import annotations

import numpy as np
import pytest

from host.compress.prune.ties import find_ties
from host.compress.recipe import ChannelGroup
from host.errors import RecipeError
from host.model import Model
from host.passes.normalise import normalise
from tests.channel_nets import Net
from tests.graphs import conv_net, model_of


def groups(model: Model) -> list[tuple[str, ...]]:
    return [group.nodes for group in find_ties(model.ir).groups]


def test_a_residual_sum_ties_its_producers() -> None:
    assert groups(normalise(model_of(conv_net()))) == [("conv1", "conv2")]


def test_what_reaches_an_output_stays() -> None:
    net = Net()
    first = net.same("Relu", net.conv("x", 8))
    assert groups(net.model(net.conv(first, 8))) == [("conv0",)]
    assert groups(net.model(first, net.conv(first, 8))) == []


def test_a_chain_of_operators_that_treat_each_channel_alone_ties_nothing() -> None:
    net = Net()
    value = net.conv("x", 8, bias=False)
    for layer in (net.batch_norm, net.prelu, net.scale, net.depthwise, net.pool):
        value = layer(value)
    value = net.same("LeakyRelu", value)
    assert groups(net.model(net.gemm(net.mean(value), 4))) == [("conv0",)]


def test_a_gate_ties_the_gated_to_the_last_layer_of_the_gate() -> None:
    net = Net()
    value = net.excite(net.conv("x", 8))
    assert groups(net.model(net.gemm(net.mean(value), 4))) == [("conv0", "conv4"), ("conv2",)]


def test_concatenated_channels_are_independent() -> None:
    net = Net()
    both = net.concat(net.conv("x", 8), net.conv("x", 16))
    assert groups(net.model(net.conv(both, 4))) == [("conv0",), ("conv1",)]


def test_channels_that_are_tied_crosswise_stay() -> None:
    net = Net()
    both = net.concat(net.conv("x", 8), net.conv("x", 8))
    total = net.same("Add", both, net.conv("x", 16))
    assert groups(net.model(net.conv(total, 4))) == []


def test_flattened_channels_have_as_many_positions_as_pixels() -> None:
    for join in ("flatten", "reshape"):
        net = Net()
        value = net.conv("x", 8, stride=2)
        flat = net.flatten(value) if join == "flatten" else net.reshape(value, 1, -1)
        ties = find_ties(net.model(net.gemm(flat, 4)).ir)
        assert [group.nodes for group in ties.groups] == [("conv0",)]
        reads = [cut for cut in ties.cuts if cut.role == "reads"]
        assert [len(cut.ids) for cut in reads] == [8 * 16]
        assert np.array_equal(reads[0].ids, np.repeat(ties.groups[0].roots, 16))


@pytest.mark.parametrize("operator", ["Softmax", "LRN", "ArgMax", "LogSoftmax", "Shape"])
def test_operators_that_mix_channels_or_are_unknown_freeze_them(operator: str) -> None:
    attributes = {"Softmax": {"axis": 1}, "LogSoftmax": {"axis": 1}, "LRN": {"size": 3}}.get(operator, {})
    net = Net()
    value = net.conv("x", 8)
    end = net.add("Cast", [net.add(operator, [value], (1, 8, 8, 8), **attributes)], (1, 8, 8, 8), to=1)
    assert groups(net.model(end, net.conv(value, 4))) == []


def test_a_softmax_over_the_pixels_freezes_nothing() -> None:
    net = Net()
    value = net.same("Softmax", net.conv("x", 8), axis=-1)
    assert groups(net.model(net.conv(value, 4))) == [("conv0",)]


def test_a_reshape_that_splits_channels_freezes_them() -> None:
    net = Net()
    shuffled = net.reshape(net.conv("x", 8), 1, 2, 4, 8, 8)
    assert groups(net.model(net.add("ReduceMean", [shuffled], (1,), keepdims=0))) == []


def test_grouped_but_not_depthwise_convolutions_freeze_both_sides() -> None:
    net = Net()
    value = net.conv("x", 8)
    grouped = net.add("Conv", [value, net.weights(8, 4, 1, 1)], (1, 8, 8, 8), group=2)
    assert groups(net.model(net.conv(grouped, 4))) == []


def test_layers_that_share_a_weight_stay() -> None:
    net = Net(channels=8)
    weight = net.weights(8, 8, 1, 1)
    first = net.add("Conv", ["x", weight], (1, 8, 8, 8))
    second = net.add("Conv", [first, weight], (1, 8, 8, 8))
    assert groups(net.model(net.conv(second, 4))) == []


def test_a_transposed_layout_is_followed() -> None:
    net = Net()
    last = net.add("Transpose", [net.conv("x", 8)], (1, 8, 8, 8), perm=[0, 2, 3, 1])
    scaled = net.same("Add", net.same("Relu", last), net.vector(8))
    assert groups(net.model(net.add("MatMul", [scaled, net.weights(8, 5)], (1, 8, 8, 5)))) == [("conv0",)]


def test_a_sum_with_a_tensor_from_outside_freezes() -> None:
    net = Net(channels=8)
    assert groups(net.model(net.conv(net.same("Add", net.conv("x", 8), "x"), 4))) == []


def test_a_map_over_the_pixels_that_all_channels_share_ties_nothing() -> None:
    net = Net()
    value = net.conv("x", 8)
    gate = net.same("Sigmoid", net.conv(value, 1))
    assert groups(net.model(net.conv(net.same("Mul", value, gate), 4))) == [("conv0",)]


def test_parts_of_a_split_go_alone_where_their_sizes_are_said() -> None:
    for sizes, expected in (([6, 10], [("conv0",)]), (None, [])):
        net = Net()
        value = net.conv("x", 16)
        attributes = {} if sizes else {"num_outputs": 2}
        inputs = [value, *([net.constant(np.array(sizes, np.int64))] if sizes else [])]
        first = net.add("Split", inputs, (1, sizes[0] if sizes else 8, 8, 8), axis=1, **attributes)
        rest = net.also(first, (1, sizes[1] if sizes else 8, 8, 8))
        assert groups(net.model(net.conv(first, 4), net.conv(rest, 4))) == expected


def test_an_excluded_node_keeps_its_group() -> None:
    model = normalise(model_of(conv_net()))
    assert find_ties(model.ir, exclude=["relu1"]).groups == ()
    with pytest.raises(RecipeError, match="'relu9' is no node of this model"):
        find_ties(model.ir, exclude=["relu9"])


def test_groups_of_another_model_are_refused() -> None:
    ties = find_ties(normalise(model_of(conv_net())).ir)
    with pytest.raises(RecipeError, match="'conv1' is no group of tied channels"):
        ties.stays([ChannelGroup(nodes=("conv1",), keep=(0,))])
    with pytest.raises(RecipeError, match="has 8 channels, and channel 9 should stay"):
        ties.stays([ChannelGroup(nodes=("conv1", "conv2"), keep=(0, 9))])
