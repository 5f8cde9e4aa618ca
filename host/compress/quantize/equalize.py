"""Cross-layer equalization: balance the ranges of channels between consecutive layers, without any data.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.1: for a
positively homogeneous f, ``W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1)`` with a diagonal S > 0, and by equation 11
``s_i = sqrt(r1_i r2_i) / r2_i`` makes the ranges r1 of what leaves the first layer and r2 of what the second does with
it equal in each channel.

1. A *source* is a layer whose output channels can be scaled: Conv, ConvTranspose and Gemm with constant weights that
   nobody else reads, BatchNormalization, and Mul by a constant for each channel.
2. A *sink* is one whose input channels can be scaled back: the same.
3. Between them stand only operators that scale with their input: Relu, LeakyRelu, PRelu, a Clip or Max at zero,
   poolings, zero padding, Add of a constant for each channel (which is scaled as well), and Flatten before a Gemm.
4. Each tensor on the way is read by nobody else, or by further sinks, and is no output.
5. So a batch normalization behind an activation, which no convolution can take in, does not keep its wide ranges: its
   input is scaled by its own statistics and its output by its scale and shift. Only the scale moves: behind zero
   padding a shift would not be exact.
6. All pairs in graph order, again and again until nothing moves. The arithmetic is elementwise, in float64, rounded
   once at the end, and so the same on every machine.
"""

from __future__ import annotations

import numpy as np

from edge.formats.tensor import Array
from host.compress.constants import taken_names
from host.compress.quantize.homogeneous import Route, Sink, routes
from host.model import Model, copied
from host.passes.normalise import normalise

MAX_SWEEPS = 40

SETTLED = 1.001
"""Factor within which the scales of a sweep lie when nothing moves any more."""

LARGEST_SCALE = 1e6
"""A channel is scaled by at most this, or its inverse, in all."""


def equalize(model: Model) -> Model:
    """Balance the channel ranges of consecutive layers; the model computes the same up to rounding.

    Args:
        model: A normalised fp32 model; it is not changed.

    Returns:
        The model with other weights; the same one if it has no two layers that can be balanced.
    """
    graph = copied(model.ir)
    found, layers = routes(graph)
    if not found:
        return model
    total = [np.ones(route.source.channels) for route in found]
    for _ in range(MAX_SWEEPS):
        largest = 1.0
        for index, route in enumerate(found):
            scale = _scale(route, total[index])
            total[index] *= scale
            route.source.divide_output(scale)
            for shift in route.shifts:
                shift.divide_output(scale)
            for sink in route.sinks:
                sink.layer.multiply_input(np.repeat(scale, sink.repeats))
            largest = max(largest, float(scale.max()), 1 / float(scale.min()))
        if largest < SETTLED:
            break
    taken = taken_names(graph)
    for layer in layers:
        layer.write(graph, taken)
    return normalise(model.with_ir(graph))


def _scale(route: Route, so_far: Array) -> Array:
    """What the source's channels are divided by, shape ``[channels]``."""
    known = [ranges for sink in route.sinks if (ranges := sink.layer.incoming()) is not None]
    if known:
        wanted = np.max(known, axis=0)
    else:
        enters = np.max([_by_channel(sink) for sink in route.sinks], axis=0)
        leaves = route.source.leaving()
        wanted = np.sqrt(np.divide(leaves, enters, out=np.zeros_like(leaves), where=enters > 0))
    usable = (wanted > 0) & np.isfinite(wanted)
    scale = np.ones(route.source.channels)
    if usable.any():
        # Only ratios between channels matter. Taken out is a power of two near their geometric mean, by integers:
        # logarithms differ in their last bit from one processor to another.
        _, exponents = np.frexp(wanted[usable])
        middle = round(int(exponents.sum()) / exponents.size)
        scale[usable] = np.ldexp(wanted[usable], -middle)
    bounded: Array = np.clip(so_far * scale, 1 / LARGEST_SCALE, LARGEST_SCALE) / so_far
    return bounded


def _by_channel(sink: Sink) -> Array:
    """How much a sink does with each channel; flattening makes several columns of one."""
    largest: Array = sink.layer.entering().reshape(-1, sink.repeats).max(axis=1)
    return largest
