"""What became of a pass, and the check that decides it.

Every pass is a transaction: its result is loaded in the runtime and compared, values and shapes, with the model that
it started from, on two input sizes where there are two. What fails is dropped by name, and the work goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from host.compare import compare
from host.errors import PassError, RuntimeRefusedError, UserError
from host.figures import GraphFigures, measure
from host.model import Model, Tensors, copied, distinct_sizes, node_count, to_bytes, weight_bytes
from host.passes.normalise import normalise
from host.reference import Reference, first_line

MAX_WEIGHT_GROWTH = 1.02
# Shape arithmetic that becomes constants; small models must not be held to two percent of nothing.
FREE_WEIGHT_BYTES = 64 * 1024

# fp32 passes reorder sums at most, which a steep sigmoid at the end may enlarge; half precision rounds after each.
TOLERANCE_FP32 = 5e-5
TOLERANCE_FP16 = 5e-3
# Fusing a quantized graph rounds once where the unfused one rounds twice, and full-range weights saturate on x86
# without VNNI though not on the device: judged by angle.
LEAST_COSINE_INT8 = 0.9

NOTHING = "nothing to do"

_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits"})


@dataclass(frozen=True, kw_only=True, slots=True)
class PassOutcome:
    """What one pass did.

    Attributes:
        name: Of the pass.
        kept: Whether its result is part of the model.
        reason: Why it was dropped or did nothing; what it changed otherwise.
        nodes_before: Number of nodes, subgraphs included.
        nodes_after: The same for its result; equal when it was dropped.
        weight_bytes_before: Bytes of all constants.
        weight_bytes_after: The same for its result; equal when it was dropped.
        before: Figures of the graph that it got, on the first sample; None where they were not asked for.
        after: The same for its result; equal to ``before`` when it was dropped or did nothing.
    """

    name: str
    kept: bool
    reason: str
    nodes_before: int
    nodes_after: int
    weight_bytes_before: int
    weight_bytes_after: int
    before: GraphFigures | None = None
    after: GraphFigures | None = None


OnPass = Callable[[PassOutcome], None]
GraphPass = Callable[[ir.Model], ir.Model | None]


class Transactions:
    """A model on its way through checked passes.

    Args:
        model: A normalised model.
        samples: Inputs; the first of each of two sizes is used.
        on_pass: Called after each pass.
        measured: Whether to take the figures of the model, and those of what each kept pass makes of it.

    Raises:
        PassError: If onnxruntime refuses the model as it comes.
    """

    def __init__(
        self, model: Model, samples: Sequence[Tensors], *, on_pass: OnPass | None = None, measured: bool = False
    ) -> None:
        self.model = model
        self._outcomes: list[PassOutcome] = []
        self._on_pass = on_pass
        self._samples = distinct_sizes(samples)
        self._bytes = to_bytes(model.ir)
        self._nodes, self._weight_bytes = node_count(model.ir), weight_bytes(model.ir)
        self._untouched: ir.Model | None = None
        halves = _halves(model.ir)
        self._tolerance = TOLERANCE_FP16 if halves else TOLERANCE_FP32
        # Half-precision weights that a fold makes single again have lost what they were for.
        self._free_bytes = 0 if halves else FREE_WEIGHT_BYTES
        self._least_cosine = LEAST_COSINE_INT8 if is_quantized(model.ir) else None
        try:
            self._expected = Reference(self._bytes).run_all(self._samples)
        except RuntimeRefusedError as error:
            raise PassError(f"model {model.name!r} does not run before any pass: {error}") from error
        self._figures = measure(model, self._samples[0], timed=True) if measured else None

    @property
    def outcomes(self) -> tuple[PassOutcome, ...]:
        """Of all passes tried, in order."""
        return tuple(self._outcomes)

    def attempt(self, name: str, graph_pass: GraphPass) -> PassOutcome:
        """Try one pass; keep its result if it computes the same and weighs no more.

        Args:
            name: For the report.
            graph_pass: Gets a copy that it may change, and returns the result, or None if there was nothing to do.
        """
        nodes, weights, before = self._nodes, self._weight_bytes, self._figures
        try:
            reason = self._tried(graph_pass)
        except UserError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - a pass is foreign code: the model goes on without it
            reason = f"failed: {type(error).__name__}: {first_line(error)}"
        outcome = PassOutcome(
            name=name,
            kept=not reason,
            reason=reason or f"{self._nodes - nodes:+d} nodes, {self._weight_bytes - weights:+d} weight bytes",
            nodes_before=nodes,
            nodes_after=self._nodes,
            weight_bytes_before=weights,
            weight_bytes_after=self._weight_bytes,
            before=before,
            after=self._figures,
        )
        self._outcomes.append(outcome)
        if self._on_pass is not None:
            self._on_pass(outcome)
        return outcome

    def _tried(self, graph_pass: GraphPass) -> str:
        """Run a pass and take its result; returns why not, or ``""``."""
        # A pass that found nothing to do leaves its copy to the next one.
        copy, self._untouched = self._untouched or copied(self.model.ir), None
        graph = graph_pass(copy)
        if graph is None:
            self._untouched = copy
            return NOTHING
        candidate = normalise(self.model.with_ir(graph))
        data = to_bytes(candidate.ir)
        if data == self._bytes:
            return NOTHING
        size_bytes = weight_bytes(candidate.ir)
        if reason := self._fault(data, size_bytes):
            return reason
        if self._figures is not None:
            self._figures = measure(candidate, self._samples[0], timed=True)
        self.model, self._bytes = candidate, data
        self._nodes, self._weight_bytes = node_count(candidate.ir), size_bytes
        return ""

    def _fault(self, data: bytes, weights_after: int) -> str:
        allowed = max(int(self._weight_bytes * MAX_WEIGHT_GROWTH), self._weight_bytes + self._free_bytes)
        if weights_after > allowed:
            return f"grows the weights from {self._weight_bytes} to {weights_after} bytes"
        try:
            found = Reference(data).run_all(self._samples)
        except RuntimeRefusedError as error:
            return str(error)
        for have, want in zip(found, self._expected, strict=True):
            if fault := compare(have, want, tolerance=self._tolerance, least_cosine=self._least_cosine):
                return fault
        return ""


def _halves(model: ir.Model) -> bool:
    return any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values())


def is_quantized(model: ir.Model) -> bool:
    """Whether some node works on, or makes, quantized numbers."""
    return any(
        node.op_type in _QUANTIZED or node.op_type.startswith("QLinear")
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
    )
