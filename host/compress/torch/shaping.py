"""Operators that move, cut and join elements, and those that reduce axes.

Each follows the operator's page in the ONNX specification, at every version of it. Sizes are plain numbers while the
graph runs, also under `torch.vmap`, which shows each operator the shape of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name by which everybody knows it
from torch import Tensor

from host.compress.torch.call import Call, Inputs, Operator, given, listed, optional

_ROUNDINGS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
}


def _reshape(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, wanted = given(inputs, 0), listed(given(inputs, 1)) or []
    if not call.integer("allowzero", 0):
        wanted = [x.shape[index] if size == 0 else size for index, size in enumerate(wanted)]
    return (x.reshape(wanted),)


def _flatten(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x = given(inputs, 0)
    axis = call.integer("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return (x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:])),)


def _transpose(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x = given(inputs, 0)
    order = call.integers("perm")
    return (x.permute(order if order is not None else tuple(reversed(range(x.ndim)))),)


def _axes(inputs: Inputs, call: Call, index: int = 1) -> list[int] | None:
    """Axes from the attribute of old versions or the input of new ones."""
    attribute = call.integers("axes")
    return list(attribute) if attribute is not None else listed(optional(inputs, index))


def _squeeze(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, axes = given(inputs, 0), _axes(inputs, call)
    if axes is None:
        axes = [axis for axis, size in enumerate(x.shape) if size == 1]
    gone = {axis % x.ndim for axis in axes}
    return (x.reshape([size for axis, size in enumerate(x.shape) if axis not in gone]),)


def _unsqueeze(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, axes = given(inputs, 0), _axes(inputs, call) or []
    rank = x.ndim + len(axes)
    new, sizes = {axis % rank for axis in axes}, iter(x.shape)
    return (x.reshape([1 if axis in new else next(sizes) for axis in range(rank)]),)


def _concat(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    return (torch.cat([given(inputs, index) for index in range(len(inputs))], call.integer("axis", 0)),)


def _split(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, axis = given(inputs, 0), call.integer("axis", 0)
    attribute = call.integers("split")
    sizes = list(attribute) if attribute is not None else listed(optional(inputs, 1))
    if sizes is None:
        part = math.ceil(x.shape[axis] / call.outputs)
        sizes = [min(part, x.shape[axis] - part * index) for index in range(call.outputs)]
    return torch.split(x, sizes, axis)


def _slice(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x = given(inputs, 0)
    old = call.opset < 10
    starts = list(call.integers("starts") or ()) if old else listed(given(inputs, 1)) or []
    ends = list(call.integers("ends") or ()) if old else listed(given(inputs, 2)) or []
    axes = (call.integers("axes") if old else listed(optional(inputs, 3))) or range(len(starts))
    steps = (None if old else listed(optional(inputs, 4))) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        if step > 0:
            first, last, _ = slice(start, end, step).indices(size)
            x = torch.narrow(x, axis, first, max(last - first, 0))
            if step > 1:
                x = _picked(x, axis, range(0, x.shape[axis], step))
        else:
            # An end before the first element means "up to and with it", which a slice writes as None.
            x = _picked(x, axis, range(size)[slice(start, None if end < -size else end, step)])
    return (x,)


def _picked(x: Tensor, axis: int, indices: Sequence[int] | np.ndarray) -> Tensor:
    return torch.index_select(x, axis, torch.as_tensor(np.asarray(indices, np.int64)))


def _gather(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, indices = given(inputs, 0), given(inputs, 1).long()
    axis = call.integer("axis", 0) % max(x.ndim, 1)
    return (x[(slice(None),) * axis + (indices,)],)


def _gather_elements(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, indices, axis = given(inputs, 0), given(inputs, 1).long(), call.integer("axis", 0)
    return (torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices)),)


def _pad(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x = given(inputs, 0)
    attribute = call.integers("pads")
    pads = list(attribute) if attribute is not None else listed(given(inputs, 1)) or []
    value = optional(inputs, 2)
    fill = call.number("value", 0.0) if value is None else float(value.reshape(()).item())
    axes = listed(optional(inputs, 3)) or list(range(len(pads) // 2))
    before = dict(zip(axes, pads[: len(axes)], strict=True))
    after = dict(zip(axes, pads[len(axes) :], strict=True))
    mode = call.text("mode", "constant")
    if mode == "constant":
        pairs = [(before.get(axis, 0), after.get(axis, 0)) for axis in range(x.ndim)]
        return (F.pad(x, [number for pair in reversed(pairs) for number in pair], value=fill),)
    for axis in axes:
        # Positions are padded, then looked up; negative pads cut.
        low, high = before[axis], after[axis]
        positions = np.arange(x.shape[axis])[max(-low, 0) : x.shape[axis] - max(-high, 0)]
        x = _picked(x, axis, np.pad(positions, (max(low, 0), max(high, 0)), mode=mode))  # type: ignore[call-overload]  # edge, reflect or wrap
    return (x,)


def _resize(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x = given(inputs, 0)
    mode = call.text("mode", "nearest")
    if mode not in ("nearest", "linear") or call.integer("antialias", 0) or call.text("aspect", "stretch") != "stretch":
        raise call.refused(f"mode {mode}")
    # Version 10 takes (x, scales), later ones (x, roi, scales, sizes).
    scales_at = 1 if call.op_type == "Upsample" or call.opset < 11 else 2
    scales, sizes = optional(inputs, scales_at), listed(optional(inputs, 3))
    axes = call.integers("axes") or tuple(range(x.ndim))
    factors = call.attributes.get("scales") if scales is None else scales.reshape(-1).tolist()
    for position, axis in enumerate(axes):
        have = x.shape[axis]
        if sizes:
            want, factor = sizes[position], sizes[position] / have
        else:
            factor = float((factors or [])[position])
            want = math.floor(have * factor)
        if want != have or factor != 1.0:
            x = _resized(x, axis, want, factor, call)
    return (x,)


def _resized(x: Tensor, axis: int, want: int, factor: float, call: Call) -> Tensor:
    have = x.shape[axis]
    at = _coordinates(want, have, factor, call)
    if call.text("mode", "nearest") == "nearest":
        old = call.op_type == "Upsample" or call.opset < 11
        rounded = _ROUNDINGS[call.text("nearest_mode", "floor" if old else "round_prefer_floor")](at)
        return _picked(x, axis, np.clip(rounded, 0, have - 1).astype(np.int64))
    at = np.clip(at, 0, have - 1)
    low = np.floor(at).astype(np.int64)
    shape = [1] * x.ndim
    shape[axis] = want
    share = torch.as_tensor((at - low).astype(np.float32)).reshape(shape)
    return _picked(x, axis, low) * (1 - share) + _picked(x, axis, np.minimum(low + 1, have - 1)) * share


def _coordinates(want: int, have: int, factor: float, call: Call) -> np.ndarray:
    """Where the ``want`` output positions lie among the ``have`` positions of the input."""
    at = np.arange(want, dtype=np.float64)
    old = call.op_type == "Upsample" or call.opset < 11
    mode = call.text("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    if mode == "asymmetric":
        return at / factor
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and want > 1):
        return (at + 0.5) / factor - 0.5
    if mode == "align_corners" and want > 1:
        return at * (have - 1) / (want - 1)
    if mode in ("pytorch_half_pixel", "align_corners"):
        return np.zeros_like(at)
    raise call.refused(f"coordinate_transformation_mode {mode}")


def _expand(inputs: Inputs, _: Call) -> Sequence[Tensor]:
    x, wanted = given(inputs, 0), listed(given(inputs, 1)) or []
    return (x.expand(np.broadcast_shapes(tuple(x.shape), tuple(wanted))),)


def _tile(inputs: Inputs, _: Call) -> Sequence[Tensor]:
    return (given(inputs, 0).repeat(listed(given(inputs, 1)) or []),)


def _shape(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    sizes = list(given(inputs, 0).shape)
    end = call.attributes.get("end")
    return (torch.tensor(sizes[call.integer("start", 0) : None if end is None else int(end)], dtype=torch.int64),)


def _size(inputs: Inputs, _: Call) -> Sequence[Tensor]:
    return (torch.tensor(given(inputs, 0).numel(), dtype=torch.int64),)


def _range(inputs: Inputs, _: Call) -> Sequence[Tensor]:
    start, limit, delta = (given(inputs, index) for index in range(3))
    return (torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype),)


def _constant_of_shape(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    value = call.attributes.get("value", torch.zeros(1))
    return (value.reshape(()).expand(listed(given(inputs, 0)) or []).clone(),)


def _constant(_: Inputs, call: Call) -> Sequence[Tensor]:
    value = next(iter(call.attributes.values()))
    if isinstance(value, str):
        raise call.refused("text")
    if isinstance(value, Tensor):
        return (value,)
    first = value[0] if isinstance(value, tuple) and value else value
    return (torch.tensor(value, dtype=torch.int64 if isinstance(first, int) else torch.float32),)


def _depth_to_space(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, block = given(inputs, 0), call.integer("blocksize", 1)
    n, c, h, w = x.shape
    if call.text("mode", "DCR") == "DCR":
        parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return (parts.reshape(n, c // block**2, h * block, w * block),)


def _space_to_depth(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, block = given(inputs, 0), call.integer("blocksize", 1)
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return (parts.reshape(n, c * block**2, h // block, w // block),)


def _trilu(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, k = given(inputs, 0), optional(inputs, 1)
    offset = 0 if k is None else int(k.item())
    return (torch.triu(x, offset) if call.integer("upper", 1) else torch.tril(x, offset),)


def _cumsum(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    if call.integer("exclusive", 0) or call.integer("reverse", 0):
        raise call.refused("exclusive or reverse")
    return (torch.cumsum(given(inputs, 0), int(given(inputs, 1).item())),)


def _argmax(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    if call.integer("select_last_index", 0):
        raise call.refused("select_last_index")
    return (torch.argmax(given(inputs, 0), call.integer("axis", 0), keepdim=bool(call.integer("keepdims", 1))),)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def operator(inputs: Inputs, call: Call) -> Sequence[Tensor]:
        x, axes = given(inputs, 0), _axes(inputs, call)
        if not axes and call.integer("noop_with_empty_axes", 0):
            return (x,)
        return (function(x, axes or list(range(x.ndim)), bool(call.integer("keepdims", 1))),)

    return operator


SHAPING: Mapping[str, Operator] = {
    "ArgMax": _argmax,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumsum,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "Range": _range,
    "ReduceL1": _reduced(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduced(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep).sqrt()),
    "ReduceLogSumExp": _reduced(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "ReduceMax": _reduced(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMean": _reduced(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceMin": _reduced(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduced(_product),
    "ReduceSum": _reduced(lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype)),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep)),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
