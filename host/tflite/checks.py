"""What every record of a `.tflite` tree must keep to, before its subgraphs mean anything.

The runtime trusts a file: it follows indices and lengths without a look.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edge.formats.tensor import DTYPES, MAX_RANK, MAX_TENSOR_BYTES, Array
from host.errors import IngestError, UnsupportedModelError
from host.tflite.sparse import check_sparsity
from host.tflite.vectors import items, items_of

TYPE_NAMES = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
"""Types by their number."""

DENSE = DTYPES.keys() - {"string"}
"""Types that shards hand to each other. Text is in TFLite bytes of any encoding, so it does not travel."""

BITS = {
    **{code: DTYPES[name.lower()].itemsize * 8 for code, name in TYPE_NAMES.items() if name.lower() in DENSE},
    schema.TensorType.INT4: 4,
    schema.TensorType.UINT4: 4,
    schema.TensorType.INT2: 2,
    schema.TensorType.BFLOAT16: 16,
    schema.TensorType.FLOAT8_E4M3FN: 8,
    schema.TensorType.FLOAT8_E5M2: 8,
    schema.TensorType.COMPLEX64: 64,
    schema.TensorType.COMPLEX128: 128,
}
"""Size of an element of each type; types without one have elements of no fixed size."""


def check_subgraph(tree: Any, graph: Any, kinds: Sequence[tuple[str, int, bool]], where: str) -> None:
    """Check one subgraph: its tensors, and that its operators read what is there and make what is not.

    Raises:
        IngestError: an index, a length or the order of the operators is wrong.
        UnsupportedModelError: a type that the schema does not know, or a variable with a value in the file.
    """
    count = len(graph.tensors)
    for index, tensor in enumerate(graph.tensors):
        _check_tensor(tree, tensor, count, f"{where}: tensor {index}")
    inputs, outputs = items(graph.inputs), items(graph.outputs)
    _check_indices((*inputs, *outputs), count, f"{where}: an input or output", least=0)
    if len(set(inputs)) != len(inputs):
        raise IngestError(f"{where}: a tensor is an input twice")
    graph.inputs, graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
    made = set(inputs)
    if held := [index for index in inputs if _holds_data(tree, graph.tensors[index])]:
        raise IngestError(f"{where}: tensor {held[0]} is an input and a constant")
    for index, operator in enumerate(graph.operators):
        place = f"{where}: operator {index}"
        _check_indices((operator.opcodeIndex,), len(kinds), f"{place}: its operator code", least=0)
        place = f"{place} ({kinds[operator.opcodeIndex][0][:80]})"
        reads, makes = items(operator.inputs), items(operator.outputs)
        _check_indices((*reads, *items(operator.intermediates)), count, f"{place}: an input", least=-1)
        _check_indices(makes, count, f"{place}: an output", least=0)
        for read in reads:
            if read >= 0 and read not in made and not _is_given(tree, graph.tensors[read]):
                raise IngestError(f"{place}: it reads tensor {read}, which nothing before it makes")
        if twice := [each for each in makes if each in made or _holds_data(tree, graph.tensors[each])]:
            raise IngestError(f"{place}: it makes tensor {twice[0]}, which is there already")
        made.update(makes)
    if lost := [index for index in outputs if index not in made and not _is_given(tree, graph.tensors[index])]:
        raise IngestError(f"{where}: output tensor {lost[0]} is made by no operator")


def _check_indices(values: Iterable[int], count: int, what: str, *, least: int) -> None:
    for value in values:
        if not least <= value < count:
            raise IngestError(f"{what} is {value}, out of {count}")


def _holds_data(tree: Any, tensor: Any) -> bool:
    return tree.buffers[tensor.buffer].data is not None


def _is_given(tree: Any, tensor: Any) -> bool:
    """Whether a tensor has a value before anything runs: a constant, a variable, or one without elements."""
    return bool(_holds_data(tree, tensor) or tensor.isVariable or 0 in items(tensor.shape))


def _check_tensor(tree: Any, tensor: Any, count: int, where: str) -> None:
    if not 0 <= tensor.buffer < len(tree.buffers):
        raise IngestError(f"{where}: buffer {tensor.buffer} of {len(tree.buffers)}")
    if tensor.type not in TYPE_NAMES:
        raise UnsupportedModelError(f"{where}: type {tensor.type} is newer than this release of ai-edge-litert")
    shape = items(tensor.shape)
    if len(shape) > MAX_RANK or any(dim < -1 for dim in (*shape, *items(tensor.shapeSignature))):
        raise IngestError(f"{where}: shape {list(shape)[:MAX_RANK]} of rank {len(shape)}")
    elements = math.prod(dim for dim in shape if dim >= 0)
    bits = BITS.get(tensor.type, 0)
    if elements * max(bits, 8) // 8 > MAX_TENSOR_BYTES:
        raise IngestError(f"{where}: shape {list(shape)} is more than {MAX_TENSOR_BYTES} bytes")
    _check_quantization(tensor, shape, count, where)
    data = tree.buffers[tensor.buffer].data
    if data is None:
        return
    if tensor.isVariable:
        raise UnsupportedModelError(f"{where}: a variable that begins with a value in the file")
    if tensor.sparsity is not None:
        check_sparsity(tensor, shape, len(data) * 8 // bits if bits else 0, where=where)
    elif tensor.type == schema.TensorType.STRING:
        _check_strings(data, elements, where)
    elif len(data) != (elements * bits + 7) // 8 or not bits:
        raise IngestError(f"{where}: {len(data)} bytes of data for {TYPE_NAMES[tensor.type]}{list(shape)}")


def _check_quantization(tensor: Any, shape: tuple[int, ...], count: int, where: str) -> None:
    quantization = tensor.quantization
    if quantization is None:
        return
    scales, zeros = items_of(quantization.scale), items_of(quantization.zeroPoint)
    axis = int(quantization.quantizedDimension)
    channels = shape[axis] if 0 <= axis < len(shape) else -1
    if len(scales) > 1 and len(scales) != channels:
        raise IngestError(f"{where}: {len(scales)} scales for axis {axis} of {list(shape)}")
    if len(zeros) not in (0, 1, len(scales)):
        raise IngestError(f"{where}: {len(zeros)} zero points for {len(scales)} scales")
    details = quantization.details
    for field in ("scales", "zeroPoints"):
        index = getattr(details, field, None)
        if index is not None and not isinstance(index, np.ndarray) and not -1 <= int(index) < count:
            raise IngestError(f"{where}: its blocks name tensor {index} of {count}")


def _check_strings(data: Array, elements: int, where: str) -> None:
    """A tensor of strings is their number, the offsets of each and of the end, and the letters, as int32 and bytes."""
    words = np.frombuffer(data.tobytes()[: len(data) // 4 * 4], "<i4")
    stated = int(words[0]) if len(words) else -1
    if stated != elements or len(words) < stated + 2:
        raise IngestError(f"{where}: {stated} strings where its shape says {elements}")
    offsets = words[1 : stated + 2]
    if int(offsets[0]) != 4 * (stated + 2) or np.any(np.diff(offsets) < 0) or int(offsets[-1]) != len(data):
        raise IngestError(f"{where}: the offsets of its strings do not ascend within its data")
