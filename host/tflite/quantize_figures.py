"""What a TFLite model costs: the figures that reports show and searches weigh."""

from __future__ import annotations

from collections.abc import Mapping

from edge.formats.profile import DeviceProfile
from host.figures import GraphFigures
from host.model import Tensors
from host.observe import Observed
from host.tflite.cost import operator_macs
from host.tflite.graph import TfliteOperator
from host.tflite.layers import Working, find_working
from host.tflite.model import TfliteModel
from host.tflite.observe import observe_tflite
from host.tflite.quantize_recipes import WEIGHTED
from host.tflite.reference import TfliteReference
from host.timing import runner_times

# As in `host.figures`: small models take more rounds in no time, and need them.
_ROUNDS = 15
_SMALL_ROUNDS = 151
_SMALL_SECONDS = 1e-3

_CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})
_EIGHT_BITS = frozenset({"INT8", "UINT8"})


def measure_tflite(model: TfliteModel, sample: Tensors, *, timed: bool) -> GraphFigures:
    """Take the figures of a model as it stands.

    As for ONNX graphs, what is computed from constants alone and conversions to and from quantized numbers are no
    work. Weights count as they are stored.

    Args:
        model: The model.
        sample: One input.
        timed: Whether to measure the latency, too: as a device runs it, on one thread.

    Raises:
        IngestError: LiteRT cannot run the model.
    """
    observed, _ = observe_tflite(model, [sample])
    working = find_working(model.graph)
    return GraphFigures(
        nodes=len(working.operators),
        macs=sum(_macs(model, operator, observed) for operator in working.operators),
        weight_bytes=sum(len(buffer.data) for buffer in model.tree.buffers if buffer.data is not None),
        peak_activation_bytes=_peak(model, working, observed),
        latency_seconds=_latency(model, sample) if timed else None,
    )


def predicted_seconds_tflite(model: TfliteModel, sample: Tensors, profile: DeviceProfile) -> float:
    """Predict the time of one run on a device that holds the whole model, as `predicted_seconds` does for ONNX.

    The sum over the operators of ``max(MACs / rate, bytes moved / memory rate)``. Weights of few bits that are unpacked
    at load count as what they are unpacked to.

    Args:
        model: The model.
        sample: One input; shapes are taken from a run.
        profile: Of the device.

    Raises:
        IngestError: LiteRT cannot run the model.
    """
    observed, _ = observe_tflite(model, [sample])
    seconds = 0.0
    for operator in find_working(model.graph).operators:
        rate = profile.macs_per_second.of("int8" if _is_int8(model, operator) else "float32")
        moved = sum(_size_bytes(model, index, observed) for index in (*operator.reads, *operator.makes))
        work = _macs(model, operator, observed) / rate
        seconds += max(work, moved / profile.memory_bytes_per_second)
    return seconds


def _is_int8(model: TfliteModel, operator: TfliteOperator) -> bool:
    """Whether an operator multiplies 8-bit numbers: of activations, or of weights that it reads as they are."""
    if operator.kind in _CONVERSIONS:
        return False
    types = [model.graph.tensors[index].type for index in operator.reads]
    return not _EIGHT_BITS.isdisjoint(types if operator.kind in WEIGHTED else types[:1])


def _macs(model: TfliteModel, operator: TfliteOperator, observed: Mapping[str, Observed]) -> int:
    return 0 if operator.kind in _CONVERSIONS else operator_macs(model, operator, observed)


def _size_bytes(model: TfliteModel, index: int, observed: Mapping[str, Observed]) -> int:
    tensor = model.graph.tensors[index]
    seen = observed.get(tensor.name)
    return seen.size_bytes if seen is not None and seen.dtype else tensor.size_bytes


def _peak(model: TfliteModel, working: Working, observed: Mapping[str, Observed]) -> int:
    """Largest sum of inputs and computed tensors alive at once, each from its maker to its last reader."""
    last = {index: place for place, operator in enumerate(working.operators) for index in operator.reads}
    last |= dict.fromkeys(model.graph.outputs, len(working.operators))
    alive = set(model.graph.inputs)
    peak = 0
    for place, operator in enumerate(working.operators):
        alive.update(operator.makes)
        peak = max(peak, sum(_size_bytes(model, index, observed) for index in alive))
        alive = {index for index in alive if last.get(index, -1) > place}
    return peak


def _latency(model: TfliteModel, sample: Tensors) -> float:
    runner = TfliteReference(model, mode="default")
    (time,) = runner_times({"": runner}, [sample], rounds=_ROUNDS)
    if time.seconds < _SMALL_SECONDS:
        (time,) = runner_times({"": runner}, [sample], rounds=_SMALL_ROUNDS)
    return time.seconds
