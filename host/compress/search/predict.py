"""How long a model should take on a kind of device, by the figures of its profile."""

from __future__ import annotations

import math

import onnx_ir as ir

from edge.formats.profile import DeviceProfile
from host.model import Model, Tensors
from host.observe import Observed, observe
from host.work import node_macs

_INT8 = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul"}
    | {"MatMulIntegerToFloat", "MatMulNBits", "QLinearAdd", "QLinearMul", "QLinearGlobalAveragePool"}
)


def predicted_seconds(model: Model, sample: Tensors, profile: DeviceProfile) -> float:
    """Predict the time of one run on a device that holds the whole model.

    The sum over the nodes of ``max(MACs / rate, bytes moved / memory rate)``, the roofline model (Williams, Waterman,
    Patterson: "Roofline", CACM 52(4), 2009) that the planner uses too; the rate is that of the node's type.

    Args:
        model: Fused, as it is cut.
        sample: One input; shapes are taken from a run.
        profile: Of the device.

    Raises:
        RuntimeRefusedError: onnxruntime cannot run the model.
    """
    graph = model.ir.graph
    observed = observe(model, [sample])

    def shape_of(name: str) -> tuple[int, ...]:
        if name in observed:
            return observed[name].shape
        value = graph.initializers.get(name)
        held = value.const_value if value is not None else None
        return tuple(int(size) for size in held.shape.numpy()) if held is not None else ()

    seconds = 0.0
    for node in graph:
        rate = profile.macs_per_second.of("int8" if node.op_type in _INT8 else "float32")
        moved = sum(_size_bytes(value, observed) for value in (*node.inputs, *node.outputs) if value is not None)
        macs = node_macs(node, shape_of)
        seconds += max(macs / rate, moved / profile.memory_bytes_per_second)
    return seconds if math.isfinite(seconds) else 0.0


def _size_bytes(value: ir.Value, observed: dict[str, Observed]) -> int:
    if value.const_value is not None:
        return int(value.const_value.nbytes)
    found = observed.get(str(value.name))
    return found.size_bytes if found is not None else 0
