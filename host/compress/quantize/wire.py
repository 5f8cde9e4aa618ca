"""Half precision on the wire: round the tensors that a cut would send, so that they travel in half the bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from host.compress.constants import taken_names
from host.compress.quantize.liveness import liveness
from host.errors import QuantizeError
from host.model import Model, Tensors, copied
from host.passes.normalise import normalise
from host.passes.unique_names import free_name
from host.reference import Reference

LEAST_BYTES = 1024
"""A smaller tensor costs more in nodes than it saves on the wire."""

# Half of the largest float16: a tensor may be larger on other inputs than on the samples.
_LARGEST = 32752.0


def half_wire(model: Model, samples: Sequence[Tensors]) -> Model:
    """Put a Cast to float16 and one back behind fp32 tensors that stand alone between two parts of the graph.

    1. Only a tensor that is the only one alive at some place: a cut elsewhere moves several, and rounding one of them
       would cost accuracy for less.
    2. Only fp32 of a kilobyte or more that stays far from float16's limit on the samples; inputs and outputs of the
       model stay as they are.
    3. None that is larger than the one before or after it: a cut rather goes there, and each pair costs time in one
       piece, too.
    4. All later readers get the rounded tensor, so that a cut between both Casts moves it alone, and answers are the
       same with and without that cut.

    Args:
        model: A normalised, fused model; it is not changed.
        samples: At least one.

    Returns:
        The model with pairs of Casts; the same one if there is no such tensor.

    Raises:
        QuantizeError: If there is no sample.
        RuntimeRefusedError: If the model does not run.
    """
    if not samples:
        raise QuantizeError("rounding for the wire needs inputs: pass --inputs")
    graph = copied(model.ir)
    graph.graph.sort()
    bridges = _bridges(graph)
    chosen = _least(_worthwhile(model, tuple(bridges), samples))
    if not chosen:
        return model
    taken = taken_names(graph)
    values = {str(value.name): value for node in graph.graph for value in node.outputs}
    for name, after in bridges.items():
        if name in chosen:
            _round(graph, values[name], after, taken)
    return normalise(model.with_ir(graph))


def _bridges(graph: ir.Model) -> dict[str, tuple[ir.Node, ...]]:
    """Inner tensors that are alone alive somewhere, each with the nodes behind its first such place, in order.

    Tensors that the body of an If or a Loop reads are none.
    """
    found = liveness(graph.graph)
    outer = {str(value.name) for value in (*graph.graph.inputs, *graph.graph.outputs)}
    outer |= {
        str(value.name)
        for node in graph.graph
        for value in node.outputs
        if any(use.node.graph is not graph.graph for use in value.uses())
    }
    bridges: dict[str, tuple[ir.Node, ...]] = {}
    for place, cut in enumerate(found.cuts):
        if len(cut) == 1 and cut[0] not in outer and cut[0] not in bridges:
            bridges[cut[0]] = found.nodes[place:]
    return bridges


def _worthwhile(model: Model, names: Sequence[str], samples: Sequence[Tensors]) -> dict[str, int]:
    """Bytes of the tensors that may be rounded, in order."""
    if not names:
        return {}
    reference = Reference(model, mode="exact", extra_outputs=names)
    sizes: dict[str, int] = {}
    bad: set[str] = set()
    for sample in samples:
        for name, array in reference.run(sample, names).items():
            if _fits(array):
                sizes.setdefault(name, array.nbytes)
            else:
                bad.add(name)
    return {name: sizes[name] for name in names if name not in bad}


def _least(sizes: Mapping[str, int]) -> set[str]:
    """Names of those that are no larger than both neighbours."""
    names = list(sizes)
    larger = {
        first if sizes[first] > sizes[second] else second
        for first, second in pairwise(names)
        if sizes[first] != sizes[second]
    }
    return set(names) - larger


def _fits(array: object) -> bool:
    # A sequence is a list.
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.nbytes < LEAST_BYTES:
        return False
    return bool(np.abs(array).max() <= _LARGEST)


def _round(graph: ir.Model, value: ir.Value, after: tuple[ir.Node, ...], taken: set[str]) -> None:
    later = set(after)
    readers = [use for use in value.uses() if use.node in later]
    half = ir.Value(name=free_name(f"{value.name}_half", taken), type=ir.TensorType(ir.DataType.FLOAT16))
    wide = ir.Value(name=free_name(f"{value.name}_rounded", taken), type=ir.TensorType(ir.DataType.FLOAT))
    for reader in readers:
        reader.node.replace_input_with(reader.idx, wide)
    graph.graph.insert_before(after[0], [_cast(value, half), _cast(half, wide)])


def _cast(value: ir.Value, result: ir.Value) -> ir.Node:
    dtype = result.dtype
    attributes = {"to": ir.AttrInt64("to", int(dtype))} if dtype is not None else {}
    return ir.Node("", "Cast", [value], attributes, outputs=[result], name=f"{result.name}_cast")
