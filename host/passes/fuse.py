"""Onnxruntime's own fusions, offline, after quantization: the last change before the model is cut.

1. EXTENDED level, the highest that holds no processor's memory layout; signed 8-bit activations stay signed.
2. If that makes the weights grow or changes the answers, again without the fusions that compute new weights; if
   nothing helps, the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from host.model import Model, Tensors, from_bytes
from host.passes.transaction import NOTHING, OnPass, PassOutcome, Transactions
from host.reference import optimised_offline

_CHANGES_CONV_WEIGHTS = ("ConvBNFusion", "ConvMulFusion", "ConvAddFusion")

# Name of the attempt, and onnxruntime's names of what is left out.
ATTEMPTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("onnxruntime-extended", ()),
    ("onnxruntime-extended-without-folding", ("ConstantFolding",)),
    ("onnxruntime-extended-with-conv-weights-as-they-are", _CHANGES_CONV_WEIGHTS),
    ("onnxruntime-extended-with-all-weights-as-they-are", ("ConstantFolding", *_CHANGES_CONV_WEIGHTS)),
)


def fuse(
    model: Model, samples: Sequence[Tensors], *, on_pass: OnPass | None = None, measured: bool = False
) -> tuple[Model, tuple[PassOutcome, ...]]:
    """Fuse a model offline, as a checked transaction.

    Args:
        model: A normalised model, quantized or not; it is not changed.
        samples: Inputs for the checks; two sizes where the model is dynamic.
        on_pass: Called with the outcome of each attempt.
        measured: Whether to take the figures of the graph before and after each attempt, its latency included.

    Returns:
        The fused model, normalised again because fusion leaves new constants, and the outcomes.

    Raises:
        PassError: If the model does not run to begin with.
    """
    transactions = Transactions(model, samples, on_pass=on_pass, measured=measured)
    for name, disabled in ATTEMPTS:

        def fused(graph: ir.Model, disabled: tuple[str, ...] = disabled) -> ir.Model:
            return from_bytes(optimised_offline(graph, disabled=disabled))

        outcome = transactions.attempt(name, fused)
        if outcome.kept or outcome.reason == NOTHING:
            break
    return transactions.model, transactions.outcomes
