"""Half precision as storage: weights stored as float16, cast to float32 before use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edge.formats.tensor import Array
from host.compress.constants import add_constant, constant_of, taken_names
from host.compress.quantize.quantized import Quantized, Say, nothing_to_quantize
from host.compress.recipe import Quantize
from host.model import Model, Tensors, copied
from host.passes.normalise import normalise

LEAST_BYTES = 1024
"""A smaller constant is not worth a node."""

LARGEST_HALF = 65504.0
"""Largest finite float16."""


def quantize_half(
    model: Model,
    plan: Quantize,
    samples: Sequence[Tensors],
    biases: Mapping[str, Array] | None,
    say: Say,
) -> Quantized:
    """Store weights as float16; the arithmetic stays in fp32, because few processors have fp16 kernels.

    1. Each fp32 initializer of a kilobyte or more becomes a float16 one and a Cast to float32.
    2. A tensor with a value that float16 cannot hold (beyond 65504, or not finite) stays as it is.
    3. The Cast works on a constant only, so a cut takes it along with its reader.

    Args:
        model: A normalised model; it is not changed.
        plan: Nothing of it but the mode matters.
        samples: Not looked at.
        biases: Not looked at.
        say: Not told anything.

    Raises:
        QuantizeError: If there is no such tensor.
    """
    del samples, biases, say
    graph = copied(model.ir)
    taken = taken_names(graph)
    given = set(graph.graph.outputs)
    changed = 0
    for value in list(graph.graph.initializers.values()):
        array = constant_of(value)
        if array is None or value in given or not _fits(array):
            continue
        _store_half(graph, value, array, taken)
        changed += 1
    if not changed:
        raise nothing_to_quantize(model, "float16")
    graph.graph.sort()
    return Quantized(model=normalise(model.with_ir(graph)), plan=plan)


def _fits(array: Array) -> bool:
    if array.dtype != np.float32 or array.nbytes < LEAST_BYTES:
        return False
    return bool(np.abs(array).max() <= LARGEST_HALF)


def _store_half(graph: ir.Model, value: ir.Value, array: Array, taken: set[str]) -> None:
    name = str(value.name)
    half = add_constant(graph, f"{name}_half", array.astype(np.float16), taken)
    del graph.graph.initializers[name]
    wide = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
    cast = ir.Node(
        "", "Cast", [half], {"to": ir.AttrInt64("to", ir.DataType.FLOAT)}, outputs=[wide], name=f"{name}_widen"
    )
    graph.graph.insert_before(graph.graph[0], cast)
    value.replace_all_uses_with(wide)
