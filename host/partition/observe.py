"""What runs of the model say about its tensors: declared shapes may lie, runs do not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge.formats.tensor import DTYPES, MAX_TENSOR_BYTES
from host.model import Model, Tensors
from host.reference import Reference

_DATA_DEPENDENT = frozenset(
    ("Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Range", "Scan", "Unique", "SplitToSequence")
)
"""Operators whose output shape may change with values although every input shape is fixed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """One tensor as it was seen.

    Attributes:
        dtype: numpy name, or `""` for what is not a dense tensor (a sequence, an absent optional).
        shape: the first run's.
        dims: like `shape`, None where the dimension may differ between inputs.
        size_bytes: in the first run.
    """

    dtype: str
    shape: tuple[int, ...]
    dims: tuple[int | None, ...]
    size_bytes: int

    @property
    def can_travel(self) -> bool:
        """Whether the codec carries it."""
        return self.dtype in DTYPES and self.size_bytes <= MAX_TENSOR_BYTES


_NOT_DENSE = Observed(dtype="", shape=(), dims=(), size_bytes=0)


def observe(model: Model, samples: Sequence[Tensors]) -> dict[str, Observed]:
    """Run the model on every sample with all tensors of the main graph as outputs.

    Args:
        model: normalised.
        samples: at least one; two of different size where the model is dynamic.

    Returns:
        Every graph input, initializer-free value and output by name.

    Raises:
        RuntimeRefusedError: onnxruntime cannot run the model.
    """
    graph = model.ir.graph
    names = [value.name for node in graph for value in node.outputs if value.name]
    reference = Reference(model, extra_outputs=[name for name in names if name not in _declared(graph)])
    runs = [{**sample, **reference.run(sample)} for sample in samples]
    static = _is_static(graph) or len({_sizes(sample) for sample in samples}) > 1
    wanted = [*(str(value.name) for value in graph.inputs), *names]
    return {name: _merge([run.get(name) for run in runs], static=static) for name in wanted}


def _declared(graph: ir.Graph) -> set[str | None]:
    return {value.name for value in graph.outputs}


def _sizes(sample: Tensors) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted((name, array.shape) for name, array in sample.items()))


def _is_static(graph: ir.Graph) -> bool:
    if any(node.op_type in _DATA_DEPENDENT for node in graph):
        return False
    return all(value.shape is not None and value.shape.is_static() for value in graph.inputs)


def _merge(seen: Iterable[object], *, static: bool) -> Observed:
    arrays = [array for array in seen if isinstance(array, np.ndarray)]
    if not arrays or len({(array.dtype, array.ndim) for array in arrays}) != 1:
        return _NOT_DENSE
    first = arrays[0]
    dims = tuple(
        first.shape[axis] if static and len({array.shape[axis] for array in arrays}) == 1 else None
        for axis in range(first.ndim)
    )
    return Observed(dtype=first.dtype.name, shape=first.shape, dims=dims, size_bytes=first.nbytes)


def total_bytes(names: Iterable[str], observed: Mapping[str, Observed]) -> int:
    """Return the sum of the sizes of `names`, first run."""
    return sum(observed[name].size_bytes for name in names)
