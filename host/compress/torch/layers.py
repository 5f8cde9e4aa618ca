"""Operators with weights, normalisations and pools.

Each follows the operator's page in the ONNX specification, at every version of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name by which everybody knows it
from torch import Tensor

from host.compress.torch.call import Call, Inputs, Operator, given, optional

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _spatial(call: Call, name: str, rank: int) -> tuple[int, ...]:
    found = call.integers(name)
    return found if found is not None else (1,) * rank


def _pads(
    call: Call, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """What is added before and after each spatial axis."""
    rank = len(sizes)
    auto = call.text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            wanted = (math.ceil(size / stride) - 1) * stride + (taps - 1) * dilation + 1 - size
            small, large = max(wanted, 0) // 2, max(wanted, 0) - max(wanted, 0) // 2
            pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
        return pads
    flat = call.integers("pads")
    if auto == "VALID" or flat is None:
        return [(0, 0)] * rank
    return list(zip(flat[:rank], flat[rank:], strict=True))


def _padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float) -> Tensor:
    if not any(before or after for before, after in pads):
        return x
    # Torch counts axes from the last.
    return F.pad(x, [number for pair in reversed(pads) for number in pair], value=value)


def _ranked(call: Call, x: Tensor) -> int:
    rank = x.ndim - 2
    if rank not in _CONV:
        raise call.refused(f"{rank} spatial axes")
    return rank


def _conv(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, weight, bias = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
    rank = _ranked(call, x)
    strides, dilations = _spatial(call, "strides", rank), _spatial(call, "dilations", rank)
    pads = _pads(call, x.shape[2:], weight.shape[2:], strides, dilations)
    even = all(before == after >= 0 for before, after in pads)
    return (
        _CONV[rank](
            x if even else _padded(x, pads, 0.0),
            weight,
            bias,
            strides,
            [before for before, _ in pads] if even else 0,
            dilations,
            call.integer("group", 1),
        ),
    )


def _conv_transpose(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, weight, bias = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
    rank = _ranked(call, x)
    strides, dilations = _spatial(call, "strides", rank), _spatial(call, "dilations", rank)
    extra = call.integers("output_padding") or (0,) * rank
    # The whole result first, then what the pads take away and the output padding adds.
    whole = _CONV_TRANSPOSE[rank](x, weight, None, strides, 0, 0, call.integer("group", 1), dilations)
    auto, shape = call.text("auto_pad", "NOTSET"), call.integers("output_shape")
    if shape is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        shape = tuple(size * stride for size, stride in zip(x.shape[2:], strides, strict=True))
    if shape is None:
        pads = _pads(call, x.shape[2:], weight.shape[2:], strides, dilations)
    else:
        pads = []
        for have, more, want in zip(whole.shape[2:], extra, shape[-rank:], strict=True):
            total = have + more - want
            half = total // 2
            pads.append((half, total - half) if auto == "SAME_UPPER" else (total - half, half))
    cut = [(-before, more - after) for (before, after), more in zip(pads, extra, strict=True)]
    y = _padded(whole, cut, 0.0)
    return (y if bias is None else y + bias.reshape(-1, *(1,) * rank),)


def _gemm(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    a, b, c = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
    a = a.mT if call.integer("transA", 0) else a
    b = b.mT if call.integer("transB", 0) else b
    product = call.number("alpha", 1.0) * (a @ b)
    return (product if c is None else product + call.number("beta", 1.0) * c,)


def _matmul(inputs: Inputs, _: Call) -> Sequence[Tensor]:
    return (torch.matmul(given(inputs, 0), given(inputs, 1)),)


def _einsum(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    return (torch.einsum(call.text("equation", ""), *[given(inputs, index) for index in range(len(inputs))]),)


def _batch_normalization(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, scale, bias, mean, variance = (given(inputs, index) for index in range(5))
    shape = (1, -1, *(1,) * (x.ndim - 2))
    # Written out, so that mean and variance may be anything that broadcasts, batched by vmap or not.
    factor = scale / torch.sqrt(variance + call.number("epsilon", 1e-5))
    return (x * factor.reshape(shape) + (bias - mean * factor).reshape(shape),)


def _instance_normalization(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, scale, bias = given(inputs, 0), given(inputs, 1), given(inputs, 2)
    return (F.instance_norm(x, weight=scale, bias=bias, eps=call.number("epsilon", 1e-5)),)


def _layer_normalization(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    if call.outputs > 1:
        raise call.refused("its mean as an output")
    x, scale, bias = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
    axes = list(range(call.integer("axis", -1) % x.ndim, x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    deviation = torch.sqrt((centred * centred).mean(axes, keepdim=True) + call.number("epsilon", 1e-5))
    y = centred / deviation * scale
    return (y if bias is None else y + bias,)


def _lrn(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, size = given(inputs, 0), call.integer("size", 1)
    before = (size - 1) // 2
    squares = (x * x).movedim(1, -1)
    sums = F.pad(squares, (before, size - 1 - before)).unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    factor = call.number("bias", 1.0) + call.number("alpha", 1e-4) / size * sums
    return (x / factor ** call.number("beta", 0.75),)


def _pool_pads(call: Call, x: Tensor, kernel: Sequence[int]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What a pool says is added to each axis, and what is added once a last partial window counts (ceil_mode)."""
    rank = len(kernel)
    strides, dilations = _spatial(call, "strides", rank), _spatial(call, "dilations", rank)
    said = _pads(call, x.shape[2:], kernel, strides, dilations)
    if not call.integer("ceil_mode", 0):
        return said, said
    full = []
    for size, taps, stride, dilation, (before, after) in zip(
        x.shape[2:], kernel, strides, dilations, said, strict=True
    ):
        reach = (taps - 1) * dilation + 1
        windows = math.ceil((size + before + after - reach) / stride) + 1
        if (windows - 1) * stride >= size + before:
            # A window that would start behind the input does not count.
            windows -= 1
        full.append((before, max((windows - 1) * stride + reach - size - before, after)))
    return said, full


def _max_pool(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    if call.outputs > 1:
        raise call.refused("indices as an output")
    x, kernel = given(inputs, 0), call.integers("kernel_shape") or ()
    rank = _ranked(call, x)
    _, pads = _pool_pads(call, x, kernel)
    strides, dilations = _spatial(call, "strides", rank), _spatial(call, "dilations", rank)
    return (_MAX_POOL[rank](_padded(x, pads, -math.inf), kernel, strides, 0, dilations),)


def _average_pool(inputs: Inputs, call: Call) -> Sequence[Tensor]:
    x, kernel = given(inputs, 0), call.integers("kernel_shape") or ()
    rank = _ranked(call, x)
    if any(dilation != 1 for dilation in _spatial(call, "dilations", rank)):
        raise call.refused("dilations")
    strides = _spatial(call, "strides", rank)
    said, full = _pool_pads(call, x, kernel)
    pool = _AVERAGE_POOL[rank]
    means = pool(_padded(x, full, 0.0), kernel, strides)
    if not any(before or after for before, after in full):
        return (means,)
    # The share of each window that counts: the input, and the pads where the node says so, but never more.
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    counted = _padded(ones, said, 1.0 if call.integer("count_include_pad", 0) else 0.0)
    rest = [(0, more - after) for (_, more), (_, after) in zip(full, said, strict=True)]
    return (means / pool(_padded(counted, rest, 0.0), kernel, strides),)


def _global(kind: str) -> Operator:
    def operator(inputs: Inputs, _: Call) -> Sequence[Tensor]:
        x = given(inputs, 0)
        axes = list(range(2, x.ndim))
        return (x.mean(axes, keepdim=True) if kind == "mean" else x.amax(axes, keepdim=True),)

    return operator


LAYERS: Mapping[str, Operator] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GlobalAveragePool": _global("mean"),
    "GlobalMaxPool": _global("max"),
    "InstanceNormalization": _instance_normalization,
    "LRN": _lrn,
    "LayerNormalization": _layer_normalization,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
}
