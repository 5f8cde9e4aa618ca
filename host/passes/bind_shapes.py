"""Bind dynamic dimensions of the inputs to numbers.

1. A binding names a dimension (``batch=1``), an input (``x=1x3x224x224``), or the one dynamic dimension of an input.
2. A symbolic dimension bound in one place is bound in every input that has it.
3. A dimension with a number is never changed: asking for another one is an error.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from host.errors import IngestError
from host.model import Model, copied

Binding = int | tuple[int, ...]


def bind_shapes(model: Model, shapes: Mapping[str, Binding]) -> Model:
    """Bind dynamic input dimensions.

    Args:
        model: Any model.
        shapes: Size by dimension name, or sizes by input name; ``-1`` in the sizes leaves a dimension as it is.

    Returns:
        The model with the dimensions bound; the same one if there is nothing to bind.

    Raises:
        IngestError: If a name is unknown, a size is not positive, or contradicts the model.
    """
    if not shapes:
        return model
    graph = copied(model.ir)
    inputs = {value.name: value for value in _real_inputs(graph)}
    named: dict[str, int] = {}
    for name, binding in shapes.items():
        if name in inputs:
            sizes = (binding,) if isinstance(binding, int) else tuple(binding)
            _bind_input(inputs[name], sizes, named)
        elif any(name == symbol for value in inputs.values() for symbol in _symbols(value)):
            named[name] = _one_size(name, binding)
        else:
            raise IngestError(f"--shape {name}: the model has no such input or dimension; it has {_choices(graph)}")
    for value in inputs.values():
        if value.shape is not None:
            value.shape = ir.Shape([_bound(dim, named) for dim in value.shape])
    return model.with_ir(graph)


def open_dimensions(model: ir.Model) -> None:
    """Make dimensions of the inputs that are declared below one, or as ``?``, dynamic and nameless, in place.

    Some converters write -1 or 0. Others call every open dimension ``?``, which would make all of them equal.
    """
    for value in _real_inputs(model):
        if value.shape is not None:
            value.shape = ir.Shape([None if _means_any(dim) else dim for dim in value.shape])


def _means_any(dim: int | ir.SymbolicDim) -> bool:
    return dim < 1 if isinstance(dim, int) else dim.value == "?"


def _bind_input(value: ir.Value, sizes: tuple[int, ...], named: dict[str, int]) -> None:
    if value.shape is None:
        value.shape = ir.Shape(list(sizes))
        return
    if len(sizes) != len(value.shape):
        raise IngestError(f"--shape {value.name}: got {len(sizes)} sizes, but the input has {_written(value)}")
    dims: list[int | ir.SymbolicDim] = []
    for dim, size in zip(value.shape, sizes, strict=True):
        if size == -1:
            dims.append(dim)
            continue
        if size < 1:
            raise IngestError(f"--shape {value.name}: sizes must be positive, got {size}")
        if isinstance(dim, int) and dim != size:
            raise IngestError(f"--shape {value.name}: got {list(sizes)}, but the input has {_written(value)}")
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None and named.setdefault(dim.value, size) != size:
            raise IngestError(
                f"--shape {value.name}: dimension {dim.value!r} is bound to {named[dim.value]} and {size}"
            )
        dims.append(size)
    value.shape = ir.Shape(dims)


def _one_size(name: str, binding: Binding) -> int:
    sizes = (binding,) if isinstance(binding, int) else tuple(binding)
    if len(sizes) != 1 or sizes[0] < 1:
        raise IngestError(f"--shape {name}: a dimension takes one positive size, got {list(sizes)}")
    return sizes[0]


def _bound(dim: int | ir.SymbolicDim, named: Mapping[str, int]) -> int | ir.SymbolicDim:
    return named.get(dim.value, dim) if isinstance(dim, ir.SymbolicDim) and dim.value is not None else dim


def _real_inputs(graph: ir.Model) -> list[ir.Value]:
    return [value for value in graph.graph.inputs if not value.is_initializer()]


def _symbols(value: ir.Value) -> list[str]:
    dims = value.shape if value.shape is not None else ()
    return [dim.value for dim in dims if isinstance(dim, ir.SymbolicDim) and dim.value is not None]


def _written(value: ir.Value) -> str:
    dims = value.shape if value.shape is not None else ()
    return "[" + ", ".join(str(d) if isinstance(d, int) else (d.value or "?") for d in dims) + "]"


def _choices(graph: ir.Model) -> str:
    return ", ".join(f"{value.name}{_written(value)}" for value in _real_inputs(graph))
