"""What runs of the model say about its tensors: declared shapes may lie, runs do not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge.formats.tensor import DTYPES, MAX_TENSOR_BYTES, Array, dtype_of, held_bytes
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
        dtype: key of `edge.formats.tensor.DTYPES`, another numpy name, or `""` for what is not a dense tensor (a
            sequence, an absent optional).
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
    static = _is_static(graph) or _vary(graph, samples)
    found = {name: _merge([run.get(name) for run in runs], static=static) for name in names}
    return {str(value.name): _as_declared(value, samples) for value in graph.inputs} | found


def _declared(graph: ir.Graph) -> set[str | None]:
    return {value.name for value in graph.outputs}


def _open_axes(value: ir.Value, rank: int) -> tuple[bool, ...]:
    if value.shape is None:
        return (True,) * rank
    return tuple(not isinstance(dim, int) for dim in value.shape)


def _vary(graph: ir.Graph, samples: Sequence[Tensors]) -> bool:
    """Tell whether every open dimension of the inputs was seen with two sizes.

    Where one was not, a size that never changed says nothing: fixing it would make the runtime infer shapes through
    branches that this size never takes, and refuse the stage.
    """
    varied: list[bool] = []
    for value in graph.inputs:
        shapes = [sample[str(value.name)].shape for sample in samples]
        open_axes = _open_axes(value, len(shapes[0]))
        varied += [len({shape[axis] for shape in shapes}) > 1 for axis, is_open in enumerate(open_axes) if is_open]
    return bool(varied) and all(varied)


def _as_declared(value: ir.Value, samples: Sequence[Tensors]) -> Observed:
    first = samples[0][str(value.name)]
    open_axes = _open_axes(value, first.ndim)
    dims = tuple(None if is_open else size for is_open, size in zip(open_axes, first.shape, strict=True))
    return Observed(dtype=_dtype_name(first), shape=first.shape, dims=dims, size_bytes=held_bytes(first))


def _dtype_name(array: Array) -> str:
    return dtype_of(array) or array.dtype.name


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
    return Observed(dtype=_dtype_name(first), shape=first.shape, dims=dims, size_bytes=held_bytes(first))


def total_bytes(names: Iterable[str], observed: Mapping[str, Observed]) -> int:
    """Return the sum of the sizes of `names`, first run."""
    return sum(observed[name].size_bytes for name in names)
