"""The report of a compression: what was measured, on which machine, and what came of the budget.

It is the content of a bundle's report attachment and what the terminal table, the HTML page and the trackers show.
Reading one needs neither onnx nor onnxruntime.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec

from edge.formats.version import check_version
from host.compress.judge.score import Score
from host.errors import InternalError, UserError
from host.figures import GraphFigures

FORMAT = "1.1"
"""Version of the report format that this release writes."""

REPORT_FILE = "report.json"
"""Name of a report that lies beside the recipe it is of."""

INFINITE = 1e300
"""Magnitude that stands for infinity: JSON has no number for it (the signal-to-noise of equal answers)."""

MAX_REPORT_BYTES = 64 * 1024 * 1024

Status = Literal["proven", "held", "broken", "failed"]

STATUS_MEANINGS: dict[Status, str] = {
    "proven": "the whole confidence interval lies within the budget",
    "held": "the measured figure lies within the budget, its interval reaches beyond: more samples would tell",
    "broken": "the measured figure lies outside the budget",
    "failed": "could not be made or run",
}

_Count = Annotated[int, msgspec.Meta(ge=0)]


class ReportError(UserError):
    """The report cannot be read or shown."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where the figures were measured.

    Attributes:
        processor: Its name as the system gives it.
        isa: Instruction sets that matter for 8-bit kernels, sorted, such as ``avx2`` or ``vnni``.
        onnxruntime: Version of the runtime; empty where it ran nothing.
        litert: The same of LiteRT.
        system: Operating system and processor architecture.
    """

    processor: str = ""
    isa: tuple[str, ...] = ()
    onnxruntime: str = ""
    litert: str = ""
    system: str = ""


class PassRow(msgspec.Struct, frozen=True, kw_only=True):
    """One pass over the graph.

    Attributes:
        name: Of the pass.
        kept: Whether its result is part of the model.
        reason: What it changed, or why it was dropped or did nothing.
        before: Cost of the graph that it got; None where it was not taken.
        after: Cost of its result.
    """

    name: str
    kept: bool
    reason: str
    before: GraphFigures | None = None
    after: GraphFigures | None = None


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The accuracy of the result, measured in one place.

    Attributes:
        where: How it was run: ``unfused`` (simulates quantization the same on every processor), ``as run here``, or
            another target such as ``aarch64, emulated``.
        dataset: What it was measured on.
        samples: How many inputs.
        scores: One for each metric.
    """

    where: str
    dataset: str
    samples: _Count
    scores: tuple[Score, ...]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to compress the model that was tried.

    Attributes:
        name: Short and unique in the report.
        summary: Its recipe in one line.
        size_bytes: Bytes of the weights; None where it failed.
        predicted_seconds: Latency of one run that the cost model gives for the profile.
        latency_seconds: Median CPU time of one run on one thread of this machine.
        latency_ratio: The same divided by the original's, measured side by side.
        scores: Its accuracy.
        judgement: What the budget says of it, for people.
        status: ``proven``: the whole interval lies within the budget; ``held``: the measured figure does; ``broken``:
            it does not; ``failed``: the candidate could not be made or run.
        on_front: Whether no other candidate is better in everything.
        chosen: Whether it is the result.
    """

    name: str
    summary: str
    size_bytes: _Count | None = None
    predicted_seconds: float | None = None
    latency_seconds: float | None = None
    latency_ratio: float | None = None
    scores: tuple[Score, ...] = ()
    judgement: str = ""
    status: Status
    on_front: bool = False
    chosen: bool = False


class NodeSensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """How much quantizing one node alone hurts.

    Attributes:
        node: Its name.
        operator: Its type.
        snr_db: Signal-to-noise ratio of the model's answers, in decibels; higher hurts less.
        precision: What the node got in the end, such as ``int8`` or ``float32``.
    """

    node: str
    operator: str
    snr_db: float
    precision: str


class TensorHistogram(msgspec.Struct, frozen=True, kw_only=True):
    """How the values of one tensor are spread, before and after.

    Attributes:
        tensor: Its name in the original.
        kind: ``weight`` or ``activation``.
        low: Lower edge of the first bin.
        high: Upper edge of the last; all bins are equally wide.
        before: Values in each bin, in the original.
        after: The same in the result, 8-bit numbers as the real values that they stand for; as many bins.
    """

    tensor: str
    kind: Literal["weight", "activation"]
    low: float
    high: float
    before: tuple[_Count, ...]
    after: tuple[_Count, ...]


class LayerTime(msgspec.Struct, frozen=True, kw_only=True):
    """Time of one layer in one run, on one thread of this machine.

    Attributes:
        node: Name of the tensor that it computes, or its own where it only converts one.
        operator: Its type in the original, where it exists there.
        seconds_before: In the original; None where it does not exist there.
        seconds_after: In the result; None where it was fused or removed.
    """

    node: str
    operator: str
    seconds_before: float | None = None
    seconds_after: float | None = None


class OperatorTime(msgspec.Struct, frozen=True, kw_only=True):
    """Time of all layers of one type in one run, on one thread of this machine.

    Attributes:
        operator: The type.
        seconds_before: In the original; None where it has none.
        seconds_after: In the result; None where it has none.
    """

    operator: str
    seconds_before: float | None = None
    seconds_after: float | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a compression did and what it cost.

    Attributes:
        format: Version of the format.
        model: Name.
        source_digest: ``sha256:…`` of the model's source.
        profile: Id of the device profile that it was compressed for.
        recipe: ``sha256:…`` of the decided recipe.
        machine: Where it was measured.
        passes: Every pass over the graph, in order.
        original: Cost of the model as it came.
        result: Cost of the model as it is cut.
        evaluations: Accuracy of the result, by the place where it was measured.
        budget: What was asked for, such as ``top1-drop<=0.005``; None without one.
        outcome: What came of it, in one sentence.
        candidates: What was tried, in the order of trying.
        sensitivity: Of the nodes that can be quantized, in graph order.
        histograms: Weights, then activations.
        layers: Time of single layers, in graph order.
        operators: Time of operator types, longest first.
        notes: What else the user should know.
    """

    format: str = FORMAT
    model: str = ""
    source_digest: str = ""
    profile: str = ""
    recipe: str = ""
    machine: Machine = Machine()
    passes: tuple[PassRow, ...] = ()
    original: GraphFigures | None = None
    result: GraphFigures | None = None
    evaluations: tuple[Evaluation, ...] = ()
    budget: str | None = None
    outcome: str = ""
    candidates: tuple[Candidate, ...] = ()
    sensitivity: tuple[NodeSensitivity, ...] = ()
    histograms: tuple[TensorHistogram, ...] = ()
    layers: tuple[LayerTime, ...] = ()
    operators: tuple[OperatorTime, ...] = ()
    notes: tuple[str, ...] = ()


def encode_report(report: Report) -> bytes:
    """Write a report as canonical JSON: UTF-8, keys sorted, no white space. Infinite figures become ±`INFINITE`.

    Raises:
        InternalError: If a figure is no number.
    """
    return msgspec.json.encode(_finite(msgspec.to_builtins(report), "report"), order="sorted")


def decode_report(data: bytes, *, where: str = "report") -> Report:
    """Read a report; what a 1.0 report says of fidelity becomes notes.

    Args:
        data: JSON.
        where: Name for messages.

    Raises:
        UnsupportedVersion: If it is of another major version.
        ReportError: If it is no report.
    """
    if len(data) > MAX_REPORT_BYTES:
        raise ReportError(f"{where}: {len(data)} bytes are more than {MAX_REPORT_BYTES}; this is no report")
    try:
        head = msgspec.json.decode(data, type=_Head)
        check_version(head.format, supported=FORMAT, what=where)
        report = msgspec.json.decode(data, type=Report)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReportError(f"{where}: not a compression report: {error}") from error
    if fault := _contradiction(report):
        raise ReportError(f"{where}: {fault}")
    old = (("unfused", head.fidelity_unfused), ("as run", head.fidelity_as_run))
    notes = tuple(f"Fidelity {place}: {fidelity}" for place, fidelity in old if fidelity is not None)
    return msgspec.structs.replace(report, notes=(*report.notes, *notes))


def sparsity_note(*, zeros: int, weights: int, stored_bytes: int, packed_bytes: int, pattern: str | None = None) -> str:
    """Say plainly what zeros among the weights are good for, and what not.

    Args:
        zeros: Weights that are zero.
        weights: All weights of the tensors that were pruned.
        stored_bytes: Bytes of the weights as a device holds them.
        packed_bytes: The same, compressed for transfer.
        pattern: ``"N:M"`` where the zeros follow one.
    """
    share = zeros / weights if weights else 0.0
    of_pattern = f" in the pattern {pattern}" if pattern else ""
    found = f"{zeros:,} of {weights:,} weights ({share:.1%}) are zero{of_pattern}"
    return (
        f"Unstructured sparsity saves transfer only: {found}, and {stored_bytes:,} bytes pack into {packed_bytes:,}. "
        "Devices multiply the zeros like any other number: latency, multiply-accumulates and memory are what they "
        "were. Prune channels or blocks to save those."
    )


class _OldFidelity(msgspec.Struct, frozen=True, kw_only=True):
    """How a 1.0 report says how close the answers are; without intervals, so no `Score`."""

    samples: int
    cosine: float
    worst_cosine: float
    max_relative_error: float | None
    top1_agreement: float | None = None

    def __str__(self) -> str:
        agreement = "" if self.top1_agreement is None else f", top-1 agreement {self.top1_agreement:.1%}"
        return f"cosine {self.cosine:.5f} (worst {self.worst_cosine:.5f}){agreement}, {self.samples} inputs"


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """The version, and what only a 1.0 report has."""

    format: str
    fidelity_unfused: _OldFidelity | None = None
    fidelity_as_run: _OldFidelity | None = None


def _finite(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            raise InternalError(f"{path} is not a number")
        return math.copysign(INFINITE, value)
    return value


def _contradiction(report: Report) -> str | None:
    for index, histogram in enumerate(report.histograms):
        if len(histogram.before) != len(histogram.after):
            return f"histograms[{index}]: {len(histogram.before)} bins before and {len(histogram.after)} after"
        if not histogram.before or histogram.low >= histogram.high:
            return f"histograms[{index}]: no bins between {histogram.low!r} and {histogram.high!r}"
    return None
