"""What a layer costs, against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edge.formats.tensor import Array
from host.model import Model
from host.observe import Observed, observe
from host.partition.cost import (
    constant_bytes,
    constant_closure,
    layer_macs,
    peak_activation_bytes,
)
from host.partition.layers import Layers, find_layers
from host.passes.normalise import normalise
from tests.graphs import conv_net, model_of, photos


@pytest.fixture(scope="module")
def net() -> Model:
    return normalise(model_of(conv_net()))


@pytest.fixture(scope="module")
def seen(net: Model) -> dict[str, Observed]:
    samples: list[dict[str, Array]] = [dict(sample) for sample in photos(1)]
    return observe(net, samples)


@pytest.fixture(scope="module")
def layers(net: Model, seen: dict[str, Observed]) -> Layers:
    return find_layers(net, seen)


def test_the_layers_of_a_network_add_up(net: Model, seen: dict[str, Observed], layers: Layers) -> None:
    assert {layer.nodes[0].op_type: layer_macs(layer, net.ir.graph, seen) for layer in layers.layers} == {
        "Conv": 8 * 64 * 8 * 9,  # the second one; the first is checked below
        "Relu": 8 * 64,
        "Add": 8 * 64,
        "GlobalAveragePool": 8,
        "Flatten": 0,
        "Gemm": 4 * 8,
    }
    assert layer_macs(layers.layers[0], net.ir.graph, seen) == 8 * 64 * 3 * 9


def test_weights_are_counted_once_a_layer(net: Model, layers: Layers) -> None:
    sizes = [constant_bytes(layer.constants, net.ir.graph, layers) for layer in layers.layers]
    assert sizes == [4 * (8 * 3 * 9 + 8), 0, 4 * (8 * 8 * 9 + 8), 0, 0, 0, 4 * (4 * 8 + 4)]


def test_peak_activation_holds_what_comes_in_and_what_is_made(seen: dict[str, Observed], layers: Layers) -> None:
    peaks = [
        peak_activation_bytes(layer, cut, seen) for layer, cut in zip(layers.layers, layers.cuts[:-1], strict=True)
    ]
    photo, feature = 4 * 3 * 64, 4 * 8 * 64
    # The third and fourth layer have the skip connection alive beside what they read and make.
    assert peaks[:4] == [photo + feature, feature + feature, feature + feature, 3 * feature]


def test_constants_made_from_constants_count_with_their_sources() -> None:
    model = normalise(
        model_of(
            "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {3, 4}>"
            " { c = Add (a, b) \n d = Mul (c, a) \n y = Add (x, d) }"
        )
    )
    sample = {"x": np.zeros(2, np.float32)}
    layers = find_layers(model, observe(model, [sample]))
    (layer,) = layers.layers
    assert [node.op_type for node in layer.nodes] == ["Add"]
    closure = constant_closure(layer.constants, layers)
    assert len(closure) == 4
    assert closure.index(layer.constants[0]) == 3  # after everything that it is made from
    # a, b, c and d hold two numbers each.
    assert constant_bytes(closure, model.ir.graph, layers) == 4 * 8


@pytest.mark.parametrize(
    ("sizes", "dims"),
    [
        (((1, 4), (2, 5)), (None, None)),  # both dimensions were seen to change
        (((1, 4), (2, 4)), (None, None)),  # the second never did, which says nothing
        (((1, 4),), (None, None)),
    ],
)
def test_open_dimensions_stay_open(sizes: tuple[tuple[int, int], ...], dims: tuple[int | None, ...]) -> None:
    model = normalise(model_of("g (float[n, m] x) => (float[n, m] y) { h = Relu (x) \n y = Neg (h) }"))
    seen = observe(model, [{"x": np.zeros(size, np.float32)} for size in sizes])
    assert {observed.dims for observed in seen.values()} == {dims}


def test_an_inner_size_is_known_once_every_open_one_has_changed() -> None:
    model = normalise(model_of("g (float[n, 4] x) => (float[n, 4] y) { h = Relu (x) \n y = Neg (h) }"))
    changed = observe(model, [{"x": np.zeros((size, 4), np.float32)} for size in (1, 2)])
    same = observe(model, [{"x": np.zeros((size, 4), np.float32)} for size in (2, 2)])
    assert (changed["x"].dims, changed["h"].dims) == ((None, 4), (None, 4))
    assert (same["x"].dims, same["h"].dims) == ((None, 4), (None, None))


def test_a_closed_model_has_all_sizes(seen: dict[str, Observed]) -> None:
    assert all(None not in observed.dims for observed in seen.values())
