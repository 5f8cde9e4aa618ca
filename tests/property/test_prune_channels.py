"""Random nets: whatever is cut from them, they run, shrink, and answer as if nobody had read what is gone."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.compare import relative_error
from host.compress.prune.channels import prunable, structure
from host.compress.recipe import ChannelGroup, PruneChannels
from host.figures import measure
from host.model import Model, to_bytes
from host.reference import Reference
from tests.channel_nets import Net, images, without_readers


def turned(net: Net, value: str) -> str:
    """To pixels last, something there, and back."""
    _, channels, height, width = net.shapes[value]
    last = net.add("Transpose", [value], (1, height, width, channels), perm=[0, 2, 3, 1])
    moved = net.same("Add", last, net.vector(channels))
    return net.add("Transpose", [moved], net.shapes[value], perm=[0, 3, 1, 2])


def parted(net: Net, value: str) -> str:
    """Two parts that change places."""
    _, channels, height, width = net.shapes[value]
    sizes = [channels // 2, channels - channels // 2]
    first = net.add("Split", [value, net.constant(np.array(sizes, np.int64))], (1, sizes[0], height, width), axis=1)
    second = net.also(first, (1, sizes[1], height, width))
    return net.concat(net.same("Relu", second), first)


def bottleneck(net: Net, value: str) -> str:
    return net.same("Add", net.conv(net.same("Relu", net.conv(value, 4)), net.shapes[value][1]), value)


def clipped(net: Net, value: str) -> str:
    return net.same("Clip", value, *(net.constant(np.array(limit, np.float32)) for limit in (-1, 1)))


LAYERS: dict[str, Callable[[Net, str], str]] = {
    "conv": lambda net, value: net.conv(value, 6),
    "pointwise": lambda net, value: net.conv(value, 8, kernel=1, bias=False),
    "strided": lambda net, value: net.conv(value, 5, stride=2),
    "depthwise": lambda net, value: net.depthwise(value),
    "doubled": lambda net, value: net.depthwise(value, times=2) if net.shapes[value][1] <= 8 else value,
    "relu": lambda net, value: net.same("Relu", value),
    "clip": clipped,
    "batch-norm": Net.batch_norm,
    "prelu": Net.prelu,
    "scale": Net.scale,
    "excite": Net.excite,
    "bottleneck": bottleneck,
    "concat": lambda net, value: net.concat(net.conv(value, 3), value, net.conv(value, 4, kernel=1)),
    "pool": lambda net, value: net.pool(value) if net.shapes[value][2] % 2 == 0 else value,
    "pixels-last": turned,
    "parted": parted,
}

ENDS: dict[str, Callable[[Net, str], str]] = {
    "mean": Net.mean,
    "flatten": Net.flatten,
    "reshape": lambda net, value: net.reshape(value, 1, -1),
}


@st.composite
def nets(draw: st.DrawFn) -> Model:
    net = Net(seed=draw(st.integers(0, 2**16)))
    value = net.conv("x", draw(st.sampled_from([4, 6, 8])))
    for layer in draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=7)):
        value = LAYERS[layer](net, value)
    end = draw(st.sampled_from(["conv", *sorted(ENDS)]))
    if end == "conv":
        return net.model(net.conv(value, 3))
    flat = ENDS[end](net, value)
    return net.model(net.gemm(net.same("Relu", net.gemm(flat, 6)), 4, transposed=draw(st.booleans())))


@pytest.mark.slow
@given(model=nets(), data=st.data())
@settings(deadline=None, max_examples=60)
def test_cutting_unread_channels_changes_nothing_but_the_cost(model: Model, data: st.DataObject) -> None:
    groups = [
        ChannelGroup(nodes=group.nodes, keep=tuple(sorted(keep)))
        for group in prunable(model)
        if len(keep := data.draw(st.sets(st.integers(0, group.size - 1), min_size=1))) < group.size
    ]
    step = PruneChannels(groups=tuple(groups), repair=data.draw(st.booleans()))
    unread = without_readers(model, groups)
    pruned = structure(unread, step)
    assert to_bytes(structure(unread, step).ir) == to_bytes(pruned.ir)
    sample = images(1)[0]
    expected, found = Reference(unread).run(sample), Reference(pruned).run(sample)
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert relative_error(found[name], array) < 1e-5
    if groups:
        before, after = measure(unread, sample, timed=False), measure(pruned, sample, timed=False)
        assert after.macs < before.macs
        bare = msgspec.structs.replace(step, repair=False)
        assert measure(structure(unread, bare), sample, timed=False).weight_bytes < before.weight_bytes


@given(model=nets())
@settings(deadline=None, max_examples=30)
def test_every_group_of_a_net_can_be_cut_to_one_channel(model: Model) -> None:
    groups = tuple(ChannelGroup(nodes=group.nodes, keep=(group.size - 1,)) for group in prunable(model))
    pruned = structure(model, PruneChannels(groups=groups))
    sample = images(1)[0]
    shapes = [{name: array.shape for name, array in Reference(each).run(sample).items()} for each in (model, pruned)]
    assert shapes[0] == shapes[1]
