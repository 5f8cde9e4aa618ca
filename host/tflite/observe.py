"""What runs of a TFLite model say about its tensors: declared shapes may be placeholders, runs are not."""

from __future__ import annotations

from collections.abc import Sequence

from edge.formats.tensor import Array
from host.errors import IngestError, RuntimeRefusedError
from host.model import Tensors
from host.observe import Observed
from host.tflite.graph import TfliteGraph
from host.tflite.model import TfliteModel
from host.tflite.reference import TfliteReference

_DATA_DEPENDENT = frozenset(
    (
        "WHERE",
        "UNIQUE",
        "RANGE",
        "WHILE",
        "IF",
        "NON_MAX_SUPPRESSION_V4",
        "NON_MAX_SUPPRESSION_V5",
        "DYNAMIC_UPDATE_SLICE",
        "FILL",
        "TILE",
        "BROADCAST_TO",
        "SLICE",
        "STABLEHLO_CASE",
        "STABLEHLO_WHILE",
    )
)
"""Operators whose output shape may change with values although every input shape is fixed."""

_NOT_DENSE = Observed(dtype="", shape=(), dims=(), size_bytes=0)


def observe_tflite(model: TfliteModel, samples: Sequence[Tensors]) -> tuple[dict[str, Observed], dict[str, Array]]:
    """Run a model on every sample with all its tensors visible.

    Args:
        model: any.
        samples: at least one; two of different size where the model is dynamic.

    Returns:
        Every input, output and inner tensor by name, and the values of the first sample.

    Raises:
        IngestError: LiteRT cannot run the model on a sample.
    """
    try:
        reference = TfliteReference(model, mode="default", inner=True)
        runs = [{**sample, **reference.run_all(sample)} for sample in samples]
    except RuntimeRefusedError as error:
        raise IngestError(f"model {model.name!r}: {error}") from error
    graph = model.graph
    fixed = _is_static(graph)
    varied = _vary(graph, samples)
    observed = {tensor.name: _NOT_DENSE for tensor in graph.tensors}
    for name, first in runs[0].items():
        shapes = [run[name].shape for run in runs]
        if len({len(shape) for shape in shapes}) != 1:
            continue
        still = tuple(len({shape[axis] for shape in shapes}) == 1 for axis in range(first.ndim))
        dims = tuple(
            size if same and (fixed or varied) else None for size, same in zip(first.shape, still, strict=True)
        )
        observed[name] = Observed(dtype=first.dtype.name, shape=first.shape, dims=dims, size_bytes=first.nbytes)
    for index in graph.inputs:
        tensor = graph.tensors[index]
        first = runs[0][tensor.name]
        dims = tensor.dims if len(tensor.dims) == first.ndim else (None,) * first.ndim
        observed[tensor.name] = Observed(dtype=first.dtype.name, shape=first.shape, dims=dims, size_bytes=first.nbytes)
    return observed, runs[0]


def _is_static(graph: TfliteGraph) -> bool:
    if any(kind in _DATA_DEPENDENT for kind, _, _ in graph.used) and any(t.is_dynamic for t in graph.tensors):
        return False
    return not any(graph.tensors[index].is_dynamic for index in graph.inputs)


def _vary(graph: TfliteGraph, samples: Sequence[Tensors]) -> bool:
    """Tell whether every open dimension of the inputs was seen with two sizes."""
    varied = [
        len({sample[tensor.name].shape[axis] for sample in samples}) > 1
        for tensor in (graph.tensors[index] for index in graph.inputs)
        for axis, dim in enumerate(tensor.dims)
        if dim is None
    ]
    return bool(varied) and all(varied)
