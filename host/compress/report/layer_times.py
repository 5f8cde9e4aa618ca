"""Match the nodes that onnxruntime timed in a model with those of what became of it.

Fusing, quantizing and memory layouts rename nodes; what they compute keeps its name, a suffix apart. So nodes are
matched by the tensor that they write.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from host.compress.report.records import LayerTime, OperatorTime
from host.model import Model
from host.timing import NodeTime

# onnxruntime's blocked layout names a node by its output and the layout; its channels-last pass counts its nodes.
_LAYOUT = re.compile(r"(_nchwc|_nhwc|_token_\d+)+$")
# Tensors of a quantized model, by the float tensor that they stand for.
_PAIR = re.compile(r"(_QuantizeLinear_(Output|Input)|_DequantizeLinear_Output)$")
# They convert what another node computes.
_CONVERTING = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear", "ReorderInput", "ReorderOutput", "Transpose"})


def layer_times(
    before: Model, times_before: Sequence[NodeTime], after: Model, times_after: Sequence[NodeTime]
) -> tuple[LayerTime, ...]:
    """Put the times of both models side by side.

    Args:
        before: The original.
        times_before: Of its nodes.
        after: What it became, fused.
        times_after: Of its nodes.

    Returns:
        One entry for each tensor that a node of either model writes, named by it, with the operator of the original;
        nodes that only convert what another computes, and those of the result alone, under their own names. In the
        order of the original, then of the result.
    """
    earlier, later = _by_tensor(before, times_before), _by_tensor(after, times_after)
    return tuple(
        LayerTime(
            node=name,
            operator=(earlier.get(name) or later[name]).operator,
            seconds_before=earlier[name].seconds if name in earlier else None,
            seconds_after=later[name].seconds if name in later else None,
        )
        for name in dict.fromkeys((*earlier, *later))
    )


def operator_times(layers: Sequence[LayerTime]) -> tuple[OperatorTime, ...]:
    """Sum layers by the operator that they were, so that a Conv that became a QLinearConv is still a Conv.

    Returns:
        The longest first.
    """
    sums: dict[str, list[float | None]] = {}
    for layer in layers:
        total = sums.setdefault(layer.operator, [None, None])
        for side, seconds in enumerate((layer.seconds_before, layer.seconds_after)):
            if seconds is not None:
                total[side] = (total[side] or 0.0) + seconds
    rows = (OperatorTime(operator=name, seconds_before=was, seconds_after=now) for name, (was, now) in sums.items())
    return tuple(
        sorted(rows, key=lambda row: (-max(row.seconds_before or 0.0, row.seconds_after or 0.0), row.operator))
    )


def _by_tensor(model: Model, times: Sequence[NodeTime]) -> dict[str, NodeTime]:
    written = {node.name: node.outputs[0].name for node in model.ir.graph if node.outputs}
    found: dict[str, NodeTime] = {}
    for time in times:
        plain = _LAYOUT.sub("", time.name)
        tensor = written.get(time.name) or written.get(plain) or plain
        name = time.name if time.operator in _CONVERTING else _PAIR.sub("", tensor)
        found[name if name not in found else time.name] = time
    return found
